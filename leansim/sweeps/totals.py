"""A decode step's attention over all layers of a model: each kind's latency, by its count of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leansim.answers import Row
from leansim.points.point import POINT_KEYS
from leansim.points.simulate import Simulation, table_of
from leansim.specs.model import Model

if TYPE_CHECKING:
    import pandas as pd

# What a row says of the batch beside its fields.
_KEPT = ("policy", "requests", "mean_context_len", "longest_context_len")


@dataclass(frozen=True)
class Total:
    """One kernel on one device, over layers: all of a model that has several kinds, else one layer.

    `layers` is "all", or what kind that one layer is of.
    """

    device: str
    policy: str
    layers: str
    latency_s: float
    roofline_s: float
    of_model: Model | None

    @classmethod
    def of(cls, simulations: Sequence[Simulation], model: Model | None) -> Total:
        """Sum the simulations of one kernel and device, weighted by layers where they are a model's."""
        point = simulations[0].point
        weights = [1 if model is None else _count(simulation) for simulation in simulations]
        pairs = list(zip(weights, simulations, strict=True))
        return cls(
            point.device,
            point.policy,
            "all" if model is not None else point.layers or "",
            sum(weight * simulation.result.latency_s for weight, simulation in pairs),
            sum(weight * simulation.metrics.roofline_s for weight, simulation in pairs),
            model,
        )

    @property
    def model(self) -> Model:
        """The model whose layers these are."""
        assert self.of_model is not None
        return self.of_model

    def row(self, speedup: float | None) -> Row:
        """What tables show."""
        return {
            "device": self.device,
            "kernel": self.policy,
            "layers": self.model.num_attending,
            "latency_us": f"{self.latency_s * 1e6:.2f}",
            **({} if speedup is None else {"speedup": f"{speedup:.3f}"}),
            "of_roofline": f"{self.roofline_s / self.latency_s:.0%}",
        }

    def record(self, speedup: float | None) -> Row:
        """The same for programs, in seconds; `left_out` names the layers that are in no sum."""
        return {
            "device": self.device,
            "kernel": self.policy.partition("+")[0],
            "policy": self.policy,
            "layers": self.layers,
            "layer_count": self.model.num_attending,
            "left_out": ", ".join(f"{n} x {name}" for name, n in self.model.left_out.items()) or None,
            "latency_s": self.latency_s,
            "roofline_s": self.roofline_s,
            "speedup": speedup,
        }


def _count(simulation: Simulation) -> int:
    share = simulation.resolved.share
    assert share is not None
    return share.layers.count


def totals_of(simulations: Sequence[Simulation]) -> Iterator[Total]:
    """The sum for each kernel and device of which every kind of layer was simulated."""
    groups: dict[tuple[str, str], list[Simulation]] = {}
    for simulation in simulations:
        if simulation.resolved.share is not None and simulation.resolved.share.is_mixed:
            point = simulation.point
            groups.setdefault((point.device, point.policy), []).append(simulation)
    for group in groups.values():
        share = group[0].resolved.share
        assert share is not None
        done = {one.resolved.share.layers.name for one in group if one.resolved.share is not None}
        if done == {some.name for some in share.model.kinds}:
            yield Total.of(group, share.model)


def table_over_layers(simulations: Sequence[Simulation]) -> pd.DataFrame:
    """A row per point as in `results.csv`; over all layers of a model that has several kinds.

    Then a row has the point's fields, and of what came of it `latency_s` alone: the sum.
    """
    import pandas as pd

    table = table_of(simulations)
    counts = [_count(one) if one.resolved.share is not None else 1 for one in simulations]
    if not any(one.resolved.share is not None and one.resolved.share.is_mixed for one in simulations):
        return table
    fields = [
        column
        for column in table
        if column in (*POINT_KEYS, *_KEPT) and column not in ("layers", "num_splits")
    ]
    table = table.assign(latency_s=table["latency_s"] * pd.Series(counts, index=table.index))
    groups = table.groupby(fields, dropna=False, sort=False)["latency_s"].sum()
    return groups.reset_index().assign(error=None)
