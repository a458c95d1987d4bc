"""How running transfers share the memory system: max-min fair, in closed form.

A transfer is held back by what its CTA can keep in flight, by its SM, by L2, and by DRAM. Raising
all rates together until each meets its first limit gives every transfer min(own limit, its SM's
level, the level of the memories it uses), so the levels can be found one resource at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """`count` transfers that each take up to `limit` bytes/ps, `dram_share` of it from DRAM."""

    count: int
    limit: float
    dram_share: float


def level(limits: Sequence[tuple[float, float]], capacity: float) -> float:
    """Level `x` at which `sum(weight * min(limit, x))` meets `capacity`; infinite if it never does.

    `limits` are (limit, weight) pairs; weight is the capacity one unit of rate costs.
    """
    used, weight = 0.0, sum(w for _, w in limits)
    for limit, w in sorted(limits):
        if used + weight * limit >= capacity:
            return (capacity - used) / weight
        used += w * limit
        weight -= w
    return math.inf


def loaded_capacity(offered: float, peak: float, exponent: float) -> float:
    """Bandwidth of a memory offered more or less than it can serve.

    `offered / (1 + (offered / peak) ** q) ** (1 / q)`: close to the offer when little is asked, to
    the peak when much is (hardware.md 4.1, the loaded-throughput law; q per device).
    """
    if offered <= 0.0:
        return peak
    ratio = offered / peak
    return float(offered / (1.0 + ratio**exponent) ** (1.0 / exponent))


def shared_rates(
    demands: Sequence[Demand], dram_peak: float, dram_exponent: float, l2_peak: float
) -> list[float]:
    """Rate in bytes/ps of each demand's transfers, in the order given."""
    dram = [(d.limit, d.count * d.dram_share) for d in demands if d.dram_share > 0.0]
    offered = sum(limit * weight for limit, weight in dram)
    dram_level = level(dram, loaded_capacity(offered, dram_peak, dram_exponent)) if dram else math.inf
    l2_level = level([(d.limit, float(d.count)) for d in demands], l2_peak)
    if l2_level <= dram_level:
        return [min(d.limit, l2_level) for d in demands]
    held = sum(d.count * min(d.limit, dram_level) for d in demands if d.dram_share > 0.0)
    free = [(d.limit, float(d.count)) for d in demands if d.dram_share == 0.0]
    free_level = level(free, max(0.0, l2_peak - held)) if free else math.inf
    return [min(d.limit, dram_level if d.dram_share > 0.0 else free_level) for d in demands]
