"""Lists that a launch chooses: what it reads, how long it takes, and what gathers cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import leansim
from leansim.engine.program import Phase
from leansim.errors import ConfigError
from leansim.points.point import Point, point, resolve
from leansim.points.simulate import Simulation, simulate
from leansim.results.metrics import SHARES
from leansim.results.perfetto import trace_events
from leansim.schedule.tiling import tile_grid
from leansim.specs import catalog
from leansim.specs.instance import instance_of
from leansim.specs.masks import kv_list
from leansim.specs.workload import Workload
from leansim.study.bench import Bench
from leansim.timing import memory, merges
from leansim.timing.compute import FullTile, tile_work
from leansim.timing.loops.pipelined import Pipelined
from leansim.timing.loops.single_buffered import SingleBuffered

DEVICE = catalog.device("h100_sxm")
QUEST = "top_k(budget=1024, page=16, selector=quest)"
NSA = "top_k(budget=1024, page=64, window=512, selector=nsa)"
DSA = "top_k(budget=2048, page=1, selector=dsa)"


def asked(mask: str | None, **fields: Any) -> Point:
    """Four requests of 32k tokens, with 8 KV heads."""
    shape = {
        "num_q_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "batch_size": 4,
        "context_len": 32768,
    }
    return point(**({"device": "h100_sxm", "kernel": "flash_decoding", "mask": mask} | shape | fields))


def of(mask: str, lens: tuple[int, ...], **shape: Any) -> Workload:
    """A call with that mask."""
    return Workload(lens, **({"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128} | shape),
                    reads=kv_list(mask))  # fmt: skip


# -- what is read, by hand -------------------------------------------------------------------------


def test_quest_reads_the_least_and_the_largest_key_of_each_page() -> None:
    """4,000 tokens are 250 pages, of two keys of 256 B each, for 2 heads; 64 pages a head are kept."""
    load = of(QUEST, (4000,))
    assert load.index_bytes == 250 * 2 * 256 * 2
    assert load.list_bytes == 4 * 64 * 2
    # A sixteenth of what its pages hold, K and V.
    assert load.index_bytes == Workload((4000,), 8, 2, 128).kv_bytes // 16


def test_an_eight_bit_cache_has_keys_of_eight_bits() -> None:
    assert of(QUEST, (4000,), kv_dtype="fp8").index_bytes * 2 == of(QUEST, (4000,)).index_bytes


def test_dsa_reads_132_bytes_of_a_token_for_all_heads() -> None:
    """Its list is that of every head, with an entry for each token."""
    load = of(DSA, (4000, 3000))
    assert load.index_bytes == 7000 * 132
    assert load.list_bytes == 4 * 2048 * 2
    mask = kv_list(DSA)
    assert np.array_equal(mask.kept(4000, 0, 0), mask.kept(4000, 0, 1))
    quest = kv_list(QUEST)
    assert not np.array_equal(quest.kept(4000, 0, 0), quest.kept(4000, 0, 1))


@pytest.mark.parametrize(
    ("context", "read"), [(8192, 2048), (16384, 2560), (32768, 3584), (65536, 5632)]
)
def test_nsa_reads_what_its_authors_count(context: int, read: int) -> None:
    """A sixteenth of the context, 16 blocks of 64, a window of 512: their tokens (arXiv:2502.11089)."""
    load = of(NSA, (context,))
    dense = Workload((context,), 8, 2, 128).kv_bytes
    assert load.index_bytes + load.kv_bytes == dense * read // context


def test_what_is_read_follows_the_context_and_not_the_budget() -> None:
    for budget in (64, 1024, 2048):
        mask = f"top_k(budget={budget}, selector=quest)"
        assert of(mask, (4000,)).index_bytes == of(QUEST, (4000,)).index_bytes


def test_of_contexts_that_are_read_whole_nothing_is_chosen() -> None:
    """Those of 1,000 and of 1,024 tokens fit the budget; of 4,000 are chosen."""
    assert of(QUEST, (1000, 4000, 1024)).index_bytes == of(QUEST, (4000,)).index_bytes
    assert of(QUEST, (1000, 1024)).index_bytes == 0
    names = [one.name for one in simulate(asked(QUEST, context_len=1024)).program.launches]
    assert "select" not in names


@pytest.mark.parametrize(
    "mask", [None, "top_k(budget=1024)", "window_sink(window=64)", "random(density=0.1)"]
)
def test_lists_that_are_known_before_are_not_chosen(mask: str | None) -> None:
    found = simulate(asked(mask))
    assert found.resolved.workload.index_bytes == found.resolved.workload.list_bytes == 0
    assert "select" not in [one.name for one in found.program.launches]


def test_a_selector_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_k: selector: wanted 'none', 'quest', 'dsa' or 'nsa'"):
        asked("top_k(budget=64, selector=qwest)")


# -- the launch, by hand ---------------------------------------------------------------------------


def selection_s(found: Simulation) -> float:
    """How long the first launch took, s."""
    assert found.program.launches[0].name == "select"
    return (found.result.launch_end[0] - found.result.launch_begin[0]) * 1e-12


def test_a_small_index_takes_latencies_alone() -> None:
    """One CTA reads 2,048 tokens' index of one head: 128 pages of 512 B, 64 KB on 16 CTAs."""
    found = simulate(asked(QUEST, num_kv_heads=1, num_q_heads=4, batch_size=1, context_len=2048))
    select = found.program.launches[0]
    assert select.num_ctas == 16
    assert found.program.bytes[:48:3].tolist() == [0] * 16
    assert found.program.bytes[1:48:3].tolist() == [4096] * 16
    assert found.program.bytes[2:48:3].sum() == 4 * 64
    reads = memory.Reads.of(DEVICE, 0.0)
    alone = DEVICE.cta_launch_s + reads.l2_s + reads.dram_s + 4096 / DEVICE.sm_load_bytes_per_s
    alone += merges.release_s(DEVICE) + DEVICE.flag_latency_s + reads.l2_s
    placed = 15 * DEVICE.cta_dispatch_interval_s
    assert selection_s(found) == pytest.approx(alone + placed, rel=0.03)


