"""Work tiles on the kernels: shared prefixes, KV lists and divided contexts, as lists and in Triton."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gpu_kit import interpreted, needs_triton, numpy_kernels, work_loads, work_schedules
from hypothesis import HealthCheck, given, settings

from leansim.errors import GpuError, PairingError
from leansim.gpu.execution import Execution, row_error
from leansim.gpu.inputs import draw, pool_bytes
from leansim.gpu.inputs import reference as reference_of
from leansim.gpu.listed import LISTED
from leansim.gpu.measuring import Measurer
from leansim.gpu.worklist import MERGED, SEGMENT, one_at_a_time, work_list
from leansim.numerics import reference as whole
from leansim.partitioners.lean_cascade import LeanCascade
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.schedule.work import Work
from leansim.specs import catalog
from leansim.specs.kv_lists import RandomBlocks, Shard, TopK
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.workload import Workload

DEVICE = catalog.device("h100_sxm")
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
TREE = '[{"tokens": 50, "requests": "0-2", "prefixes": [{"tokens": 40, "requests": [0, 2]}]}]'
SHAPE: dict[str, Any] = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def grid_of(load: Workload) -> TileGrid:
    """Tiles of 16 rows and 16 tokens, a group's heads packed, on 4 SMs with a slot each."""
    work = Work.of(load, 16, packed=True)
    return TileGrid(work.call, 16, 16, 4, 1, work=work)


def served(expected: np.ndarray) -> np.ndarray:
    """Rows that attend to anything: the others need not be written."""
    return np.linalg.norm(expected, axis=1) > 0


# -- the lists, in NumPy ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=300, suppress_health_check=SLOW)
@given(schedule=work_schedules())
def test_any_schedule_gives_attention(schedule: Schedule) -> None:
    load = schedule.grid.asked
    inputs = whole.random_inputs(load, seed=3)
    expected = whole.reference(load, *inputs).reshape(-1, load.value_dim)
    found = numpy_kernels(one_at_a_time(work_list(schedule)), inputs)
    rows = served(expected)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(schedule=work_schedules())
def test_as_many_partials_are_merged_as_are_timed(schedule: Schedule) -> None:
    merged = work_list(schedule).merged_rows
    if schedule.states is None:
        assert not len(merged)
        return
    load = schedule.grid.asked
    timed = schedule.grid.states_of_rows(schedule.states).reshape(load.batch_size, -1)
    counts = merged[:, MERGED.index("slots")].reshape(load.batch_size, -1)
    assert np.array_equal(np.sort(timed), np.sort(counts))


def test_a_prefix_by_hand() -> None:
    """Two requests of 20 + 2 and 20 + 5 tokens, one head: the prefix has both rows, a merge follows."""
    load = Workload((22, 25), 1, 1, 16, reads=Prefixes((Prefix(0, 20, (0, 1)),)))
    grid = grid_of(load)
    schedule = Schedule(grid, [0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 0, 0], [1, 2, 1, 1], 3, "host")
    work = work_list(schedule)
    assert work.column("tile").tolist() == work.column("request").tolist() == [0, 0, 1, 2]
    assert work.column("first_row").tolist() == [0, 0, 2, 3]
    assert work.column("rows").tolist() == [2, 2, 1, 1]
    assert work.column("slot").tolist() == [-1, 0, -1, -1]  # the host's peer
    assert work.column("peers").tolist() == [1, 0, 0, 0]
    assert work.column("state").tolist() == [1, 1, 2, 3]
    assert work.num_slots == 4
    assert work.listed_rows is not None
    assert work.listed_rows.tolist() == [[0, 19], [1, 19], [0, 1], [1, 4]]
    assert work.merged_rows.tolist() == [[0, 2, 0, 0], [2, 2, 0, 1]]
    assert work.states is not None
    assert work.states.tolist() == [[1, 0], [2, 0], [1, 1], [3, 0]]


def test_a_list_by_hand() -> None:
    """Tokens 0, 2, 4 and 6 of 7 are kept: of three new tokens the first sees two, the last all."""
    load = Workload((7,), 1, 1, 16, query_len=4, reads=Shard(0, 2))
    work = work_list(Schedule(grid_of(load), [0], [0], [0], [1], 1))
    assert work.listed_rows is not None
    assert work.listed_rows.tolist() == [[0, 1], [1, 2], [2, 2], [3, 3]]


