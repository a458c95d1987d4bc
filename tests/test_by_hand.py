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

so a segment of n tiles takes 1428 + 3176 n. A CTA takes 200 to launch. Slots that fall idle together
are filled together; the dispatcher issues a CTA per 1, so who falls idle after 5 were placed waits
until 5 have passed. An output row is 64*2 = 128 B (2 ns), a partial row 64*4 + 4 = 260 B (4.0625 ns:
4.062 to store, rounded half to even; 4.063 to load, as a transfer ends on the picosecond after).
Stores share nothing. Publishing a partial costs 140 (fence) + 60 (atomic) before, merging p of them
400 (flag) + 100 p and their bytes. All times are exact, to the picosecond.
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
LAUNCH, FLAG, L2, GAP = 200.0, 400.0, 100.0, 700.0


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
    """Picoseconds as ns, to compare to the picosecond."""
    return pytest.approx(np.asarray(picoseconds) / 1000.0, rel=0, abs=1e-6)


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
    """Both CTAs, placed together: 200 + 1428 + 5*3176 + 2 = 17,510 ns."""
    result = run(FlashAttention2()(two_heads(), toy()))
    assert ns(result.makespan_ps) == 17_510.0
    assert ns(result.cta_begin) == [0.0, 0.0]
    assert ns(result.cta_end) == [17_510.0, 17_510.0]


def test_flash_decoding_runs_its_sixth_cta_alone() -> None:
    """Two tiles take 200 + 1428 + 6352 + 4.062 = 7984.062, one 4808.062.

    Five CTAs begin at 0. CTA 2 (one tile) leaves first, at 4808.062, so CTA 5 follows it on SM 2 (the
    dispatcher has been free since 5) and ends at 9616.124. The other four are gone by 7984.062: it
    is alone for the last 1632.062 ns. Then comes the second launch: 700 gap + 200 + its CTA's
    (1 + 3 splits)*100, 2 rows * 3 * 260 B in 24.375, and 256 B in 4: the end is at
    9616.124 + 1328.375 = 10,944.499 ns.
    """
    result = run(FlashDecoding(num_splits=3)(two_heads(), toy()))
    assert result.slot.tolist() == [0, 1, 2, 3, 4, 2, 0]
    ends = [7984.062, 7984.062, 4808.062, 7984.062, 7984.062, 9616.124, 10_944.499]
    assert ns(result.cta_end) == ends
    assert ns(result.cta_begin[:6]) == [0.0] * 5 + [4808.062]
    assert ns(result.makespan_ps) == 10_944.499


