"""By hand: cases small enough to work out on paper, with the working in each docstring.

All run on a toy GPU of round numbers, so that recalibrating a device moves nothing here. A KV tile
is 256 tokens of head dim 64: K and V are 32,768 B each. On the toy (1 clk = 1 ns, an SM loads
64 B/ns, DRAM latency 488 ns, L2 latency 100 ns) the FlashAttention-2 loop takes, in ns:

    load of K or of V   488 + 32768/64                             = 1000
    QK, and PV          2*64*256*64 / 4096                         =  512
    softmax             64*256/16 exps + 64*256*5/128 FMAs         = 1664
    a KV tile           max(V 1000, QK 512) + max(K 1000, 1664 + 512) = 3176
    filling the loop    min(K 1000, 1664 + 512)                    = 1000
    prologue            2 reads and Q: 3*100 + 64*64*2/64          =  428

so a segment of n tiles takes 1428 + 3176 n. A CTA takes 200 to launch, and CTAs are issued 1 apart.
An output row is 64*2 = 128 B (2 ns), a partial row 64*4 + 4 = 260 B (4.0625 ns); publishing one
costs 140 (fence) + 60 (atomic) before, merging p of them 400 (flag) + 100 p and their bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from leansim import catalog
from leansim.device import Device
from leansim.engine import execute
from leansim.kernel import Kernel
from leansim.lowering import lower
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.flash_decoding import FlashDecoding, num_splits_heuristic
from leansim.partitioners.lean_attention import LeanAttention
from leansim.program import Phase
from leansim.result import Result
from leansim.schedule import Schedule
from leansim.tiling import TileGrid
from leansim.workload import Workload

NS = 1e-9
LAUNCH, FIXED, TILE = 200.0, 1428.0, 3176.0
OUTPUT, PARTIAL = 2.0, 4.0625
RELEASE, FLAG, L2 = 200.0, 400.0, 100.0
GAP = 700.0
ROUNDING = 0.005  # ns: each transfer ends on a whole picosecond


@cache
def toy(num_sms: int = 5) -> Device:
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
        "kernel_gap_s": {"graph": GAP * NS, "stream": 1900 * NS},
        "fence_s": 140 * NS,
        "atomic_s": 60 * NS,
        "flag_latency_s": FLAG * NS,
    }
    return catalog.device("h100_sxm").model_copy(update=update)


@cache
def toy_kernel() -> Kernel:
    kernel = catalog.kernel("fa2")
    assert kernel.combine is not None
    combine = kernel.combine.model_copy(update={"rows_per_cta": {1: 8}, "splits_in_flight": 1})
    update = {
        "mma_efficiency": {"sm_90": 1.0},
        "softmax_fma_per_score": 5.0,
        "prologue_loads": 2,
        "combine": combine,
    }
    return kernel.model_copy(update=update)


def grid_of(lens: tuple[int, ...], heads: int, ctas_per_sm: int = 1, **more: Any) -> TileGrid:
    workload = Workload(lens, heads, heads, 64, **more)
    return TileGrid(workload, tile_rows=64, tile_tokens=256, num_sms=5, ctas_per_sm=ctas_per_sm)


def two_heads() -> TileGrid:
    """The paper's toy: 5 SMs that hold one CTA each, 2 heads of 5 LeanTiles."""
    return grid_of((1280,), 2)


def run(schedule: Schedule, device: Device | None = None) -> Result:
    return execute(lower(schedule, toy_kernel(), device or toy()))


def ns(picoseconds: Any) -> Any:
    """Picoseconds as ns, to compare within the rounding."""
    return pytest.approx(np.asarray(picoseconds) / 1000.0, abs=ROUNDING)


def rows(schedule: Schedule) -> list[tuple[int, int, int, int]]:
    """(CTA, output tile, start, stop) of all segments."""
    return [tuple(segment)[1:] for segment in schedule.segments()]


