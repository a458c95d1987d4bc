"""By hand: each mechanism beyond the paper's toy alone, with the working in each docstring.

All run on the toy GPU of `toy.py`. There a CTA of n tiles takes 200 + 1300 + 3176 n + 4 ns where nothing
holds it up: 4680 with one tile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernels import tiled
from toy import NS, grid_of, ns, pipelined, priced, prices_of, run, toy, toy_instance

from leansim.engine.program import Phase
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.flash_decoding import FlashDecoding
from leansim.schedule.schedule import CombineKind, Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.specs import catalog
from leansim.specs.instance import LoopNumbers, instance_of
from leansim.specs.workload import Workload
from leansim.timing.compute import softmax_time_s
from leansim.timing.lowering import FEW_BYTES
from leansim.timing.memory import kept_share
from leansim.timing.prices import Prices
from leansim.timing.segments import DRIFT_CLASSES

PACE = 65_536 / (3176 * NS)  # bytes/s of one CTA that nothing holds up


def whole(grid: TileGrid, **changes: Any) -> Schedule:
    """Each output tile to a CTA of its own."""
    return replace(FlashAttention2()(grid, toy()), **changes)


def one_head(cuts: tuple[int, ...], combine: CombineKind) -> Schedule:
    """One head of `cuts[-1]` tiles, a CTA for each run between two cuts."""
    start, stop = np.array([0, *cuts[:-1]]), np.array(cuts)
    n = len(cuts)
    tile = np.zeros(n, dtype=np.int64)
    return Schedule(
        grid_of((256 * cuts[-1],), 1), np.arange(n), tile, start, stop, num_ctas=n, combine=combine
    )


# -- who merges ------------------------------------------------------------------------------------


def test_the_last_cta_of_a_tile_merges_where_the_last_to_arrive_does() -> None:
    """One head of 4 tiles. The CTA issued last merges: it is the last to arrive, more often than not.

    1 tile then 3: CTA 0 publishes at 200 + 1300 + 3176 + 206.062 = 4882.062, CTA 1 has streamed at
    200 + 1300 + 9528 = 11,028, does not wait, merges in 400 + 100 + 4.063 and writes in 4:
    11,536.063. A host would have waited for it to publish.
    3 tiles then 1: CTA 1 is done at 4676 and waits until 11,028 + 206.062 = 11,234.062: 11,742.125.
    """
    for cuts, wait, end in (((1, 4), 0.0, 11_536.063), ((3, 4), 6558.062, 11_742.125)):
        result = run(one_head(cuts, "last"))
        assert ns(result.makespan_ps) == ns(result.cta_end[1]) == end
        kinds = result.program.kind
        phases = [Phase.LAUNCH, Phase.RAMP, Phase.STREAM, Phase.STREAM, Phase.MERGE, Phase.WRITE]
        assert kinds[5:].tolist() == phases
        assert ns((result.ready - result.begin)[kinds == Phase.MERGE]) == [wait]


def test_the_last_of_three_reads_both_partials() -> None:
    """CTAs of 1, 2 and 1 tiles: CTA 2 waits from 4676 for CTA 1, published at 200 + 7652 + 206.062.

    Merging two is 400 + 200 + 2 * 260 B in 8.125, and 4 for the output: 8058.062 + 612.125 =
    8670.187. Two partials at a time need one latency: 100 less.
    """
    schedule = one_head((1, 3, 4), "last")
    assert schedule.merges.tolist() == [False, False, True]
    for in_flight, end in ((1, 8670.187), (2, 8570.187)):
        result = run(schedule, instance=toy_instance(merge={"splits_in_flight": in_flight}))
        assert ns(result.cta_end) == [4882.062, 8058.062, end]


# -- how CTAs come ---------------------------------------------------------------------------------


def test_items_of_a_queue_come_by_an_atomic_after_the_first_wave() -> None:
    """7 items of one tile on 5 slots: 4680, and again with 60 (atomic) for 200 (launch): 9220.

    With the first tiles of the next item loaded while the last is finished, filling the loop costs
    it nothing: 1000 less. Without a queue there is no next item, and nothing to load early.
    """
    early = toy_instance(ctas={"prefetches_items": True})
    for dispatch, instance, end in (
        ("grid", toy_instance(), 9360.0),
        ("grid", early, 9360.0),
        ("queue", toy_instance(), 9220.0),
        ("queue", early, 8220.0),
    ):
        result = run(whole(grid_of((256,) * 7, 1), dispatch=dispatch), instance=instance)
        assert ns(result.cta_end) == [4680.0] * 5 + [end] * 2


def test_a_queue_walks_over_the_requests_between_two_items_of_a_slot() -> None:
    """40 requests of one tile, 31 of which are looked at at a time, in 25 ns; 5 slots.

    Items 31 to 35 are in the second 31 and those 5 before them in the first: one more look. Items 36
    to 39 follow upon others of the second. Those of the first wave start in the first.
    """
    instance = toy_instance(ctas={"scan_s": 25 * NS})
    schedule = whole(grid_of((256,) * 40, 1), dispatch="queue")
    program = priced(schedule, instance)
    arrival = [200.0] * 5 + [60.0] * 26 + [85.0] * 5 + [60.0] * 4
    assert ns(program.latency_ps[program.kind == Phase.LAUNCH]) == arrival


def test_setup_kernels_come_first_each_with_a_gap() -> None:
    """Two launches of one CTA: 200 + 700 gap + 200 + 700 gap, then 4680."""
    result = run(whole(grid_of((256,), 1)), instance=toy_instance(ctas={"setup_kernels": 2}))
    assert ns(result.makespan_ps) == 6480.0
    assert ns(result.cta_begin) == [0.0, 900.0, 1800.0]


@pytest.mark.parametrize(
    ("does", "takes", "stored"),
    [
        ({"empty": "return"}, 200.0, 0),
        ({"empty": "write"}, 204.062, 260),
        ({"empty": "prepare", "empty_prologues": 1}, 504.062, 260),
    ],
)
def test_a_cta_without_tiles_returns_or_writes_or_prepares_too(
    does: dict[str, Any], takes: float, stored: int
) -> None:
    """Launch 200; a partial of one row 4.062; before that the prologue of those that have tiles, 300."""
    schedule = FlashDecoding(num_splits=4)(grid_of((1300, 256), 1, max_context_len=5120), toy())
    result = run(schedule, instance=toy_instance(ctas=does))
    program, empty = result.program, [2, 3, 5, 6, 7]
    assert ns((result.cta_end - result.cta_begin)[empty]) == [takes] * 5
    assert program.bytes[program.phase_of_cta[empty]].tolist() == [stored] * 5


def test_ctas_without_tiles_write_nothing_that_no_combine_kernel_reads() -> None:
    """The host of a tile asks its peers alone; an empty CTA is no peer."""
    schedule = replace(one_head((1, 4), "host"), num_ctas=3, num_empty_ctas=1)
    assert ns(np.diff([0, run(schedule).cta_end[2]])) == [200.0]


# -- what a segment costs --------------------------------------------------------------------------


def test_a_segment_costs_what_is_fixed_and_what_its_q_tile_takes() -> None:
    """50 ns, and the Q tile, 64 rows * 128 B at 64 B/ns = 128, three times."""
    instance = toy_instance(start={"q_tile_copies": 3, "overhead_s": 50 * NS})
    result = run(whole(grid_of((256,), 1)), instance=instance)
    assert ns(result.makespan_ps) == 4680.0 + 50.0 + 3 * 128.0


def test_rows_of_q_and_output_move_at_drams_pace_unless_they_are_few() -> None:
    """5 CTAs of 64 rows: Q and output are 64 * 256 B = 16,384, in 256 ns at the SM's 64 B/ns.

    A DRAM of 160 B/ns gives each 32 B/ns for the rows: 512 ns. It does for the first K too, which comes
    512 later, and for V, which takes 1024 and not 1000. 8 rows are 2048 B: 32 ns, whatever DRAM does.
    """
    assert 8 * 256 < FEW_BYTES <= 64 * 256
    slow = toy(dram_bandwidth_bytes_per_s=160 / NS)
    for group, device, took in (
        (64, toy(), 256.0),
        (64, slow, 512.0 + 23.989 + 512.0),
        (8, toy(), 32.0),
        (8, slow, 512.0 + 23.989 + 32.0),
    ):
        grid = grid_of((256,), 5, num_q_heads=5 * group)
        result = run(whole(grid), device)
        assert ns(result.cta_end) == [4676.0 + took] * 5


def test_sms_differ_in_how_far_they_are_from_memory() -> None:
    """A spread of 0.1 moves the 788 before the first K by up to 78.8, in 8 classes of SMs in turn.

    SM k adds (k + 1/2) / 8 of 157.6 to 709.2: it ends at 4680 - 78.8 + 9.85 + 19.7 k. SM 8 is as SM 0,
    and 8 SMs take 4680 in the mean. The second CTA of an SM is as far away as its first.
    """
    assert DRIFT_CLASSES == 8
    device = toy(9, latency_spread=0.1)
    result = run(whole(grid_of((256,) * 9, 1).with_slots(9, 1)), device)
    ends = [4611.05 + 19.7 * (k % 8) for k in range(9)]
    assert ns(result.cta_end) == ends
    assert np.mean(ends[:8]) == pytest.approx(4680.0)
    both = run(whole(grid_of((256,) * 18, 1).with_slots(9, 1)), device)
    assert ns(both.cta_end - both.cta_begin) == [ends[slot] for slot in both.slot]


def test_softmax_hides_behind_the_tensor_work_of_another_warpgroup() -> None:
    """128 rows of a pipelined kernel: QK and PV 1024 each, softmax 3328 - a load takes 1512.

    Half of the softmax hidden leaves 2048 + 1664 = 3712 to a tile, all of it the 3328 that the
    exponentials take, and none 5376. One warpgroup of 64 rows has nobody to hide behind: 2688.
    So 200 + 300 + 488 + the only tile's 1024 + computing it + 4.
    """
    for tile_rows, hidden, tile_ns in (
        (128, 0.5, 3712),
        (128, 1.0, 3328),
        (128, 0, 5376),
        (64, 1.0, 2688),
    ):
        instance = toy_instance(pipelined(2), compute={"softmax_overlap": hidden})
        grid = replace(grid_of((256,), 1), tile_rows=tile_rows)
        end = run(whole(grid), instance=instance).makespan_ps
        assert end / 1000 == pytest.approx(2016.0 + tile_ns, abs=0.002)


# -- what DRAM brings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "k_ns"), [(256, 3176.0), (192, 2382.0), (100, 1240.625), (1, 12.406_25)]
)
def test_dram_brings_what_is_not_masked(tokens: int, k_ns: float) -> None:
    """5 tiles, and a DRAM with half of what 5 CTAs want: the first K takes half a tile's 6352.

    Of one that is 3/4 full it takes 3/4 of that. V takes as long as K, or the 1000 that it takes from an
    idle memory. Then what is left of a tile is, 2176 as whole bytes.
    """
    device = toy(dram_bandwidth_bytes_per_s=5 * PACE / 2)
    result = run(whole(grid_of((tokens,) * 5, 1)), device)
    end = 992.0 + k_ns + max(k_ns, 1000.0) + 2176.0
    assert result.cta_end / 1000 == pytest.approx(np.full(5, end), abs=0.02)
    assert result.program.dram_bytes == pytest.approx(5 * tokens * 256)
    assert result.program.bytes_of(Phase.STREAM) == 5 * 20_635


def test_all_that_dram_brings_adds_up_in_the_mean() -> None:
    """Tiles of 32, 128, 32, 128 and 64 tokens, and DRAM as above: D = 2.5 p, p = 65,536 B in 3176 ns.

    The first K are 4096, 16,384 and 8192 B. V is as much, 9830.4 B in the mean, and comes while the
    first 20,635 B of a tile are worked through: s = 0.4764 of them, for every CTA alike. All that move
    rise to one pace at most.
        5 K            D / 5 each, below 64 B/ns    4096 B in 5 * 4096 / D         = 397
        3 K, 2 tiles   3 x + 2 s x = D: x < p       4096 B in (3 + 2 s) 4096 / D   = 313.853
        2 K, 3 tiles   2 x + 3 s x = D: x < p       8192 B in (2 + 3 s) 8192 / D   = 544.562
        tiles          5 s p < D                    20,635 B in 1000, and 2176 are left
    Those of 32 tokens shared for 12,288 of their 20,635 B, which takes 595.5 at p; that of 64 for 8192,
    397.
    """
    device = toy(dram_bandwidth_bytes_per_s=5 * PACE / 2)
    result = run(whole(grid_of((32, 128, 32, 128, 64), 1)), device)
    begun = 992 + 397 + 313.853 + 544.562
    short, middle, long = (begun + 3176 - shared_ns for shared_ns in (595.5, 397.0, 0.0))
    ends = [short, long, short, long, middle]
    assert result.cta_end / 1000 == pytest.approx(np.array(ends), abs=0.05)
    assert result.program.dram_bytes == pytest.approx(384 * 256)


def test_dram_answers_to_the_loads_in_flight() -> None:
    """One CTA, an exponent of 1, and a DRAM of a quarter of what 32,768 B in flight would bring.

    One buffer each of K and V keeps 32,768 B in flight, 67.1 B/ns at a latency of 488: DRAM gives
    67.1 / (1 + 4) = 13.4, the first K in 5 * 488 = 2440, and V as long. Then 2176 of the tile are left.
    Four stages keep 4 * 65,536 in flight, 8 times as much: 537 / (1 + 32) = 16.3. All that there is, a
    tile, comes in 33/4 * 488 = 4026, and is computed in 2688.
    """
    device = toy(dram_bandwidth_bytes_per_s=32_768 / (488 * NS) / 4, dram_saturation_exponent=1.0)
    deep = toy_instance(pipelined(4))
    for instance, took in ((toy_instance(), 2 * 2440.0 + 2176.0), (deep, 4026.0 + 2688.0)):
        result = run(whole(grid_of((256,), 1)), device, instance)
        assert ns(result.makespan_ps) == pytest.approx(992.0 + took, abs=0.02)


# -- the combine kernel ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "launch", "modes", "gap"),
    [
        ("launch", "graph", {}, 700.0),
        ("launch", "stream", {"pdl": 300 * NS}, 1900.0),
        ("pdl", "graph", {"pdl": 300 * NS}, 300.0),
        ("pdl", "stream", {"pdl": 300 * NS}, 300.0),
        ("pdl", "stream", {}, 1900.0),
        ("grid_sync", "stream", {"pdl": 300 * NS}, 140.0 + 60.0 + 400.0),
    ],
)
def test_a_combine_step_begins_as_its_kernel_says(
    start: str, launch: str, modes: dict[str, float], gap: float
) -> None:
    """A launch as the call's own, an early one where the device has it, or fence, atomic and flag.

    The boundary to what ran before is the call's in any case.
    """
    gaps = {"graph": 700 * NS, "stream": 1900 * NS}
    device = toy(kernel_gap_s=gaps | modes)
    schedule = FlashDecoding(num_splits=5)(grid_of((1280,), 1, launch=launch), device)
    result = run(schedule, device, toy_instance(combine={"start": start}))
    assert ns(result.launch_begin[1]) == ns(result.launch_end[0]) == 4682.062
    assert ns(result.cta_begin[5] - result.launch_end[0]) == gap
    assert ns((result.latency_s - result.makespan_s) * 1e12) == gaps[launch] / NS


def test_rows_without_partials_cost_the_combine_kernel_nothing() -> None:
    """Two heads, the first in two segments, a CTA of the combine kernel for each row.

    The first takes 200 + 150 (on this architecture) + (1 + 2)*100 + 2 * 260 B in 8.125 + 2 for its
    128 B; the second has nothing to read and returns. With room for two loads the reads are 2*100.
    """
    grid = grid_of((512,), 2)
    zero = np.array([0, 0, 1])
    start, stop = np.array([0, 1, 0]), np.array([1, 2, 2])
    schedule = Schedule(grid, np.arange(3), zero, start, stop, num_ctas=3, combine="kernel")
    for in_flight, took in ((1, 660.125), (2, 560.125)):
        combine = {
            "rows_per_cta": 1,
            "splits_in_flight": in_flight,
            "overhead_s": 150 * NS,
        }
        result = run(schedule, instance=toy_instance(combine=combine))
        assert ns((result.cta_end - result.cta_begin)[3:]) == [took, 200.0]
        assert result.program.bytes_of(Phase.COMBINE) == 520


def test_an_8_bit_cache_is_met_by_an_8_bit_query() -> None:
    """FlashAttention-3 computes in 8 bits over an 8-bit cache, whatever the call's query."""
    device = catalog.device("h100_sxm")
    costs = []
    for q_dtype in ("bfloat16", "fp8"):
        workload = Workload.uniform(
            4, 4096, num_q_heads=8, num_kv_heads=1, head_dim=128, kv_dtype="fp8", q_dtype=q_dtype
        )
        kernel = catalog.kernel("sglang_fa3")
        instance = instance_of(kernel, device, workload)
        assert instance.q_dtype == "fp8"
        costs.append(Prices.of(tile_grid(workload, instance, device), instance, device))
    assert costs[0] == costs[1]
    plain = Workload.uniform(4, 4096, num_q_heads=8, num_kv_heads=1, head_dim=128)
    assert instance_of(catalog.kernel("sglang_fa3"), device, plain).q_dtype == "bfloat16"


