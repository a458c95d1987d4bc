"""Each kernel of a call apart, out of a profiler's trace, and whether its grid is the planned one.

A trace is what `torch.profiler` exports for Chrome: one event of category `kernel` for each, with its
time, grid, block, registers and shared memory. Copies and fills that are no kernels are left out.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansim.errors import GpuError
from leansim.gpu.toolkit import Toolkit
from leansim.schedule.schedule import Schedule
from leansim.specs.instance import CombineNumbers, Instance
from leansim.specs.mechanisms import CombineStart

# What stands beside the point in a file of kernels.
KERNEL_COLUMNS = (
    "order", "name", "grid", "block", "registers", "smem_bytes", "duration_us", "gap_after_us", "calls",
    "planned_ctas", "contradicts",
)  # fmt: skip
# Kernels that do not attend, by name: those that merge, and those that prepare or copy.
_MERGES = re.compile(r"combine|merge|reduce|stage2", re.IGNORECASE)
_HELPS = re.compile(
    r"prepare|metadata|copy|elementwise|(?<!pre)fill|memset|cast|cat_?array", re.IGNORECASE
)
_LONGEST_NAME = 120


@dataclass(frozen=True)
class KernelRun:
    """A kernel of a call: what was launched, and its median times in so many calls, us.

    `gap_after_us` is the time to the next kernel's start, of the last one to the next call's; below
    zero they overlap. It is None where nothing follows.
    """

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    registers: int
    smem_bytes: int
    duration_us: float
    gap_after_us: float | None
    calls: int

    @property
    def ctas(self) -> int:
        """CTAs of its grid."""
        return math.prod(self.grid)

    @property
    def merges(self) -> bool:
        """Whether it merges partials, by its name."""
        return _MERGES.search(self.name) is not None

    @property
    def attends(self) -> bool:
        """Whether its name is no helper's."""
        return not self.merges and _HELPS.search(self.name) is None


def kernels_of(trace: Mapping[str, Any], calls: int) -> list[KernelRun]:
    """Kernels of a call, in order, from the trace of so many equal calls.

    Raises `GpuError` where the trace is not so many times the same kernels.
    """
    events = sorted(
        (event for event in trace["traceEvents"] if event.get("cat") == "kernel"),
        key=lambda event: float(event["ts"]),
    )
    each = len(events) // calls
    if not events or len(events) % calls:
        raise GpuError(
            f"found {len(events)} kernels in a trace of {calls} calls; wanted as many in each"
        )
    found = []
    for place in range(each):
        mine = events[place::each]
        if len({_launched(event) for event in mine}) > 1:
            names = sorted({str(event["name"])[:60] for event in mine})
            raise GpuError(
                f"found {' and '.join(names)} as kernel {place} of calls; wanted equal ones in each"
            )
        nexts = events[place + 1 :: each]
        gaps = [_start(after) - _end(event) for event, after in zip(mine, nexts, strict=False)]
        found.append(_run(mine, gaps, calls))
    return found


def _run(events: Sequence[Mapping[str, Any]], gaps: Sequence[float], calls: int) -> KernelRun:
    args = events[0]["args"]
    return KernelRun(
        name=str(events[0]["name"])[:_LONGEST_NAME],
        grid=tuple(map(int, args["grid"])),
        block=tuple(map(int, args["block"])),
        registers=int(args.get("registers per thread", 0)),
        smem_bytes=int(args.get("shared memory", 0)),
        duration_us=statistics.median(float(event["dur"]) for event in events),
        gap_after_us=statistics.median(gaps) if gaps else None,
        calls=calls,
    )


def _launched(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return event["name"], tuple(event["args"]["grid"]), tuple(event["args"]["block"])


def _start(event: Mapping[str, Any]) -> float:
    return float(event["ts"])


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"]) + float(event["dur"])


def merge_start_of(instance: Instance) -> CombineStart:
    """How what merges partials after all CTAs begins, as the kernel file says; else as a launch."""
    return instance.combine.start if isinstance(instance.combine, CombineNumbers) else "launch"


def planned_ctas(schedule: Schedule) -> int:
    """CTAs that a schedule launches: of a queue as many as are resident, whatever it holds."""
    if schedule.dispatch == "queue":
        return schedule.grid.num_sms * schedule.grid.ctas_per_sm
    return schedule.num_ctas


def contradiction(
    kernels: Sequence[KernelRun], schedule: Schedule, merge_start: CombineStart = "launch"
) -> str:
    """What in the kernels of a call is not as the schedule of that call plans it, or nothing.

    `merge_start` says how what merges begins: after a `grid_sync` it is no kernel of its own.
    """
    attending = [kernel for kernel in kernels if kernel.attends]
    if not attending:
        return "no kernel that attends, by its name"
    longest = max(attending, key=lambda kernel: kernel.duration_us)
    found, wanted = longest.ctas, planned_ctas(schedule)
    if found != wanted:
        grid = " x ".join(map(str, longest.grid))
        return f"a grid of {grid} = {found} CTAs, planned {wanted}"
    merges = any(kernel.merges for kernel in kernels)
    planned = schedule.combine == "kernel" and merge_start != "grid_sync"
    if merges != planned:
        return f"{'a' if merges else 'no'} kernel that merges, planned {'one' if planned else 'none'}"
    return ""


def columns_of(
    kernels: Sequence[KernelRun], schedule: Schedule, merge_start: CombineStart = "launch"
) -> list[dict[str, Any]]:
    """Rows of a file of kernels: values of `KERNEL_COLUMNS`. `merge_start` as in `contradiction`."""
    against = contradiction(kernels, schedule, merge_start)
    return [
        {
            "order": order,
            "name": kernel.name,
            "grid": json.dumps(list(kernel.grid)),
            "block": json.dumps(list(kernel.block)),
            "registers": kernel.registers,
            "smem_bytes": kernel.smem_bytes,
            "duration_us": round(kernel.duration_us, 3),
            "gap_after_us": "" if kernel.gap_after_us is None else round(kernel.gap_after_us, 3),
            "calls": kernel.calls,
            "planned_ctas": planned_ctas(schedule),
            "contradicts": against,
        }
        for order, kernel in enumerate(kernels)
    ]


def profiled(tools: Toolkit, enqueue: Callable[[], None]) -> dict[str, Any]:
    """The profiler's trace of what is enqueued, warmed up before."""
    profiler, cuda = tools.torch.profiler, tools.torch.cuda
    enqueue()
    cuda.synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
        enqueue()
        cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return found
