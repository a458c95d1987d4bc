"""By hand: cases small enough to work out on paper, with the working in each docstring.

All run on the toy GPU of `toy.py`, which works out what a tile, a segment and a merge take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import lowered
from toy import NS, grid_of, ns, rows, run, toy, two_heads

from leansim.engine.execute import execute
from leansim.engine.program import Phase
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.flash_decoding import FlashDecoding, num_splits_heuristic
from leansim.partitioners.lean_attention import LeanAttention
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.timing.launches import FIRST, KV

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
    """Both CTAs, placed together: 200 + 1300 + 5*3176 + 4 = 17,384 ns."""
    result = run(FlashAttention2()(two_heads(), toy()))
    assert ns(result.makespan_ps) == 17_384.0
    assert ns(result.cta_begin) == [0.0, 0.0]
    assert ns(result.cta_end) == [17_384.0, 17_384.0]


def test_flash_decoding_runs_its_sixth_cta_alone() -> None:
    """Two tiles take 200 + 1300 + 6352 + 6.062 = 7858.062, one 4682.062.

    Five CTAs begin at 0. CTA 2 (one tile) leaves first, at 4682.062, so CTA 5 follows it on SM 2 (the
    dispatcher has been free since 5) and ends at 9364.124. The other four are gone by 7858.062: it
    is alone for the last 1506.062 ns. Then comes the second launch: 700 gap + 200 + its CTA's
    (1 + 3 splits)*100, 2 rows * 3 * 260 B in 24.375, and 256 B in 4: the end is at
    9364.124 + 1328.375 = 10,692.499 ns.
    """
    result = run(FlashDecoding(num_splits=3)(two_heads(), toy()))
    assert result.slot.tolist() == [0, 1, 2, 3, 4, 2, 0]
    ends = [7858.062, 7858.062, 4682.062, 7858.062, 7858.062, 9364.124, 10_692.499]
    assert ns(result.cta_end) == ends
    assert ns(result.cta_begin[:6]) == [0.0] * 5 + [4682.062]
    assert ns(result.makespan_ps) == 10_692.499


def test_lean_attention_ends_with_the_cta_that_touches_both_heads() -> None:
    """Times in ns; all begin at 0.

    CTA 1, 3, 4 (2 tiles, then publish): 200 + 1300 + 6352 + 206.062 = 8058.062.
    CTA 2: 200 + 4476 + 206.062 = 4882.062 (head 0's last tile published), + 4476 = 9358.062
    (head 1's first tile done). Its peers 3 and 4 published at 8058.062: it need not wait, merges
    in 400 + 2*100 + 2*260/64 = 608.125 and writes in 4: 9970.187, the end.
    CTA 0: 200 + 1300 + 6352 = 7852; its peers 1 and 2 have published at 8058.062 and 4882.062, so it
    waits 206.062, then 612.125 more: 8670.187.
    """
    schedule = LeanAttention()(two_heads(), toy())
    result = run(schedule)
    assert result.slot.tolist() == [0, 1, 2, 3, 4]
    assert ns(result.cta_end) == [8670.187, 8058.062, 9970.187, 8058.062, 8058.062]
    merge = np.flatnonzero(result.program.kind == Phase.MERGE)
    assert ns((result.ready - result.begin)[merge]) == [206.062, 0.0]
    assert ns(result.makespan_ps) == 9970.187
    assert ns(result.spent_ps(result.program.launches[0])["wait"]) == 206.062


@pytest.mark.parametrize("name", ["h100_sxm", "a100_sxm_80gb"])
def test_the_order_holds_on_five_sms_of_a_real_gpu(name: str) -> None:
    """5, 2 + 1 and 2 tiles, with launch, gap and merge as on the device."""
    device = catalog.device(name).model_copy(update={"num_sms": 5})
    partitioners = (LeanAttention(), FlashDecoding(num_splits=3), FlashAttention2())
    schedules = [partitioner(two_heads(), device) for partitioner in partitioners]
    spans = [execute(lowered(s, catalog.kernel("fa2"), device)).makespan_ps for s in schedules]
    assert spans == sorted(spans)
    assert len(set(spans)) == 3


def test_lean_attention_beats_flash_decoding_beats_flash_attention_2() -> None:
    """Idle SM time: FA2 3 SMs all along, FlashDecoding most of its second wave, Lean the merge.

    Lean's slots: 5 * 9970.187, less what the CTAs hold (8670.187, 3 * 8058.062, 9970.187)
    = 7036.375 ns idle, 14% of it.
    """
    spans = {}
    for partitioner in (FlashAttention2(), FlashDecoding(num_splits=3), LeanAttention()):
        result = run(partitioner(two_heads(), toy()))
        spans[type(partitioner).__name__] = result.makespan_ps
    assert spans["LeanAttention"] < spans["FlashDecoding"] < spans["FlashAttention2"]
    assert ns(result.spent_ps(result.program.launches[0])["idle"]) == 7036.375


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


@pytest.mark.parametrize(("cap", "ctas"), [(2, [15, 15]), (4, [8, 8, 7, 7]), (None, [6] * 5)])
def test_an_output_tile_has_no_more_ctas_than_its_cap(cap: Any, ctas: list[int]) -> None:
    """One head of 30 tiles on 5 SMs is more than 4 per SM: min(5, cap * 1 head) CTAs; uncapped 5."""
    schedule = LeanAttention(max_splits_per_head=cap)(grid_of((30 * 256,), 1), toy())
    assert schedule.tiles_of_cta.tolist() == ctas


def test_onnx_runtimes_cap_is_the_default_and_can_be_lifted() -> None:
    """One head of 40 tiles on 5 SMs of 8 slots: 40 CTAs, but 32 by the cap, of which 8 have two tiles.

    With 20 tiles, four per SM, there are min((20+1)/2, ceil(cap*20/20)) CTAs: 10 by default and without
    a cap, 3 with one of three.
    """
    grid, small = (grid_of((tiles * 256,), 1, ctas_per_sm=8) for tiles in (40, 20))
    assert LeanAttention()(grid, toy()).tiles_of_cta.tolist() == [2] * 8 + [1] * 24
    assert LeanAttention(max_splits_per_head=None)(grid, toy()).num_ctas == 40
    for cap, ctas in ((32, 10), (None, 10), (3, 3)):
        assert LeanAttention(max_splits_per_head=cap)(small, toy()).num_ctas == ctas


def test_a_ragged_batch_padded_to_the_longest_leaves_ctas_empty() -> None:
    """As in ONNX Runtime: 3 requests of 6 tiles make 18 <= 20, so 18/2 = 9 CTAs of 2 (10 slots).

    Request 0 has 3 of its 6: CTA 0 does 2, CTA 1 one, CTA 2 none. Request 1 has one: CTA 3 does it.
    Request 2 has all 6: CTAs 6, 7, 8. Reserved splits: 18 % 9 = 0, so 1 + (6+2-2)/2 = 4.
    """
    schedule = LeanAttention(lengths="longest")(grid_of((700, 1, 1536), 1, ctas_per_sm=2), toy())
    assert schedule.tiles_of_cta.tolist() == [2, 1, 0, 1, 0, 0, 2, 2, 2]
    assert schedule.num_empty_ctas == 3
    assert schedule.num_splits == 4


def test_a_short_tile_computes_as_long_as_a_whole_one_but_loads_less() -> None:
    """One token: 200 + 300 + 3176 + 4 ns as for 256, and 488 + 2 for the first K of 128 B, not 1000.

    Of the tile's 65,536 B it loads 256: K's 128 first, V's 128 while it works through what comes before
    softmax and PV, 1000/3176 of them or 20,635. DRAM also sees the row of Q and of the output, 256 B
    more, which have no flow.
    """
    result = run(FlashAttention2()(grid_of((1,), 1), toy()))
    assert ns(result.makespan_ps) == 4170.0
    program = result.program
    stream = program.is_kind(Phase.STREAM)
    assert program.bytes[stream].tolist() == [20_635, 0]
    assert ns(program.latency_ps[stream]) == [0.0, 2175.989]
    assert program.bytes_of(Phase.RAMP) == 128
    kv, first = program.flows[KV], program.flows[FIRST]
    assert kv.l2_share * 20_635 == kv.dram_share * 20_635 == pytest.approx(128)
    assert first.l2_share == first.dram_share == 1.0
    assert program.dram_bytes == 256


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

    The host asks for its first K at 200 + 788, has it 512 later and V at 2500, in whole bytes 2500.012,
    and is done at 1500 + 3176 = 4676. The peer streams until 200 + 1300 + 9528 = 11,028 and has
    published 206.062 later, at 11,234.062. The host has waited 6558.062; flag, one partial and the
    output: 400 + 100 + 4.063 + 4 -> 11,742.125.
    """
    grid = grid_of((1024,), 1)
    zero = np.zeros(2, dtype=np.int64)
    schedule = Schedule(
        grid, np.arange(2), zero, np.array([0, 1]), np.array([1, 4]), num_ctas=2, combine="host"
    )
    result = run(schedule)
    kinds = [Phase(kind) for kind in result.program.kind[:6]]
    assert kinds == [
        Phase.LAUNCH, Phase.RAMP, Phase.STREAM, Phase.STREAM, Phase.MERGE, Phase.WRITE,
    ]  # fmt: skip
    assert result.program.segment.tolist() == [-1, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1]
    assert ns(result.begin[:6]) == [0.0, 200.0, 1500.0, 2500.012, 4676.0, 11_738.125]
    assert ns(result.moving[1]) == 988.0
    assert ns(result.ready[4]) == 11_234.062
    assert ns(result.moving[4]) == 11_734.062
    assert ns(result.makespan_ps) == 11_742.125
    spent = result.spent_ps(result.program.launches[0])
    assert ns([spent["wait"], spent["ramp"], spent["stream"]]) == [6558.062, 2600.0, 4 * 3176.0]


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
    """Each CTA of an SM wants a tile per 3176 ns, of which 2688 are work of the SM.

    Two load their first K at half the pace, in 1024, and do a tile each in 2 * 2688 = 5376; four take
    2048, and 10,752: 200 + 788 + the first K + 5 tiles + 4 = 28,896 and 56,800 ns. A tile that waits for
    memory leaves room: with a latency of 5000 a load takes 5512, a tile 2 * 5512 = 11,024 > 10,752.
    The last tile does not wait for a K, 5512 - 2176 of its time, so that 5000 - 3336 = 1664 fill the
    loop. Four CTAs wait for their first K, for which all ask at once, and are not held back after it:
    200 + 300 + 1664 + 2048 + 5 * 11,024 + 4 = 59,336 ns, and one alone 1536 less.
    """
    far = toy(1, dram_latency_s=5000 * NS)
    runs = ((toy(1), 2, 28_896.0), (toy(1), 4, 56_800.0), (far, 4, 59_336.0), (far, 1, 57_800.0))
    for device, heads, end in runs:
        grid = grid_of((1280,), heads).with_slots(1, 4)
        result = run(FlashAttention2()(grid, device), device)
        assert ns(result.cta_end) == [end] * heads


def test_a_crowded_sm_slows_only_its_own_ctas() -> None:
    """9 CTAs of 5 tiles on 2 SMs that hold 5: slots 0, 2, 4, 6, 8 are on SM 0, the rest on SM 1.

    SM 0 has 5 CTAs, loads their first K in 5 * 512 and does a round of 5 tiles in 5 * 2688 = 13,440 ns;
    SM 1 has 4, and takes 4 * 512 and 10,752: 988 + 2560 + 5 * 13,440 + 4 = 70,752, and 56,800 ns.
    """
    device = toy(2)
    grid = grid_of((1280,), 9).with_slots(2, 5)
    result = run(FlashAttention2()(grid, device), device)
    assert result.slot.tolist() == list(range(9))
    assert ns(result.cta_end) == [70_752.0, 56_800.0] * 4 + [70_752.0]


def test_a_slow_dispatcher_holds_up_the_second_wave() -> None:
    """CTAs of one tile: 200 + 1300 + 3176 + 4 = 4680 ns. 12 of them on 5 SMs, one issued per 1000.

    5 begin together at 0 and are gone at 4680, but the dispatcher is busy with them until 5000. The
    next 5 begin then, are gone at 9680, and the last 2 begin at 10,000: 14,680. One per 900 is done
    with 5 at 4500, so nobody waits for it: 4680, 9360, 14,040.
    """
    for interval, begins in ((1000, (0.0, 5000.0, 10_000.0)), (900, (0.0, 4680.0, 9360.0))):
        device = toy(cta_dispatch_interval_s=interval * NS)
        result = run(FlashAttention2()(grid_of((256,), 12), device), device)
        assert ns(result.cta_begin) == [begins[c // 5] for c in range(12)]
        assert result.slot.tolist() == [c % 5 for c in range(12)]
        assert ns(result.makespan_ps) == begins[-1] + 4680.0


def test_ctas_of_all_sms_share_dram() -> None:
    """5 CTAs that want 5 * 65,536 B per 3176 ns of a DRAM with half of that: a tile's bytes take 6352.

    From the first K on DRAM is never idle, and brings 5 tiles to each: the K of the first in 3176, what
    is left in 5 * 6352 - 3176. Then softmax and PV are left, 2176 or, in whole bytes, 44,901 of 65,536
    in 3176. 200 + 788 + 5 * 6352 + 2175.989 + 4 = 34,927.989 ns.
    """
    device = toy(dram_bandwidth_bytes_per_s=5 * 65_536 / (3176 * NS) / 2)
    grid = grid_of((1280,), 5)
    result = run(FlashAttention2()(grid, device), device)
    assert ns(result.makespan_ps) == 34_927.989
    ramps = result.program.is_kind(Phase.RAMP)
    assert ns((result.end - result.moving)[ramps]) == [3176.0] * 5
