"""A toy GPU and kernel of round numbers, so that recalibrating a device or kernel moves no test by hand.

A KV tile is 256 tokens of head dim 64: K and V are 32,768 B each. On the toy (1 clk = 1 ns, an SM
loads 64 B/ns, DRAM latency 488 ns, L2 latency 100 ns) the FlashAttention-2 loop takes, in ns:

    load of K or of V   488 + 32768/64                             = 1000
    QK, and PV          2*64*256*64 / 4096                         =  512
    softmax             64*256/16 exps + 64*256*5/128 FMAs         = 1664
    a KV tile           max(V 1000, QK 512) + max(K 1000, 1664 + 512) = 3176
    filling the loop    latency 488, all of a later K being hidden =  488
    asked for ahead     the first K: 32768/64                      =  512 where no token is masked
    prologue            2 reads and Q: 3*100                       =  300
    work of the SM      max(512 + 1664 + 512, 65536/64)            = 2688

so a segment of n tiles takes 788, then 512 in which K comes through DRAM and L2 beside what others ask
for, then 3176 n: 1300 + 3176 n where nothing holds it up. Of the last tile 2176, softmax and PV, are
left when its V is there, for which memory is not asked. A CTA takes 200 to launch. Slots that fall idle
together are filled together; the dispatcher issues a CTA per 1, so who falls idle after 5 were
placed waits until 5 have passed. Rows of Q and of the output are 64*2 = 128 B each, a partial row 64*4
+ 4 = 260 B. A CTA of one row moves Q and output (256 B) in 4, Q and partial (388 B) in 6.0625: 6.062
as a fixed time, rounded half to even. So few bytes share nothing. Publishing a partial costs 140
(fence) + 60 (atomic) before, merging p of them 400 (flag) + 100 p and their bytes (260 B in 4.063, as
a transfer ends on the picosecond after). All SMs are equally far from memory. A phase that
moves bytes is rounded up to the picosecond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from leansim.engine.execute import execute
from leansim.engine.program import Program
from leansim.engine.result import Result
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.instance import (
    CombineNumbers,
    ComputeNumbers,
    CtaNumbers,
    Instance,
    LoopNumbers,
    MergeNumbers,
    NoCombine,
    QueryAtOnce,
    StartNumbers,
    TileShape,
)
from leansim.specs.workload import Workload
from leansim.timing.compute import FullTile, tile_work
from leansim.timing.loops import registry
from leansim.timing.lowering import lower
from leansim.timing.prices import Prices

Numbers = Mapping[str, Any]
NS = 1e-9
LAUNCH, FLAG, L2, GAP = 200.0, 400.0, 100.0, 700.0


def toy(num_sms: int = 5, **changes: Any) -> Device:
    update = {
        "num_sms": num_sms,
        "sm_clock_hz": 1e9,
        "sm_load_bytes_per_clk": 64.0,
        "tensor_flop_per_clk_per_sm": {"bfloat16": 4096.0},
        "exp_per_clk_per_sm": 16.0,
        "fp32_fma_per_clk_per_sm": 128.0,
        "dram_bandwidth_bytes_per_s": 1e13,
        "dram_efficiency": 1.0,
        "dram_latency_s": 488 * NS,
        "dram_saturation_exponent": 64.0,
        "l2_bandwidth_bytes_per_s": 1e14,
        "l2_latency_s": L2 * NS,
        "l2_partitions": 1,
        "evicted_start_s": 0.0,
        "cta_launch_s": LAUNCH * NS,
        "cta_dispatch_interval_s": 1 * NS,
        "latency_spread": 0.0,
        "kernel_gap_s": {"graph": GAP * NS, "stream": 1900 * NS},
        "fence_s": 140 * NS,
        "atomic_s": 60 * NS,
        "flag_latency_s": FLAG * NS,
    }
    return catalog.device("h100_sxm").model_copy(update=update | changes)


PLAIN: Numbers = {}
SINGLE = LoopNumbers("single_buffered", ())


def pipelined(stages: int, **numbers: float) -> LoopNumbers:
    """The loop that keeps `stages` tiles in flight."""
    return LoopNumbers("pipelined", (("stages", stages), *numbers.items()))


def toy_instance(
    loop: LoopNumbers = SINGLE,
    compute: Numbers = PLAIN,
    start: Numbers = PLAIN,
    ctas: Numbers = PLAIN,
    merge: Numbers = PLAIN,
    combine: Numbers | None = PLAIN,
    partial_dtype: str = "float32",
) -> Instance:
    """FlashAttention-2's loop without what is fitted; each mechanism with numbers changed.

    `combine` None is a kernel that merges in the launch.
    """
    merging: CombineNumbers | NoCombine = NoCombine()
    if combine is not None:
        plain = {"ctas_per_sm": 16, "rows_per_cta": 8, "splits_in_flight": 1, "start": "launch"}
        merging = CombineNumbers(**{**plain, "overhead_s": 0.0, "round_s": 0.0, **combine})
    no_ctas = CtaNumbers(
        setup_kernels=0, prepares_query=False, overhead_s=0.0, empty="write", empty_s=0.0,
        empty_prologues=0, scan_s=0.0, scan_requests=31, prefetches_items=False,
    )  # fmt: skip
    no_merge = MergeNumbers(
            1, math.inf, shared=False, once_clk=0.0, clk=0.0, row_clk=0.0, round_clk=0.0, warps=1,
            cluster_ctas=0,
        )  # fmt: skip
    return Instance(
        kernel="",
        shape=TileShape("", tile_rows=64, tile_tokens=256, ctas_per_sm=1),
        q_dtype="bfloat16",
        partial_dtype=partial_dtype,
        loop=loop,
        compute=replace(ComputeNumbers(mma_efficiency=1.0, softmax_fma_per_score=5.0), **compute),
        start=replace(StartNumbers(0.0, QueryAtOnce(2)), **start),
        ctas=replace(no_ctas, **ctas),
        merge=replace(no_merge, **merge),
        combine=merging,
    )


def grid_of(lens: tuple[int, ...], heads: int, ctas_per_sm: int = 1, **more: Any) -> TileGrid:
    """Tiles of 64 rows and 256 tokens on 5 SMs; one row to a tile unless `num_q_heads` says more."""
    shape = {"num_q_heads": heads, "num_kv_heads": heads, "head_dim": 64}
    workload = Workload(lens, **(shape | more))
    return TileGrid(workload, tile_rows=64, tile_tokens=256, num_sms=5, ctas_per_sm=ctas_per_sm)


def two_heads() -> TileGrid:
    """The paper's toy: 5 SMs that hold one CTA each, 2 heads of 5 LeanTiles."""
    return grid_of((1280,), 2)