# -- what compiled instances differ in -------------------------------------------------------------


def test_a_kernel_built_for_splits_looks_twice_at_each_31_requests() -> None:
    """As the walk above, with a combine kernel behind it: 50 ns more a look, not 25."""
    instance = toy_instance(ctas={"scan_s": 25 * NS})
    grid = grid_of((256,) * 40, 1)
    partials = np.zeros(grid.num_output_tiles, dtype=np.int64)
    schedule = whole(grid, dispatch="queue", combine="kernel", partials=partials)
    program = priced(schedule, instance)
    last = program.launches[0].last_cta
    launches = program.latency_ps[program.kind == Phase.LAUNCH][:last]
    assert ns(launches[29:38]) == [60.0] * 2 + [110.0] * 5 + [60.0] * 2


def test_an_instance_built_for_splits_issues_more_on_each_output_tile() -> None:
    """30 clocks of 1 ns before each of two output tiles."""
    instance, grid = toy_instance(start={"split_clk": 30}), grid_of((256, 256), 1)
    partials = np.zeros(2, dtype=np.int64)
    ramps = []
    for more in ({"combine": "none"}, {"combine": "kernel", "partials": partials}):
        program = priced(whole(grid, **more), instance)
        ramps.append(program.latency_ps[program.kind == Phase.RAMP])
    assert ns(ramps[1] - ramps[0]) == [30.0, 30.0]


