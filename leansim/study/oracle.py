"""The best split counts there are for a workload, by search over the simulator, and what rules lose.

Split counts of a batch are searched on one kernel, at its own tiles and prices; every split rule is
run on the same kernel. So a regret is the rule's alone, not another kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.answers import Tabled
from leansim.arrays import IntArray
from leansim.engine.execute import Engine
from leansim.errors import LeansimError
from leansim.lazy import cached_property
from leansim.partitioners.per_request_splits import (
    PerRequestSplits,
    filled_segments,
    tiles_of_request,
)
from leansim.partitioners.registry import Partitioner
from leansim.points.asked import call_columns, titled
from leansim.points.point import Point, Resolved, resolve
from leansim.specs import evidence
from leansim.study.bench import Bench
from leansim.study.rules import Rule, chosen_rules, own_rule
from leansim.study.search import cheapest
from leansim.timing.bound import Bound

UNIFORM, PER_REQUEST = "best uniform", "best per request"
BUDGET = 200  # simulations of the search over per-request counts
_MOST_WAVES = 128
_ALL_COUNTS = 4096  # counts and segment lengths up to here are all candidates; beyond, one in a hundred


@dataclass(frozen=True)
class Policy:
    """A schedule that was simulated: by a rule, or found by search.

    `num_splits` is what the rule's host code reports, `splits` what each request is really cut into;
    `used_by` names kernels that run the rule.
    """

    name: str
    partitioner: Partitioner
    num_splits: int
    splits: tuple[int, ...]
    num_ctas: int
    latency_s: float
    sm_busy_fraction: float
    used_by: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The kernels that run the rule, or its own name where none does."""
        return ", ".join(self.used_by) or self.name

    @property
    def cuts(self) -> str:
        """`8`, or the range over requests that are cut into different numbers."""
        low, high = min(self.splits), max(self.splits)
        return str(low) if low == high else f"{low}-{high} (mean {np.mean(self.splits):.1f})"

    def row(self) -> dict[str, Any]:
        """What tables show of a policy, in microseconds."""
        return {
            "policy": self.label,
            "num_splits": self.num_splits,
            "cuts": self.cuts,
            "ctas": self.num_ctas,
            "sm_busy": f"{self.sm_busy_fraction:.0%}",
            "latency_us": f"{self.latency_s * 1e6:.2f}",
        }

    def record(self) -> dict[str, Any]:
        """What other programs get of a policy, in seconds."""
        return {
            "policy": self.name,
            "used_by": " ".join(self.used_by),
            "num_splits": self.num_splits,
            "splits": " ".join(map(str, self.splits)),
            "num_ctas": self.num_ctas,
            "sm_busy_fraction": self.sm_busy_fraction,
            "latency_s": self.latency_s,
        }


@dataclass(frozen=True, eq=False)
class Oracle(Tabled):
    """What was found for a point. No policy here is faster than `best`, and none is below `bound`.

    `policies` are rules, the point's own first; `refused` those that do not take the workload, with
    why. `per_request` is None where all requests have as many KV tiles.
    """

    resolved: Resolved
    uniform: Policy
    per_request: Policy | None
    policies: tuple[Policy, ...]
    refused: tuple[tuple[str, str], ...]
    bound: Bound
    simulations: int

    @property
    def found(self) -> Policy:
        """The best that the search over split counts found."""
        if self.per_request is None or self.uniform.latency_s <= self.per_request.latency_s:
            return self.uniform
        return self.per_request

    @cached_property
    def best(self) -> Policy:
        """The fastest of all: found by search or a rule's; the search's of equals."""
        return min((self.found, *self.policies), key=lambda policy: policy.latency_s)

    @property
    def own(self) -> Policy | None:
        """The point's own rule, if it takes the workload."""
        mine = self.resolved.partitioner
        return next((policy for policy in self.policies if policy.partitioner == mine), None)

    def regret(self, policy: Policy) -> float:
        """Latency of a policy over that of the best, at least 1."""
        return policy.latency_s / self.best.latency_s

    @property
    def ranked(self) -> list[Policy]:
        """Everything that was simulated in full, the fastest first; searches before rules of equals."""
        searched = [policy for policy in (self.uniform, self.per_request) if policy is not None]
        return sorted((*searched, *self.policies), key=lambda policy: policy.latency_s)

    def rows(self) -> list[dict[str, Any]]:
        """One row per policy, the fastest first, and the bound last."""
        rows = [{**policy.row(), "regret": f"{self.regret(policy):.3f}"} for policy in self.ranked]
        bound = f"{self.bound.latency_s * 1e6:.2f}"
        share = f"{self.bound.latency_s / self.best.latency_s:.3f}"
        return [*rows, {"policy": f"bound ({self.bound.cause})", "latency_us": bound, "regret": share}]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per policy for other programs; the bound and its cause in each."""
        asked_for, load = self.resolved.point, self.resolved.workload
        point = {"device": asked_for.device, "kernel": asked_for.kernel, **call_columns(asked_for, load)}
        bound = {"bound_s": self.bound.latency_s, "bound_cause": self.bound.cause}
        return [
            {**point, **policy.record(), "regret": self.regret(policy), **bound}
            for policy in self.ranked
        ]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """The rows under device, kernel and workload."""
        return {titled(self.resolved): self.rows()}

    def notes(self) -> list[str]:
        """What was searched, how the point's own rule does, and who refused."""
        own, best, point = self.own, self.best, self.resolved.point
        notes = [
            f"{self.simulations} simulations; {self.found.label} of split counts: {self.found.cuts}, "
            f"{self.found.latency_s * 1e6:.2f} us; fastest of all: {best.label}"
        ]
        if own is not None:
            lost = f"{self.regret(own) - 1:.1%}" if own is not best else "nothing"
            notes.append(f"its own rule cuts {own.cuts} and loses {lost}")
        if self.refused:
            notes.append(f"do not take this: {', '.join(name for name, _ in self.refused)}")
        rest = evidence.told([(point.policy, self.resolved.grounds)])
        return [*(f"{point.device} {point.policy}: {note}" for note in notes), rest]


