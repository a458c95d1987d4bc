"""The verbs: plan, simulate, run, verify, list, show. Each returns typed objects and prints nothing."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from leansim.engine.execute import Engine
from leansim.errors import ConfigError, Problem, UnknownNameError
from leansim.numerics.attention import Precision
from leansim.numerics.invariance import Invariance, batch_invariance
from leansim.numerics.verify import Verification
from leansim.numerics.verify import verify as verify_schedule
from leansim.partitioners.registry import partitioners
from leansim.points.grid import Grid, GridConfig, load
from leansim.points.point import Cell, Point, Resolved, plan_row, resolve
from leansim.points.simulate import Simulation, simulate
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.model import Model
from leansim.specs.traces import builtin_traces

Things = Literal["devices", "kernels", "partitioners", "models", "traces"]
THINGS: tuple[str, ...] = get_args(Things)


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule and where it came from."""

    resolved: Resolved

    @property
    def schedule(self) -> Schedule:
        """The schedule."""
        return self.resolved.schedule

    @property
    def row(self) -> dict[str, Cell]:
        """What `leansim plan` adds to a point."""
        return plan_row(self.resolved)


@dataclass(frozen=True, eq=False)
class Run:
    """Several kernels on one workload, on one or more devices, and the curve asked for with it."""

    config: GridConfig
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


def plan(points: Point | Iterable[Point]) -> builtins.list[Plan]:
    """Make the schedule of a point, or of each of several, without simulating."""
    points = [points] if isinstance(points, Point) else points
    plans = [Plan(resolve(point)) for point in points]
    for made in plans:
        _ = made.schedule  # a refusal belongs here, not where the schedule is first looked at
    return plans


def run(config: str | Path | GridConfig, settings: Sequence[str] = (), engine: Engine = "auto") -> Run:
    """Simulate one workload under every kernel and device of a run file.

    `settings` are `key=value` texts laid over the file. Raises `ConfigError` for a file that varies
    the workload: that is a sweep.
    """
    grid = config if isinstance(config, GridConfig) else load(config, settings)
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


def verify(
    point: Point, precisions: Sequence[Precision] = ("float64", "float32", "bfloat16"), seed: int = 0
) -> tuple[Verification, Invariance]:
    """Replay a point's schedule in NumPy against reference attention, and check batch invariance."""
    resolved = resolve(point)
    verification = verify_schedule(resolved.schedule, tuple(precisions), seed=seed)
    invariance = batch_invariance(
        resolved.partitioner, resolved.kernel, resolved.device, resolved.workload, seed=seed
    )
    return verification, invariance


def list(what: Things) -> builtins.list[str]:
    """Name everything of a kind."""
    if what == "partitioners":
        return builtins.list(partitioners())
    if what == "traces":
        return builtins.list(builtin_traces())
    if what not in THINGS:
        raise UnknownNameError("list", what, THINGS)
    return catalog.names(what.removesuffix("s"))  # type: ignore[arg-type]


def show(name: str) -> Any:
    """Find a device, kernel, model or partitioner by name and return it (a partitioner's class)."""
    if name.endswith((".yaml", ".yml")):
        return _show_file(name)
    if name in catalog.names("device"):
        return catalog.device(name)
    if name in catalog.names("kernel"):
        return catalog.kernel(name)
    if name in catalog.names("model"):
        return catalog.model(name)
    if name in partitioners():
        return partitioners()[name]
    kinds = ("device", "kernel", "model")
    known = [*partitioners(), *(n for kind in kinds for n in catalog.names(kind))]  # type: ignore[arg-type]
    raise UnknownNameError("name", name, known)


def _show_file(path: str) -> Device | Kernel | Model:
    """Load a file as whatever it is; if it is nothing, complain as the thing it comes closest to."""
    errors = []
    for loader in (catalog.device, catalog.kernel, catalog.model):
        try:
            return loader(path)
        except ConfigError as error:
            errors.append(error)
    raise min(errors, key=lambda error: len(error.problems))


def schema() -> dict[str, Any]:
    """JSON Schema of run and sweep files, for editors."""
    return Grid.model_json_schema(by_alias=True)