def test_an_instance_without_overlap_shows_all_of_its_softmax() -> None:
    """As the second warpgroup above that hides half of it: 1024 + 3328 + 1024, not 3712."""
    half, alone = (toy_instance(pipelined(2), {"softmax_overlap": share}) for share in (0.5, 0.0))
    grid = replace(grid_of((256,), 1), tile_rows=128)
    ends = [run(whole(grid), instance=one).makespan_ps for one in (half, alone)]
    assert np.array(ends) / 1000 == pytest.approx(np.array([5728.0, 7392.0]), abs=0.002)


def test_registers_that_spill_and_tensor_instructions_that_wait_stall_each_tile() -> None:
    """A tile of 2688 beside the 992 of launch, reads, a latency and the output, and the first of 1024.

    1,000 B to local memory and back at 1 B/ns, 500 of them for the first tile: 3688 n - 500. Three waits
    of 200 ns are shorter than the one and longer than the other: 3688 n - 400.
    """
    device = catalog.device("h100_sxm")
    load = Workload.uniform(1, 256, num_q_heads=1, num_kv_heads=1, head_dim=64)
    for waits, first in ((0, 500), (3, 600)):
        stalling = {
            "spill_bytes_per_s": {"sm_90": 1.0 / NS}, "tensor_wait_s": {"sm_90": 200 * NS},
            "spilled_bytes": 1000, "first_spilled_bytes": 500, "tensor_waits": waits,
        }  # fmt: skip
        fa2 = catalog.kernel("fa2")
        kernel = fa2.model_copy(update={"compute": fa2.compute.model_copy(update=stalling)})
        found = instance_of(kernel, device, load).compute
        assert (found.stall_s, found.first_stall_s) == pytest.approx((1000 * NS, first * NS))
        stalls = {"stall_s": found.stall_s, "first_stall_s": found.first_stall_s}
        instance = toy_instance(pipelined(2), stalls)
        for tiles in (1, 3):
            end = run(whole(grid_of((256 * tiles,), 1)), instance=instance).makespan_ps
            wanted = 992.0 + 1024 + 3688 * tiles - (1000 - first)
            assert end / 1000 == pytest.approx(wanted, abs=0.002)


