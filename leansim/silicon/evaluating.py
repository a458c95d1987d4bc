"""Predicts rows again and again under other constants.

Schedules are made once: constants do not change them. Each evaluation lowers and executes again those
of kernels whose constants have changed; a harness costs an addition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.engine.execute import execute
from leansim.errors import LeansimError
from leansim.points.point import Point, Resolved, resolve
from leansim.silicon.rows import Harnesses
from leansim.silicon.targets import Target, applies, changed, in_harness
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.harness import MeasuredTable
from leansim.specs.instance import instance_of
from leansim.specs.kernel import Kernel
from leansim.sweeps.executors import process_pool
from leansim.timing.lowering import lower

if TYPE_CHECKING:
    import pandas as pd

Specs = dict[tuple[str, str], Any]
# Values of constants whose latencies are kept, and parts whose schedules a worker keeps.
_KEPT, _PARTS = 64, 32


@dataclass(frozen=True)
class Part:
    """Points whose schedules one worker keeps; equal if their tokens are."""

    token: str
    points: tuple[Point, ...] = field(compare=False)


class Model:
    """Predicted seconds of rows for values of some constants. Use as a context manager.

    Those that are `fixed` have other values than in their files throughout.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        rows: pd.DataFrame,
        jobs: int,
        fixed: Mapping[Target, float] | None = None,
    ) -> None:
        self.targets, self.fixed = tuple(targets), dict(fixed or {})
        self.count = len(rows)
        self.harnesses = Harnesses(rows)
        self.jobs = min(jobs, self.count)
        pairs = list(zip(rows["kernel"], rows["device"], strict=True))
        points = tuple(rows["point"])
        self.groups = []
        for pair in sorted(set(pairs)):
            at = np.array([i for i, one in enumerate(pairs) if one == pair])
            mine = {one for one in (*self.targets, *self.fixed) if applies(one, *pair)}
            parts = [_part([points[i] for i in at[job :: self.jobs]]) for job in range(self.jobs)]
            self.groups.append(_Group(*pair, at, frozenset(mine), tuple(parts)))
        self.pools: list[ProcessPoolExecutor] = []
        self.evaluations = 0
        self.stack = ExitStack()

    def __enter__(self) -> Model:
        # A pool of one each: a part's schedules stay with the worker that made them.
        if self.jobs > 1:
            self.pools = [self.stack.enter_context(process_pool(1)) for _ in range(self.jobs)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def seconds(self, values: Sequence[float] | FloatArray | None) -> FloatArray:
        """Predicted latencies `[n]`, s, harness included; with None, as the files have it."""
        kernels, tables = self._of(values)
        found: FloatArray = kernels + self.harnesses.seconds(kernels, tables)
        return found

    def replay_s(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """How long one replay takes `[n]`, s, of which latencies may be no more than whole ticks."""
        return self.harnesses.replay_s(*self._of(values))

    def _of(
        self, values: Sequence[float] | FloatArray | None
    ) -> tuple[FloatArray, dict[str, MeasuredTable]]:
        """Latencies of the kernels, and the tables that values change."""
        changes = dict(zip(self.targets, values, strict=True)) if values is not None else {}
        simulated = {target: value for target, value in changes.items() if target.kind != "table"}
        tables = _tables(changes, self.harnesses.places)
        return self._executed({**self.fixed, **simulated}), tables

    def _executed(self, changes: Mapping[Target, float]) -> FloatArray:
        """Latencies of the kernels; only those are executed again whose own constants have changed."""
        asked = [group.changed_by(changes) for group in self.groups]
        running = {
            i: self._begun(group, mine)
            for i, (group, mine) in enumerate(zip(self.groups, asked, strict=True))
            if tuple(mine.values()) not in group.known
        }
        self.evaluations += bool(running)
        seconds = np.empty(self.count)
        for i, (group, mine) in enumerate(zip(self.groups, asked, strict=True)):
            key = tuple(mine.values())
            if i in running:
                group.keep(key, [result() for result in running[i]])
            seconds[group.at] = group.known[key]
        return seconds

    def _begun(self, group: _Group, changes: dict[Target, float]) -> list[Callable[[], FloatArray]]:
        """A group's execution under changed constants, begun where there are workers."""
        specs: Specs = {}
        for spec in (catalog.kernel(group.kernel), catalog.device(group.device)):
            kind = "device" if isinstance(spec, Device) else "kernel"
            mine = {target: value for target, value in changes.items() if target.kind == kind}
            specs[kind, spec.name] = changed(spec, mine) if mine else spec
        if not self.pools:
            return [partial(latencies, part, specs) for part in group.parts]
        parts = zip(self.pools, group.parts, strict=True)
        return [pool.submit(latencies, part, specs).result for pool, part in parts]


@dataclass(frozen=True)
class _Group:
    """Rows of one kernel on one device: where they stand, what changes them, and a part per worker.

    `known` are latencies of the last values of those constants.
    """

    kernel: str
    device: str
    at: IntArray
    targets: frozenset[Target]
    parts: tuple[Part, ...]
    known: dict[tuple[float, ...], FloatArray] = field(default_factory=dict)

    def changed_by(self, changes: Mapping[Target, float]) -> dict[Target, float]:
        """What of the changes is of this kernel or device."""
        return {target: value for target, value in changes.items() if target in self.targets}

    def keep(self, key: tuple[float, ...], found: Sequence[FloatArray]) -> None:
        """Latencies of each part under values."""
        if len(self.known) >= _KEPT:
            del self.known[next(iter(self.known))]
        seconds = np.empty(len(self.at))
        for job, part in enumerate(found):
            seconds[job :: len(self.parts)] = part
        self.known[key] = seconds


def _tables(changes: Mapping[Target, float], names: Iterable[str]) -> dict[str, MeasuredTable]:
    """Those of the measured tables whose constants are among the changed, so changed."""
    mine = {name: {t: v for t, v in changes.items() if in_harness(t, name)} for name in names}
    return {name: changed(catalog.table(name), new) for name, new in mine.items() if new}


def _part(points: Sequence[Point]) -> Part:
    hashed = hashlib.sha256("\n".join(point.model_dump_json() for point in points).encode())
    return Part(hashed.hexdigest(), tuple(points))


@lru_cache(maxsize=_PARTS)
def _scheduled(part: Part) -> tuple[Resolved | None, ...]:
    """A part's points with their schedules, kept for the next evaluation; None where there is none."""
    found: list[Resolved | None] = []
    for point in part.points:
        try:
            item = resolve(point)
            lower(item.schedule, item.instance, item.device)  # makes the schedule, which it keeps
        except LeansimError:
            found.append(None)
        else:
            found.append(item)
    return tuple(found)


def latencies(part: Part, specs: Specs) -> FloatArray:
    """Latencies of a part's schedules `[n]`, s, under other constants: what a worker does.

    NaN where a kernel does not take the point.
    """
    found = []
    for item in _scheduled(part):
        if item is None:
            found.append(np.nan)
            continue
        kernel: Kernel = specs["kernel", item.kernel.name]
        device: Device = specs["device", item.device.name]
        instance = instance_of(kernel, device, item.workload, item.is_split)
        found.append(execute(lower(item.schedule, instance, device)).latency_s)
    return np.array(found)
