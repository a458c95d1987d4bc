"""Several kernels on one workload, simulated here and now, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leansim.answers import Row, Tabled
from leansim.engine.execute import Engine
from leansim.errors import ConfigError, Problem
from leansim.points.grid import PointGrid, load
from leansim.points.simulate import Simulation, simulate, table_of
from leansim.specs.evidence import told

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Run(Tabled):
    """Several kernels on one workload, on one or more devices, and the curve asked for with it."""

    config: PointGrid
    simulations: tuple[Simulation, ...]
    curve: tuple[Simulation, ...]

    def baseline_of(self, simulation: Simulation) -> Simulation | None:
        """The baseline kernel's simulation on the same device, if the run has a baseline."""
        for other in self.simulations:
            same_device = other.point.device == simulation.point.device
            if same_device and other.point.policy == self.config.baseline:
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

        Times in seconds, sizes in bytes; without a baseline there is no column `speedup`.
        """
        table = table_of(self.simulations)
        if self.config.baseline is not None:
            table["speedup"] = [self.speedup(simulation) for simulation in self.simulations]
        return table

    def rows(self) -> list[Row]:
        """One row per kernel and device: the numbers a person compares first."""
        rows = []
        for simulation in self.simulations:
            (row,) = simulation.rows()
            speedup = self.speedup(simulation)
            added = {} if speedup is None else {"speedup": f"{speedup:.3f}"}
            head = {key: row.pop(key) for key in ("device", "kernel", "latency_us")}
            rows.append({**head, **added, **row})
        return rows

    def records(self) -> list[Row]:
        """One flat record per kernel and device: the fields given, metrics, `speedup` or None."""
        return [
            {**record, "speedup": self.speedup(simulation)}
            for simulation in self.simulations
            for record in simulation.records()
        ]

    def sections(self) -> dict[str, Sequence[Row]]:
        """The rows under the run's name and workload."""
        workload = self.simulations[0].resolved.workload
        return {f"{self.config.name}: {workload.describe()}": self.rows()}

    def notes(self) -> list[str]:
        """What the table does not say: the floor, who won and by how much, what the numbers rest on."""
        notes = []
        for device in dict.fromkeys(s.point.device for s in self.simulations):
            mine = [s for s in self.simulations if s.point.device == device]
            notes.append(_verdict(device, mine))
            spec = mine[0].resolved.device
            counts = ", ".join(f"{n} {label}" for label, n in spec.source_counts().items() if n)
            notes.append(f"  {device} rests on {counts} numbers (`leansim show {device}`).")
        if any(s.resolved.workload.kv_bytes > s.resolved.device.dram_bytes for s in self.simulations):
            notes.append("The KV cache of this batch does not fit in the memory of every device here.")
        notes.append(told((s.point.policy, s.grounds) for s in self.simulations))
        notes.append("Modelled, not measured; docs/accuracy.md has the error against measured kernels.")
        return notes


def _verdict(device: str, simulations: Sequence[Simulation]) -> str:
    floor = simulations[0].metrics.roofline_s * 1e6
    ranked = sorted(simulations, key=lambda s: s.result.latency_s)
    best = ranked[0]
    text = f"{device}: floor {floor:.2f} us; fastest is {best.point.policy}"
    for other in ranked[1:]:
        ratio = other.result.latency_s / best.result.latency_s
        text += f"; {other.point.policy} takes {ratio:.2f}x its time"
    return text + "."


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
    allowed = {"device", "kernel", "partitioner"}
    if others := [name for name in grid.varied if name not in allowed]:
        found = f"several values of {', '.join(others)}"
        wanted = "wanted one workload; `leansim sweep` takes a file that varies it"
        raise ConfigError(str(grid.name), [Problem(others[0], found, wanted)])
    points = grid.points()
    curve = [
        point.model_copy(update={axis: type(getattr(point, axis) or 1)(value)})
        for axis, values in grid.curve.items()
        for value in values
        for point in points
    ]
    return Run(
        grid,
        tuple(simulate(point, engine) for point in points),
        tuple(simulate(point, engine) for point in curve),
    )