def test_an_instance_that_masks_compares_the_scores_of_tiles_at_an_edge() -> None:
    """Four FMAs' time for 64 x 256 scores at 128 a clock: 512 for the last tile, 1024 with a window."""
    plain, masking = (toy_instance(pipelined(2), {"mask_fma_per_score": fma}) for fma in (0, 4))
    for window, edges in ((None, 1), (768, 2)):
        schedule = whole(grid_of((1024,), 1, window=window))
        ends = [run(schedule, instance=one).makespan_ps for one in (plain, masking)]
        assert ends[1] - ends[0] == pytest.approx(512_000 * edges, abs=25)  # half a byte


def test_a_masked_tile_fills_the_pipeline_with_what_is_loaded() -> None:
    """A quarter of a tile loaded: a latency of 488 and 256 of 1024 ns of transfer, not 1512."""
    instance = toy_instance(pipelined(2))
    full, quarter = (run(whole(grid_of((n,), 1)), instance=instance).makespan_ps for n in (256, 64))
    assert ns(full - quarter) == 768.0


def test_the_loader_of_an_8_bit_cache_sets_the_pace_where_it_is_the_slower() -> None:
    """256 tokens of 64 B of V at 4 B/ns take 4096 ns, and looking up 256 pages of one token a latency.

    32 pages of 64 tokens lie in a line, so that a tile needs an eighth of one: an eighth of a latency.
    """
    numbers = (("stages", 2), ("transpose_bytes_per_s", 4.0 / NS))
    instance, device = toy_instance(LoopNumbers("transposed", numbers)), toy()
    for page_tokens, share in ((1, 1.0), (64, 1 / 8)):
        grid = grid_of((512,), 1, kv_dtype="fp8", page_tokens=page_tokens)
        tile = prices_of(grid, instance).tile
        assert tile.tile_s == pytest.approx(4096 * NS + share * device.dram_latency_s)
        assert tile.tile_s > tile.compute_s
    assert prices_of(grid_of((512,), 1), toy_instance(pipelined(2))).tile.tile_s < 4096 * NS


