"""Whether a point's schedule is exact: its own arithmetic, its batch's, and that of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leansim.answers import Tabled
from leansim.numerics.attention import Precision
from leansim.numerics.invariance import Invariance, batch_invariance
from leansim.numerics.ranks import ORDERS, rank_error
from leansim.numerics.verify import TOLERANCES, Verification, verify
from leansim.points.point import Point, Resolved, resolve
from leansim.schedule.schedule import Schedule
from leansim.specs.kv_lists import Shard
from leansim.specs.workload import Workload

_REPLAYED_OF_RANKS = 1024  # tokens of each of a few requests


@dataclass(frozen=True, eq=False)
class Verified(Tabled):
    """How exact a point's schedule is, and whether the batch changes how a request is cut."""

    point: Point
    verification: Verification
    invariance: Invariance
    rank_errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether cover and numbers are exact, and what ranks merge to where contexts are divided."""
        exact = all(error <= TOLERANCES["float64"] for error in self.rank_errors.values())
        return self.verification.passed and exact

    def rows(self) -> list[dict[str, Any]]:
        """One row per precision: errors, and what is allowed."""
        label = {"device": self.point.device, "kernel": self.point.policy}
        return [{**label, **row} for row in self.verification.rows()]

    def records(self) -> list[dict[str, Any]]:
        """The same, for programs."""
        return self.rows()

    def notes(self) -> list[str]:
        """How far the verification went, and a counterexample to batch invariance if there is one."""
        cover, found = self.verification.cover, self.verification
        batch = "batch-invariant" if self.invariance.invariant else "not batch-invariant"
        if self.invariance.counterexample:
            batch += f": {self.invariance.counterexample}"
        ranks = [f"{order} merge of ranks off by {e:.1e}" for order, e in self.rank_errors.items()]
        return [
            f"{self.point.device} {self.point.policy}: cover {'exact' if cover.exact else cover.problem}"
            f"; replayed {found.replayed_tiles:,} of {cover.output_tiles:,} output tiles "
            f"({found.replayed_patterns} of {found.patterns} ways of cutting); "
            + "; ".join([batch, *ranks])
        ]


def verified(point: Point, precisions: Sequence[Precision], seed: int) -> Verified:
    """Replay a point's schedule against reference attention, and check batch invariance."""
    item = resolve(point)
    found = verify(item.schedule, tuple(precisions), seed=seed)
    alike = batch_invariance(item.partitioner, item.kernel, item.device, item.workload, seed=seed)
    return Verified(point, found, alike, _rank_errors(item, seed))


def _rank_errors(item: Resolved, seed: int) -> dict[str, float]:
    """What a few short requests are off by when ranks that divide their contexts merge, by order."""
    load = item.workload
    if not isinstance(load.mask, Shard):
        return {}
    few = replace(
        load,
        context_lens=tuple(min(n, _REPLAYED_OF_RANKS) for n in load.context_lens[:4]),
        num_q_heads=load.group_size,
        num_kv_heads=1,
    )

    def scheduled(shard: Workload) -> Schedule:
        return replace(item, workload=shard).schedule

    return {order: rank_error(few, scheduled, order, seed=seed) for order in ORDERS}
