"""From a point to what happened: resolve, schedule, price, execute. One point, or many in stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from leansim.answers import Tabled
from leansim.engine.execute import Engine, execute
from leansim.engine.program import Program
from leansim.engine.result import Result
from leansim.engine.sequence import joined
from leansim.errors import FaultError, OutOfRangeError
from leansim.lazy import cached_property
from leansim.plugins import described
from leansim.points.asked import cautions, label
from leansim.points.point import Point, Resolved, plan_row, resolve
from leansim.points.results_table import results_table
from leansim.results.metrics import Metrics, summarise
from leansim.schedule.schedule import Schedule
from leansim.specs.evidence import Grounds, told
from leansim.timing.lowering import lower, lower_merge

if TYPE_CHECKING:
    import pandas as pd

# Points that go through a stage together: enough for its code to be in the processor's caches from
# the second on, few enough for what they hold to stay there too (a fifth of the time of a point).
_TOGETHER = 32
# Query rows of all of them, which limits their output tiles: some 30 MB of phases.
_ROWS_TOGETHER = 2**17
# What comes of numbers that no clock or memory could hold.
TOO_MUCH = (ArithmeticError, MemoryError)
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, eq=False)
class Simulation(Tabled):
    """One point, simulated: in a notebook, a table of one row."""

    resolved: Resolved
    program: Program
    result: Result

    @property
    def point(self) -> Point:
        """What was asked for."""
        return self.resolved.point

    @property
    def schedule(self) -> Schedule:
        """What was executed."""
        return self.resolved.schedule

    @property
    def grounds(self) -> Grounds:
        """What the times rest on, and how far off they may be."""
        return self.resolved.grounds

    @cached_property
    def metrics(self) -> Metrics:
        """What it came to."""
        schedules = [call.schedule for call in self.resolved.calls]
        return summarise(self.result, schedules, self.resolved.device)

    @property
    def row(self) -> dict[str, Any]:
        """Flat record: policy, plan and metrics."""
        lens = self.resolved.workload.context_lens
        return {
            "policy": self.point.policy,
            "requests": len(lens),
            "mean_context_len": sum(lens) / len(lens),
            "longest_context_len": max(lens),
            "kv_fits_dram": self.resolved.held_bytes <= self.resolved.device.dram_bytes,
            **plan_row(self.resolved),
            **asdict(self.metrics),
        }

    @property
    def table(self) -> pd.DataFrame:
        """One row as in `results.csv`: every field of the point, `row`, and what it rests on."""
        return table_of([self])

    def records(self) -> list[dict[str, Any]]:
        """One flat record: the fields that were given, `row`, and what it rests on."""
        given = self.point.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return [{**given, **self.row, **self.grounds.columns()}]

    def rows(self) -> list[dict[str, Any]]:
        """The numbers a person compares first, in one row."""
        m, plan = self.metrics, plan_row(self.resolved)
        row = {
            **label(self.point),
            "latency_us": f"{m.latency_s * 1e6:.2f}",
            "ctas": plan["num_ctas"],
            "waves": f"{m.num_waves:.2f}",
            "splits": plan["num_splits"],
            "sm_busy": f"{m.sm_busy_fraction:.0%}",
            "dram": f"{m.dram_utilisation:.0%}",
            "of_roofline": f"{m.roofline_fraction:.0%}",
            "tail_us": f"{m.tail_s * 1e6:.1f}",
            "wait": f"{m.share_wait:.1%}",
            "combine": f"{m.share_combine + m.share_merge:.1%}",
            "travel": None if self.resolved.node is None else f"{m.share_travel:.1%}",
            "idle": f"{m.share_idle:.0%}",
            "bound": m.bound,
        }
        return [{key: value for key, value in row.items() if value is not None}]

    def notes(self) -> list[str]:
        """What is beyond a limit, and what the times rest on."""
        return [*cautions(self.resolved), told([(self.point.policy, self.grounds)])]


def table_of(simulations: Sequence[Simulation]) -> pd.DataFrame:
    """A row per simulation as in `results.csv`: every field of the point, `row`, what it rests on."""
    points, rows = [s.point for s in simulations], [s.row for s in simulations]
    return results_table(points, rows, [s.grounds for s in simulations])


def simulate(point: Point, engine: Engine = "auto") -> Simulation:
    """Simulate one point. Raises a `LeansimError` where it makes no sense.

    The engines agree to the picosecond; `simpy` is the slow reference.
    """
    (found,) = simulate_each([point], engine)
    if isinstance(found, Exception):
        raise found
    return found


def simulate_each(
    points: Iterable[Point | Exception], engine: Engine = "auto"
) -> Iterator[Simulation | Exception]:
    """Simulate many points, in order; one that cannot be simulated becomes what `simulate` raises.

    An exception among the points stays where it is. What a group of points holds is let go before the
    next group begins.
    """
    points = list(points)
    groups = _groups(attempted(resolve, points))
    simulations = chain.from_iterable(_in_stages(group, engine) for group in groups)
    for point, found in zip(points, simulations, strict=True):
        if isinstance(found, TOO_MUCH) and isinstance(point, Point):
            where = f"{point.policy} on {point.device}"
            yield OutOfRangeError(f"{where}: a number is out of range: {found}")
        else:
            yield found


def attempted(stage: Callable[[_In], _Out], items: Iterable[_In | Exception]) -> list[_Out | Exception]:
    """Take each item through a stage; one that fails, there or before, is its exception from then on."""
    return [item if isinstance(item, Exception) else _attempt(stage, item) for item in items]


def _attempt(stage: Callable[[_In], _Out], item: _In) -> _Out | Exception:
    try:
        return stage(item)
    except Exception as error:
        return error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in that would end us: its point fails, and no other
        return FaultError(f"a plug-in raised {described(error)}")


def _groups(items: Iterable[Resolved | Exception]) -> Iterator[list[Resolved | Exception]]:
    """Cut a sequence into groups that go through the stages together."""
    group: list[Resolved | Exception] = []
    held = 0
    for item in items:
        rows = item.workload.num_query_rows if isinstance(item, Resolved) else 0
        if group and (len(group) == _TOGETHER or held + rows > _ROWS_TOGETHER):
            yield group
            group, held = [], 0
        group.append(item)
        held += rows
    if group:
        yield group


def _in_stages(group: list[Resolved | Exception], engine: Engine) -> list[Simulation | Exception]:
    return attempted(partial(_executed, engine=engine), attempted(_priced, attempted(_scheduled, group)))


def _scheduled(item: Resolved) -> Resolved:
    for call in item.calls:
        _ = call.schedule  # made when first looked at
    return item


def _priced(item: Resolved) -> tuple[Resolved, list[Program]]:
    calls = item.calls
    programs = [lower(call.schedule, call.instance, item.device) for call in calls]
    if len(calls) > 1:
        programs.append(lower_merge([call.schedule for call in calls], item.instance, item.device))
    return item, programs


def _executed(priced: tuple[Resolved, list[Program]], engine: Engine) -> Simulation:
    item, programs = priced
    result = whole(item, [execute(program, engine) for program in programs])
    return Simulation(item, result.program, result)


def whole(item: Resolved, launches: Sequence[Result]) -> Result:
    """Launches one after the other, and on a node what travels before and after them."""
    result = joined(launches)
    return result if item.node is None else item.travel.around(result, item.node, item.device)
