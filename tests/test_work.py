"""Shared prefixes, KV lists and divided contexts: what schedules make of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leansim
from leansim.engine.execute import execute
from leansim.errors import ConfigError, ScheduleError, WorkloadError
from leansim.numerics.attention import replay, replay_states
from leansim.numerics.invariance import batch_invariance
from leansim.numerics.ranks import ORDERS, merged, rank_error, shards
from leansim.numerics.reference import random_inputs, reference
from leansim.numerics.verify import TOLERANCES, verify
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.lean_attention import LeanAttention
from leansim.partitioners.lean_cascade import LeanCascade
from leansim.partitioners.per_request_splits import PerRequestSplits
from leansim.points.point import Point, point, resolve
from leansim.points.simulate import simulate
from leansim.results.metrics import SHARES
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.schedule.work import Work
from leansim.specs import catalog
from leansim.specs.instance import instance_of
from leansim.specs.kv_list_file import CsrFile
from leansim.specs.kv_lists import Shard, TopK
from leansim.specs.masks import GENERATORS, kv_list
from leansim.specs.prefixes import Prefix, Prefixes, SharedPages, groups
from leansim.specs.workload import Workload
from leansim.timing.lowering import lower

DEVICE = catalog.device("h100_sxm")
TILE = 128  # KV tokens of fa2's tile at head dim 128


def grid_of(workload: Workload, slots: int = 4) -> TileGrid:
    """Tiles of fa2 on so many SMs with a slot each."""
    kernel = catalog.kernel("fa2")
    return tile_grid(workload, instance_of(kernel, DEVICE, workload), DEVICE).with_slots(slots, 1)


def loads(schedule: Schedule) -> list[int]:
    """KV tiles that each CTA loads."""
    return schedule.tiles_of_cta.tolist()


# -- shared prefixes, by hand ---------------------------------------------------------------------

SHARED = Workload((9 * TILE,) * 4, 1, 1, 128, reads=Prefixes((Prefix(0, 8 * TILE, (0, 1, 2, 3)),)))
PLAIN = Workload((9 * TILE,) * 4, 1, 1, 128)


def test_a_prefix_is_loaded_once_for_all_that_share_it() -> None:
    """Four requests of 8 + 1 tiles: 36 tile loads alone, 12 together."""
    assert grid_of(PLAIN).total_kv_tiles == 36
    assert loads(FlashAttention2()(grid_of(PLAIN), DEVICE)) == [9, 9, 9, 9]
    assert grid_of(SHARED).total_kv_tiles == 12
    assert SHARED.kv_bytes == PLAIN.kv_bytes * 12 // 36


def test_an_unsplit_prefix_takes_eight_tiles_and_stream_k_three() -> None:
    grid = grid_of(SHARED)
    assert sorted(loads(FlashAttention2()(grid, DEVICE))) == [1, 1, 1, 1, 8]
    lean = LeanCascade()(grid, DEVICE)
    assert loads(lean) == [3, 3, 3, 3]
    # One merge: of three CTAs' partials of the prefix and that of what each request has alone.
    assert lean.combine == "kernel"
    assert grid.states_of_rows(lean.states).tolist() == [4, 4, 4, 4]


def test_rows_of_a_prefix_fill_tiles_together() -> None:
    """40 requests of 4 rows each fill 64-row tiles: 64, 64 and 32 rows of one prefix."""
    load = Workload((300,) * 40, 8, 2, 128, reads=Prefixes(groups(40, 256, 40)))
    work = Work.of(load, tile_rows=64, packed=True)
    assert work.rows.tolist() == [64, 64, 32] + [4] * 40
    assert work.lens.tolist() == [256] * 3 + [44] * 40
    assert work.source[:3].tolist() == [0, 0, 0]
    assert work.distinct_share == pytest.approx((256 + 40 * 44) / (3 * 256 + 40 * 44))


def test_groups_in_a_row_share_and_one_left_over_does_not() -> None:
    assert groups(5, 100, 2) == (Prefix(0, 100, (0, 1)), Prefix(0, 100, (2, 3)))


def test_a_tree_gives_a_row_partials_of_each_level() -> None:
    tree = (Prefix(0, 300, (0, 1, 2)), Prefix(300, 900, (0, 2)))
    load = Workload((1000, 400, 1000, 50), 1, 1, 128, reads=Prefixes(tree))
    schedule = FlashAttention2()(grid_of(load), DEVICE)
    assert schedule.grid.states_of_rows(schedule.states).tolist() == [3, 2, 3, 0]


@pytest.mark.parametrize(
    ("prefixes", "wrong"),
    [
        ((Prefix(0, 100, (0, 5)),), "wanted 0 to 2"),
        ((Prefix(0, 100, (1, 0)),), "wanted rising numbers"),
        ((Prefix(50, 100, (0, 1)),), "shares tokens from 50, wanted from 0"),
        ((Prefix(0, 100, (0, 1)), Prefix(100, 150, (0, 2))), "has requests that the one before it"),
        ((Prefix(0, 200, (0, 1)),), "wanted at most 199"),
        ((Prefix(0, 0, (0, 1)),), "wanted at least one"),
        ((Prefix(0, 100, (0, 1)), Prefix(0, 100, (1, 2))), "wanted from 100"),
    ],
)
def test_prefixes_that_are_no_tree_are_refused(prefixes: Any, wrong: str) -> None:
    with pytest.raises(WorkloadError, match=wrong):
        Workload((200, 200, 200), 8, 2, 128, reads=Prefixes(prefixes))


def test_items_that_do_not_cover_a_row_once_are_refused() -> None:
    work = Work.of(SHARED, 64, packed=True)
    for name, value in {"begin": work.begin + 1, "end": work.end - 1, "lens": work.lens * 0}.items():
        fields = {f: getattr(work, f) for f in work.__dataclass_fields__} | {name: value}
        with pytest.raises(ScheduleError, match="work items"):
            Work(**fields)


# -- KV lists, by hand -----------------------------------------------------------------------------


def csr(path: Path, *rows: Sequence[int]) -> str:
    """Write a list of blocks, and return its path."""
    indptr = np.cumsum([0, *map(len, rows)])
    np.savez(path, indptr=indptr, indices=np.concatenate([np.array(row) for row in rows]))
    return str(path)


def test_a_list_of_four_tiles_of_ten(tmp_path: Path) -> None:
    """Two slots take two tiles each; what is outside the list is hidden in the reference."""
    mask = CsrFile(csr(tmp_path / "list.npz", [0, 3, 4, 9]), block=TILE)
    load = Workload((10 * TILE,), 1, 1, 128, reads=mask)
    schedule = LeanAttention(num_ctas=2)(grid_of(load, slots=2), DEVICE)
    assert loads(schedule) == [2, 2]
    q, k, v = random_inputs(load, 0)
    found = replay(schedule, q, k, v)
    np.testing.assert_allclose(found, reference(load, q, k, v), atol=1e-12)
    gathered = np.r_[0:TILE, 3 * TILE : 5 * TILE, 9 * TILE : 10 * TILE]
    scores = k[0][gathered, 0] @ q[0, 0, 0] / np.sqrt(128)
    weights = np.exp(scores - scores.max())
    np.testing.assert_allclose(found[0, 0, 0], weights @ v[0][gathered, 0] / weights.sum(), atol=1e-12)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("partitioner", [FlashAttention2(), LeanAttention(), LeanCascade()])
def test_a_list_of_all_tiles_is_the_dense_schedule_to_the_bit(partitioner: Any, precision: Any) -> None:
    dense = Workload((700, 1500, 20), 4, 2, 128)
    listed = Workload((700, 1500, 20), 4, 2, 128, reads=TopK(10_000, 16))
    inputs = random_inputs(dense, 4)
    one, other = (
        replay(partitioner(grid_of(load, 8), DEVICE), *inputs, precision) for load in (dense, listed)
    )
    assert np.array_equal(one, other)


MASKS = [
    "window_sink(window=70, sink=3)",
    "block_diagonal(block=64)",
    "dilated(window=50, stride=3)",
    "strided(block=16, stride=3)",
    "random(density=0.3, block=16)",
    "random(density=0.3, block=16, pruned_heads=0.5)",
    "top_k(budget=100, page=16)",
    "top_k(budget=100, page=16, window=30)",
    "top_k(budget=5, page=16)",
    "vertical_slash(vertical=20, slash=40)",
]


@pytest.mark.parametrize("text", MASKS)
def test_a_list_holds_as_many_tokens_as_it_counts(text: str) -> None:
    mask = kv_list(text)
    for tokens in (1, 2, 15, 16, 17, 64, 65, 100, 129, 130, 131, 500):
        counts = np.broadcast_to(mask.counts(np.array([tokens]), 2).T, (2, 1))
        for head in range(2):
            kept = mask.kept(tokens, 0, head)
            assert counts[head, 0] in (0, len(kept))
            assert (np.diff(kept) > 0).all()
            assert 0 <= kept[0] <= kept[-1] == tokens - 1
    assert mask.run_tokens >= 1


def test_every_generator_is_tried() -> None:
    assert {kv_list(text).__class__ for text in MASKS} | {CsrFile} == {*GENERATORS.values()}


# -- lists by query block, by hand -----------------------------------------------------------------


def test_each_query_block_keeps_what_its_newest_token_would() -> None:
    """Six new tokens of ten in blocks of four: up to tokens 7 and 9, with two tokens and the first."""
    mask = kv_list("window_sink(window=2, sink=1, queries=4)")
    load = Workload((10,), 2, 1, 128, query_len=6, reads=mask)
    assert [*map(list, load.query_blocks)] == [[0, 1, 2, 3], [4, 5]]
    assert [load.kept(0, 0, block).tolist() for block in (0, 1)] == [[0, 6, 7], [0, 8, 9]]
    assert load.block_lens.tolist() == [[[3, 3]]]
    assert load.kept_lens.tolist() == [6]
    assert load.flop == 2 * 256 * 2 * (3 * 4 + 3 * 2)
    work = grid_of(load).work
    assert work is not None
    assert work.end.tolist() == [8, 10]
    assert work.lens.tolist() == [3, 3]
    assert work.rows.tolist() == [4, 2]
    assert work.distinct_share == 1.0


def test_a_block_of_all_new_tokens_is_no_other_list() -> None:
    text = "random(density=0.3, block=16, pruned_heads=0.5{})"
    shape: dict[str, Any] = {"num_q_heads": 8, "num_kv_heads": 4, "head_dim": 128, "query_len": 3}
    one, many = (
        Workload((500, 80), **shape, reads=kv_list(text.format(more))) for more in ("", ", queries=3")
    )
    assert one.flop == many.flop
    assert one.kv_bytes == many.kv_bytes
    first, second = grid_of(one).work, grid_of(many).work
    assert first is not None
    assert second is not None
    for name in ("source", "head", "begin", "end", "lens", "row"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_a_file_has_a_row_for_each_query_block(tmp_path: Path) -> None:
    """Two requests, two heads, two blocks of one new token each; blocks of 16 tokens."""
    rows = [[0], [0, 1], [1], [0, 3], [2], [1, 2], [0], [3]]
    path = tmp_path / "rows.npz"
    np.savez(path, indptr=np.cumsum([0, *map(len, rows)]), indices=np.concatenate(rows))
    mask = kv_list(f"csr(path={path}, block=16, heads=2, queries=1)")
    load = Workload((64, 60), 2, 2, 128, query_len=2, reads=mask)
    assert load.block_lens.tolist() == [[[16, 32], [16, 32]], [[16, 32], [16, 12]]]
    assert load.kept(0, 1, 1).tolist() == [*range(16), *range(48, 64)]
    assert load.kept(1, 1, 1).tolist() == [*range(48, 60)]
    with pytest.raises(WorkloadError, match=r"8 rows, .* each of 2 query blocks of 3 requests"):
        _ = Workload((64, 60, 60), 2, 2, 128, query_len=2, reads=mask).block_lens


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("interleaved", [True, False])
def test_ranks_hold_each_token_once(tokens: int, interleaved: bool) -> None:
    ranks = [Shard(rank, 3, interleaved) for rank in range(3)]
    kept = [rank.kept(tokens, 0, 0) for rank in ranks]
    assert sorted(np.concatenate(kept).tolist()) == list(range(tokens))
    assert [int(rank.counts(np.array([tokens]), 1)[0]) for rank in ranks] == [*map(len, kept)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("topk(budget=3)", "did you mean 'top_k'"),
        ("top_k(bugdet=3)", "did you mean 'budget'"),
        ("top_k", "budget"),
        ("top_k(budget=0)", "budget"),
        ("top_k(budget)", "wanted option=value"),
        ("top_k(budget=3, queries=0)", "queries"),
        ("top_k(budget=3, querys=4)", "did you mean 'queries'"),
        ("top_k(budget=3, selector=dsa, queries=4)", "wanted no selector"),
        ("random(density=2)", "density"),
        ("random(density=nan)", "density"),
        ("csr(path=nowhere.npz)", "not an .npz file"),
        ("7 dwarfs", "wanted a generator"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(text: str, wrong: str) -> None:
    with pytest.raises((ConfigError, WorkloadError), match=wrong):
        resolve(asked(mask=text))


@pytest.mark.parametrize(
    ("indptr", "indices", "wrong"),
    [
        ([0, 2], [3, 1], "must rise from 0"),
        ([0, 1], [-1], "must rise from 0"),
        ([0, 0], [], "must rise from 0 to the length"),
        ([1, 2], [0, 1], "must rise from 0 to the length"),
        ([0, 1], [99], "beyond the 1000"),
        ([0, 1, 2], [0, 0], "has 2 rows"),
    ],
)
def test_a_file_that_is_no_list_is_refused(
    tmp_path: Path, indptr: list[int], indices: list[int], wrong: str
) -> None:
    np.savez(tmp_path / "list.npz", indptr=indptr, indices=np.array(indices, np.int64))
    path = tmp_path / "list.npz"
    with pytest.raises((ConfigError, WorkloadError), match=wrong):
        _ = resolve(
            asked(batch_size=1, kernel="lean", mask={"name": "csr", "path": str(path), "block": 16})
        ).grid


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    """And a list that was made before keeps what it had."""
    path = csr(tmp_path / "list.npz", [0, 3])
    before = CsrFile(path, block=16)
    csr(tmp_path / "list.npz", [0, 1, 2])
    after = CsrFile(path, block=16)
    assert before.digest != after.digest
    lens = np.array([100])
    assert [one.counts(lens, 1).tolist() for one in (before, after)] == [[32], [48]]
    assert before.kept(100, 0, 0).tolist() == [*range(16), *range(48, 64)]


# -- divided contexts ------------------------------------------------------------------------------


def test_two_ranks_of_five_tokens() -> None:
    """They hold 3 and 2, and merge to the whole; the ring folds, the tree pairs."""
    load = Workload((5,), 1, 1, 128, reads=Shard(0, 2))
    assert [int(one.kept_lens[0]) for one in shards(load)] == [3, 2]
    q, k, v = random_inputs(load, 1)
    states = [replay_states(FlashAttention2()(grid_of(one), DEVICE), q, k, v) for one in shards(load)]
    whole = reference(Workload((5,), 1, 1, 128), q, k, v)
    for order in ORDERS:
        np.testing.assert_allclose(merged(states, order)[0], whole, atol=1e-14)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_ranks_merge_to_the_whole(order: Any, interleaved: bool, precision: Any) -> None:
    load = Workload((900, 3, 1, 257), 8, 2, 64, query_len=1, reads=Shard(0, 5, interleaved))

    def scheduled(shard: Workload) -> Schedule:
        return LeanAttention()(grid_of(shard, 16), DEVICE)

    assert rank_error(load, scheduled, order, precision) <= TOLERANCES[precision]


# -- in general ------------------------------------------------------------------------------------


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Trees of prefixes, or lists, over a few requests."""
    group, kv_heads = draw(st.sampled_from([1, 4, 8])), draw(st.integers(1, 2))
    query_len = draw(st.sampled_from([1, 1, 3, 70]))
    batch = draw(st.integers(1, 5))
    lens = draw(st.lists(st.integers(query_len, 900), min_size=batch, max_size=batch))
    shape: dict[str, Any] = {"num_q_heads": group * kv_heads, "num_kv_heads": kv_heads, "head_dim": 128}
    if draw(st.booleans()):
        queries = draw(st.sampled_from(["", ", queries=1", ", queries=2", ", queries=32"]))
        mask = kv_list(draw(st.sampled_from(MASKS)).replace(")", queries + ")"))
        return Workload(tuple(lens), **shape, query_len=query_len, reads=mask)
    prefixes: list[Prefix] = []
    members, begin = list(range(batch)), 0
    while len(members) > 1:
        most = min(lens[one] for one in members) - query_len
        if most <= begin:
            break
        end = draw(st.integers(begin + 1, most))
        prefixes.append(Prefix(begin, end, tuple(members)))
        begin = end
        members = sorted(draw(st.sets(st.sampled_from(members), max_size=len(members) - 1)))
    reads = Prefixes(tuple(prefixes)) if prefixes else None
    return Workload(tuple(lens), **shape, query_len=query_len, reads=reads)


