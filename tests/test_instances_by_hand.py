"""By hand: what some compiled instances do otherwise than others: starts, chains, empty CTAs, merges.

All run on the toy GPU of `toy.py`: an L2 latency is 100 ns, a DRAM latency 488, a clock 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels import tiled
from toy import NS, grid_of, ns, pipelined, priced, prices_of, run, toy, toy_instance

from leansim.engine.program import Phase
from leansim.errors import PartitionerError
from leansim.partitioners import registry as partitioners
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.instance import QueryInParts, instance_of
from leansim.specs.workload import Workload
from leansim.timing.memory import loaded_kv_bytes
from leansim.timing.merges import handover, merge_computing_s, merge_latency_s
from leansim.timing.prices import prologue_s, queueing_s

PLAIN_NS = 4680.0  # a CTA of one tile


def test_a_self_contained_instance_waits_for_no_setup_kernel() -> None:
    """Setup 200 and a gap of 700 before a CTA of 4680, or nothing."""
    device, fa2 = catalog.device("h100_sxm"), catalog.kernel("fa2")
    load, grid, ends = Workload((256,), 1, 1, 64), grid_of((256,), 1), []
    for ctas in ({"setup_kernels": 1}, {"setup_kernels": 1, "self_contained": True}):
        kernel = fa2.model_copy(update={"ctas": fa2.ctas.model_copy(update=ctas)})
        found = instance_of(kernel, device, load).ctas
        instance = toy_instance(ctas={"setup_kernels": found.setup_kernels})
        ends.append(ns(run(FlashAttention2()(grid, toy()), instance=instance).makespan_ps))
    assert ends == [900.0 + PLAIN_NS, PLAIN_NS]


def test_what_no_loader_hides_of_q_in_parts() -> None:
    """8 rows, 2 at a time: 4 reads of 100 + 20 from L2 are 480.

    The others look up the page, 100, and have 150 to fill and 30 of their own: 200 of Q is left, beside
    a fixed 1000. A kernel that prepares the query itself reads the new token as well: 100 less is left,
    as long as Q is in L2.
    """
    start = {"query": QueryInParts(rows=2, clk=20, beside_clk=30), "overhead_s": 1000 * NS}
    plain, own = (toy_instance(start=start, ctas={"prepares_query": does}) for does in (False, True))
    grid = grid_of((256,), 1, num_q_heads=8, cache="warm")
    found = prologue_s(grid, plain, toy(), 150 * NS)
    assert found == pytest.approx((1000 + 100 + 200) * NS)
    assert prologue_s(grid, own, toy(), 150 * NS) == pytest.approx((1000 + 200 + 100) * NS)
    cold = replace(grid, workload=replace(grid.workload, cache="cold"))
    reads_ns = 100 + 488 + (4 * 508 - (100 + 488) - 150 - 30)
    assert prologue_s(cold, own, toy(), 150 * NS) == pytest.approx((1000 + reads_ns) * NS)


def test_whole_pages_are_loaded_beyond_the_end() -> None:
    """300 tokens on pages of 64 are 5 pages, 320 of two tiles' 512; a window of 100 begins on page 3."""
    grid = grid_of((300,), 1, page_tokens=64)
    pages = replace(grid, whole_pages=True)
    assert (grid.loaded_tokens, pages.loaded_tokens) == (300, 320)
    assert [one.tolist() for one in (pages.loaded_of_first, pages.loaded_of_last)] == [
        [[1.0]],
        [[64 / 256]],
    ]
    window = grid_of((300,), 1, page_tokens=64, window=100)
    assert replace(window, whole_pages=True).loaded_tokens == 320 - 192
    assert loaded_kv_bytes(pages) == pytest.approx(320 * 256)


def test_a_tile_takes_no_less_than_its_chain_and_leaves_the_sm_free() -> None:
    grid = grid_of((256,), 1)
    plain = prices_of(grid, toy_instance(pipelined(2))).tile
    chained = prices_of(grid, toy_instance(pipelined(2, chain_s=9000 * NS))).tile
    assert (chained.tile_s, chained.sm_s) == (9000 * NS, plain.sm_s)
    assert plain.tile_s < 9000 * NS


def test_a_fixed_cost_beside_the_loads_slows_the_first_instead_of_preceding_it() -> None:
    """Of 788 fixed, 600 beside the loads of the first of 2 tiles: 188, and 3176 + 600 + 3176.

    The first K takes its 512 before, and is no transfer of its own, as it is under way meanwhile.
    """
    instance = toy_instance(start={"loading_s": 600 * NS})
    program = priced(FlashAttention2()(grid_of((512,), 1), toy()), instance)
    stream = program.kind == Phase.STREAM
    assert ns(program.latency_ps[program.kind == Phase.RAMP]) == [188.0 + 512.0]
    assert program.bytes[program.kind == Phase.RAMP].tolist() == [0]
    took_ps = program.bytes[stream] / program.flows[0].max_bytes_per_ps
    assert took_ps == pytest.approx([6_952_000], rel=1e-5)


