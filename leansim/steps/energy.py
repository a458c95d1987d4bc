"""The energy of a decode step, from the power model that each device's file has.

Answers "how many joules, at least and at most?". Ignores clocks that change with load, and all of a
server but its GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from leansim.specs.device import Device
from leansim.steps.kernels import Spent


@dataclass(frozen=True)
class Energy:
    """Joules of some work on one GPU: between `low` and `high`."""

    low_j: float
    high_j: float


def energy(spent: Spent, device: Device) -> Energy:
    """`idle power x time + energy per byte x bytes from DRAM`, and of arithmetic nothing or the most.

    The fits of power to bandwidth behind the devices' numbers have no tensor cores in them, and nobody
    publishes what those take. It is no more than what is left of the board's power limit at their full
    rate: `(TDP - idle) / dense FLOP per s`, which `high` counts for each FLOP. No average is above the
    limit.
    """
    moving = device.idle_power_w * spent.seconds + device.dram_energy_j_per_byte * spent.dram_bytes
    rate = device.tensor_flop_per_s_per_sm("bfloat16")
    assert rate is not None
    j_per_flop = (device.tdp_w - device.idle_power_w) / (rate * device.num_sms)
    limit = device.tdp_w * spent.seconds
    return Energy(min(moving, limit), min(moving + j_per_flop * spent.flop, limit))
