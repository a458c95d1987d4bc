"""Which split count to freeze into each captured CUDA graph, for the batches of a serving trace.

A captured graph replays the count it was captured with, chosen for the longest context that the
server allows. Batches are as many requests as the bucket holds; graph padding is not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from leansim.answers import Tabled
from leansim.errors import PartitionerError, WorkloadError
from leansim.partitioners.registry import Partitioner
from leansim.points.asked import asked, named
from leansim.points.point import Point, resolve
from leansim.specs.traces import find_trace, read_trace
from leansim.study.bench import Bench
from leansim.study.rules import heeds_count, told
from leansim.sweeps.spreading import Progress, spread

SIZES: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COUNTS: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
BATCHES = 20


@dataclass(frozen=True)
class Frozen:
    """A frozen count, or another choice, over the sampled batches.

    Regret is latency over that of the best frozen count for the same batch: its mean and largest.
    """

    choice: str
    num_splits: int | None
    mean_regret: float
    worst_regret: float
    mean_latency_s: float


@dataclass(frozen=True, eq=False)
class Bucket:
    """What to freeze for one batch size: the choices, those that are best, and what is done now.

    `expected` has the least mean regret, `worst_case` the least largest; `captured` is what the
    kernel's own rule takes at capture, `eager` the rule run anew for each batch. `samples` are the
    latencies, s, of each batch by choice; `max_context_len` is what captures are told.
    """

    batch_size: int
    max_context_len: int
    counts: tuple[Frozen, ...]
    captured: Frozen
    eager: Frozen
    samples: tuple[dict[str, float], ...]

    @property
    def expected(self) -> Frozen:
        """The count of least mean regret, the smallest of equals."""
        return min(self.counts, key=lambda one: (one.mean_regret, one.num_splits))

    @property
    def worst_case(self) -> Frozen:
        """The count of least worst-case regret, the smallest of equals."""
        return min(self.counts, key=lambda one: (one.worst_regret, one.num_splits))

    def row(self) -> dict[str, Any]:
        """What a table shows."""
        expected, worst = self.expected, self.worst_case
        return {
            "bucket": self.batch_size,
            "batches": len(self.samples),
            "freeze": expected.num_splits,
            "regret": f"{expected.mean_regret:.3f}",
            "worst": f"{expected.worst_regret:.3f}",
            "freeze_for_worst": worst.num_splits,
            "its_regret": f"{worst.mean_regret:.3f}",
            "its_worst": f"{worst.worst_regret:.3f}",
            "captured_now": self.captured.num_splits,
            "now_regret": f"{self.captured.mean_regret:.3f}",
            "now_worst": f"{self.captured.worst_regret:.3f}",
            "unsplit_regret": f"{self.counts[0].mean_regret:.3f}" if self._has_unsplit else None,
            "eager_regret": f"{self.eager.mean_regret:.3f}",
        }

    @property
    def _has_unsplit(self) -> bool:
        return self.counts[0].num_splits == 1

    def records(self) -> list[dict[str, Any]]:
        """One flat record per choice, in seconds."""
        return [
            {
                "bucket": self.batch_size,
                "batches": len(self.samples),
                "choice": one.choice,
                "num_splits": one.num_splits,
                "mean_regret": one.mean_regret,
                "worst_regret": one.worst_regret,
                "mean_latency_s": one.mean_latency_s,
                "best_expected": one is self.expected,
                "best_worst_case": one is self.worst_case,
            }
            for one in (*self.counts, self.captured, self.eager)
        ]


@dataclass(frozen=True, eq=False)
class BucketStudy(Tabled):
    """What to freeze for each bucket of a point's device, kernel and trace."""

    point: Point
    buckets: tuple[Bucket, ...]

    @property
    def title(self) -> str:
        """Device, kernel and trace."""
        return ", ".join([named(self.point), str(self.point.trace), *asked(self.point)])

    def rows(self) -> list[dict[str, Any]]:
        """One row per bucket."""
        return [bucket.row() for bucket in self.buckets]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per bucket and choice, in seconds."""
        point = {"device": self.point.device, "policy": self.point.policy, "trace": self.point.trace}
        return [{**point, **record} for bucket in self.buckets for record in bucket.records()]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """The rows under device, kernel and trace."""
        return {self.title: self.rows()}

    def notes(self) -> list[str]:
        """What captures are told, and what regret is over."""
        told = f"{self.buckets[0].max_context_len:,}"
        return [f"{self.title}: captured for {told} tokens; regrets are over the best frozen count"]


def buckets(
    point: Point,
    sizes: Sequence[int] = SIZES,
    batches: int = BATCHES,
    counts: Sequence[int] = COUNTS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> BucketStudy:
    """Find the count to freeze for each bucket of a kernel that can be told one.

    `point` names device, kernel, shape and trace; `batches` batches of each size are drawn with seeds
    from `point.seed` on. Graphs are captured for `point.max_context_len`, by default the power of two
    that holds the trace's longest context. `jobs` processes share the batches. Raises
    `WorkloadError` without a trace, `PartitionerError` for a kernel that takes no count.
    """
    if point.trace is None:
        raise WorkloadError("buckets: found no trace; wanted one to draw batches from")
    if not sizes or not counts or batches < 1:
        raise WorkloadError("buckets: wanted at least one bucket, one count and one batch")
    point = point.model_copy(update={"max_context_len": _captured_len(point)})
    told_counts = usable_counts(point, min(sizes), counts)
    tasks = [
        point.model_copy(update={"batch_size": size, "seed": point.seed + i})
        for size in sizes
        for i in range(batches)
    ]
    samples = list(spread(partial(sampled, counts=told_counts), tasks, jobs, progress))
    parts = [samples[i : i + batches] for i in range(0, len(samples), batches)]
    longest = point.max_context_len or 0
    found = [_bucket(size, longest, part, told_counts) for size, part in zip(sizes, parts, strict=True)]
    return BucketStudy(point, tuple(found))


def usable_counts(point: Point, batch_size: int, counts: Sequence[int]) -> tuple[int, ...]:
    """The counts that a point's partitioner can be told. Raises `PartitionerError` if it takes none."""
    resolved = resolve(point.model_copy(update={"batch_size": batch_size}))
    if not heeds_count(resolved):
        raise PartitionerError(
            f"{point.policy} takes no number of splits for this workload; wanted a kernel that does, "
            "such as vllm_fa3, or flash_decoding for grouped heads"
        )
    usable = []
    for count in sorted(set(counts)):
        try:
            told(resolved.partitioner, count)
        except PartitionerError:
            continue
        usable.append(count)
    if not usable:
        raise PartitionerError(f"{point.policy} can be told none of the counts {sorted(set(counts))}")
    return tuple(usable)