# -- the paper's toy: schedules --------------------------------------------------------------------


def test_flash_attention_2_leaves_three_of_five_sms_idle() -> None:
    """One CTA per head: 2 CTAs of 5 tiles on 5 SMs, 2/5 of one wave."""
    schedule = FlashAttention2()(two_heads(), toy())
    assert rows(schedule) == [(0, 0, 0, 5), (1, 1, 0, 5)]
    assert schedule.num_waves == schedule.wave_efficiency == pytest.approx(2 / 5)
    result = run(schedule)
    assert sorted(result.slot.tolist()) == [0, 1], "SMs 2, 3 and 4 never work"


def test_flash_decoding_in_three_splits_leaves_one_cta_for_a_second_wave() -> None:
    """ceil(5/3) = 2 tiles per split: 2, 2 and 1 of each head. 6 CTAs on 5 SMs are 1.2 waves."""
    schedule = FlashDecoding(num_splits=3)(two_heads(), toy())
    head = [(0, 2), (2, 4), (4, 5)]
    assert rows(schedule) == [(3 * h + s, h, *run) for h in (0, 1) for s, run in enumerate(head)]
    assert schedule.tiles_of_cta.tolist() == [2, 2, 1, 2, 2, 1]
    assert schedule.num_waves == pytest.approx(1.2)
    assert schedule.wave_efficiency == pytest.approx(0.6)


@pytest.mark.parametrize("sms_factor", [1, 2])
def test_flash_decodings_own_heuristic_takes_five_splits_here(sms_factor: Any) -> None:
    """Both versions of the heuristic find full waves at one tile per split.

    Tiles per split at s = 1..5: 5, 3, 2, 2, 1, so s = 4 is skipped. Filled shares of the waves:
    aiming at 5 CTAs   2/5 = 0.4, 4/5 = 0.8, 6/5 of 2 = 0.6, -, 10/5 of 2 = 1; 0.85 of 1 is first
    met at s = 5. Aiming at 10: 0.2, 0.4, 0.6, -, 1.0, the same. (s = 2 would do at 0.8.)
    """
    assert num_splits_heuristic(work=2, kv_tiles=5, slots=5 * sms_factor) == 5
    schedule = FlashDecoding(sms_factor=sms_factor)(two_heads(), toy())
    assert schedule.num_splits == 5
    assert schedule.tiles_of_cta.tolist() == [1] * 10


def test_lean_attention_gives_each_sm_two_tiles() -> None:
    """10 tiles <= 4 per SM: min((10+1)/2, ceil(32*10/5)) = 5 CTAs of 2.

    Head 0 is tiles 0-4 of the line, head 1 tiles 5-9. CTA 2 takes 4 and 5: the last of head 0 and
    the first of head 1.
    """
    schedule = LeanAttention()(two_heads(), toy())
    assert schedule.tiles_of_cta.tolist() == [2] * 5
    assert rows(schedule) == [
        (0, 0, 0, 2),
        (1, 0, 2, 4),
        (2, 0, 4, 5),
        (2, 1, 0, 1),
        (3, 1, 1, 3),
        (4, 1, 3, 5),
    ]
    assert schedule.combine == "host"
    assert schedule.wave_efficiency == 1.0


# -- the paper's toy: time -------------------------------------------------------------------------


def test_flash_attention_2_takes_five_tiles() -> None:
    """The second CTA, issued at 1: 1 + 200 + 1428 + 5*3176 + 2 = 17,511 ns."""
    result = run(FlashAttention2()(two_heads(), toy()))
    assert ns(result.makespan_ps) == 17_511.0
    assert ns(result.cta_end) == [17_510.0, 17_511.0]