@settings(deadline=None)
@given(load=workloads(), slots=st.integers(2, 40), which=st.integers(0, 3))
def test_any_tree_and_list_is_exact_under_any_partitioner(
    load: Workload, slots: int, which: int
) -> None:
    grid = grid_of(load, slots)
    partitioner = (FlashAttention2(), LeanAttention(), LeanCascade(), PerRequestSplits(3))[which]
    schedule = partitioner(grid, DEVICE)
    verify(schedule, ("float64",), max_tokens=4000).raise_if_failed()
    inputs = random_inputs(load, 3)
    np.testing.assert_allclose(replay(schedule, *inputs), reference(load, *inputs), atol=1e-11)
    program = lower(schedule, instance_of(catalog.kernel("fa2"), DEVICE, load), DEVICE)
    assert execute(program).makespan_ps > 0


def test_verify_finds_a_prefix_that_nobody_merges() -> None:
    """The last segment of each split tile left out of the merge is seen."""
    schedule = LeanCascade()(grid_of(SHARED), DEVICE)
    broken = schedule.stop.copy()
    broken[0] -= 1
    object.__setattr__(schedule, "stop", broken)
    found = verify(schedule, ("float64",))
    assert not found.passed


def test_batch_invariance_is_checked_with_prefixes() -> None:
    load = Workload((900, 800, 333), 8, 2, 128, reads=Prefixes((Prefix(0, 700, (0, 1)),)))
    kernel = catalog.kernel("lean_cascade")
    assert batch_invariance(FlashAttention2(), kernel, DEVICE, load).invariant
    found = batch_invariance(LeanCascade(), kernel, DEVICE, load)
    assert not found.invariant
    assert "is cut" in found.counterexample


