"""By hand: merges that CTAs share, CTAs that overlap nothing, and what a measured table was told.

On the toy GPU of `toy.py`: L2 answers in 100 ns, DRAM in 488, a fence and an atomic take 200.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernels import lowered, tiled
from toy import NS, grid_of, ns, priced, prices_of, run, toy, toy_instance

import leansim
from leansim.engine.program import Phase
from leansim.engine.sharing import sm_limits
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.sglang_triton import SglangTriton
from leansim.schedule.schedule import Schedule
from leansim.silicon.published import measured_rows
from leansim.specs import catalog
from leansim.specs.device import Clusters
from leansim.specs.harness import Calls, HarnessTerm
from leansim.specs.instance import Instance, LoopNumbers

# Four grains of the 64 float32 of a row.
SHARED = {"grain_bytes": 64.0, "shared": True}


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
        priced(quarters(), toy_instance(merge={**SHARED, "shared": shared})) for shared in (False, True)
    )
    merge = alone.kind == Phase.MERGE
    assert ns(alone.latency_ps[merge]) == [400.0 + 12 * 100]
    assert ns(shared.latency_ps[merge]) == [400.0 + 4 * 100]
    assert alone.bytes[merge].tolist() == [3 * 260]
    assert shared.bytes[merge].tolist() == [260]


def test_four_partials_in_flight_are_one_latency_for_each_grain() -> None:
    program = priced(quarters(), toy_instance(merge={"splits_in_flight": 4, **SHARED}))
    assert ns(program.latency_ps[program.kind == Phase.MERGE]) == [400.0 + 100]


def test_a_lone_split_of_a_shared_merge_merges_itself() -> None:
    """It publishes its partial (200) and reads 4 grains of it, where the call may have two splits."""
    one = replace(FlashAttention2()(grid_of((256,), 1), toy()), num_splits=1)
    two = replace(one, num_splits=2)
    plain, shared = toy_instance(), toy_instance(merge=SHARED)
    ends = [ns(run(s, instance=k).makespan_ps).expected for s, k in ((one, shared), (two, plain))]
    assert ends[0] == ends[1]
    assert ns(run(two, instance=shared).makespan_ps) == ends[0] + 200 + 4 * 100


def test_a_round_of_reads_waits_for_what_is_computed_with_the_last() -> None:
    """A clock is 1 ns. Three partials in two rounds of 100 + 30 a grain, 4 grains: 400 and 1040."""
    program = priced(quarters(), toy_instance(merge={"round_clk": 30, "splits_in_flight": 2, **SHARED}))
    merge = program.kind == Phase.MERGE
    assert ns(program.latency_ps[merge]) == [400.0 + 2 * 130]
    alone = {**SHARED, "shared": False, "splits_in_flight": 2, "round_clk": 30}
    program = priced(quarters(), toy_instance(merge=alone))
    assert ns(program.latency_ps[merge]) == [400.0 + 4 * 2 * 130]


def test_a_cluster_merges_through_shared_memory() -> None:
    """Barriers of 50 for what is published and seen, 20 a partial; five CTAs fit no cluster of 4."""
    device = toy().model_copy(update={"clusters": Clusters(sync_s=50 * NS, read_s=20 * NS)})
    merging = toy_instance(merge={"cluster_ctas": 4})
    program = priced(quarters(), merging, device)
    merge, write = program.kind == Phase.MERGE, program.kind == Phase.WRITE
    assert ns(program.latency_ps[merge]) == [50.0 + 3 * 20]
    through_l2 = priced(quarters(), merging)
    assert ns(through_l2.latency_ps[merge]) == [400.0 + 3 * 100]
    published = program.signal_counter[write] >= 0
    saved = through_l2.latency_ps[write] - program.latency_ps[write]
    assert ns(saved[published]) == [150.0] * 3
    more = replace(quarters(), num_splits=5)
    assert (priced(more, merging, device).latency_ps == through_l2.latency_ps).all()


def chain(**numbers: float) -> Instance:
    """A loop that overlaps nothing, of 1000 clocks of which it issues for 300."""
    return toy_instance(
        LoopNumbers("serial_chain", (("clk", 1000), ("issue_clk", 300), *numbers.items()))
    )


def test_a_chain_takes_one_thing_after_another() -> None:
    """1000 of instructions, two reads of 488, an index, 64 KB in 1024; the SM is taken for 1024.

    Of two sectors of indices one comes from DRAM in 488, the other from L2 in 100.

    Computing 512 tokens at a time, a tile of 256 has half the instructions and half the reads.
    """
    for computed, tile_ns in ((0, 1000 + 976 + 294 + 1024), (512, 500 + 488 + 147 + 1024)):
        instance = chain(kv_reads=2, index_reads=1, computed_tokens=computed)
        prices = prices_of(grid_of((512,), 1), instance)
        assert prices.tile.tile_s == pytest.approx(tile_ns * NS)
        assert prices.tile.sm_s == pytest.approx(1024 * NS)
        assert prices.loop.fill_s(prices.work, 1.0) == 0.0


def test_a_chain_waits_for_one_read_at_least() -> None:
    """One token in 256: a 256th of 2294 ns is awaited beside 1000, and 782 less that to begin with.

    Launch, 200, prologue, 300, and Q and output, 4, as ever.
    """
    program = priced(FlashAttention2()(grid_of((1,), 1), toy()), chain(kv_reads=2, index_reads=1))
    stream, ramp = (program.kind == kind for kind in (Phase.STREAM, Phase.RAMP))
    assert ns(program.latency_ps[ramp]) == [300 + round(782 - 2294 / 256, 3)]
    assert program.bytes[ramp].tolist() == [0]
    took_ps = program.bytes[stream] / program.flows[0].max_bytes_per_ps
    assert took_ps == pytest.approx([1e6 + 2_294_000 / 256], rel=1e-4)


def test_the_first_tile_of_a_chain_that_loads_ahead_reads_its_indices_at_once() -> None:
    """Seven indices in turn of 100 each, but before the loop as one; the prologue takes 300 of that.

    So the first of n tiles of 1000 + 100 + 700 + 1024 is 1624 - 300 shorter, whatever n is.
    """
    instance = chain(kv_reads=1, index_reads=7)
    for tiles in (1, 2, 50):
        schedule = FlashAttention2()(grid_of((256 * tiles,), 1, cache="warm"), toy())
        program = priced(schedule, instance)
        stream = program.kind == Phase.STREAM
        assert program.latency_ps[program.kind == Phase.RAMP].tolist() == [0]
        took_ps = program.bytes[stream] / program.flows[0].max_bytes_per_ps
        assert took_ps == pytest.approx([2_824_000 * tiles - 1_324_000], rel=1e-5)


def test_chains_queue_for_schedulers_and_for_the_pipe_of_loads() -> None:
    """Of two CTAs on an SM the second finds 300 and 400 of what each takes busy by the first."""
    instance = chain(pipe_clk=400, kv_reads=2, index_reads=1)
    grid = grid_of((512,) * 10, 1, ctas_per_sm=2)
    kv = priced(FlashAttention2()(grid, toy()), instance).flows[0]
    tile_ps = 65_536 / kv.max_bytes_per_ps
    alone, shared = (wait * 65_536 for wait in kv.waits_ps_per_byte)
    assert (alone, shared) == pytest.approx((0.0, (300**2 + 400**2) * 1e6 / tile_ps))
    limits, power = sm_limits((kv,), 2)
    assert 65_536 / limits[power[0], 0] == pytest.approx(tile_ps)
    assert 65_536 / limits[2 * power[0], 0] == pytest.approx(tile_ps + shared)


def test_an_instance_may_say_how_its_combine_starts() -> None:
    """Programmatic dependent launch in 200 for a launch gap of 1050, on the H100 itself."""
    workload = leansim.Workload.uniform(1, 4096, num_q_heads=8, num_kv_heads=1, head_dim=128)
    device, kernel = catalog.device("h100_sxm"), catalog.kernel("sglang_triton")
    gaps = []
    for tile in kernel.tiles:
        if tile.head_dim == 128 and tile.tile_rows == 16 and tile.combine:
            for start in ("pdl", "launch"):
                mine = kernel.model_copy(
                    update={"tiles": (tile.model_copy(update={"combine": {"start": start}}),)}
                )
                grid = tiled(workload, mine, device)
                gaps.append(lowered(SglangTriton()(grid, device), mine, device).launches[-1].gap_ps)
            break
    assert ns(gaps) == [200.0, 1050.0]


def test_splits_under_a_window_are_those_of_the_whole_context() -> None:
    """A window of 1024 in 65,536 tokens: 132 SMs * log2(1024) for 528 tiles are 3 splits each."""
    device, kernel = catalog.device("h100_sxm"), catalog.kernel("sglang_triton")
    shape = {"num_q_heads": 8, "num_kv_heads": 4, "head_dim": 128}
    for window, splits in ((None, 3), (1024, 3)):
        workload = leansim.Workload.uniform(132, 65_536, window=window, **shape)
        schedule = SglangTriton()(tiled(workload, kernel, device), device)
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