def oracle(
    point: Point,
    rules: Sequence[str] = (),
    max_splits: int | None = None,
    budget: int = BUDGET,
    engine: Engine = "auto",
) -> Oracle:
    """Search the best split counts of a point's workload and run split rules beside them.

    `rules` names partitioners or kernels whose rule is meant (none: every known one); the point's own
    is always run. `max_splits` limits what the search tries, `budget` its simulations of ragged
    batches. Raises a `LeansimError` where the kernel cannot run the workload.
    """
    bench = Bench(resolve(point), engine)
    own = own_rule(bench.resolved)
    others = chosen_rules(bench.resolved, rules)
    run = (own, *(rule for rule in others if rule.partitioner != own.partitioner))
    return search(bench, run, max_splits, budget)


def search(
    bench: Bench, rules: Sequence[Rule] = (), max_splits: int | None = None, budget: int = BUDGET
) -> Oracle:
    """Do what `oracle` does on a bench, running the rules given and no others."""
    before = bench.simulations
    best = best_uniform(bench, max_splits)
    per_request = None
    if len(np.unique(tiles_of_request(bench.grid))) > 1:
        counts = best_per_request(bench, best, max_splits, budget)
        per_request = described(bench, Rule(PER_REQUEST, counts))
    policies, refused = [], []
    for rule in rules:
        try:
            policies.append(described(bench, rule))
        except LeansimError as error:
            refused.append((rule.name, str(error)))
    return Oracle(
        bench.resolved,
        described(bench, Rule(UNIFORM, bench.splits(best))),
        per_request,
        tuple(policies),
        tuple(refused),
        bench.bound(),
        bench.simulations - before,
    )


def described(bench: Bench, rule: Rule) -> Policy:
    """Simulate a rule. Raises a `LeansimError` where it refuses the workload."""
    simulation = bench.simulation(rule.partitioner)
    return Policy(
        rule.name,
        rule.partitioner,
        simulation.schedule.num_splits or 1,
        tuple(simulation.schedule.splits_of_request.tolist()),
        simulation.schedule.num_ctas,
        simulation.result.latency_s,
        simulation.metrics.sm_busy_fraction,
        rule.used_by,
    )


# -- one count for all requests ------------------------------------------------------------------


def best_uniform(bench: Bench, max_splits: int | None = None) -> int:
    """The one split count for all requests that is fastest, the smallest of equals.

    Counts that cut every request just as a smaller one does are passed over, and those that make more
    than 128 waves. Up to 64 that are left are all tried; of more, what `search.cheapest` says.
    """
    counts = useful_counts(bench, max_splits)
    guess = max(1, round(bench.grid.slots / bench.grid.num_output_tiles))
    return cheapest(counts, lambda count, below: bench.latency_s(bench.splits(count), below), guess)


def distinct_counts(tiles: IntArray, max_splits: int | None = None) -> list[int]:
    """Rising split counts, up to the KV tiles, that each cut some request as no smaller one does.

    Above 4,096 about one in a hundred.
    """
    counts = _candidates(min(int(tiles.max()), max_splits or int(tiles.max())))
    segments = filled_segments(np.unique(tiles), counts[:, None])
    new = np.r_[True, np.any(segments[1:] != segments[:-1], axis=1)]
    chosen: list[int] = counts[new].tolist()
    return chosen