# -- kernels that launch once for what is shared --------------------------------------------------

CASCADES = ("flashinfer_cascade", "vllm_cascade", "relay")


@pytest.mark.parametrize("kernel", CASCADES)
def test_a_cascade_launches_for_the_prefix_and_for_the_rest_and_merges(kernel: str) -> None:
    found = simulate(asked(kernel=kernel, context_len=2000, prefix_len=1500, batch_size=6))
    names = [launch.name for launch in found.program.launches]
    assert names[0] == "prefix"
    assert names[-1] == "merge"
    assert "attention" in names
    load = found.resolved.workload
    assert found.metrics.kv_bytes >= load.kv_bytes
    assert found.metrics.roofline_s < found.metrics.latency_s
    assert sum(found.metrics.__dict__[f"share_{name}"] for name in SHARES) == pytest.approx(1.0)
    passed = leansim.verify(asked(kernel=kernel, context_len=900, prefix_len=700))
    assert all(one.passed for one in passed.answers)


@pytest.mark.parametrize("kernel", CASCADES)
def test_without_a_prefix_a_cascade_is_its_own_decode_kernel(kernel: str) -> None:
    base = {"flashinfer_cascade": "flashinfer_tc_decode", "vllm_cascade": "vllm_fa2"}.get(kernel)
    alone = simulate(asked(kernel=kernel)).result.makespan_ps
    assert alone == simulate(asked(kernel=base or "vllm_paged_v2")).result.makespan_ps