def priced(
    schedule: Schedule, instance: Instance | None = None, device: Device | None = None
) -> Program:
    """A schedule priced as of the instance, whose tiles are then the schedule's."""
    grid, instance = schedule.grid, instance or toy_instance()
    same = {f.name: getattr(grid, f.name) for f in fields(TileShape)}
    return lower(schedule, replace(instance, shape=TileShape(**same)), device or toy())


def run(schedule: Schedule, device: Device | None = None, instance: Instance | None = None) -> Result:
    return execute(priced(schedule, instance, device))


def prices_of(grid: TileGrid, instance: Instance, hit_share: float = 0.0) -> Prices:
    """Prices of tiles on the toy, where so many loads hit L2."""
    work = tile_work(FullTile.of(grid), instance, toy(), hit_share)
    loop = registry.make(instance.loop, "")
    return Prices(loop, work, loop.price(work), work, 0.0, 0.0, hit_share)


def ns(picoseconds: Any) -> Any:
    """Picoseconds as ns, to compare to some picoseconds: each phase is rounded up to one."""
    return pytest.approx(np.asarray(picoseconds) / 1000.0, rel=0, abs=0.004)


def rows(schedule: Schedule) -> list[tuple[int, int, int, int]]:
    """(CTA, output tile, start, stop) of all segments."""
    return [tuple(segment)[1:] for segment in schedule.segments()]