def test_shifted_tiles_begin_with_the_window() -> None:
    """300 tokens, a window of 128: 172 to 299 lie in two tiles of 256, or in one that begins at 172."""
    grid = grid_of((300,), 1, window=128)
    assert (grid.first_kv_tile.tolist(), grid.num_kv_tiles.tolist()) == ([0], [2])
    shifted = replace(grid, shifted=True)
    assert (shifted.first_kv_tile.tolist(), shifted.num_kv_tiles.tolist()) == ([0], [1])
    zero, one = np.array([0]), np.array([1])
    assert shifted.tokens(zero, zero, one).tolist() == [128]
    assert grid.tokens(zero, zero, one).tolist() == [256 - 172]


def test_a_window_that_hides_nothing_takes_the_instance_without() -> None:
    """FlashAttention-3 drops a window as long as the longest context."""
    kernel, device = catalog.kernel("vllm_fa3"), catalog.device("h100_sxm")
    rows = {
        window: tiled(
            Workload.uniform(2, 128, num_q_heads=8, num_kv_heads=1, head_dim=64, window=window),
            kernel,
            device,
        ).tile_rows
        for window in (None, 127, 128)
    }
    assert rows == {None: 64, 127: 192, 128: 64}


def test_padding_of_a_wider_instance_is_computed_and_filled_but_not_read() -> None:
    """Head dim 64 on an instance of 128: QK, PV and filling shared memory double, softmax does not.

    QK and PV 1024 each, a load 488 + 1024: max(1512, 1024) + max(1512, 1664 + 1024) = 4200, for the
    same 65,536 B. The first K takes 1024 too: 200 + 788 + 1024 + 4200 + 4.
    """
    instance, grid = toy_instance(compute={"padding": 64}), grid_of((256,), 1)
    prices = prices_of(grid, instance)
    assert prices.tile.tile_s == pytest.approx(4200 * NS)
    assert prices.work.tile_bytes == 65_536
    assert ns(run(whole(grid), instance=instance).makespan_ps) == 6216.0