@pytest.mark.parametrize("kernel", [*CASCADES, "lean_cascade"])
def test_a_search_counts_every_launch_and_no_schedule_beats_its_bound(kernel: str) -> None:
    what = asked(kernel=kernel, context_len=2000, prefix_len=1500, batch_size=6)
    found = leansim.oracle(what, rules=["fa2", "lean"])[0]
    own_s = simulate(what).result.latency_s
    assert found.bound.latency_s <= found.best.latency_s <= own_s


def test_launches_joined_are_those_of_one_program() -> None:
    """A split call's two launches, apart and joined, are what the engine makes of both."""
    found = simulate(asked(kernel="vllm_cascade", context_len=2000, prefix_len=1500))
    result, program = found.result, found.program
    assert result.launch_begin[1:] == result.launch_end[:-1]
    for launch, end in zip(program.launches, result.launch_end, strict=True):
        mine = slice(launch.first_cta, launch.last_cta)
        assert int(result.cta_end[mine].max()) == end
    for launch, begin in zip(program.launches, result.launch_begin, strict=True):
        first = int(result.cta_begin[launch.first_cta])
        assert first >= begin + launch.gap_ps
    assert program.num_phases == len(result.begin) == int(program.phase_of_cta[-1])
    assert result.bytes_served == program.shared_bytes


