"""Latency against the number of splits, where it stops mattering, and what each split rule picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.answers import Tabled
from leansim.engine.execute import Engine
from leansim.errors import LeansimError, PartitionerError
from leansim.partitioners.registry import Partitioner
from leansim.points.asked import call_columns, titled
from leansim.points.point import Point, Resolved, resolve
from leansim.specs import evidence
from leansim.study.bench import Bench
from leansim.study.oracle import Policy, described, distinct_counts, useful_counts
from leansim.study.rules import chosen_rules, heeds_count, own_rule, told
from leansim.study.search import cheapest

_MOST_OF_A_CALL = 128  # counts tried of a call that is told of a longer context than there is
KNEE = 0.05  # the knee is the fewest splits within this share of the best


@dataclass(frozen=True, eq=False)
class SplitCurve(Tabled):
    """Latency, s, at each of the counts tried, and the rules that were run on the same kernel.

    `own` says whether the counts were told to the point's own partitioner, which may take one for the
    most that a request gets; else every request is cut into as many segments of its own
    (`per_request_splits`).
    """

    resolved: Resolved
    own: bool
    counts: tuple[int, ...]
    latencies_s: tuple[float, ...]
    picks: tuple[Policy, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def best_s(self) -> float:
        """The least latency of any count."""
        return min(self.latencies_s)

    @property
    def best(self) -> int:
        """The count of least latency."""
        return self.counts[self.latencies_s.index(self.best_s)]

    @property
    def knee(self) -> int:
        """The fewest splits that are within 5% of the best."""
        limit = (1 + KNEE) * self.best_s
        within = zip(self.counts, self.latencies_s, strict=True)
        return next(count for count, latency in within if latency <= limit)

    def rows(self) -> list[dict[str, Any]]:
        """One row per count: latency over the best's, and the rules that pick it for every request."""
        rows = []
        for count, latency in zip(self.counts, self.latencies_s, strict=True):
            marks = {"best": count == self.best, "knee": count == self.knee}
            pickers = [pick.label for pick in self.picks if set(pick.splits) == {count}]
            rows.append(
                {
                    "num_splits": count,
                    "latency_us": f"{latency * 1e6:.2f}",
                    "over_best": f"{latency / self.best_s:.3f}",
                    "mark": " ".join(mark for mark, true in marks.items() if true) or None,
                    "picked_by": ", ".join(pickers) or None,
                }
            )
        return rows

    def pick_rows(self) -> list[dict[str, Any]]:
        """One row per rule: what it picks, and its latency over that of the best count."""
        ranked = sorted(self.picks, key=lambda pick: pick.latency_s)
        return [{**pick.row(), "over_best": f"{pick.latency_s / self.best_s:.3f}"} for pick in ranked]

    def records(self) -> list[dict[str, Any]]:
        """Flat records for other programs, in seconds: of kind `count`, then of kind `rule`."""
        asked_for, load = self.resolved.point, self.resolved.workload
        point = {"device": asked_for.device, "kernel": asked_for.kernel, **call_columns(asked_for, load)}
        counts: list[dict[str, Any]] = [
            {"kind": "count", "num_splits": count, "latency_s": latency}
            for count, latency in zip(self.counts, self.latencies_s, strict=True)
        ]
        rules = [{"kind": "rule", **pick.record()} for pick in self.picks]
        every = [*counts, *rules]
        return [{**point, **record, "over_best": record["latency_s"] / self.best_s} for record in every]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """The counts that are the best, the knee or a rule's pick; then the rules."""
        told = [row for row in self.rows() if row["mark"] or row["picked_by"]]
        title = titled(self.resolved)
        return {title: told, f"{title}: split rules": self.pick_rows()}

    def notes(self) -> list[str]:
        """The note, and what the times rest on."""
        rest = evidence.told([(self.resolved.point.policy, self.resolved.grounds)])
        return [self.note(), rest]

    def note(self) -> str:
        """What was varied, the best count and the knee, in a sentence."""
        point = self.resolved.point
        rule = own_rule(self.resolved).name
        how = f"told to {rule}" if self.own else "segments of every request's own tiles"
        knee = self.latencies_s[self.counts.index(self.knee)]
        return (
            f"{point.device} {point.policy}: {self.best} splits are best ({self.best_s * 1e6:.2f} us; "
            f"counts: {how}); the knee, within {KNEE:.0%} of it, is at {self.knee} ({knee * 1e6:.2f} us)"
        )


def split_curve(
    point: Point,
    rules: Sequence[str] = (),
    counts: Sequence[int] = (),
    engine: Engine = "auto",
) -> SplitCurve:
    """Simulate a point at many split counts, and every split rule on the same kernel.

    `counts` are tried as given; by default those of `oracle.best_uniform`: all if they are at most 64,
    else steps of a fixed ratio, refined about the best of them. Raises a `LeansimError` where the
    kernel cannot run the workload.
    """
    bench = Bench(resolve(point), engine)
    own = heeds_count(bench.resolved)
    latencies = _given(bench, own, counts) if counts else _searched(bench, own)
    picks, refused = [], []
    mine = own_rule(bench.resolved)
    others = chosen_rules(bench.resolved, rules)
    for rule in (mine, *(rule for rule in others if rule.partitioner != mine.partitioner)):
        try:
            picks.append(described(bench, rule))
        except LeansimError as error:
            refused.append((rule.name, str(error)))
    tried = tuple(sorted(latencies))
    curve = tuple(latencies[count] for count in tried)
    return SplitCurve(bench.resolved, own, tried, curve, tuple(picks), tuple(refused))


def _cut(bench: Bench, own: bool, count: int) -> Partitioner:
    partitioner = told(bench.own, count) if own else None
    return partitioner or bench.splits(count)


def _given(bench: Bench, own: bool, counts: Sequence[int]) -> dict[int, float]:
    return {count: bench.latency_s(_cut(bench, own, count)) for count in counts}


def _searched(bench: Bench, own: bool) -> dict[int, float]:
    """Latencies of enough counts to draw, the best among them."""
    counts = set(useful_counts(bench))
    if own and bench.grid.call_kv_tiles > bench.grid.num_kv_tiles.max():  # borders may follow the call
        longest = np.array([bench.grid.call_kv_tiles])
        counts |= {count for count in distinct_counts(longest) if count <= _MOST_OF_A_CALL}
    candidates = [count for count in sorted(counts) if _allowed(bench, own, count)]
    latencies: dict[int, float] = {}

    def cost(count: int, below: float = 0.0) -> float:  # noqa: ARG001 - drawn however slow
        latencies[count] = bench.latency_s(_cut(bench, own, count))
        return latencies[count]

    cheapest(candidates, cost, max(1, round(bench.grid.slots / bench.grid.num_output_tiles)))
    return latencies


def _allowed(bench: Bench, own: bool, count: int) -> bool:
    try:
        _cut(bench, own, count)
    except PartitionerError:
        return False
    return True