def test_a_large_index_takes_its_bytes_over_bandwidth() -> None:
    found = simulate(asked(QUEST, batch_size=64, context_len="128k"))
    load = found.resolved.workload
    assert load.index_bytes == 2**31
    taken = load.index_bytes / DEVICE.achievable_dram_bytes_per_s
    assert taken < selection_s(found) < 1.05 * taken


def test_selecting_is_beside_the_call_and_nothing_else_moves() -> None:
    chosen, known = simulate(asked(QUEST)), simulate(asked(QUEST.replace(", selector=quest", "")))
    gap_s = DEVICE.kernel_gap_s["graph"]
    more = chosen.metrics.latency_s - known.metrics.latency_s
    later_s = memory.evicted_start_s(chosen.schedule.grid, DEVICE)  # the index passes L2 as well
    later_s -= memory.evicted_start_s(known.schedule.grid, DEVICE)
    assert more == pytest.approx(selection_s(chosen) + gap_s + later_s, rel=1e-6)
    assert chosen.metrics.kv_bytes == known.metrics.kv_bytes
    assert chosen.metrics.partial_bytes == known.metrics.partial_bytes
    dram = chosen.metrics.dram_bytes - known.metrics.dram_bytes
    assert dram == pytest.approx(chosen.resolved.workload.index_bytes)


@pytest.mark.parametrize("mask", [QUEST, DSA])
@pytest.mark.parametrize(
    "kernel", ["flash_decoding", "lean", "fa3_varlen", "sglang_triton", "trtllm_xqa"]
)
def test_every_reading_of_a_run_takes_it(kernel: str, mask: str) -> None:
    """Metrics, the floor, the bound, both engines, the timeline and verify."""
    what = asked(mask, kernel=kernel, context_len=3000)
    found = simulate(what)
    assert simulate(what, "simpy").result.makespan_ps == found.result.makespan_ps
    assert found.metrics.roofline_s < found.metrics.latency_s
    assert sum(getattr(found.metrics, f"share_{name}") for name in SHARES) == pytest.approx(1.0)
    bench = Bench(resolve(what))
    assert bench.bound().latency_s < found.metrics.latency_s
    launched = {event["args"]["launch"] for event in trace_events(found.result) if event["ph"] == "X"}
    assert {"select", "attention"} <= launched
    assert all(one.passed for one in leansim.verify(what).answers)