def test_flash_decoding_runs_its_sixth_cta_alone() -> None:
    """CTA k is issued at k ns. Two tiles: 200 + 1428 + 6352 + 4.0625 = 7984.0625, one: 4808.0625.

    CTA 2 (one tile) leaves first, at 4810.0625, so CTA 5 follows it on SM 2 and ends at 9618.125.
    The other four are gone by 4 + 7984.0625: it is alone for the last 1630 ns. Then comes the second
    launch: 700 gap + 200 + its CTA's (1 + 3 splits)*100, 2 rows * 3 * 260 B in 24.375, and 256 B in
    4: the end is at 9618.125 + 1328.375 = 10,946.5 ns.
    """
    result = run(FlashDecoding(num_splits=3)(two_heads(), toy()))
    assert result.slot.tolist() == [0, 1, 2, 3, 4, 2, 0]
    ends = [7984.0625, 7985.0625, 4810.0625, 7987.0625, 7988.0625, 9618.125, 10_946.5]
    assert ends == ns(result.cta_end)
    assert ns(result.cta_begin[5]) == 4810.0625
    assert ns(result.makespan_ps) == 10_946.5


def test_lean_attention_ends_with_the_cta_that_touches_both_heads() -> None:
    """Times in ns; CTA k is issued at k.

    CTA 1, 3, 4 (2 tiles, then publish): k + 200 + 1428 + 6352 + 204.0625 = k + 8184.0625.
    CTA 2: 2 + 200 + 4604 + 204.0625 = 5010.0625 (head 0's last tile published), + 4604 = 9614.0625
    (head 1's first tile done). Its peers 3 and 4 published by 8188.0625: it need not wait, merges
    in 400 + 2*100 + 2*4.0625 = 608.125 and writes in 2: 10,224.1875, the end.
    CTA 0: 200 + 1428 + 6352 = 7980; its peer 1 publishes at 8185.0625, so it waits 205.0625, then
    610.125 more: 8795.1875.
    """
    schedule = LeanAttention()(two_heads(), toy())
    result = run(schedule)
    assert result.slot.tolist() == [0, 1, 2, 3, 4]
    assert ns(result.cta_end) == [8795.1875, 8185.0625, 10_224.1875, 8187.0625, 8188.0625]
    merge = np.flatnonzero(result.program.kind == Phase.MERGE)
    assert ns((result.ready - result.begin)[merge]) == [205.0625, 0.0]
    assert ns(result.makespan_ps) == 10_224.1875
    assert ns(result.spent_ps(result.program.launches[0])["wait"]) == 205.0625


@pytest.mark.parametrize("name", ["h100_sxm", "a100_sxm_80gb"])
def test_the_order_holds_on_five_sms_of_a_real_gpu(name: str) -> None:
    """5, 2 + 1 and 2 tiles, with launch, gap and merge as on the device."""
    device = catalog.device(name).model_copy(update={"num_sms": 5})
    partitioners = (LeanAttention(), FlashDecoding(num_splits=3), FlashAttention2())
    schedules = [partitioner(two_heads(), device) for partitioner in partitioners]
    spans = [execute(lower(s, catalog.kernel("fa2"), device)).makespan_ps for s in schedules]
    assert spans == sorted(spans)
    assert len(set(spans)) == 3


def test_lean_attention_beats_flash_decoding_beats_flash_attention_2() -> None:
    """Idle SM time: FA2 3 SMs all along, FlashDecoding most of its second wave, Lean the merge.

    Lean's slots: 5 * 10,224.1875, less what the CTAs hold (8795.1875, 8184.0625, 10,222.1875,
    8184.0625, 8184.0625) = 7551.375 ns idle, 15% of it.
    """
    spans = {}
    for partitioner in (FlashAttention2(), FlashDecoding(num_splits=3), LeanAttention()):
        result = run(partitioner(two_heads(), toy()))  # type: ignore[operator]
        spans[type(partitioner).__name__] = result.makespan_ps
    assert spans["LeanAttention"] < spans["FlashDecoding"] < spans["FlashAttention2"]
    assert ns(result.spent_ps(result.program.launches[0])["idle"]) == 7551.375