@pytest.mark.parametrize("engine", ["simpy", "numba"])
def test_engines_agree_on_work_items(engine: Any) -> None:
    for fields in ({"prefix_len": 700}, {"kv_budget": 300}, {"mask": MASKS[5]}, {"kv_ranks": 3}):
        for kernel in ("lean_cascade", "relay"):
            what = asked(kernel=kernel, **fields)
            assert simulate(what, engine).result.makespan_ps == simulate(what).result.makespan_ps


# -- as points -------------------------------------------------------------------------------------


def asked(**fields: Any) -> Point:
    """A point of a small batch on an H100."""
    shape = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128, "batch_size": 4, "context_len": 1000}
    return point(**({"device": "h100_sxm", "kernel": "lean_cascade"} | shape | fields))


def test_the_same_prefixes_in_three_spellings() -> None:
    tree = [{"tokens": 512, "requests": "0-3", "prefixes": [{"tokens": 256, "requests": [0, 2]}]}]
    nested = resolve(asked(prefixes=tree)).workload.prefixes
    assert nested == (Prefix(0, 512, (0, 1, 2, 3)), Prefix(512, 768, (0, 2)))
    assert resolve(asked(prefixes=json.dumps(tree))).workload.prefixes == nested
    assert resolve(asked(prefix_len="512")).workload.prefixes == nested[:1]