def test_the_floor_has_the_index_in_it() -> None:
    load = resolve(asked(QUEST)).workload
    floor = leansim.simulate(asked(QUEST)).metrics.roofline_s
    assert floor == (load.kv_bytes + load.index_bytes) / DEVICE.dram_bandwidth_bytes_per_s


def test_a_warm_replay_finds_a_small_index_in_l2() -> None:
    cold, warm = (
        selection_s(simulate(asked(QUEST, batch_size=1, context_len=16384, cache=cache)))
        for cache in ("cold", "warm")
    )
    assert warm < cold
    found = simulate(asked(QUEST, batch_size=1, context_len=16384, cache="warm"))
    at = found.program.is_kind(Phase.STREAM)[: 3 * found.program.launches[0].num_ctas]
    assert at.sum() == found.program.launches[0].num_ctas
    assert found.metrics.dram_bytes == 0.0


def test_the_bound_counts_the_launch_before() -> None:
    """What no schedule beats is at least what choosing takes, and the list's own bound."""
    alone = Bench(resolve(asked(QUEST.replace(", selector=quest", "")))).bound().latency_s
    bench = Bench(resolve(asked(QUEST)))
    load = bench.resolved.workload
    assert bench.bound().latency_s >= alone + load.index_bytes / DEVICE.achievable_dram_bytes_per_s


# -- gathers ---------------------------------------------------------------------------------------


def work_of(mask: str, kernel: str = "fa3_varlen", **fields: Any) -> Any:
    """A KV tile of a call with that mask."""
    load = of(mask, (4000,), **fields)
    instance = instance_of(catalog.kernel(kernel), DEVICE, load)
    grid = tile_grid(load, instance, DEVICE)
    return grid, tile_work(FullTile.of(grid), instance, DEVICE, 0.0)


def test_an_index_line_names_32_tokens() -> None:
    """And as many pages; a tile's lines are waited for together, whole pages' entries not at all."""
    reads = memory.Reads.of(DEVICE, 0.0)
    for page, tokens in (("1", 1), ("2", 2), ("16", 16), ("64", 16)):
        grid, work = work_of(f"top_k(budget=1024, page={page})")
        lines = grid.tile_tokens / 32 / tokens
        assert work.page_lines == lines
        waited = min(1.0, lines) * reads.l2_s + reads.farthest_s(max(1.0, lines))
        assert work.lookup_s == (pytest.approx(waited) if tokens < 16 else 0.0)


@pytest.mark.parametrize(
    "mask", ["dilated(window=90, stride=3)", "vertical_slash(vertical=9, slash=90)"]
)
def test_other_lists_of_single_tokens_are_gathers(mask: str) -> None:
    assert work_of(mask)[1].lookup_s > 0
    assert work_of(mask, page_tokens=1)[1].lookup_s == 0.0


@pytest.mark.parametrize("mask", ["window_sink(window=64)", "strided(block=16, stride=2)", QUEST])
def test_lists_of_pages_are_not(mask: str) -> None:
    assert work_of(mask)[1].lookup_s == 0.0


@pytest.mark.parametrize("loop", [SingleBuffered(), Pipelined(stages=2)])
def test_a_load_waits_for_its_lookup(loop: Any) -> None:
    _, work = work_of("top_k(budget=1024, page=1)")
    plain, late = loop.price(replace(work, lookup_s=0.0)), loop.price(replace(work, lookup_s=1e-5))
    assert late.tile_s > plain.tile_s + 3e-6
    assert late.sm_s == plain.sm_s
