"""Measures points: each is scheduled as it would be simulated, executed, checked, and then timed.

What executes is a `Runner`'s: leansim's own kernels here, those of libraries in `libraries`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from leansim.errors import GpuError, LeansimError
from leansim.gpu.execution import Execution
from leansim.gpu.inputs import Inputs, draw, pool_bytes
from leansim.gpu.kernel_log import columns_of, kernels_of, merge_start_of, profiled
from leansim.gpu.machine import Machine, differences
from leansim.gpu.timing import L2Flush, calls_for, enqueuer, timed
from leansim.gpu.toolkit import Toolkit
from leansim.points.point import Resolved, point_from_row, resolve
from leansim.silicon.own import MEASURED, MEASUREMENT_COLUMNS, point_fields
from leansim.silicon.targets import with_bases
from leansim.specs import catalog
from leansim.specs.workload import Workload

# The kernel that the others are based on: what is measured must be what runs.
BASE = "triton_fa2"
# A cold call's KV has been evicted by the others after this many times L2.
_EVICTED_AFTER = 4
_LARGEST_POOL = 16 * 2**30


class Executed(Protocol):
    """A point on a device, ready to be launched any number of times."""

    def poison(self) -> None:
        """NaN wherever a call is to write."""

    def launch(self, buffer: int = 0) -> None:
        """Enqueue one call on a buffer's KV."""

    def check(self, buffer: int = 0) -> float:
        """Largest relative error of a row of the output just computed. Raises `GpuError`."""
        ...  # pragma: no cover

    def columns(self) -> dict[str, Any]:
        """What else is known of it: values of `MEASUREMENT_COLUMNS`."""
        ...  # pragma: no cover


class Runner(Protocol):
    """Whose kernels execute points.

    `unread` is what KV holds where it must not be read, `copies` how often a call's KV lies in memory.
    """

    @property
    def unread(self) -> float:
        """A number, or NaN."""
        ...  # pragma: no cover

    @property
    def copies(self) -> int:
        """1 where kernels read the pages that inputs are drawn in."""
        ...  # pragma: no cover

    def check(self, item: Resolved, row: Mapping[str, str]) -> None:
        """Refuse a point that these kernels are not for. Raises a `LeansimError`."""

    def execute(
        self, tools: Toolkit, item: Resolved, row: Mapping[str, str], inputs: Inputs
    ) -> Executed:
        """Make a row's point ready. Raises a `LeansimError`."""
        ...  # pragma: no cover


class TritonRunner:
    """Leansim's own kernels, which execute any schedule."""

    unread, copies = float("nan"), 1

    def check(self, item: Resolved, row: Mapping[str, str]) -> None:  # noqa: ARG002
        """Refuse a kernel that is not one of our own. Raises `GpuError`."""
        check_kernel(item.point.kernel)

    def execute(
        self,
        tools: Toolkit,
        item: Resolved,
        row: Mapping[str, str],  # noqa: ARG002
        inputs: Inputs,
    ) -> Executed:
        """Execute the point's schedule."""
        return Execution(tools, item.schedule, item.kernel, item.device, inputs)