# -- small cases -----------------------------------------------------------------------------------


def test_a_ragged_batch_is_dealt_by_its_own_tiles() -> None:
    """Requests of 700, 1 and 1536 tokens are 3, 1 and 6 tiles of one head: a line of 10.

    Five CTAs of 2: request 0 is [0, 3) of the line, request 1 [3, 4), request 2 [4, 10).
    Four CTAs: 10 = 3 + 3 + 2 + 2, borders 0, 3, 6, 8, 10.
    """
    grid = grid_of((700, 1, 1536), 1)
    assert rows(LeanAttention()(grid, toy())) == [
        (0, 0, 0, 2),
        (1, 0, 2, 3),
        (1, 1, 0, 1),
        (2, 2, 0, 2),
        (3, 2, 2, 4),
        (4, 2, 4, 6),
    ]
    assert rows(LeanAttention(num_ctas=4)(grid, toy())) == [
        (0, 0, 0, 3),
        (1, 1, 0, 1),
        (1, 2, 0, 2),
        (2, 2, 2, 4),
        (3, 2, 4, 6),
    ]


def test_a_ragged_batch_padded_to_the_longest_leaves_ctas_empty() -> None:
    """As in ONNX Runtime: 3 requests of 6 tiles make 18 <= 20, so 18/2 = 9 CTAs of 2 (10 slots).

    Request 0 has 3 of its 6: CTA 0 does 2, CTA 1 one, CTA 2 none. Request 1 has one: CTA 3 does it.
    Request 2 has all 6: CTAs 6, 7, 8. Reserved splits: 18 % 9 = 0, so 1 + (6+2-2)/2 = 4.
    """
    schedule = LeanAttention(lengths="longest")(grid_of((700, 1, 1536), 1, ctas_per_sm=2), toy())
    assert schedule.tiles_of_cta.tolist() == [2, 1, 0, 1, 0, 0, 2, 2, 2]
    assert schedule.num_empty_ctas == 3
    assert schedule.num_splits == 4


def test_a_short_tile_takes_as_long_as_a_whole_one_but_loads_less() -> None:
    """One token: 200 + 1428 + 3176 + 2 ns as for 256, and 1 * 64 * 2 * 2 = 256 B of KV."""
    result = run(FlashAttention2()(grid_of((1,), 1), toy()))
    assert ns(result.makespan_ps) == 4806.0
    assert result.program.bytes_of(Phase.STREAM) == 256


def test_splits_of_a_longer_call_leave_ctas_empty() -> None:
    """The call is told of 5120 tokens: 20 tiles, 4 splits of 5. The requests have 6 tiles and 1.

    Request 0: split 0 has 5 tiles, split 1 one, 2 and 3 none. Request 1: split 0 has 1, the rest
    none. An empty CTA still launches and writes a partial: 204.0625 ns. CTAs 2 and 3 are empty, so
    5 follows at 206.0625 on SM 2, 6 at 207.0625 on SM 3, and 7 after 5 at 410.125. The second
    launch reads all 2 * 4 partials.
    """
    schedule = FlashDecoding(num_splits=4)(grid_of((1300, 256), 1, max_context_len=5120), toy())
    assert rows(schedule) == [(0, 0, 0, 5), (1, 0, 5, 6), (4, 1, 0, 1)]
    assert (schedule.num_ctas, schedule.num_empty_ctas) == (8, 5)
    result = run(schedule)
    assert result.slot[:8].tolist() == [0, 1, 2, 3, 4, 2, 3, 2]
    assert ns(result.cta_begin[5:8]) == [206.0625, 207.0625, 410.125]
    assert result.program.bytes_of(Phase.COMBINE) == 2 * 4 * 260
    held = (result.cta_end - result.cta_begin)[[2, 3, 5, 6, 7]]
    assert ns(held) == [204.0625] * 5