def sampled(point: Point, counts: Sequence[int]) -> tuple[dict[str, float], int]:
    """Latency, s, of one batch by choice (`1`, ..., `captured`, `eager`), and the count captured."""
    bench = Bench(resolve(point))
    latencies: dict[str, float] = {}
    for count in counts:
        partitioner: Partitioner | None = told(bench.own, count)
        assert partitioner is not None
        latencies[str(count)] = bench.latency_s(partitioner)
    now = bench.simulation(bench.own)
    latencies["captured"] = now.result.latency_s
    eager = Bench(resolve(point.model_copy(update={"max_context_len": None})))
    latencies["eager"] = eager.latency_s(eager.own)
    return latencies, int(now.schedule.num_splits or 1)


def _captured_len(point: Point) -> int:
    """The longest context a capture is told of."""
    if point.max_context_len is not None:
        return point.max_context_len
    assert point.trace is not None
    trace = read_trace(find_trace(point.trace))
    longest = int((trace.input_len + trace.output_len).max() * point.context_scale)
    return int(2 ** max(0, (longest - 1).bit_length()))


def _bucket(
    size: int, longest: int, samples: Sequence[tuple[dict[str, float], int]], counts: Sequence[int]
) -> Bucket:
    latencies = [sample for sample, _ in samples]
    best = [min(sample[str(count)] for count in counts) for sample in latencies]

    def frozen(choice: str, num_splits: int | None) -> Frozen:
        mine = [sample[choice] for sample in latencies]
        regrets = [latency / least for latency, least in zip(mine, best, strict=True)]
        mean_s = sum(mine) / len(mine)
        return Frozen(choice, num_splits, sum(regrets) / len(regrets), max(regrets), mean_s)

    captured = {count for _, count in samples}
    return Bucket(
        size,
        longest,
        tuple(frozen(str(count), count) for count in counts),
        frozen("captured", captured.pop() if len(captured) == 1 else None),
        frozen("eager", None),
        tuple(latencies),
    )