def useful_counts(bench: Bench, max_splits: int | None = None) -> list[int]:
    """Distinct counts that make at most 128 waves of CTAs, or as many as no split makes.

    With so many waves there is less than 1% of a slot's time left to be won by even more.
    """
    tiles = tiles_of_request(bench.grid)
    counts = np.array(distinct_counts(tiles, max_splits))
    lengths, requests = np.unique(tiles, return_counts=True)
    segments = filled_segments(lengths, counts[:, None]) @ requests
    chosen: list[int] = counts[segments <= max(_most_segments(bench), len(tiles))].tolist()
    return chosen


def _most_segments(bench: Bench) -> int:
    """Segments of a head and row block, over all requests, that make `_MOST_WAVES`."""
    return _MOST_WAVES * bench.grid.slots // (bench.grid.heads * bench.grid.row_blocks)


def _candidates(most: int) -> IntArray:
    """1 to `most`, thinned out above 4,096."""
    every = np.arange(1, min(most, _ALL_COUNTS) + 1, dtype=np.int64)
    steps = max(0, int(np.ceil(np.log(most / _ALL_COUNTS) / np.log(1.01)))) if most > _ALL_COUNTS else 0
    beyond = np.rint(_ALL_COUNTS * 1.01 ** np.arange(1, steps + 1)).astype(np.int64)
    return np.unique(np.r_[every, np.minimum(beyond, most)])


# -- a count for each request --------------------------------------------------------------------


def best_per_request(
    bench: Bench, uniform: int, max_splits: int | None = None, budget: int = BUDGET
) -> PerRequestSplits:
    """The best counts of a ragged batch found with about `budget` simulations.

    First segments of one length for all requests, every length searched as counts are; then, from those
    and from the best single count, in either order of issue, a local search. The same every time.
    """
    grid, tiles = bench.grid, tiles_of_request(bench.grid)
    limit = tiles if max_splits is None else np.minimum(tiles, max_splits)
    last = bench.simulations + budget

    def of_length(length: int) -> PerRequestSplits:
        return _counts(bench, np.minimum(-(-tiles // length), limit), longest_first=False)

    lengths = _candidates(int(tiles.max()))
    segments = np.array([np.minimum(-(-tiles // length), limit).sum() for length in lengths.tolist()])
    useful: list[int] = lengths[segments <= max(_most_segments(bench), len(tiles))].tolist()
    guess = max(1, -(-grid.total_kv_tiles // grid.slots))
    length = cheapest(useful, lambda n, below: bench.latency_s(of_length(n), below), guess)
    starts = [of_length(length), _counts(bench, np.minimum(uniform, limit), longest_first=False)]
    starts += [_reordered(start) for start in starts]
    best = min(starts, key=bench.latency_s)
    while bench.simulations < last:
        better = _improved(bench, best, tiles, limit, last)
        if better is None:
            break
        best = better
    return min((best, _reordered(best)), key=bench.latency_s)


def _counts(bench: Bench, counts: IntArray, longest_first: bool) -> PerRequestSplits:
    return bench.splits(tuple(np.maximum(1, counts).tolist()), longest_first)


def _reordered(choice: PerRequestSplits) -> PerRequestSplits:
    other = "issue" if choice.order == "longest_first" else "longest_first"
    return PerRequestSplits(choice.num_splits, other, choice.combine)  # type: ignore[arg-type]


def _improved(
    bench: Bench, choice: PerRequestSplits, tiles: IntArray, limit: IntArray, last: int
) -> PerRequestSplits | None:
    """The first neighbour that is faster, or None."""
    latency = bench.latency_s(choice)
    counts = np.array(choice.num_splits)
    for changed in _neighbours(counts, tiles, limit):
        if bench.simulations >= last:
            return None
        other = _counts(bench, changed, choice.order == "longest_first")
        if bench.latency_s(other, below=latency) < latency:
            return other
    return None


def _neighbours(counts: IntArray, tiles: IntArray, limit: IntArray) -> Iterator[IntArray]:
    """Counts with 1, 2, 4, ... requests, of longest or shortest segments, split finer or coarser."""
    segment = -(-tiles // counts)
    by_segment, by_length = np.lexsort((-tiles, -segment)), np.argsort(-tiles, kind="stable")
    most = len(counts)
    sizes = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    for order, finer in (
        (by_segment, True),
        (by_length, True),
        (by_segment[::-1], False),
        (by_length, False),
    ):
        for size in sizes:
            some = order[:size]
            for changed in _steps(counts[some], finer):
                result = counts.copy()
                result[some] = np.clip(changed, 1, limit[some])
                if not np.array_equal(result, counts):
                    yield result


def _steps(counts: IntArray, finer: bool) -> tuple[IntArray, ...]:
    if finer:
        return counts + 1, -(-5 * counts // 4), 2 * counts
    return counts - 1, 4 * counts // 5, counts // 2