def test_a_part_of_a_call_is_refused() -> None:
    load = Workload((40, 40), **SHAPE, reads=Prefixes((Prefix(0, 20, (0, 1)),)))
    work = Work.of(load, 16, True, "prefix")
    schedule = LeanCascade()(TileGrid(work.call, 16, 16, 4, 1, work=work), DEVICE)
    with pytest.raises(PairingError, match="a part of a call"):
        work_list(schedule)


# -- in Triton's interpreter -----------------------------------------------------------------------


def execution(schedule: Schedule, kernel: str = "triton_fa2", seed: int = 1) -> Execution:
    """In float16, where the interpreter rounds as a GPU does."""
    grid, half = schedule.grid, {"q_dtype": "float16", "kv_dtype": "float16"}
    assert grid.work is not None
    load = dataclasses.replace(grid.asked, **half)
    work = dataclasses.replace(grid.work, whole=load)
    call = dataclasses.replace(grid.workload, **half)
    same = dataclasses.replace(schedule, grid=dataclasses.replace(grid, workload=call, work=work))
    inputs = draw(interpreted().torch, load, "cpu", seed, buffers=2)
    return Execution(interpreted(), same, catalog.kernel(kernel), DEVICE, inputs)


@needs_triton
@settings(deadline=None, max_examples=25, suppress_health_check=SLOW)
@given(schedule=work_schedules())
def test_the_kernels_give_attention(schedule: Schedule) -> None:
    run = execution(schedule)
    for buffer in range(2):
        run.poison()
        run.launch(buffer)
        run.check(buffer)
        assert not run.flags.any()


