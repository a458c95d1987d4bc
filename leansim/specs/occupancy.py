"""How many CTAs fit on an SM. Ignores clusters and shared-memory carve-out steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leansim.specs.device import Device


@dataclass(frozen=True)
class Occupancy:
    """CTAs per SM as each resource allows, and the least of them."""

    by_registers: int
    by_smem: int
    by_threads: int
    ctas_per_sm: int

    @property
    def limiter(self) -> str:
        """The resource that decides."""
        limits = {"registers": self.by_registers, "smem": self.by_smem, "threads": self.by_threads}
        return min(limits, key=lambda name: limits[name]).replace("smem", "shared memory")


def occupancy(device: Device, threads: int, registers_per_thread: int, smem_bytes: int) -> Occupancy:
    """Compute CTAs per SM.

    Registers are allocated per warp in granules from the sub-partition the warp lives on; each CTA
    reserves `smem_reserved_bytes_per_cta` beside its own shared memory. Source: the CUDA occupancy
    rules, checked against compiled kernels (tests/data/golden/kernel_resources.csv).
    """
    warps = math.ceil(threads / device.warp_size)
    granule = device.register_granule_per_warp
    per_warp = math.ceil(registers_per_thread * device.warp_size / granule) * granule
    warps_resident = device.registers_per_sm // device.register_banks_per_sm // per_warp
    by_registers = warps_resident * device.register_banks_per_sm // warps
    by_threads = device.max_threads_per_sm // threads
    by_smem = device.max_ctas_per_sm
    if smem_bytes > device.smem_bytes_per_cta_max:
        by_smem = 0
    elif smem_bytes:
        held = smem_bytes + device.smem_reserved_bytes_per_cta
        by_smem = min(by_smem, device.smem_bytes_per_sm // held)
    by_warps = device.max_warps_per_sm // warps
    resident = min(by_registers, by_smem, by_threads, by_warps, device.max_ctas_per_sm)
    return Occupancy(by_registers, by_smem, by_threads, resident)
