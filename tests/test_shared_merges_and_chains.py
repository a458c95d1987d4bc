"""By hand: merges that CTAs share, CTAs that overlap nothing, and what a measured table was told.

On the toy GPU of `toy.py`: L2 answers in 100 ns, DRAM in 488, a fence and an atomic take 200.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import NS, grid_of, ns, run, toy, toy_kernel

import leansim
from leansim.engine.program import Phase
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.sglang_triton import SglangTriton
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import tile_grid
from leansim.silicon.tables import measured_rows
from leansim.specs import catalog
from leansim.specs.harness import Calls, HarnessTerm
from leansim.specs.kernel import Chain, Traits
from leansim.timing import segments as segment_costs
from leansim.timing import tile_pricing
from leansim.timing.lowering import lower

# Four grains of the 64 float32 of a row.
SHARED = {"merge_grain_bytes": 64, "shared_merge": True}


def quarters() -> Schedule:
    """One head of four KV tiles, a CTA for each."""
    cta = np.arange(4)
    grid = grid_of((1024,), 1)
    return Schedule(grid, cta, np.zeros(4, dtype=np.int64), cta, cta + 1, num_ctas=4, combine="last")


def test_ctas_that_share_a_merge_read_a_share_of_every_partial() -> None:
    """Alone, the last CTA reads 3 partials in 4 grains each: 400 for the flag and 12 latencies.

    Sharing, each CTA takes one grain of all 4 partials, its own too, which are the bytes of one.
    """
    alone, shared = (
        lower(quarters(), toy_kernel(merge_grain_bytes=64, **more), toy())
        for more in ({}, {"shared_merge": True})
    )
    merge = alone.kind == Phase.MERGE
    assert ns(alone.latency_ps[merge]) == [400.0 + 12 * 100]
    assert ns(shared.latency_ps[merge]) == [400.0 + 4 * 100]
    assert alone.bytes[merge].tolist() == [3 * 260]
    assert shared.bytes[merge].tolist() == [260]


def test_four_partials_in_flight_are_one_latency_for_each_grain() -> None:
    program = lower(quarters(), toy_kernel(merge_splits_in_flight=4, **SHARED), toy())
    assert ns(program.latency_ps[program.kind == Phase.MERGE]) == [400.0 + 100]


def test_a_lone_split_of_a_shared_merge_merges_itself() -> None:
    """It publishes its partial (200) and reads 4 grains of it, where the call may have two splits."""
    one = replace(FlashAttention2()(grid_of((256,), 1), toy()), num_splits=1)
    two = replace(one, num_splits=2)
    plain, shared = toy_kernel(), toy_kernel(**SHARED)
    ends = [ns(run(s, kernel=k).makespan_ps).expected for s, k in ((one, shared), (two, plain))]
    assert ends[0] == ends[1]
    assert ns(run(two, kernel=shared).makespan_ps) == ends[0] + 200 + 4 * 100


def test_a_chain_takes_one_thing_after_another() -> None:
    """1000 of instructions, two reads of 488, an index, 64 KB in 1024; the SM is taken for 1024.

    Of two sectors of indices one comes from DRAM in 488, the other from L2 in 100.

    Computing 512 tokens at a time, a tile of 256 has half the instructions and half the reads.
    """
    chain = {"sm_90": Chain(clk=1000, issue_clk=300, kv_reads=2, index_reads=1)}
    for computed, tile_ns in ((None, 1000 + 976 + 294 + 1024), (512, 500 + 488 + 147 + 1024)):
        grid = replace(grid_of((512,), 1), traits=Traits(chain=chain, computed_tokens=computed))
        cost = tile_pricing.tile_cost(grid, toy_kernel(), toy(), hit_share=0.0)
        assert cost.tile_s == pytest.approx(tile_ns * NS)
        assert (cost.sm_s, cost.fill_s) == (pytest.approx(1024 * NS), 0.0)


def test_a_chain_waits_for_one_read_at_least() -> None:
    """One token in 256: a 256th of 2294 ns is awaited beside 1000, and 782 less that to begin with."""
    chain = {"sm_90": Chain(clk=1000, issue_clk=300, kv_reads=2, index_reads=1)}
    grid = replace(grid_of((1,), 1), traits=Traits(chain=chain))
    cost = tile_pricing.tile_cost(grid, toy_kernel(), toy(), hit_share=0.0)
    assert cost.tile_s == pytest.approx((1000 + 2294 / 256) * NS)
    assert cost.fill_s == pytest.approx((782 - 2294 / 256) * NS)


def test_the_first_tile_of_a_chain_that_loads_ahead_reads_its_indices_at_once() -> None:
    """Seven indices in turn of 100 each, but before the loop as one; the prologue takes 100 of that.

    Two tiles of 1000 + 100 + 700 + 1024 share the rest.
    """
    chain = {"sm_90": Chain(clk=1000, issue_clk=300, kv_reads=1, index_reads=7)}
    grid = replace(grid_of((512,), 1), traits=Traits(chain=chain))
    cost = tile_pricing.tile_cost(grid, toy_kernel(), toy(), hit_share=1.0)
    assert cost.tile_s == pytest.approx(2824 * NS)
    assert cost.fill_s == pytest.approx((200 - 1824) * NS)
    schedule = FlashAttention2()(grid, toy())
    assert segment_costs.saved_s(schedule, toy(), cost, 100 * NS) == pytest.approx(1524 / 2 * NS)


def test_chains_queue_for_schedulers_and_for_the_pipe_of_loads() -> None:
    """10 CTAs on 5 SMs of 2: the second finds 300 and 400 of what each takes busy by the first."""
    chain = {"sm_90": Chain(clk=1000, issue_clk=300, pipe_clk=400, kv_reads=1, index_reads=1)}
    grid = replace(grid_of((512,) * 10, 1, ctas_per_sm=2), traits=Traits(chain=chain))
    cost = tile_pricing.tile_cost(grid, toy_kernel(), toy(), hit_share=1.0)
    waits_s = (300**2 + 400**2) * NS * NS / cost.tile_s
    schedule = FlashAttention2()(grid, toy())
    assert segment_costs.crowding_s(schedule, toy_kernel(), toy(), cost) == pytest.approx(waits_s)


def test_an_instance_may_say_how_its_combine_starts() -> None:
    """Programmatic dependent launch in 200 for a launch gap of 700, on the H100 itself."""
    workload = leansim.Workload.uniform(1, 4096, num_q_heads=8, num_kv_heads=1, head_dim=128)
    device, kernel = catalog.device("h100_sxm"), catalog.kernel("sglang_triton")
    gaps = []
    for tile in kernel.tiles:
        if tile.head_dim == 128 and tile.tile_rows == 16 and tile.chain:
            for start in ("pdl", "launch"):
                mine = kernel.model_copy(
                    update={"tiles": (tile.model_copy(update={"combine_start": start}),)}
                )
                grid = tile_grid(workload, mine, device)
                gaps.append(lower(SglangTriton()(grid, device), mine, device).launches[-1].gap_ps)
            break
    assert ns(gaps) == [200.0, 700.0]


def test_splits_under_a_window_are_those_of_the_whole_context() -> None:
    """A window of 1024 in 65,536 tokens: 132 SMs * log2(1024) for 528 tiles are 3 splits each."""
    device, kernel = catalog.device("h100_sxm"), catalog.kernel("sglang_triton")
    shape = {"num_q_heads": 8, "num_kv_heads": 4, "head_dim": 128}
    for window, splits in ((None, 3), (1024, 3)):
        workload = leansim.Workload.uniform(132, 65_536, window=window, **shape)
        schedule = SglangTriton()(tile_grid(workload, kernel, device), device)
        assert set(schedule.segments_of_tile.tolist()) == {splits}


def test_a_term_takes_its_seconds_for_every_kernel_it_launches() -> None:
    term = HarnessTerm.model_validate(
        {"name": "x", "launches": 6, "seconds": 1e-6, "sources": {"seconds": "assumed: here"}}
    )
    workload = leansim.Workload.uniform(8, 100, num_q_heads=32, num_kv_heads=4, head_dim=128)
    assert term.seconds_of(Calls.of("trtllm_gen", workload)) == pytest.approx(6e-6)


def test_what_a_call_is_told_of_and_windows_it_is_not(tmp_path: Path) -> None:
    """Calls hear of 32,768 tokens, or of their own where there are more; Llama 4's chunks go unheard."""
    columns = (
        "kernel_source,batch_size,num_heads,num_key_value_heads,head_dim,window_size,kv_cache_dtype"
    )
    rows = ["trtllm_mha,2,40,8,128,8192,bfloat16,99,0.01", "trtllm_mha,1,64,8,64,128,fp8,65535,0.02"]
    csv = "\n".join([f"{columns},step,latency", *rows])
    (tmp_path / "b200_sxm_sglang.csv").write_text(csv + "\n")
    found = measured_rows(catalog.table("b200_sxm_sglang"), data=tmp_path)
    points = {point.head_dim: point for point in found["point"]}
    assert (points[128].window, points[128].max_context_len) == (None, 32_768)
    assert (points[64].window, points[64].max_context_len) == (128, 65_536)
    assert sorted(found["window"]) == [0, 128]
