"""A toy GPU and kernel of round numbers, so that recalibrating a device or kernel moves no test by hand.

A KV tile is 256 tokens of head dim 64: K and V are 32,768 B each. On the toy (1 clk = 1 ns, an SM
loads 64 B/ns, DRAM latency 488 ns, L2 latency 100 ns) the FlashAttention-2 loop takes, in ns:

    load of K or of V   488 + 32768/64                             = 1000
    QK, and PV          2*64*256*64 / 4096                         =  512
    softmax             64*256/16 exps + 64*256*5/128 FMAs         = 1664
    a KV tile           max(V 1000, QK 512) + max(K 1000, 1664 + 512) = 3176
    filling the loop    min(K 1000, 1664 + 512)                    = 1000 where no token is masked
    prologue            2 reads and Q: 3*100                       =  300
    work of the SM      max(512 + 1664 + 512, 65536/64)            = 2688

so a segment of n tiles takes 1300 + 3176 n. A CTA takes 200 to launch. Slots that fall idle together
are filled together; the dispatcher issues a CTA per 1, so who falls idle after 5 were placed waits
until 5 have passed. Rows of Q and of the output are 64*2 = 128 B each, a partial row 64*4 + 4 = 260 B.
A CTA of one row moves Q and output (256 B) in 4, Q and partial (388 B) in 6.0625: 6.062 as a fixed
time, rounded half to even. So few bytes share nothing. Publishing a partial costs 140 (fence) + 60
(atomic) before, merging p of them 400 (flag) + 100 p and their bytes (260 B in 4.063, as a transfer
ends on the picosecond after). All SMs are equally far from memory. All times are exact, to the
picosecond.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from kernels import lowered

from leansim.engine.execute import execute
from leansim.engine.result import Result
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload

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
        "dram_efficiency": ((1e9, 1.0),),
        "dram_latency_s": 488 * NS,
        "dram_saturation_exponent": 64.0,
        "l2_bandwidth_bytes_per_s": 1e14,
        "l2_latency_s": L2 * NS,
        "l2_partitions": 1,
        "cta_launch_s": LAUNCH * NS,
        "cta_dispatch_interval_s": 1 * NS,
        "latency_spread": 0.0,
        "kernel_gap_s": {"graph": GAP * NS, "stream": 1900 * NS},
        "fence_s": 140 * NS,
        "atomic_s": 60 * NS,
        "flag_latency_s": FLAG * NS,
    }
    return catalog.device("h100_sxm").model_copy(update=update | changes)


@cache
def _fa2() -> Kernel:
    return catalog.kernel("fa2")


def toy_kernel(combine: dict[str, Any] | None = None, **changes: Any) -> Kernel:
    """FlashAttention-2's loop without what is fitted; `combine` changes its combine kernel."""
    kernel = _fa2()
    assert kernel.combine is not None
    plain = {"rows_per_cta": {1: 8}, "splits_in_flight": 1, "start": "launch", "overhead_s": {}}
    update = {
        "combine": kernel.combine.model_copy(update=plain | (combine or {})),
        "mma_efficiency": {"sm_90": 1.0},
        "softmax_fma_per_score": 5.0,
        "window_fma_per_score": 0.0,
        "softmax_overlap": {},
        "prologue_loads": 2,
        "q_tile_copies": 0,
        "segment_overhead_s": {},
        "batch_scan_s": {},
        "setup_kernels": 0,
        "merge_splits_in_flight": 1,
        "merge_grain_bytes": None,
        "shared_merge": False,
        "empty_ctas": "write",
        "transpose_bytes_per_s": {},
        "prefetches_items": False,
    }
    assert set(update | changes) <= set(Kernel.model_fields)
    return kernel.model_copy(update=update | changes)


def grid_of(lens: tuple[int, ...], heads: int, ctas_per_sm: int = 1, **more: Any) -> TileGrid:
    """Tiles of 64 rows and 256 tokens on 5 SMs; one row to a tile unless `num_q_heads` says more."""
    shape = {"num_q_heads": heads, "num_kv_heads": heads, "head_dim": 64}
    workload = Workload(lens, **(shape | more))
    return TileGrid(workload, tile_rows=64, tile_tokens=256, num_sms=5, ctas_per_sm=ctas_per_sm)


def two_heads() -> TileGrid:
    """The paper's toy: 5 SMs that hold one CTA each, 2 heads of 5 LeanTiles."""
    return grid_of((1280,), 2)


def run(schedule: Schedule, device: Device | None = None, kernel: Kernel | None = None) -> Result:
    return execute(lowered(schedule, kernel or toy_kernel(), device or toy()))


def ns(picoseconds: Any) -> Any:
    """Picoseconds as ns, to compare to the picosecond."""
    return pytest.approx(np.asarray(picoseconds) / 1000.0, rel=0, abs=1e-6)


def rows(schedule: Schedule) -> list[tuple[int, int, int, int]]:
    """(CTA, output tile, start, stop) of all segments."""
    return [tuple(segment)[1:] for segment in schedule.segments()]