class Measurer:
    """Measures one point after another; inputs are drawn anew for each workload."""

    def __init__(
        self,
        tools: Toolkit,
        seed: int | None = None,
        runner: Runner | None = None,
        log: Callable[[Mapping[str, str], Sequence[dict[str, Any]]], None] | None = None,
    ) -> None:
        """`seed` fixes the inputs; by default they are different ones each time.

        `runner` says whose kernels execute: leansim's own, if none. `log` is told the kernels of each
        point's call, `KERNEL_COLUMNS`; without it none are looked at.
        """
        self.tools, self.seed, self.machine, self.log = tools, seed, Machine(tools), log
        self.runner: Runner = TritonRunner() if runner is None else runner
        self.flushes: dict[int, L2Flush] = {}
        self.last: tuple[Workload, int, int, Inputs] | None = None

    def measure(self, row: Mapping[str, str], source: str) -> dict[str, Any]:
        """Measure the point that a row of a CSV describes: values of `MEASUREMENT_COLUMNS`.

        Interpreted, the point is checked and its times stay empty. Raises a `LeansimError`.
        """
        try:
            return self._measured(row, source)
        except LeansimError:
            raise
        except Exception as error:  # of the driver, the compiler or the allocator: anything at all
            self.last = None
            if not self.tools.interpreted:
                with suppress(Exception):  # a device that is lost
                    self.tools.torch.cuda.empty_cache()
            reason = (str(error).splitlines() or [""])[0]
            raise GpuError(f"the device gave up: {type(error).__name__}: {reason}") from error

    def _measured(self, row: Mapping[str, str], source: str) -> dict[str, Any]:
        item = resolve(point_from_row(point_fields(row), source))
        self.runner.check(item, row)
        if not self.tools.interpreted:
            self._check_device(item)
        calls, buffers = self._plan(item)
        seed, inputs = self._inputs(item.workload, buffers)
        execution = self.runner.execute(self.tools, item, row, inputs)
        execution.poison()
        execution.launch()
        found: dict[str, Any] = dict.fromkeys(MEASUREMENT_COLUMNS, "")
        found |= {"row_error": f"{execution.check():.3e}", "input_seed": seed, "buffers": buffers}
        schedule = item.schedule
        found |= {"scheduled_splits": schedule.num_splits, "scheduled_ctas": schedule.num_ctas}
        found |= execution.columns()
        if not self.tools.interpreted:
            found |= self._times(item, execution, calls, buffers)
            if self.log is not None:
                self.log(row, self._kernels(item, execution, calls, buffers))
        return found | self.machine.columns()

    def _times(self, item: Resolved, execution: Executed, calls: int, buffers: int) -> dict[str, Any]:
        """Time the calls, then check what the last one left: a race need not show the first time."""
        timing = timed(
            self.tools,
            lambda i: execution.launch((calls - 1 - i) % buffers),  # the last is buffer 0's
            calls,
            item.workload.launch,
            self._flush(item) if item.workload.cache == "cold" else None,
            poison=execution.poison,
        )
        execution.check()
        return {MEASURED: round(timing.median_us, 4), **timing.columns()}

    def _kernels(
        self, item: Resolved, execution: Executed, calls: int, buffers: int
    ) -> list[dict[str, Any]]:
        """The kernels of a call, calls as they were timed: `KERNEL_COLUMNS`."""
        enqueue = enqueuer(
            self.tools, lambda i: execution.launch(i % buffers), calls, item.workload.launch
        )
        found = kernels_of(profiled(self.tools, enqueue), calls)
        return columns_of(found, item.schedule, merge_start_of(item.instance))

    def _plan(self, item: Resolved) -> tuple[int, int]:
        """Calls of a sample, and buffers: one for a warm call, for cold ones enough to evict each."""
        if self.tools.interpreted:
            return 1, 1
        load, device = item.workload, item.device
        calls = calls_for(5.0 + 1e6 * load.kv_bytes / device.dram_bandwidth_bytes_per_s)
        if load.cache == "warm":
            return calls, 1
        size = pool_bytes(load) * self.runner.copies
        enough = 1 + -(-_EVICTED_AFTER * device.l2_bytes // load.kv_bytes)
        return calls, max(1, min(calls, enough, _LARGEST_POOL // size))

    def _inputs(self, load: Workload, buffers: int) -> tuple[int, Inputs]:
        """Inputs of a workload: those of the point before if it had the same, else new ones."""
        if self.last is None or self.last[:2] != (load, buffers):
            self.last = None  # frees the memory first
            seed = secrets.randbits(31) if self.seed is None else self.seed
            inputs = draw(self.tools.torch, load, self.tools.where, seed, buffers, self.runner.unread)
            self.last = (load, buffers, seed, inputs)
        return self.last[2], self.last[3]

    def _flush(self, item: Resolved) -> L2Flush:
        size = item.device.l2_bytes
        if size not in self.flushes:
            self.flushes[size] = L2Flush(self.tools, size)
        return self.flushes[size]

    def _check_device(self, item: Resolved) -> None:
        properties = self.tools.torch.cuda.get_device_properties()
        if found := differences(item.device, properties):
            here = f"but the GPU here, {properties.name}, has {found}"
            raise GpuError(f"the point's device is {item.point.device!r}, {here}")


def is_own(kernel: str) -> bool:
    """Whether a kernel of the catalog, under any partitioner, is one that leansim can run."""
    name, _, _ = kernel.partition("+")
    return BASE in with_bases(name)


def check_kernel(kernel: str) -> None:
    """Refuse a kernel that is not one of our own. Raises `GpuError` naming them."""
    name, _, _ = kernel.partition("+")
    if not is_own(kernel):
        ours = [known for known in catalog.names("kernel") if is_own(known)]
        raise GpuError(
            f"kernel {name!r} is not leansim's own; wanted one that it can run: {', '.join(ours)}, a "
            "file based on one of them, or one of them under any partitioner (triton_lean+lean_aiter)"
        )
