"""A schedule priced on a device: plain arrays that any engine can execute.

A launch is a run of CTAs, a CTA a run of phases. A phase waits for a counter, then for a fixed
latency, then moves bytes, then signals a counter; each part may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from leansim.arrays import FloatArray, IntArray
from leansim.errors import OutOfRangeError
from leansim.lazy import cached_property

PS_PER_S = 1_000_000_000_000


class Phase(IntEnum):
    """What a CTA is doing."""

    LAUNCH = 0
    STREAM = 1
    WRITE = 2
    MERGE = 3
    COMBINE = 4
    RAMP = 5
    TRAVEL = 6


# A quarter of what 64 bits hold, about two weeks: sums of times stay exact.
MOST_PS = 2**60


def out_of_range() -> OutOfRangeError:
    """Return the error of a time that picoseconds in 64 bits cannot hold."""
    return OutOfRangeError("the numbers of this device and kernel make times no clock could count")


def picoseconds(seconds: float) -> int:
    """Round seconds to whole picoseconds, the engine's unit of time. Raises `OutOfRangeError`."""
    if not abs(seconds) < MOST_PS / PS_PER_S:
        raise out_of_range()
    return round(seconds * PS_PER_S)


def rounded_ps(seconds: npt.NDArray[np.floating[Any]]) -> IntArray:
    """Round seconds to whole picoseconds; what no clock could count comes out negative."""
    rounded: IntArray = np.rint(seconds * PS_PER_S).astype(np.int64)
    return rounded


def total_where(mask: npt.NDArray[np.bool_], values: IntArray) -> int:
    """Sum the values where a mask is true: a product is four times as fast as picking them out."""
    return int(np.einsum("i,i", values, mask))


@dataclass(frozen=True)
class FlowKind:
    """How a phase's bytes move: the most one CTA takes, what they cost its SM and DRAM.

    `max_bytes_per_ps` alone on an SM, `sm_ps_per_byte` work of its SM, `dram_share` and `l2_share` of
    the bytes that pass DRAM and L2 (a masked token is work and no traffic). `offered_bytes_per_ps` is
    what the loads it keeps in flight would bring from an idle memory: how deep DRAM's queues are.
    `tensor_ps_per_byte` is how much of that work its SM's tensor cores do; `carries_kv` says whether the
    bytes are of K and V. Where several of the kind share an SM, each waits `waits_ps_per_byte[n - 1]`
    more of n (empty: for nothing).
    """

    name: str
    max_bytes_per_ps: float
    sm_ps_per_byte: float
    dram_share: float
    l2_share: float
    offered_bytes_per_ps: float
    tensor_ps_per_byte: float = 0.0
    carries_kv: bool = False
    waits_ps_per_byte: tuple[float, ...] = ()


@dataclass(frozen=True)
class Launch:
    """One kernel launch: CTAs `[first_cta, last_cta)`, begun `gap_ps` after the last one drained."""

    name: str
    first_cta: int
    last_cta: int
    ctas_per_sm: int
    gap_ps: int

    @property
    def num_ctas(self) -> int:
        """CTAs of this launch."""
        return self.last_cta - self.first_cta


@dataclass(frozen=True, eq=False)
class Program:
    """Everything an engine needs. Launches run one after the other.

    Phase arrays are indexed alike; -1 means "none".

    `phase_of_cta` has `num_ctas + 1` borders. `bytes` move as `flows[flow]`; with flow -1 their time is
    part of the latency and they share nothing (stores, which nobody waits for). `wait_counter` must
    reach `wait_target` before the phase goes on; `signal_counter` is raised by one when it ends.
    `drift_ps`, per SM, is added to the latency of its RAMP phases (None: nothing).
    """

    launches: tuple[Launch, ...]
    flows: tuple[FlowKind, ...]
    phase_of_cta: IntArray
    kind: IntArray
    latency_ps: IntArray
    bytes: IntArray
    flow: IntArray
    wait_counter: IntArray
    wait_target: IntArray
    signal_counter: IntArray
    num_sms: int
    dispatch_interval_ps: int
    launch_ps: int
    dram_bytes_per_ps: float
    l2_bytes_per_ps: float
    dram_saturation_exponent: float
    num_counters: int = 0
    drift_ps: IntArray | None = None

    @property
    def num_ctas(self) -> int:
        """CTAs of all launches."""
        return len(self.phase_of_cta) - 1

    @property
    def num_phases(self) -> int:
        """Phases of all CTAs."""
        return len(self.kind)

    @property
    def attention(self) -> Launch:
        """The launch that streams KV."""
        return next(launch for launch in self.launches if launch.name == "attention")

    @cached_property
    def segment(self) -> IntArray:
        """Segment of the schedule that each phase belongs to, -1 for none; each begins with a RAMP."""
        launch = self.attention
        first, last = self.phase_of_cta[[launch.first_cta, launch.last_cta]]
        segment = np.full(self.num_phases, -1, dtype=np.int64)
        number = np.cumsum(self.is_kind(Phase.RAMP)[first:last]) - 1
        segment[first:last] = np.where(self.is_kind(Phase.LAUNCH)[first:last], -1, number)
        return segment

    @property
    def max_ctas_per_sm(self) -> int:
        """Most CTAs that share an SM in any launch."""
        return max(launch.ctas_per_sm for launch in self.launches)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes that all phases work through or store."""
        return int(self.bytes.sum())

    @property
    def shared_bytes(self) -> int:
        """Bytes that move as flows."""
        return int(self.bytes_of_flow[1:].sum())

    @cached_property
    def bytes_of_flow(self) -> FloatArray:
        """Bytes that are stored, and those of every flow, `[1 + flows]`; exact up to 2^53."""
        sizes: FloatArray = np.bincount(
            self.flow + 1, weights=self.bytes, minlength=1 + len(self.flows)
        ).astype(np.float64, copy=False)
        return sizes

    @property
    def num_events(self) -> int:
        """Moments an engine must handle: CTAs placed, latencies over, waits over, transfers done."""
        transfers = np.count_nonzero((self.flow >= 0) & (self.bytes > 0))
        fixed = np.count_nonzero(self.latency_ps) + np.count_nonzero(self.wait_counter >= 0)
        return int(self.num_ctas + fixed + transfers)

    def slots(self, launch: Launch) -> int:
        """Places where CTAs of a launch can run."""
        return self.num_sms * launch.ctas_per_sm

    def is_kind(self, kind: Phase) -> npt.NDArray[np.bool_]:
        """Which phases are of a kind."""
        return np.equal(self.kind, kind.value)  # the Enum itself would be compared in 64 bits

    def bytes_of(self, kind: Phase) -> int:
        """Bytes worked through by all phases of a kind, masked ones included."""
        return total_where(self.is_kind(kind), self.bytes)

    @property
    def kv_bytes(self) -> float:
        """Bytes of KV that pass L2."""
        shares = [flow.l2_share if flow.carries_kv else 0.0 for flow in self.flows]
        return over_flows(shares, self.bytes_of_flow[1:].tolist())

    @property
    def dram_bytes(self) -> float:
        """Bytes that come from DRAM."""
        return over_flows([flow.dram_share for flow in self.flows], self.bytes_of_flow[1:].tolist())


def over_flows(shares: Sequence[float], moved: Sequence[float]) -> float:
    """Bytes of every flow times what a byte of each comes to: `sum of share * moved`."""
    return sum(share * size for share, size in zip(shares, moved, strict=True))
