"""Whether a point's schedule is exact: its own arithmetic, its batch's, and that of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leansim.answers import Tabled
from leansim.numerics.attention import Precision
from leansim.numerics.invariance import Invariance, batch_invariance
from leansim.numerics.ranks import ORDERS, merge_error, rank_error
from leansim.numerics.verify import TOLERANCES, Verification, verify
from leansim.points.asked import batch_of, label, named
from leansim.points.point import Point, Resolved, resolve
from leansim.schedule.schedule import Schedule
from leansim.specs.kv_lists import Shard
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.workload import Workload

_REPLAYED_TOKENS = 1024  # of each of a few requests


@dataclass(frozen=True, eq=False)
class Verified(Tabled):
    """How exact a point's schedule is, and whether the batch changes how a request is cut."""

    point: Point
    workload: Workload
    verification: Verification
    invariance: Invariance
    merge_errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether cover and numbers are exact, and what several launches or ranks merge to."""
        exact = all(error <= TOLERANCES["float64"] for error in self.merge_errors.values())
        return self.verification.passed and exact

    def rows(self) -> list[dict[str, Any]]:
        """One row per precision: errors, and what is allowed."""
        call = {**label(self.point), **batch_of(self.workload)}
        return [{**call, **row} for row in self.verification.rows()]

    def records(self) -> list[dict[str, Any]]:
        """The same, for programs."""
        return self.rows()

    def notes(self) -> list[str]:
        """How far the verification went, and a counterexample to batch invariance if there is one."""
        cover, found = self.verification.cover, self.verification
        batch = "batch-invariant" if self.invariance.invariant else "not batch-invariant"
        if self.invariance.counterexample:
            batch += f": {self.invariance.counterexample}"
        merged = [f"{what} off by {error:.1e}" for what, error in self.merge_errors.items()]
        return [
            f"{named(self.point)}: cover {'exact' if cover.exact else cover.problem}"
            f"; replayed {found.replayed_tiles:,} of {cover.output_tiles:,} output tiles "
            f"({found.replayed_patterns} of {found.patterns} ways of cutting); "
            + "; ".join([batch, *merged])
        ]


def verified(point: Point, precisions: Sequence[Precision], seed: int) -> Verified:
    """Replay a point's schedule against reference attention, and check batch invariance."""
    item = resolve(point)
    found = [verify(call.schedule, tuple(precisions), seed=seed) for call in item.calls]
    alike = batch_invariance(item.partitioner, item.kernel, item.device, item.workload, seed=seed)
    merges = {**_merge_of_ranks(item, seed), **_merge_of_calls(item, seed)}
    return Verified(point, item.workload, Verification.of_all(found), alike, merges)


def _merge_of_ranks(item: Resolved, seed: int) -> dict[str, float]:
    """What a few short requests are off by when ranks that divide their contexts merge, by order."""
    load = item.workload
    if not isinstance(load.mask, Shard):
        return {}
    lens = tuple(min(n, _REPLAYED_TOKENS) for n in load.context_lens[:4])
    few = _of_one_head(replace(load, context_lens=lens))

    def scheduled(shard: Workload) -> Schedule:
        return replace(item, workload=shard).schedule

    return {f"{order} merge of ranks": rank_error(few, scheduled, order, seed=seed) for order in ORDERS}


def _merge_of_calls(item: Resolved, seed: int) -> dict[str, float]:
    """What a few requests are off by when launches for a prefix and for the rest merge."""
    if item.prefix_call is None:
        return {}
    few = replace(
        item.workload,
        context_lens=tuple(_REPLAYED_TOKENS + item.workload.query_len * n for n in (1, 5, 70)),
        reads=Prefixes((Prefix(0, _REPLAYED_TOKENS, (0, 1, 2)),)),
        max_context_len=None,
    )
    calls = replace(item, workload=_of_one_head(few)).calls
    error = merge_error(calls[-1].workload, [call.schedule for call in calls], seed=seed)
    return {"merge of launches": error}


def _of_one_head(load: Workload) -> Workload:
    """The same of one KV head."""
    return replace(load, num_q_heads=load.group_size, num_kv_heads=1)