def test_other_kernels_read_each_context_for_itself() -> None:
    found = resolve(asked(kernel="fa2", prefix_len=512)).workload
    assert found.prefixes == ()
    assert found.in_common == SharedPages((Prefix(0, 512, tuple(range(found.batch_size))),))
    alone, shared = (
        simulate(asked(kernel=kernel, prefix_len=16_000, context_len="16k", batch_size=64)).metrics
        for kernel in ("fa2", "lean_cascade")
    )
    assert shared.latency_s < alone.latency_s / 2


def test_a_budget_is_a_list_of_pages() -> None:
    found = resolve(asked(kernel="lean", kv_budget=512, page_tokens=64)).workload
    assert found.mask == TopK(512, 64)
    assert found.kept_lens.tolist() == [512] * 4
    same = simulate(asked(kernel="lean", context_len=512)).metrics.latency_s
    listed = simulate(asked(kernel="lean", kv_budget=512, context_len="64k")).metrics.latency_s
    assert listed == pytest.approx(same, rel=0.02)


def test_the_call_is_told_of_the_list_or_of_the_context() -> None:
    """A split rule that is told of the context, not of the budget, splits more."""
    splits = {
        told: resolve(
            asked(kernel="flash_decoding", kv_budget=512, context_len="64k", max_context_len=told)
        ).schedule.num_splits
        for told in (None, "64k")
    }
    assert splits[None] is not None
    assert splits["64k"] is not None
    assert splits[None] < splits["64k"]


def test_ranks_hold_a_share_of_each_context() -> None:
    found = resolve(asked(kernel="lean", kv_ranks=8, context_len=1001)).workload
    assert found.kept_lens.tolist() == [126] * 4


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"kv_budget": 64, "kv_ranks": 2}, "kv_budget and kv_ranks"),
        ({"prefix_group": 2}, "wanted prefix_len"),
        ({"prefix_len": 64, "window": 128}, "prefixes and a window"),
        ({"prefix_len": 64, "kv_budget": 128}, "prefix_len and kv_budget"),
        ({"prefix_len": 1000}, "wanted at most 999"),
        ({"prefix_len": 64, "prefixes": [{"tokens": 3, "requests": "0-1"}]}, "wanted one of them"),
        ({"prefixes": "[{"}, "wanted nodes"),
        ({"prefixes": [{"tokens": 3, "requests": "0-x"}]}, "wanted request numbers"),
        ({"prefixes": [{"tokens": 3, "requests": "0-99999999"}]}, "wanted request numbers"),
        ({"prefixes": [{"tokens": 3, "requests": [0, 9]}]}, "wanted 0 to 3"),
    ],
)
def test_what_contradicts_is_refused(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises((ConfigError, WorkloadError), match=wrong):
        resolve(asked(**fields))


def test_lists_of_unlike_heads_are_items_of_one_head() -> None:
    grid = grid_of(Workload((2000, 900), 8, 4, 128, reads=kv_list(MASKS[5])))
    assert grid.work is not None
    assert grid.work.by_head
    assert grid.heads == 1
    assert grid.num_output_tiles == 4  # two heads of four keep nothing


def test_a_dense_workload_has_no_work_items() -> None:
    assert grid_of(PLAIN).work is None
