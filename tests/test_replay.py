"""A replayed schedule gives whole-context attention, in every precision; one that skips work shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from corruption import altered
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels import tiled

from leansim.errors import PairingError, PartitionerError
from leansim.numerics import attention as numerics
from leansim.numerics.attention import (
    Partial,
    replay,
    rounded,
    row_owners,
    tile_attention,
)
from leansim.numerics.reference import random_inputs, reference, reference_heads
from leansim.partitioners.registry import make, partitioners
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload

# Options, beyond the defaults, under which a partitioner cuts differently, or cuts what is short.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in partitioners()),
    ("cutlass_mla", {"num_splits": 3}),
    ("fixed_split_size", {"split_tokens": 16}),
    ("flash_attention_3", {"num_splits": 3}),
    ("flash_attention_3_varlen", {"num_splits": 3, "sort": False}),
    ("flash_decoding", {"num_splits": 3}),
    ("flash_decoding", {"num_splits": 128}),
    ("flashinfer_tc_decode", {"fixed_split_size": 16}),
    ("lean_attention", {"lengths": "longest"}),
    ("lean_attention", {"num_ctas": 3}),
    ("lean_aiter", {"num_xcds": 2}),
    ("per_request_splits", {"num_splits": 3}),
    ("per_request_splits", {"num_splits": 3, "combine": "last"}),
    ("sglang_triton", {"mode": "deterministic", "split_tile_tokens": 16}),
    ("trtllm_gen", {"step_tokens": 16, "steps_per_cta": 1}),
    ("vllm_paged_v2", {"partition_tokens": 16}),
    ("xformers_split_k", {"num_splits": 3}),
]
WHOLE = ("flash_attention_2", "vllm_paged_v1")  # cut nothing


@cache
def pair_for(partitioner: str) -> tuple[Kernel, Device]:
    """A kernel file that names the partitioner, else FlashAttention-2's, and a device it runs on."""
    kernels = [catalog.kernel(name) for name in catalog.names("kernel")]
    own = [kernel for kernel in kernels if kernel.partitioner.name == partitioner]
    kernel = (own or [catalog.kernel("fa2")])[0]
    devices = [catalog.device(name) for name in catalog.names("device")]
    return kernel, next(device for device in devices if device.arch in kernel.archs)


def small_grid(
    workload: Workload, partitioner: str, rows: int = 4, tokens: int = 8, **changes: Any
) -> TileGrid:
    """The kernel's grid with small tiles on few SMs, so that short contexts are cut often.

    Kernels for a latent cache lend theirs to others: a schedule does not ask what values are.
    """
    kernel, device = pair_for(partitioner)
    kernel = kernel.model_copy(update={"latent_kv": workload.latent_kv})
    changes = {"tile_rows": rows, "tile_tokens": tokens, "num_sms": 5, "ctas_per_sm": 2} | changes
    return dataclasses.replace(tiled(workload, kernel, device), **changes)


def schedule_of(workload: Workload, partitioner: str, **options: Any) -> Schedule:
    grid = small_grid(workload, partitioner)
    return make(partitioner, options)(grid, pair_for(partitioner)[1])


def accepted(workload: Workload, partitioner: str, **options: Any) -> Schedule | None:
    """A schedule of the workload, or of the nearest plainer one that the partitioner takes."""
    plainer: list[dict[str, Any]] = [
        {},
        {"window": None},
        {"window": None, "query_len": 1},
        {"window": None, "query_len": 1, "num_q_heads": workload.group_size, "num_kv_heads": 1},
    ]
    for changes in plainer:
        try:
            return schedule_of(dataclasses.replace(workload, **changes), partitioner, **options)
        except (PairingError, PartitionerError):
            continue
    return None


