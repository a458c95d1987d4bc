"""Times calls on the device: CUDA events around a graph's replay or a row of launches.

A sample is several calls, so that what surrounds them is shared out. The host enqueues while the device
is kept busy, so that a sample never waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.gpu.toolkit import Toolkit
from leansim.specs.base import LaunchMode

_LEAST_SAMPLES, _MOST_SAMPLES = 12, 200
_SAMPLE_US, _MOST_CALLS = 1000.0, 64
_CLOCK_HZ = 2e9  # only for how long the device is kept busy
_LONGEST_HOLD_S = 0.2


@dataclass(frozen=True)
class Timing:
    """Time of one call, us: median, interquartile range and least of `samples` means of `calls`."""

    median_us: float
    spread_us: float
    min_us: float
    samples: int
    calls: int

    def columns(self) -> dict[str, Any]:
        """As columns of a CSV."""
        spread, least = round(self.spread_us, 4), round(self.min_us, 4)
        return {"spread_us": spread, "min_us": least, "samples": self.samples, "calls": self.calls}


def calls_for(expected_us: float) -> int:
    """Calls of a sample: a millisecond of them, at least 2 and at most 64."""
    return int(np.clip(np.ceil(_SAMPLE_US / expected_us), 2, _MOST_CALLS))


class L2Flush:
    """Reads enough other memory that nothing of before is left in L2. Leaves no line to write back."""

    def __init__(self, tools: Toolkit, l2_bytes: int) -> None:
        """Allocate four times `l2_bytes`."""
        self.other = tools.torch.zeros(l2_bytes, dtype=tools.torch.float32, device=tools.where)

    def __call__(self) -> None:
        """Enqueue the read."""
        self.other.sum()


def timed(
    tools: Toolkit,
    call: Callable[[int], None],
    calls: int,
    launch: LaunchMode,
    flush: Callable[[], None] | None = None,
    least_s: float = 0.03,
    poison: Callable[[], None] | None = None,
) -> Timing:
    """Time `call(0) ... call(calls - 1)`, in one graph or as launches of a stream.

    Warms up first (kernels are compiled and loaded then). With `flush`, what it evicts is evicted
    before each sample, outside the times. Samples go on for `least_s` seconds of device time. With
    `poison`, it is called after the last one, and a sample follows that is not timed: what the calls
    then leave is what they leave as they were timed, for a check.
    """
    enqueue = enqueuer(tools, call, calls, launch)
    hold = _hold_cycles(tools, enqueue)
    cuda = tools.torch.cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    found: list[float] = []
    while len(found) < _LEAST_SAMPLES or (sum(found) < least_s * 1e3 and len(found) < _MOST_SAMPLES):
        if flush is not None:
            flush()
        cuda._sleep(hold)
        start.record()
        enqueue()
        end.record()
        cuda.synchronize()
        found.append(start.elapsed_time(end))
    if poison is not None:
        poison()
        enqueue()
        cuda.synchronize()
    us = np.array(found) * 1e3 / calls
    low, median, high = np.percentile(us, (25, 50, 75))
    return Timing(float(median), float(high - low), float(us.min()), len(found), calls)


def enqueuer(
    tools: Toolkit, call: Callable[[int], None], calls: int, launch: LaunchMode
) -> Callable[[], None]:
    """What enqueues one sample: a captured graph's replay, or the calls themselves."""

    def one_by_one() -> None:
        for i in range(calls):
            call(i)

    one_by_one()
    tools.torch.cuda.synchronize()
    if launch != "graph":
        return one_by_one
    graph = tools.torch.cuda.CUDAGraph()
    with tools.torch.cuda.graph(graph):
        one_by_one()
    replay: Callable[[], None] = graph.replay
    return replay


def _hold_cycles(tools: Toolkit, enqueue: Callable[[], None]) -> int:
    """Clock cycles to keep the device busy while the host enqueues a sample; warms up too."""
    slowest = 0.0
    for _ in range(3):
        before = time.perf_counter()
        enqueue()
        slowest = max(slowest, time.perf_counter() - before)
        tools.torch.cuda.synchronize()
    return int(min(2.0 * slowest + 2e-5, _LONGEST_HOLD_S) * _CLOCK_HZ)