@needs_triton
@settings(deadline=None, max_examples=25, suppress_health_check=SLOW)
@given(load=work_loads())
def test_the_reference_is_that_of_numerics(load: Workload) -> None:
    """Pages laid out again: a prefix is the same for all that share it, and nothing else is."""
    half = dataclasses.replace(load, q_dtype="float16", kv_dtype="float16")
    inputs = draw(interpreted().torch, half, "cpu", seed=2, buffers=2)
    q = inputs.q.double().numpy().reshape(load.batch_size, load.query_len, load.num_q_heads, -1)
    held = load.kept_lens if isinstance(load.mask, Shard) else load.lens
    contexts: list[list[np.ndarray]] = []
    for request, tokens in enumerate(load.context_lens):
        pages = inputs.page_table[1, request, : -(-int(held[request]) // load.page_tokens)].long()
        places = np.arange(tokens)
        if isinstance(load.mask, Shard):
            places = load.mask.kept(tokens, request, 0)
        mine = []
        for pool in (inputs.k, inputs.v):
            context = np.zeros((tokens, *pool.shape[2:]))
            context[places] = pool[pages].flatten(0, 1)[: len(places)].double().numpy()
            mine.append(context)
        contexts.append(mine)
    k, v = ([mine[i] for mine in contexts] for i in range(2))
    expected = whole.reference(load, q, k, v)
    found = reference_of(interpreted().torch, inputs, 1).numpy()
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-10, atol=1e-12)
    for one in load.prefixes:
        for request in one.requests:
            assert np.array_equal(k[request][: one.end], k[one.requests[0]][: one.end])
            assert (
                not np.array_equal(k[request][-1], k[one.requests[0]][-1]) or request == one.requests[0]
            )


@needs_triton
def test_pages_of_a_prefix_are_there_once() -> None:
    """Of 3 x 5 pages two are shared by all and one more by two; the third is copied for its 8 tokens."""
    tree = (Prefix(0, 40, (0, 1, 2)), Prefix(40, 64, (0, 2)))
    load = Workload((80, 80, 80), **SHAPE, reads=Prefixes(tree))
    alone = dataclasses.replace(load, reads=None)
    assert pool_bytes(alone) // 15 * (15 - 2 * 2 - 2) == pool_bytes(load)
    table = draw(interpreted().torch, load, "cpu", 0).page_table[0, :, :5]
    same = (table[:, None] == table[None, :]).sum(-1)
    assert same.tolist() == [[5, 2, 4], [2, 5, 2], [4, 2, 5]]


@needs_triton
@pytest.mark.parametrize(
    ("reads", "page_tokens"),
    [
        (Prefixes((Prefix(0, 48, (0, 1)),)), 16),
        (Prefixes((Prefix(0, 44, (0, 1)),)), 4),
        (Prefixes((Prefix(0, 45, (0, 1)),)), 1),
        (TopK(64, 16), 16),
        (RandomBlocks(0.5, 8), 8),
        (Shard(1, 2), 16),
    ],
)
def test_pages_are_as_large_as_what_is_read_allows(reads: Any, page_tokens: int) -> None:
    """Parts of pages where a prefix ends within one; a rank holds its tokens one after the other."""
    load = Workload((112, 96), **SHAPE, reads=reads)
    run = execution(LeanCascade()(grid_of(load), DEVICE))
    assert run.attention.constants["PAGE_TOKENS"] == run.paged.page_tokens == page_tokens
    run.poison()
    run.launch()
    run.check()


@needs_triton
@pytest.mark.parametrize(
    ("name", "column", "change"),
    [
        ("segments", SEGMENT.index("request"), 2),  # the next is the other head, of the same pages
        ("segments", SEGMENT.index("state"), -1),
        ("segments", SEGMENT.index("first_row"), 1),
        ("listed_rows", LISTED.index("last_token"), -30),
        ("listed_rows", LISTED.index("out_row"), 1),
        ("states", 0, 1),
        ("states", 1, 1),
        ("merged_rows", MERGED.index("slots"), -1),
    ],
)
def test_a_wrong_list_is_found(name: str, column: int, change: int) -> None:
    load = Workload((60, 70, 80), **SHAPE, reads=Prefixes((Prefix(0, 40, (0, 1, 2)),)))
    run = execution(LeanCascade()(grid_of(load), DEVICE))
    run.lists[name][0, column] += change
    run.poison()
    run.launch()
    with pytest.raises(GpuError, match="is not attention"):
        run.check()


@needs_triton
def test_rows_that_attend_to_nothing_need_not_be_written() -> None:
    torch = interpreted().torch
    expected = torch.ones(3, 4, dtype=torch.float64)
    expected[1] = 0
    out = expected.clone()
    out[1] = float("nan")
    assert row_error(torch, out, expected) == 0
    out[2] = float("nan")
    assert np.isnan(row_error(torch, out, expected))


@needs_triton
def test_a_kernel_that_cannot_merge_what_is_shared_is_refused() -> None:
    load = Workload((60, 70), **SHAPE, reads=Prefixes((Prefix(0, 40, (0, 1)),)))
    with pytest.raises(PairingError, match="has no combine kernel"):
        execution(LeanCascade()(grid_of(load), DEVICE), "triton_lean")


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("triton_lean_cascade", {"prefix_len": "100"}),
        ("triton_lean_cascade", {"prefix_len": "96", "prefix_group": "2", "query_len": "3"}),
        ("triton_lean_cascade+lean_attention", {"prefix_len": "96"}),
        ("triton_lean_cascade+cutlass_stream_k", {"prefixes": TREE}),
        ("triton_lean_cascade", {"kv_budget": "64"}),
        ("triton_fa2", {"prefix_len": "100"}),
        ("triton_lean", {"kv_budget": "64"}),
        ("triton_flash_decoding", {"mask": "window_sink(window=70, sink=3)"}),
        ("triton_lean", {"mask": "random(density=0.3, block=8, pruned_heads=0.5)"}),
        ("triton_lean", {"kv_ranks": "3"}),
        ("triton_flash_decoding", {"kv_ranks": "3", "kv_rank_order": "contiguous"}),
    ],
)
def test_points_are_measured(kernel: str, fields: dict[str, str]) -> None:
    """As `leansim measure` has them: resolved, drawn, launched and checked."""
    call = {"device": "h100_sxm", "kernel": kernel, "batch_size": "3", "context_len": "150"}
    call |= {"num_q_heads": "4", "num_kv_heads": "2", "head_dim": "64", "num_sms": "3"}
    assert float(Measurer(interpreted()).measure(call | fields, "points.csv")["row_error"]) < 1e-2
