"""Predicts rows again and again under other constants.

Schedules are made once: constants do not change them. Each evaluation lowers and executes them
again, except where only a harness has changed, which costs an addition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.arrays import FloatArray
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
_KEPT = 64


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
        self.points = tuple(rows["point"])
        self.harnesses = Harnesses(rows)
        self.pairs = sorted(set(zip(rows["kernel"], rows["device"], strict=True)))
        self.jobs = min(jobs, len(self.points))
        self.parts = [_part(self.points[at :: self.jobs]) for at in range(self.jobs)]
        self.pools: list[ProcessPoolExecutor] = []
        self.kernels: dict[tuple[float | None, ...], FloatArray] = {}
        self.evaluations = 0
        self.stack = ExitStack()

    def __enter__(self) -> Model:
        # A pool of one each: a part's schedules stay with the worker that made them.
        if self.jobs > 1:
            self.pools = [self.stack.enter_context(process_pool(1)) for _ in self.parts]
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def seconds(self, values: Sequence[float] | FloatArray | None) -> FloatArray:
        """Predicted latencies `[n]`, s, harness included; with None, as the files have it."""
        changes = dict(zip(self.targets, values, strict=True)) if values is not None else {}
        simulated = {target: value for target, value in changes.items() if target.kind != "table"}
        key = tuple(simulated.values())
        if key not in self.kernels:
            if len(self.kernels) >= _KEPT:
                del self.kernels[next(iter(self.kernels))]
            self.kernels[key] = self._executed({**self.fixed, **simulated})
        tables = _tables(changes, self.harnesses.places)
        found: FloatArray = self.kernels[key] + self.harnesses.seconds(tables)
        return found

    def _executed(self, changes: dict[Target, float]) -> FloatArray:
        specs: Specs = {}
        for kernel, device in self.pairs:
            mine = {t: v for t, v in changes.items() if applies(t, kernel, device)}
            kinds = {
                kind: {t: v for t, v in mine.items() if t.kind == kind} for kind in ("kernel", "device")
            }
            for spec, kind in ((catalog.kernel(kernel), "kernel"), (catalog.device(device), "device")):
                specs[kind, spec.name] = _with(spec, kinds[kind])
        self.evaluations += 1
        if self.pools:
            futures = [
                pool.submit(latencies, part, specs)
                for pool, part in zip(self.pools, self.parts, strict=True)
            ]
            found = [future.result() for future in futures]
        else:
            found = [latencies(part, specs) for part in self.parts]
        seconds = np.empty(len(self.points))
        for at, part in enumerate(found):
            seconds[at :: self.jobs] = part
        return seconds


def _tables(changes: Mapping[Target, float], names: Iterable[str]) -> dict[str, MeasuredTable]:
    """Those of the measured tables whose constants are among the changed, so changed."""
    mine = {name: {t: v for t, v in changes.items() if in_harness(t, name)} for name in names}
    return {name: changed(catalog.table(name), new) for name, new in mine.items() if new}


def _with(spec: Any, changes: dict[Target, float]) -> Any:
    return changed(spec, changes) if changes else spec


def _part(points: Sequence[Point]) -> Part:
    hashed = hashlib.sha256("\n".join(point.model_dump_json() for point in points).encode())
    return Part(hashed.hexdigest(), tuple(points))


@lru_cache(maxsize=1)
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
