"""What a timer shows of a call beside the call itself: `do_bench`, events around a loop, a profiler, ...

A timer is a harness: `harness: do_bench` adds to what is predicted what `do_bench` adds to what it
measures. Files live in `configs/timers`. Not modelled: lines that clearing L2 by writing leaves dirty,
whose eviction a call waits for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from leansim.specs.base import LaunchMode, NotNegative, SourcedSpec
from leansim.specs.harness import Calls
from leansim.specs.workload import Cache


class Timer(SourcedSpec):
    """A way to time calls.

    It shows `added_s` more and `omitted_s` less than the kernels of a call and the gap to the next, and
    never less than `least_s`, the host's time for a call where the device waits for it. `added_s` is
    beside calls launched as `launch` says: a stream's gap is longer than a graph's. `launch` and
    `cache` say how it launches and what is in L2 then: what a point should say that is held against it.
    """

    launch: LaunchMode
    cache: Cache
    added_s: NotNegative = 0.0
    omitted_s: NotNegative = 0.0
    least_s: NotNegative = 0.0

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """How it launches, and what is in L2, which the description spells out."""
        return super().unsourced() | {"launch", "cache"}

    def harness_s(self, calls: Calls, kernel_s: Any = 0.0) -> Any:  # noqa: ARG002
        """What it adds to calls whose kernels and gaps take `kernel_s`, s: an array or a number."""
        return np.maximum(self.added_s - self.omitted_s, self.least_s - kernel_s)