def schedules(workload: Workload) -> Iterator[Schedule]:
    """Those of all partitioners that take the workload: most do."""
    found = [accepted(workload, name) for name in partitioners()]
    taken = [schedule for schedule in found if schedule and schedule.grid.workload == workload]
    assert len(taken) > len(found) / 2
    yield from taken


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Small ragged batches: MHA, GQA and MQA, several new tokens, windows, single tokens."""
    query_len = draw(st.sampled_from([1, 1, 1, 2, 5]))
    lens = draw(st.lists(st.integers(query_len, 90), min_size=1, max_size=4))
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    group = draw(st.sampled_from([1, 2, 3, 8]))
    return Workload(
        tuple(lens),
        kv_heads * group,
        kv_heads,
        head_dim=8,
        head_dim_v=draw(st.sampled_from([None, 4])),
        query_len=query_len,
        window=draw(st.sampled_from([None, None, 1, 7, 20])),
        max_context_len=draw(st.sampled_from([None, 200])),
    )


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{n}-{o}" for n, o in OPTIONS])
@given(workload=workloads(), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 40.0]))
@settings(max_examples=60, deadline=None)
def test_replay_equals_reference(
    name: str, options: dict[str, Any], workload: Workload, seed: int, scale: float
) -> None:
    schedule = accepted(workload, name, **options)
    assume(schedule is not None)
    assert schedule is not None
    workload = schedule.grid.workload
    q, k, v = random_inputs(workload, seed, scale)
    found = replay(schedule, q, k, v, "float64")
    np.testing.assert_allclose(found, reference(workload, q, k, v), rtol=0, atol=1e-12)


CUT = [
    Workload((90,), 2, 1, head_dim=8),
    Workload((90, 41), 4, 2, head_dim=8),
    Workload((1500, 700, 90), 4, 2, head_dim=8),
    Workload((1500,), 4, 1, head_dim=8),
]


@pytest.mark.parametrize("name", partitioners())
def test_every_partitioner_that_cuts_is_replayed_where_it_does(name: str) -> None:
    """Contexts of 90 tokens are whole to some, whatever the options: these get longer ones."""
    found = [
        accepted(load, name, **options) for load in CUT for which, options in OPTIONS if which == name
    ]
    cut = [schedule for schedule in found if schedule and schedule.segments_of_tile.max() > 1]
    assert bool(cut) == (name not in WHOLE)
    for schedule in cut:
        q, k, v = random_inputs(schedule.grid.workload, 7)
        wanted = reference(schedule.grid.workload, q, k, v)
        np.testing.assert_allclose(replay(schedule, q, k, v, "float64"), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["backward", "forward"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_replay_of_rows_in_several_blocks(packed: bool, order: str, kv_heads: int) -> None:
    workload = Workload((40, 9), 6, kv_heads, head_dim=8, query_len=5, window=11)
    grid = small_grid(workload, "lean_attention", rows=3, packed=packed, tile_order=order)
    schedule = make("lean_attention")(grid, pair_for("lean_attention")[1])
    assert grid.row_blocks > 1
    assert schedule.combine == "host"
    q, k, v = random_inputs(workload, 5)
    found = replay(schedule, q, k, v)
    np.testing.assert_allclose(found, reference(workload, q, k, v), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("order", "wanted"), [("backward", [2, 1]), ("forward", [1, 2])])
def test_a_segment_is_folded_in_the_order_of_the_kernel(
    order: str, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload((30,), 1, 1, head_dim=1)
    grid = small_grid(workload, "flash_attention_2", tile_order=order)
    seen: list[int] = []

    def spy(q: Any, k: Any, *rest: Any, before: Partial) -> Partial:
        seen.append(int(k[0, 0]) // grid.tile_tokens)
        return tile_attention(q, k, *rest, before=before)

    monkeypatch.setattr(numerics, "tile_attention", spy)
    k = np.arange(30.0)[:, None]
    numerics.segment_attention(grid, 0, range(1, 3), (np.ones((1, 1)), k, k), "float64")
    assert seen == wanted


def test_extreme_scores_stay_finite() -> None:
    workload = Workload((70, 33), 4, 2, head_dim=8)
    q, k, v = random_inputs(workload, 3, scale=1e4)
    wanted = reference(workload, q, k, v)
    for schedule in schedules(workload):
        found = replay(schedule, q, k, v)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)  # 1e4 has 1e-12 to spare
        assert np.isfinite(replay(schedule, q, k, v, "float32")).all()


def test_a_single_token_returns_its_value() -> None:
    workload = Workload((1,), 4, 2, head_dim=8)
    q, k, v = random_inputs(workload, 0)
    for schedule in schedules(workload):
        found = replay(schedule, q, k, v)
        np.testing.assert_array_equal(found[0, 0], np.repeat(v[0][0], 2, axis=0))


def test_reference_by_hand() -> None:
    """Equal scores average the visible values: 1..4 for the last token, 1..3 for the one before."""
    k, v = np.zeros((4, 2)), np.arange(1.0, 5.0)[:, None]
    q = np.ones((2, 3, 2))
    wanted = np.array([[2.0] * 3, [2.5] * 3])
    np.testing.assert_allclose(reference_heads(q, k, v)[..., 0], wanted)
    np.testing.assert_allclose(reference_heads(q, k, v, window=2)[..., 0], [[2.5] * 3, [3.5] * 3])


def test_every_query_row_has_one_owner() -> None:
    workload = Workload((40, 9), 6, 2, head_dim=8, query_len=3)
    for packed in (True, False):
        grid = small_grid(workload, "lean_attention", packed=packed)
        owned = np.zeros((2, 3, 6), dtype=int)
        for tile in range(grid.num_output_tiles):
            _, tokens, heads = row_owners(grid, tile)
            np.add.at(owned, (grid.request[tile], tokens, heads), 1)
        np.testing.assert_array_equal(owned, 1)


def test_inputs_and_replay_are_deterministic() -> None:
    workload = Workload((40, 90), 4, 2, head_dim=8)
    schedule = schedule_of(workload, "lean_attention")
    twice = [replay(schedule, *random_inputs(workload, 11), "bfloat16") for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    assert not np.array_equal(random_inputs(workload, 11)[0], random_inputs(workload, 12)[0])


@pytest.mark.parametrize(
    ("precision", "atol"), [("float32", 2e-6), ("bfloat16", 0.02), ("float16", 0.003)]
)
def test_lower_precisions_are_close_and_not_exact(precision: Any, atol: float) -> None:
    workload = Workload((90, 41), 4, 2, head_dim=8)
    q, k, v = random_inputs(workload, 2)
    near = [rounded(x, precision) for x in (q, *k, *v)]
    wanted = reference(workload, near[0], near[1:3], near[3:])
    for schedule in schedules(workload):
        found = replay(schedule, q, k, v, precision)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
        np.testing.assert_array_equal(found, rounded(found, precision))
        assert np.abs(found - wanted).max() > 1e-9


# A replay that does not do its work is noticed


SPLIT = Workload((90, 41), 4, 2, head_dim=8)


def error_of(schedule: Schedule) -> float:
    q, k, v = random_inputs(SPLIT, 2)
    difference = replay(schedule, q, k, v) - reference(SPLIT, q, k, v)
    return float(np.abs(difference).max())


@pytest.mark.parametrize("name", ["lean_attention", "flash_decoding"])
def test_a_dropped_kv_tile_shows(name: str) -> None:
    schedule = schedule_of(SPLIT, name)
    assert error_of(schedule) < 1e-14
    stop = schedule.stop.copy()
    stop[np.argmax(stop - schedule.start)] -= 1
    assert error_of(altered(schedule, stop=stop)) > 1e-3


def test_an_output_tile_without_segments_stays_nan() -> None:
    schedule = schedule_of(SPLIT, "lean_attention")
    moved = np.where(schedule.output_tile == 1, 0, schedule.output_tile)
    assert np.isnan(error_of(altered(schedule, output_tile=moved)))


def test_a_missing_host_leaves_nan() -> None:
    schedule = schedule_of(SPLIT, "lean_attention")
    start = schedule.start + (schedule.output_tile == 0)
    assert np.isnan(error_of(altered(schedule, start=start)))


@pytest.mark.parametrize("name", ["lean_attention", "flash_decoding"])
def test_wrong_merge_weights_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unweighted(m: Any, top: Any) -> Any:
        return np.where(np.isneginf(m), 0, np.exp((m - np.where(np.isneginf(top), 0, top)) / 2))

    schedule = schedule_of(SPLIT, name)
    right = numerics.merge_normalised if name == "flash_decoding" else numerics.merge

    def wrong(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numerics, "_relative", unweighted)
            return right(*args)

    monkeypatch.setattr(numerics, right.__name__, wrong)
    assert error_of(schedule) > 1e-3