def test_a_window_masks_every_score() -> None:
    """3 FMAs more for each of 64 x 256 scores at 128 a clock: 384, and nothing without a window."""
    device, fa2 = catalog.device("h100_sxm"), catalog.kernel("fa2")
    for window, fma, more in ((None, 5.0, 0.0), (200, 8.0, 384 * NS)):
        load = Workload((256,), 1, 1, 64, window=window)
        assert instance_of(fa2, device, load).compute.softmax_fma_per_score == fma
        masking = toy_instance(compute={"softmax_fma_per_score": fma}).compute
        grid = grid_of((256,), 1, window=window)
        (was, _), (now, _) = (
            softmax_time_s(grid.tile_rows, grid.tile_tokens, c, toy())
            for c in (toy_instance().compute, masking)
        )
        assert now - was == pytest.approx(more)


def test_what_a_replay_finds_in_l2() -> None:
    """All of it up to half of L2, none from 0.75 on, half at 0.625; without that, none from 1 on."""
    device = toy(l2_bytes=1000, l2_resident_fraction=0.5, l2_lost_fraction=0.75)
    kept = [kept_share(size, device) for size in (500, 625, 750, 2000)]
    assert kept == pytest.approx([1.0, 0.5, 0.0, 0.0])
    device = toy(l2_bytes=1000, l2_resident_fraction=0.5, l2_lost_fraction=None)
    assert kept_share(750, device) == pytest.approx(0.5)


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize(
    ("l2_bytes", "later_ns"), [(2 * 655_872, 0), (655_872 * 4 // 3, 400), (10, 800)]
)
def test_a_launch_begins_later_as_kv_has_pushed_out_what_it_reads_first(
    cache: str, l2_bytes: int, later_ns: int
) -> None:
    """Two heads of 1,280 tokens have 655,360 B of K and V, and 512 B of Q and output.

    L2 keeps all to half of its size and nothing from all of it on, three quarters being halfway; the
    whole call takes as much longer.
    """
    schedule = FlashAttention2()(grid_of((1280,), 2, cache=cache), toy())
    device = toy(l2_bytes=l2_bytes, l2_resident_fraction=0.5, l2_lost_fraction=None)
    late = device.model_copy(update={"evicted_start_s": 800 * NS})
    took_ps, taken_ps = (round(run(schedule, one).latency_s * 1e12) for one in (late, device))
    assert ns(took_ps - taken_ps) == later_ns
