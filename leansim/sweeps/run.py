"""Several kernels on one workload, in all kinds of a model's layers, simulated here and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leansim.answers import Row, Tabled
from leansim.engine.execute import Engine
from leansim.errors import ConfigError, Problem
from leansim.lazy import cached_property
from leansim.points.asked import cautions, described, label
from leansim.points.grid import PointGrid, load
from leansim.points.point import Point, validated
from leansim.points.simulate import Simulation, simulate, table_of
from leansim.specs.device import AROUND
from leansim.specs.evidence import told
from leansim.sweeps.totals import Total, totals_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Run(Tabled):
    """Several kernels on one workload, on one or more devices, and the curve asked for with it."""

    config: PointGrid
    simulations: tuple[Simulation, ...]
    curve: tuple[Simulation, ...]

    def baseline_of(self, simulation: Simulation) -> Simulation | None:
        """The baseline kernel's simulation of the same layers on the same device, if there is one."""
        point, mine = simulation.point, self.config.baseline
        for other in self.simulations:
            same = other.point.device == point.device and other.point.layers == point.layers
            if same and other.point.policy == mine:
                return other
        return None

    def speedup(self, simulation: Simulation) -> float | None:
        """Latency of the baseline over the simulation's; below 1 it loses."""
        baseline = self.baseline_of(simulation)
        if baseline is None:
            return None
        return baseline.result.latency_s / simulation.result.latency_s

    @property
    def table(self) -> pd.DataFrame:
        """A row per kernel and device as in `results.csv`: point, metrics, what they rest on, `speedup`.

        Times in seconds, sizes in bytes; without a baseline there is no column `speedup`, and with a
        model whose layers are all alike none `layer_count`.
        """
        table = table_of(self.simulations)
        if any(counts := [_layer_count(simulation) for simulation in self.simulations]):
            table["layer_count"] = [count.get("layer_count") for count in counts]
        if self.config.baseline is not None:
            table["speedup"] = [self.speedup(simulation) for simulation in self.simulations]
        return table

    @cached_property
    def totals(self) -> tuple[Total, ...]:
        """Each kernel and device over all layers of a model that has several kinds, or leaves some out.

        None where not every kind of layer was run.
        """
        return tuple(totals_of(self.simulations))

    def rows(self) -> list[Row]:
        """One row per kernel, device and kind of layer: the numbers a person compares first."""
        rows = []
        for simulation in self.simulations:
            (row,) = simulation.rows()
            speedup = self.speedup(simulation)
            added = {} if speedup is None else {"speedup": f"{speedup:.3f}"}
            head = {key: row.pop(key) for key in (*label(simulation.point), "latency_us")}
            if (share := simulation.resolved.share) is not None and share.is_mixed:
                head["layers"] = share.layers.describe()
                head["latency_us"] = head.pop("latency_us")
            rows.append({**head, **added, **row})
        return rows

    def records(self) -> list[Row]:
        """One flat record per kernel, device and kind of layer: fields, metrics, `speedup` or None.

        Where layers are of several kinds, `layer_count` is how many are of this one, and one more record
        has the sum over them, with `layers` "all".
        """
        each = [
            {**record, **_layer_count(simulation), "speedup": self.speedup(simulation)}
            for simulation in self.simulations
            for record in simulation.records()
        ]
        return each + [total.record(self._total_speedup(total)) for total in self.totals]

    @property
    def title(self) -> str:
        """The run's name, and the workload with all that is not as it would be by itself."""
        return f"{self.config.name}: {described(self.simulations[0].resolved)}"

    def sections(self) -> dict[str, Sequence[Row]]:
        """The rows under the run's name and workload, and the sums over layers of several kinds."""
        found: dict[str, Sequence[Row]] = {self.title: self.rows()}
        if self.totals:
            model = self.totals[0].model
            rows = [total.row(self._total_speedup(total)) for total in self.totals]
            found[f"attention layers of {model.name}, one decode step: {model.describe_layers()}"] = rows
        return found

    def _total_speedup(self, total: Total) -> float | None:
        """A kernel's speedup over all layers, if the run has a baseline."""
        mine = self.config.baseline
        for other in self.totals:
            if other.device == total.device and other.policy == mine:
                return other.latency_s / total.latency_s
        return None

    def notes(self) -> list[str]:
        """What the table does not say: the floor, who won and by how much, what the numbers rest on."""
        notes = []
        for device in dict.fromkeys(s.point.device for s in self.simulations):
            mine = [s for s in self.simulations if s.point.device == device]
            whole = [total for total in self.totals if total.device == device]
            notes.append(_verdict(device, whole or [Total.of([s], None) for s in mine]))
            spec = mine[0].resolved.device
            found = spec.source_counts(but=AROUND)
            counts = ", ".join(f"{n} {label}" for label, n in found.items() if n)
            notes.append(f"  {device} rests on {counts} numbers (`leansim show {device}`).")
        notes += dict.fromkeys(text for s in self.simulations for text in cautions(s.resolved))
        notes.append(told((s.point.policy, s.grounds) for s in self.simulations))
        notes.append("Modelled, not measured; docs/accuracy.md has the error against measured kernels.")
        return notes


def _layer_count(simulation: Simulation) -> Row:
    share = simulation.resolved.share
    return {"layer_count": share.layers.count} if share is not None and share.is_mixed else {}


def _verdict(device: str, totals: Sequence[Total]) -> str:
    """The floor, the fastest, and how long the others take; of layers run alone, those of a kind."""
    texts = []
    for kind in dict.fromkeys(total.layers for total in totals):
        ranked = sorted((t for t in totals if t.layers == kind), key=lambda total: total.latency_s)
        best = ranked[0]
        where = device if kind in ("", "all") else f"{device} {kind}"
        text = f"{where}: floor {best.roofline_s * 1e6:.2f} us; fastest is {best.policy}"
        for other in ranked[1:]:
            text += f"; {other.policy} takes {other.latency_s / best.latency_s:.2f}x its time"
        texts.append(text + ".")
    return " ".join(texts)


def _moved(point: Point, axis: str, value: float) -> Point:
    """A point of the curve. Raises `ConfigError` where it is none."""
    given = point.model_dump(by_alias=True, exclude_unset=True)
    return validated({**given, axis: int(value) if axis == "batch_size" else value}, f"curve of {axis}")


def run(
    config: str | Path | PointGrid,
    settings: Sequence[str] = (),
    baseline: str | None = None,
    engine: Engine = "auto",
) -> Run:
    """Simulate one workload under every kernel and device of a run file.

    `settings` are `key=value` texts laid over the file, `baseline` the kernel that speedups are
    measured against, instead of the file's. Raises `ConfigError` for a file that makes no sense or
    varies the workload: that is a sweep. Raises another `LeansimError` where a kernel refuses it.
    """
    if isinstance(config, PointGrid):
        grid = config if baseline is None else config.with_baseline(baseline)
    else:
        grid = load(config, [*([f"baseline={baseline}"] if baseline else []), *settings])
    allowed = {"device", "kernel", "partitioner", "num_splits", "layers"}
    if others := [name for name in grid.varied if name not in allowed]:
        found = f"several values of {', '.join(others)}"
        wanted = "wanted one workload; `leansim sweep` takes a file that varies it"
        raise ConfigError(str(grid.name), [Problem(others[0], found, wanted)])
    points = grid.points()
    curve = [
        _moved(point, axis, value)
        for axis, values in grid.curve.items()
        for value in values
        for point in points
    ]
    return Run(
        grid,
        tuple(simulate(point, engine) for point in points),
        tuple(simulate(point, engine) for point in curve),
    )
