"""What no schedule can beat: floors from bytes and FLOP alone. Ignores every overhead."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.specs.device import Device
from leansim.specs.workload import Workload
from leansim.timing.memory import replay_kept_share


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
    """Distinct bytes over peak bandwidths, and unpadded FLOP over the dense tensor rate, s.

        memory  = max((1 - kept) * bytes / DRAM bandwidth, bytes / L2 bandwidth)
        compute = FLOP / (rate of an SM * SMs)

    Bytes are of KV, and of the index that lists are chosen by. Datasheet bandwidths. `kept` is the share
    of a warm replay's footprint that L2 kept of the replay before, 0 when `cache` is cold. The rate is
    the dtype's of the query or of the cache, whichever is faster: a kernel may compute in either.
    Williams et al., CACM 2009.
    """
    read = workload.distinct_kv_bytes + workload.index_bytes
    footprint = read + workload.q_bytes + workload.o_bytes
    missed = (1.0 - replay_kept_share(workload, footprint, device)) * read
    memory_s = max(missed / device.dram_bandwidth_bytes_per_s, read / device.l2_bandwidth_bytes_per_s)
    dtypes = (workload.q_dtype, workload.kv_dtype)
    rate = max(device.tensor_flop_per_s_per_sm(dtype) or 0.0 for dtype in dtypes)
    compute_s = workload.flop / (rate * device.num_sms) if rate else 0.0
    return Roofline(memory_s, compute_s)