def test_a_host_waits_for_a_late_peer() -> None:
    """One head of 4 tiles, the host with 1 and its peer with 3.

    The host is done at 200 + 1428 + 3176 = 4804. The peer, issued at 1, streams until
    1 + 200 + 1428 + 9528 = 11,157 and has published 204.0625 later, at 11,361.0625. The host has
    waited 6557.0625; flag, one partial and the output: 400 + 100 + 4.0625 + 2 -> 11,867.125.
    """
    grid = grid_of((1024,), 1)
    zero = np.zeros(2, dtype=np.int64)
    schedule = Schedule(
        grid, np.arange(2), zero, np.array([0, 1]), np.array([1, 4]), num_ctas=2, combine="host"
    )
    result = run(schedule)
    kinds = [Phase(kind) for kind in result.program.kind[:4]]
    assert kinds == [Phase.LAUNCH, Phase.STREAM, Phase.MERGE, Phase.WRITE]
    assert ns(result.begin[:4]) == [0.0, 200.0, 4804.0, 11_865.125]
    assert ns(result.ready[2]) == 11_361.0625
    assert ns(result.moving[2]) == 11_861.0625
    assert ns(result.makespan_ps) == 11_867.125
    assert ns(result.spent_ps(result.program.launches[0])["wait"]) == 6557.0625


def test_the_second_launch_begins_after_the_gap_whatever_the_launch_mode() -> None:
    """700 ns in a graph, 1900 ns in a stream: nothing else differs, so the runs differ by 1200 ns."""
    spans = {}
    for launch, gap in (("graph", 700.0), ("stream", 1900.0)):
        grid = grid_of((1280,), 2, launch=launch)
        result = run(FlashDecoding(num_splits=5)(grid, toy()))
        assert result.launch_begin[1] == result.launch_end[0] == result.cta_end[:10].max()
        assert gap == ns(result.cta_begin[10] - result.launch_end[0])
        assert result.makespan_ps == result.launch_end[1] == result.cta_end[10]
        spans[launch] = result.makespan_ps
        boundary = (result.latency_s - result.makespan_s) * 1e12
        assert gap == ns(boundary), "the launch before costs the same boundary"
    assert ns(spans["stream"] - spans["graph"]) == 1200.0


def test_ctas_of_one_sm_share_its_units() -> None:
    """4 CTAs on one SM, issued together; each wants a tile per 3176 ns.

    The SM's busiest unit works max(QK + PV 1024, exps 1024, bytes 65536/64 = 1024) ns per tile:
    4 tiles in 4096 ns, more than 3176. So a round of 4 tiles takes 4096, five 20,480. The outputs
    leave together, 4 * 128 B at 64 B/ns = 8. In all 200 + 1428 + 20,480 + 8 = 22,116 ns.
    With 3 CTAs the SM could do 3 tiles in 3072 < 3176: nobody is held back, 1628 + 15,880 + 6.
    """
    device = toy(1).model_copy(update={"cta_dispatch_interval_s": 1e-14})
    for heads, end in ((4, 22_116.0), (3, 17_514.0)):
        grid = grid_of((1280,), heads).with_slots(1, 4)
        assert end == ns(run(FlashAttention2()(grid, device), device).makespan_ps)


def test_ctas_of_all_sms_share_dram() -> None:
    """5 CTAs that want 5 * 65,536 B per 3176 ns of a DRAM with half of that: tiles take twice as long.

    200 + 1428 + 5 * 6352 + 2 = 33,390 ns.
    """
    half = 5 * 65_536 / (3176 * NS) / 2
    update = {"dram_bandwidth_bytes_per_s": half, "cta_dispatch_interval_s": 1e-14}
    device = toy().model_copy(update=update)
    grid = grid_of((1280,), 5)
    assert ns(run(FlashAttention2()(grid, device), device).makespan_ps) == 33_390.0
