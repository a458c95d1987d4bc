"""What no schedule can beat: floors from bytes and FLOP alone. Ignores every overhead."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class Roofline:
    """Least times of a workload on a device, s."""

    memory_s: float
    compute_s: float

    @property
    def floor_s(self) -> float:
        """The larger of the two."""
        return max(self.memory_s, self.compute_s)

    @property
    def bottleneck(self) -> str:
        """Which of the two it is: `memory` or `compute`."""
        return "memory" if self.memory_s >= self.compute_s else "compute"


def roofline(workload: Workload, device: Device) -> Roofline:
    """Distinct bytes over peak bandwidth, and unpadded FLOP over the dense tensor rate, s.

        memory = KV bytes / bandwidth,    compute = FLOP / (rate of an SM * SMs)

    Datasheet DRAM bandwidth when `cache` is cold; when it is warm, L2 bandwidth, since a replayed
    footprint may be resident. Williams et al., CACM 2009.
    """
    peak = device.dram_bandwidth_bytes_per_s
    if workload.cache == "warm":
        peak = max(peak, device.l2_bandwidth_bytes_per_s)
    rate = device.tensor_flop_per_s_per_sm(workload.q_dtype)
    compute_s = workload.flop / (rate * device.num_sms) if rate else 0.0
    return Roofline(workload.kv_bytes / peak, compute_s)
