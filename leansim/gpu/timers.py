"""Measures what timers add to a call: one reading kernel under each, beside its time in a graph.

The reference is `timing.timed`: calls in a graph, the host hidden. What `configs/timers` says of a timer
is `added_us` where it does not change with the call, less what a stream's gap is longer than a graph's,
and the least that it shows of short ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from leansim.errors import GpuError
from leansim.gpu.kernel_log import kernels_of, profiled
from leansim.gpu.machine import Machine
from leansim.gpu.timing import L2Flush, calls_for, timed
from leansim.gpu.toolkit import Toolkit
from leansim.silicon.own import MACHINE_COLUMNS
from leansim.specs.device import Device

COLUMNS = ("timer", "cache", "bytes", "call_us", "shown_us", "added_us", *MACHINE_COLUMNS)
LOOP_CALLS = 100
_EAGER_CALLS = 30
_INT32, _BLOCK = 4, 2048
# What a call reads: nothing but a CTA's start, and so much that it takes some 3 to 50 us.
_SIZES = (2**14, 2**20, 2**24, 2**27)
_POOL_BYTES = 2**30


@dataclass(frozen=True)
class Timed:
    """A call, and the libraries to time it with."""

    tools: Toolkit
    call: Callable[[], None]


def do_bench(given: Timed) -> float:
    """Triton's: the mean of eager calls, L2 cleared before each, us."""
    return float(given.tools.triton.testing.do_bench(given.call)) * 1e3


def cuda_events(given: Timed) -> float:
    """Events around a loop of eager calls, us of each."""
    cuda = given.tools.torch.cuda
    for _ in range(3):
        given.call()
    cuda.synchronize()
    return _between(given, LOOP_CALLS) / LOOP_CALLS


def eager(given: Timed) -> float:
    """Events around each of some eager calls, the device idle before: the median, us."""
    cuda, found = given.tools.torch.cuda, []
    for _ in range(_EAGER_CALLS):
        cuda.synchronize()
        found.append(_between(given, 1))
    return statistics.median(found)


def wall_clock(given: Timed) -> float:
    """The host's clock around a call and the wait for it: the median, us."""
    cuda, found = given.tools.torch.cuda, []
    for _ in range(_EAGER_CALLS):
        cuda.synchronize()
        start = time.perf_counter()
        given.call()
        cuda.synchronize()
        found.append((time.perf_counter() - start) * 1e6)
    return statistics.median(found)


def profiler(given: Timed) -> float:
    """Durations of the kernels of a call, added up, us."""

    def calls() -> None:
        for _ in range(LOOP_CALLS):
            given.call()

    return sum(run.duration_us for run in kernels_of(profiled(given.tools, calls), LOOP_CALLS))


def _between(given: Timed, calls: int) -> float:
    """Time from an event before so many calls to one after, us."""
    cuda = given.tools.torch.cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        given.call()
    end.record()
    cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e3


# Names as in configs/timers, what L2 holds when a call begins; NVBench is no Python, and not here.
TIMERS: Mapping[str, tuple[str, Callable[[Timed], float]]] = {
    "do_bench": ("cold", do_bench),
    "cuda_events": ("warm", cuda_events),
    "eager": ("warm", eager),
    "wall_clock": ("warm", wall_clock),
    "profiler": ("warm", profiler),
}


def rows(tools: Toolkit, device: Device) -> Iterator[dict[str, Any]]:
    """Measure each timer on calls of several lengths: values of `COLUMNS`.

    Raises `GpuError` in the interpreter, which has no time.
    """
    if tools.interpreted:
        raise GpuError("timers are measured on a GPU; the interpreter has no time to show")
    torch, machine = tools.torch, Machine(tools)
    data = torch.zeros(_POOL_BYTES // _INT32, dtype=torch.int32, device=tools.where)
    sums = torch.zeros(device.num_sms * 16, dtype=torch.int32, device=tools.where)
    flush = L2Flush(tools, device.l2_bytes)
    for size in _SIZES:
        calls = calls_for(3.0 + 1e6 * size / device.dram_bandwidth_bytes_per_s)
        read = _reading(tools, data, sums, size, device.num_sms * 8)
        reference = {
            "warm": timed(tools, lambda _, read=read: read(0), calls, "graph").median_us,  # type: ignore[misc]
            "cold": timed(tools, read, calls, "graph", flush).median_us,
        }
        for name, (cache, timer) in TIMERS.items():
            shown = timer(Timed(tools, lambda read=read: read(0)))  # type: ignore[misc]
            added = shown - reference[cache]
            times = {"call_us": reference[cache], "shown_us": shown, "added_us": added}
            yield {
                "timer": name,
                "cache": cache,
                "bytes": size,
                **{column: round(us, 4) for column, us in times.items()},
                **machine.columns(),
            }


def _reading(tools: Toolkit, data: Any, sums: Any, size: int, most_ctas: int) -> Callable[[int], None]:
    """What reads `size` bytes: each call of a sample others, as far as there are."""
    blocks, parts = size // (_BLOCK * _INT32), data.view(-1, size // _INT32)
    ctas = min(blocks, most_ctas)

    def read(i: int) -> None:
        part = parts[i % len(parts)]
        tools.micro_kernels.read[(ctas,)](part, sums, blocks, BLOCK=_BLOCK, num_warps=4)

    return read