def test_merging_takes_as_long_as_it_computes() -> None:
    """Rows dealt to 4 warps: 6 rows are 2 in some. 2 partials of 30 + 2 * 50, and 500 once: 760.

    After the flag, 400, and the first partial, 100. In two reads without arithmetic it was 400 + 200.
    """
    merging = toy_instance(merge={"clk": 30, "once_clk": 500, "warps": 4, "row_clk": 50}).merge
    computing = merge_computing_s(merging, np.array([2]), np.array([6]), toy())
    assert computing == pytest.approx([760 * NS])
    peers, way = np.array([2]), handover(toy(), merging, 3)
    assert merge_latency_s(way, peers, 1, computing_s=computing) == pytest.approx([1260 * NS])
    assert merge_latency_s(way, peers, 1) == pytest.approx([600 * NS])
    assert merge_computing_s(toy_instance().merge, peers, np.array([6]), toy()) == 0.0


def test_ctas_queue_for_the_schedulers_of_their_sm() -> None:
    """1000 alone, 400 of it issuing. One before it on average: 400 / 1000, then 560 * 2 / 1160."""
    second = 400 * 0.4
    third = 400 * (2 * (400 + second) / (1000 + second))
    waits = queueing_s(1000 * NS, (400 * NS,), 3)
    assert waits == pytest.approx([0.0, second * NS, third * NS])


def test_a_wave_queues_with_as_many_as_it_has() -> None:
    """12 CTAs on 5 SMs of 2: the first 10 share, the last 2 have an SM each."""
    alone = 200 + 788
    grid = grid_of((256,) * 12, 1, ctas_per_sm=2)
    program = priced(FlashAttention2()(grid, toy()), toy_instance(start={"issue_clk": 600}))
    shared = 788 + round(600 * 600 / alone, 3)
    assert ns(program.latency_ps[program.kind == Phase.RAMP]) == [shared] * 10 + [788.0] * 2


def test_ctas_that_return_at_once_share_no_sm() -> None:
    """8 CTAs on 5 SMs of 2, 5 of them without tiles: the 3 others have an SM each."""
    grid = grid_of((256,) * 3, 1, ctas_per_sm=2)
    zero, cta = np.zeros(3, dtype=np.int64), np.array([0, 4, 7])
    schedule = Schedule(
        grid, cta, np.arange(3), zero, zero + 1, num_ctas=8, num_empty_ctas=5, combine="none"
    )
    for empty, latency in (("return", 788.0), ("write", 788 + round(600 * 600 / 988, 3))):
        program = priced(schedule, toy_instance(start={"issue_clk": 600}, ctas={"empty": empty}))
        assert ns(program.latency_ps[program.kind == Phase.RAMP]) == [latency] * 3


def idle_schedule() -> Schedule:
    """One tile, and two CTAs for it."""
    zero = np.zeros(1, dtype=np.int64)
    return Schedule(
        grid_of((256,), 1), zero, zero, zero, zero + 1, num_ctas=2, num_empty_ctas=1, combine="none"
    )


def test_whoever_prepares_in_vain_leaves_a_partial_to_merge() -> None:
    """The CTA with the tile publishes, 200, sees the flag, 400, and reads the other's partial, 100.

    The other takes a prologue of 300, or what its instance says.
    """
    for says, idle in (({"empty_prologues": 1}, 300.0), ({"empty_s": 70 * NS}, 70.0)):
        instance = toy_instance(ctas={"empty": "prepare", **says}, combine=None)
        program = priced(idle_schedule(), instance)
        assert ns(program.latency_ps) == [200.0, 788.0, 0.0, 2175.989, 4.0 + 700.0, 200.0 + idle]
    returns = toy_instance(ctas={"empty": "return", "empty_s": 70 * NS}, combine=None)
    program = priced(idle_schedule(), returns)
    assert ns(program.latency_ps) == [200.0, 788.0, 0.0, 2175.989, 4.0, 270.0]


def test_trtllm_takes_xqa_where_its_blocks_fill_a_quarter_or_nothing_else_can() -> None:
    """132 SMs want 33 blocks of 128 tokens, 4,224 tokens of one KV head; 8-bit KV has no other."""
    kernel, device = catalog.kernel("trtllm_decode"), catalog.device("h100_sxm")
    plan = partitioners.make(kernel.partitioner.name, kernel.partitioner.options)

    def planned(context: int, kv_dtype: str) -> int:
        load = Workload((context,), 8, 1, 128, kv_dtype=kv_dtype)
        return plan(tiled(load, kernel, device), device).num_splits or 0

    assert planned(4224, "bfloat16") == 16
    assert planned(2, "fp8") == 1
    with pytest.raises(PartitionerError, match=r"fill less than 0\.25"):
        planned(4223, "bfloat16")
