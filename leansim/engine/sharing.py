"""How running transfers share the memory system: max-min fair, in closed form.

A transfer is held back by what its CTA can keep in flight, by its SM, by L2, and by DRAM. All rates
rise together until each meets its first limit. An SM's limit depends only on what runs on the SM,
so it is found first and the rest is one progressive filling over groups of equal transfers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.engine.program import MOST_PS, FlowKind

# Bytes below which a transfer is done: ends are rounded up to a picosecond, so what is left at one is
# floating-point residue.
RESIDUE = 1e-3
_MOST_LOG = 700.0  # of the largest float, a little less
_MOST_WAIT_PS = float(MOST_PS)
_Demand: TypeAlias = tuple[float, float, tuple[float, ...]]  # pace, work and waits of a kind


@dataclass(eq=False)
class Demand:
    """`count` transfers that each take up to `limit` bytes/ps, shares of it through DRAM and L2.

    Each keeps loads in flight that would bring `offered` bytes/ps.
    """

    count: int
    limit: float
    dram_share: float
    l2_share: float
    offered: float


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


def sm_limits(flows: tuple[FlowKind, ...], max_ctas: int) -> tuple[FloatArray, IntArray]:
    """Most bytes/ps of one transfer of each kind, for everything that can run on an SM at once.

    `[code, kind]`, and what a transfer of each kind adds to the code, `[kind]`. Kinds that an SM
    cannot tell apart (same pace, same work, same waits) count together. A kind is held to the pace that
    it has beside so many of its own, and to the level at which its SM is full.
    """
    return _sm_limits(tuple([_of_sm(flow) for flow in flows]), max_ctas)


def _of_sm(flow: FlowKind) -> _Demand:
    """What an SM can tell of a kind."""
    return flow.max_bytes_per_ps, flow.sm_ps_per_byte, flow.waits_ps_per_byte


@dataclass(frozen=True)
class PoolTable:
    """Which transfers share a rate: those that may take as much and cost the memories the same.

    `of[code, kind]` is the pool of a transfer of a kind on an SM that runs what the code says, and
    `power[kind]` what it adds to the code. `demands` are, `[4, pools]`, what a `Demand` says after its
    count.
    """

    of: IntArray
    power: IntArray
    demands: FloatArray


def pool_table(flows: tuple[FlowKind, ...], max_ctas: int) -> PoolTable:
    """Number the pools of transfers of such kinds, one for each limit of a kind, the least first."""
    costs = [(flow.dram_share, flow.l2_share, flow.offered_bytes_per_ps) for flow in flows]
    demands = tuple([_of_sm(flow) for flow in flows])
    first: dict[tuple[Any, ...], int] = {}
    like = [first.setdefault(both, kind) for kind, both in enumerate(zip(demands, costs, strict=True))]
    of, power, limit, kind_of = _pools(demands, tuple(like), max_ctas)
    of_pools = np.empty((4, len(limit)))
    of_pools[0] = limit
    of_pools[1:] = np.array(costs, np.float64).reshape(-1, 3)[kind_of].T
    return PoolTable(of, power, of_pools)


@lru_cache(maxsize=1024)
def _pools(
    demands: tuple[_Demand, ...], like: tuple[int, ...], max_ctas: int
) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """What of a `PoolTable` is the same whatever the memories are, and the limit and kind of each pool.

    A kind is `like` itself or one before it.
    """
    table, power = _sm_limits(demands, max_ctas)
    of, limits, kinds = np.zeros(table.shape, np.int64), [np.zeros(0)], [np.zeros(0, np.int64)]
    num_pools = 0
    for kind, one in enumerate(like):
        if one == kind:
            distinct, place = np.unique(table[:, kind], return_inverse=True)
            of[:, kind] = num_pools + place
            num_pools += len(distinct)
            limits.append(distinct)
            kinds.append(np.full(len(distinct), kind))
    limit, kind_of = np.concatenate(limits), np.concatenate(kinds)
    order = np.argsort(limit, kind="stable")
    number = np.empty(num_pools, np.int64)
    number[order] = np.arange(num_pools)
    return number[of[:, list(like)]], power, limit[order], kind_of[order]


@lru_cache(maxsize=1024)
def _sm_limits(demands: tuple[_Demand, ...], max_ctas: int) -> tuple[FloatArray, IntArray]:
    radix = max_ctas + 1
    unlike = list(dict.fromkeys(demands))
    kind_of = [unlike.index(demand) for demand in demands]
    table = np.zeros((radix ** len(unlike), len(demands)))
    for counts in itertools.product(range(radix), repeat=len(unlike)):
        if not 0 < sum(counts) <= max_ctas:
            continue
        paces = [
            _pace(pace, waits, max(1, n)) for (pace, _, waits), n in zip(unlike, counts, strict=True)
        ]
        works = [n * work for (_, work, _), n in zip(unlike, counts, strict=True)]
        wants = [(pace, work) for pace, work, n in zip(paces, works, counts, strict=True) if n]
        height = level(wants, 1.0)
        code = sum(n * radix**k for k, n in enumerate(counts))
        table[code] = [min(paces[kind], height) for kind in kind_of]
    table.flags.writeable = False
    return table, np.array([radix**kind for kind in kind_of], dtype=np.int64)


def _pace(alone: float, waits: tuple[float, ...], together: int) -> float:
    """Most bytes/ps of a transfer beside others of its kind on its SM."""
    return 1.0 / (1.0 / alone + waits[min(together, len(waits)) - 1]) if waits else alone


def loaded_capacity(offered: float, peak: float, exponent: float) -> float:
    """Bandwidth of a memory offered more or less than it can serve.

    `offered / (1 + (offered / peak) ** q) ** (1 / q)`: close to the offer when little is asked, to
    the peak when much is (fitted to bandwidth against bytes in flight; q per device). A compiled engine
    can compile this very function.
    """
    if offered <= 0.0 or exponent * math.log(offered / peak) > _MOST_LOG:
        return peak  # the power would be no number
    return float(offered / (1.0 + (offered / peak) ** exponent) ** (1.0 / exponent))


def span_ps(left: float, rate: float) -> float:
    """Time until so many bytes are moved, ps; of any number that no clock could count, -inf.

    A compiled engine can compile this very function, and the next.
    """
    return left / rate if left < rate * _MOST_WAIT_PS else -math.inf


def whole_ps(span: float) -> float:
    """The same rounded up to a picosecond, and at least one; 0 where no clock could count it."""
    return max(1.0, float(math.ceil(span))) if span > -math.inf else 0.0


def fill_rates(
    n: int,
    count: Any,
    limit: Any,
    share: Any,
    l2_share: Any,
    dram_free: float,
    l2_free: float,
    rate: Any,
) -> None:
    """Write into `rate[:n]` the bytes/ps of one transfer of each of `n` groups, of rising `limit`.

    Progressive filling: the common level rises to the next limit, or to where DRAM or L2 is full and
    the groups that use it stop; where neither would be full, each has its limit. Plain loops over plain
    arrays, so that a compiled engine can compile this very function. Sums run in the order of the
    groups.
    """
    dram_wanted, l2_wanted, dram_weight, l2_weight = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        dram_each, l2_each = count[i] * share[i], count[i] * l2_share[i]
        dram_wanted += dram_each * limit[i]
        l2_wanted += l2_each * limit[i]
        dram_weight += dram_each
        l2_weight += l2_each
        rate[i] = limit[i]
    if dram_wanted <= dram_free and l2_wanted <= l2_free:
        return
    for i in range(n):
        rate[i] = -1.0
    height = 0.0
    for i in range(n):
        # `weight` is what a rise by 1 takes of those that still rise; those that stopped are off `free`.
        while rate[i] < 0.0:
            dram_full = dram_free / dram_weight if dram_weight * limit[i] > dram_free else math.inf
            l2_full = l2_free / l2_weight if l2_weight * limit[i] > l2_free else math.inf
            height = max(height, min(limit[i], dram_full, l2_full))
            by_dram = dram_full < math.inf and dram_full <= l2_full
            by_l2 = l2_full < math.inf and not by_dram
            for j in range(i, n if by_dram or by_l2 else i + 1):
                if rate[j] < 0.0 and (
                    (share[j] > 0.0 or not by_dram) and (l2_share[j] > 0.0 or not by_l2)
                ):
                    rate[j] = height
                    dram_each, l2_each = count[j] * share[j], count[j] * l2_share[j]
                    dram_free = max(0.0, dram_free - dram_each * height)
                    l2_free = max(0.0, l2_free - l2_each * height)
                    dram_weight -= dram_each
                    l2_weight -= l2_each
            if by_dram:
                dram_weight = 0.0
            if by_l2:
                l2_weight = 0.0


def shared_rates(
    demands: Sequence[Demand], dram_peak: float, dram_exponent: float, l2_peak: float
) -> list[float]:
    """Rate in bytes/ps of each demand's transfers, in the order given."""
    offered = 0.0
    for demand in demands:
        offered += demand.count * demand.dram_share * demand.offered
    order = sorted(range(len(demands)), key=lambda i: demands[i].limit)
    rising = [demands[i] for i in order]
    filled = [0.0] * len(rising)
    fill_rates(
        len(rising),
        [d.count for d in rising],
        [d.limit for d in rising],
        [d.dram_share for d in rising],
        [d.l2_share for d in rising],
        loaded_capacity(offered, dram_peak, dram_exponent),
        l2_peak,
        filled,
    )
    rates = [0.0] * len(demands)
    for i, rate in zip(order, filled, strict=True):
        rates[i] = rate
    return rates