def test_lean_attention_ends_with_the_cta_that_touches_both_heads() -> None:
    """Times in ns; all begin at 0.

    CTA 1, 3, 4 (2 tiles, then publish): 200 + 1428 + 6352 + 204.062 = 8184.062.
    CTA 2: 200 + 4604 + 204.062 = 5008.062 (head 0's last tile published), + 4604 = 9612.062
    (head 1's first tile done). Its peers 3 and 4 published at 8184.062: it need not wait, merges
    in 400 + 2*100 + 2*260/64 = 608.125 and writes in 2: 10,222.187, the end.
    CTA 0: 200 + 1428 + 6352 = 7980; its peer 1 publishes at 8184.062, so it waits 204.062, then
    610.125 more: 8794.187.
    """
    schedule = LeanAttention()(two_heads(), toy())
    result = run(schedule)
    assert result.slot.tolist() == [0, 1, 2, 3, 4]
    assert ns(result.cta_end) == [8794.187, 8184.062, 10_222.187, 8184.062, 8184.062]
    merge = np.flatnonzero(result.program.kind == Phase.MERGE)
    assert ns((result.ready - result.begin)[merge]) == [204.062, 0.0]
    assert ns(result.makespan_ps) == 10_222.187
    assert ns(result.spent_ps(result.program.launches[0])["wait"]) == 204.062


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

    Lean's slots: 5 * 10,222.187, less what the CTAs hold (8794.187, 3 * 8184.062, 10,222.187)
    = 7542.375 ns idle, 15% of it.
    """
    spans = {}
    for partitioner in (FlashAttention2(), FlashDecoding(num_splits=3), LeanAttention()):
        result = run(partitioner(two_heads(), toy()))  # type: ignore[operator]
        spans[type(partitioner).__name__] = result.makespan_ps
    assert spans["LeanAttention"] < spans["FlashDecoding"] < spans["FlashAttention2"]
    assert ns(result.spent_ps(result.program.launches[0])["idle"]) == 7542.375


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
    """One token: 200 + 1428 + 3176 + 2 ns as for 256, and 1 * 64 * 2 * 2 = 256 B of KV.

    The 3176 are 255/256 of latency and 1/256 of transfer: 3163.59375 and 12.40625 ns. Both are
    rounded up to a picosecond, which makes one more.
    """
    result = run(FlashAttention2()(grid_of((1,), 1), toy()))
    assert ns(result.makespan_ps) == 4806.001
    assert result.program.bytes_of(Phase.STREAM) == 256


def test_splits_of_a_longer_call_leave_ctas_empty() -> None:
    """The call is told of 5120 tokens: 20 tiles, 4 splits of 5. The requests have 6 tiles and 1.

    Request 0: split 0 has 5 tiles, split 1 one, 2 and 3 none. Request 1: split 0 has 1, the rest
    none. An empty CTA still launches and writes a partial: 204.062 ns. CTAs 2 and 3 are empty and
    leave together, so 5 and 6 follow together on SMs 2 and 3 at 204.062, and at 408.124 these
    leave together: 7 takes the first of the two. The second launch reads all 2 * 4 partials.
    """
    schedule = FlashDecoding(num_splits=4)(grid_of((1300, 256), 1, max_context_len=5120), toy())
    assert rows(schedule) == [(0, 0, 0, 5), (1, 0, 5, 6), (4, 1, 0, 1)]
    assert (schedule.num_ctas, schedule.num_empty_ctas) == (8, 5)
    result = run(schedule)
    assert result.slot[:8].tolist() == [0, 1, 2, 3, 4, 2, 3, 2]
    assert ns(result.cta_begin[5:8]) == [204.062, 204.062, 408.124]
    assert result.program.bytes_of(Phase.COMBINE) == 2 * 4 * 260
    held = (result.cta_end - result.cta_begin)[[2, 3, 5, 6, 7]]
    assert ns(held) == [204.062] * 5


def test_a_host_waits_for_a_late_peer() -> None:
    """One head of 4 tiles, the host with 1 and its peer with 3.

    The host is done at 200 + 1428 + 3176 = 4804. The peer streams until 200 + 1428 + 9528 = 11,156
    and has published 204.062 later, at 11,360.062. The host has waited 6556.062; flag, one partial
    and the output: 400 + 100 + 4.063 + 2 -> 11,866.125.
    """
    grid = grid_of((1024,), 1)
    zero = np.zeros(2, dtype=np.int64)
    schedule = Schedule(
        grid, np.arange(2), zero, np.array([0, 1]), np.array([1, 4]), num_ctas=2, combine="host"
    )
    result = run(schedule)
    kinds = [Phase(kind) for kind in result.program.kind[:4]]
    assert kinds == [Phase.LAUNCH, Phase.STREAM, Phase.MERGE, Phase.WRITE]
    assert ns(result.begin[:4]) == [0.0, 200.0, 4804.0, 11_864.125]
    assert ns(result.ready[2]) == 11_360.062
    assert ns(result.moving[2]) == 11_860.062
    assert ns(result.makespan_ps) == 11_866.125
    assert ns(result.spent_ps(result.program.launches[0])["wait"]) == 6556.062


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
    """4 CTAs on one SM; each wants a tile per 3176 ns.

    The SM's busiest unit works max(QK + PV 1024, exps 1024, bytes 65536/64 = 1024) ns per tile:
    4 tiles in 4096 ns, more than 3176. So a round of 4 tiles takes 4096, five 20,480. Stores do not
    share: each output leaves in 2. In all 200 + 1428 + 20,480 + 2 = 22,110 ns.
    With 3 CTAs the SM could do 3 tiles in 3072 < 3176: nobody is held back, 1628 + 15,880 + 2.
    """
    device = toy(1)
    for heads, end in ((4, 22_110.0), (3, 17_510.0)):
        grid = grid_of((1280,), heads).with_slots(1, 4)
        result = run(FlashAttention2()(grid, device), device)
        assert ns(result.cta_end) == [end] * heads


def test_a_crowded_sm_slows_only_its_own_ctas() -> None:
    """9 CTAs of 5 tiles on 2 SMs that hold 5: slots 0, 2, 4, 6, 8 are on SM 0, the rest on SM 1.

    SM 0 has 5 CTAs and does a round of 5 tiles in 5 * 1024 = 5120 ns, SM 1 has 4 and does its 4 in
    4096: 1628 + 5*5120 + 2 = 27,230 and 22,110 ns.
    """
    device = toy(2)
    grid = grid_of((1280,), 9).with_slots(2, 5)
    result = run(FlashAttention2()(grid, device), device)
    assert result.slot.tolist() == list(range(9))
    assert ns(result.cta_end) == [27_230.0, 22_110.0] * 4 + [27_230.0]


def test_a_slow_dispatcher_holds_up_the_second_wave() -> None:
    """CTAs of one tile: 200 + 1428 + 3176 + 2 = 4806 ns. 12 of them on 5 SMs, one issued per 1000.

    5 begin together at 0 and are gone at 4806, but the dispatcher is busy with them until 5000. The
    next 5 begin then, are gone at 9806, and the last 2 begin at 10,000: 14,806. One per 900 is done
    with 5 at 4500, so nobody waits for it: 4806, 9612, 14,418.
    """
    for interval, begins in ((1000, (0.0, 5000.0, 10_000.0)), (900, (0.0, 4806.0, 9612.0))):
        device = toy().model_copy(update={"cta_dispatch_interval_s": interval * NS})
        result = run(FlashAttention2()(grid_of((256,), 12), device), device)
        assert ns(result.cta_begin) == [begins[c // 5] for c in range(12)]
        assert result.slot.tolist() == [c % 5 for c in range(12)]
        assert ns(result.makespan_ps) == begins[-1] + 4806.0


def test_ctas_of_all_sms_share_dram() -> None:
    """5 CTAs that want 5 * 65,536 B per 3176 ns of a DRAM with half of that: tiles take twice as long.

    200 + 1428 + 5 * 6352 + 2 = 33,390 ns.
    """
    half = 5 * 65_536 / (3176 * NS) / 2
    device = toy().model_copy(update={"dram_bandwidth_bytes_per_s": half})
    grid = grid_of((1280,), 5)
    assert ns(run(FlashAttention2()(grid, device), device).makespan_ps) == 33_390.0
