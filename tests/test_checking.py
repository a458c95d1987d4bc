"""`verify` passes exact schedules and catches broken ones; batch invariance is what it should be."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
from corruption import altered
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels import device_for, suited, tiled

from leansim.errors import NumericsError, PairingError, PartitionerError, UnknownNameError
from leansim.numerics import attention as numerics
from leansim.numerics.attention import PRECISIONS, Precision
from leansim.numerics.cover import count_cover
from leansim.numerics.invariance import Invariance, batch_invariance
from leansim.numerics.verify import TOLERANCES, verify
from leansim.partitioners.registry import make, partitioners
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.workload import Workload

H100, MI300X = "h100_sxm", "mi300x"
RAGGED = Workload((300, 7000), 8, 2, 64)
LONGER = Workload((300, 10_000), 8, 2, 64)  # more KV tiles than an MI300X has SMs
NAMED = [(name, device_for(name)) for name in catalog.names("kernel")]


def schedule_of(kernel: str, workload: Workload, device: str = H100) -> Schedule:
    spec, gpu = catalog.kernel(kernel), catalog.device(device)
    partitioner = make(spec.partitioner.name, spec.partitioner.options)
    return partitioner(tiled(suited(workload, kernel), spec, gpu), gpu)


@cache
def ragged(kernel: str = "lean") -> Schedule:
    return schedule_of(kernel, RAGGED)


# Verification


@pytest.mark.parametrize(("kernel", "device"), NAMED)
@pytest.mark.thorough
def test_every_kernel_passes_in_every_precision(kernel: str, device: str) -> None:
    schedule = schedule_of(kernel, LONGER, device)
    found = verify(schedule, PRECISIONS)
    found.raise_if_failed()
    assert found.passed
    assert found.replayed_tiles == found.cover.output_tiles == schedule.grid.num_output_tiles
    assert found.replayed_patterns == found.patterns
    assert [row["precision"] for row in found.rows()] == list(PRECISIONS)
    for check in found.checks:
        assert 0 < check.rms_error < check.max_abs_error
        assert check.tolerance == TOLERANCES[check.precision]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_tolerances_are_not_slack(precision: Precision) -> None:
    """Errors come within a factor of 4 of the bound: one value, so the output rounding is all."""
    schedule = schedule_of("lean", Workload((1, 2, 3) * 40, 8, 8, 64))
    found = verify(schedule, (precision,), max_tokens=10**6).checks[0]
    assert TOLERANCES[precision] / 4 < found.max_rel_error < TOLERANCES[precision]


def test_verification_is_deterministic_and_depends_on_the_seed() -> None:
    schedule = ragged()
    assert verify(schedule, seed=3) == verify(schedule, seed=3)
    assert verify(schedule, seed=3).checks != verify(schedule, seed=4).checks


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        verify(ragged(), ("float33",))  # type: ignore[arg-type]


def test_cover_by_hand() -> None:
    """Contexts of 300 and 7000 tokens in tiles of 256 are 2 and 28 KV tiles, for each of 2 heads."""
    cover = verify(ragged()).cover
    assert cover.exact
    assert cover.output_tiles == 4
    assert cover.rows == 2 * 8
    assert cover.kv_tiles == 2 * (2 + 28)
    assert cover.kv_tokens == 2 * 7300
    assert cover.segments == 30  # two tiles to a CTA
    assert cover.partials_merged == 2 * 14  # the longer request's; the shorter is not cut
    facts = verify(ragged()).facts
    assert facts["combine"] == "host"
    assert facts["split_output_tiles"] == 2
    assert facts["max_segments_of_tile"] == 14


def test_cover_of_any_schedule_is_exact() -> None:
    """Of every kernel, once at least: a plain batch with work enough is refused by none."""
    covered = set()

    @example(lens=[3000] * 5, query_len=1, window=None, group=4)
    @given(
        lens=st.lists(st.integers(4, 3000), min_size=1, max_size=5),
        query_len=st.integers(1, 4),
        window=st.sampled_from([None, 1, 100, 1000]),
        group=st.sampled_from([1, 4]),
    )
    @settings(max_examples=40, deadline=None)
    def check(lens: list[int], query_len: int, window: int | None, group: int) -> None:
        workload = Workload(tuple(lens), 2 * group, 2, 64, query_len=query_len, window=window)
        for kernel, device in NAMED:
            try:
                schedule = schedule_of(kernel, workload, device)
            except (PairingError, PartitionerError):
                continue
            covered.add(kernel)
            cover = count_cover(schedule)
            assert cover.problem == ""
            assert cover.kv_tiles == schedule.grid.total_kv_tiles
            if schedule.grid.row_blocks == 1:
                visible = sum(workload.visible_tokens(n) for n in lens)
                assert cover.kv_tokens == schedule.grid.heads * visible

    check()
    assert covered == {kernel for kernel, _ in NAMED}


def test_a_large_workload_is_replayed_in_part() -> None:
    workload = Workload((32_768,) * 16 + (700,) * 16, 32, 8, 64)
    schedule = schedule_of("lean", workload)
    budget = 80_000
    found = verify(schedule, max_tokens=budget)
    assert found.passed
    assert found.cover.kv_tokens == 8 * 16 * (32_768 + 700)
    assert found.replayed_tokens <= budget
    assert found.replayed_tiles < found.cover.output_tiles
    assert 2 < found.replayed_patterns <= found.patterns


def test_one_output_tile_is_replayed_even_beyond_the_budget() -> None:
    found = verify(ragged(), max_tokens=1)
    assert found.replayed_tiles == 1
    assert found.replayed_tokens == 7000  # the most cut comes first


def test_each_pattern_comes_before_a_second_of_any() -> None:
    schedule = schedule_of("fa2", Workload((600, 600, 600, 300), 8, 2, 64))
    found = verify(schedule, max_tokens=1200)
    assert (found.replayed_patterns, found.replayed_tiles) == (2, 3)


# Broken schedules


def test_a_dropped_kv_tile_fails_cover_and_every_precision() -> None:
    schedule = ragged()
    stop = schedule.stop.copy()
    stop[-1] -= 1
    found = verify(altered(schedule, stop=stop))
    assert not found.cover.exact
    assert "KV tile 27 of output tile 3 is covered 0 times" in found.cover.problem
    assert f"output tile 3 reads -{7000 - 27 * 256} KV tokens" in found.cover.problem
    assert not any(check.passed for check in found.checks)
    with pytest.raises(NumericsError, match=r"covered 0 times.*float64.*float32.*bfloat16"):
        found.raise_if_failed()


def test_a_kv_tile_done_twice_fails() -> None:
    schedule = ragged()
    start = schedule.start.copy()
    start[-1] -= 1
    found = verify(altered(schedule, start=start))
    assert "covered 2 times" in found.cover.problem
    assert not found.checks[0].passed


def test_a_segment_beyond_its_output_tile_fails() -> None:
    schedule = ragged()
    stop = schedule.stop.copy()
    stop[-1] += 1
    assert "leaves its output tile" in count_cover(altered(schedule, stop=stop)).problem


def test_an_output_tile_nobody_does_fails_with_nan() -> None:
    schedule = ragged("fa2")
    moved = np.where(schedule.output_tile == 1, 0, schedule.output_tile)
    found = verify(altered(schedule, output_tile=moved))
    assert "KV tile 0 of output tile 0 is covered 2 times (4 such)" in found.cover.problem
    assert all(np.isnan(check.max_rel_error) and not check.passed for check in found.checks)


def test_partials_without_a_combiner_fail() -> None:
    found = verify(altered(ragged(), combine="none"))
    assert "output tile 2 has partials and 0 combiners (2 such)" in found.cover.problem
    assert not found.passed
    found = verify(altered(ragged("fa2"), partials=np.ones(4, dtype=np.int64)))
    assert "output tile 0 has partials and 0 combiners (4 such)" in found.cover.problem
    assert np.isnan(found.checks[0].max_rel_error)


def test_a_wrong_window_of_the_grid_fails_the_cover() -> None:
    schedule = schedule_of("lean", Workload((600,), 2, 2, 64, window=300))
    grid = dataclasses.replace(schedule.grid)
    begin, end = schedule.grid.kv_span
    vars(grid)["kv_span"] = np.zeros_like(begin), end
    assert grid.num_kv_tiles.tolist() == [3, 3]
    wrong = make("lean_attention")(grid, catalog.device(H100))
    assert not count_cover(wrong).exact


def test_a_merge_that_forgets_to_rescale_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = numerics.merge

    def wrong(a: numerics.Partial, b: numerics.Partial) -> numerics.Partial:
        merged = right(a, b)
        return dataclasses.replace(merged, l=a.l + b.l)

    monkeypatch.setattr(numerics, "merge", wrong)
    found = verify(ragged())
    assert found.cover.exact
    assert not any(check.passed for check in found.checks)


# Batch invariance


def invariance(
    name: str, workload: Workload = RAGGED, kernel: str = "fa2", device: str = H100, **options: Any
) -> Invariance:
    gpu = catalog.device(device)
    return batch_invariance(make(name, options), catalog.kernel(kernel), gpu, workload)


def test_whole_output_tiles_are_batch_invariant() -> None:
    found = invariance("flash_attention_2")
    assert found.invariant
    assert found.counterexample == ""
    assert found.batches == 9


def test_the_split_heuristic_is_not() -> None:
    """A request of 8192 alone is cut to fill the GPU; in a batch that fills it, it is not."""
    for workload in (RAGGED, Workload((8192,) * 512, 8, 2, 64)):
        found = invariance("flash_decoding", workload)
        assert not found.invariant
        assert "alone but at" in found.counterexample


def test_equal_splits_are_invariant_only_for_a_given_longest_context() -> None:
    """Borders follow the longest context of the call, so batch-mates move them unless it is fixed."""
    free = invariance("flash_decoding", num_splits=3)
    assert not free.invariant
    assert "request 0 of 300 tokens" in free.counterexample
    fixed = dataclasses.replace(RAGGED, max_context_len=16_384)
    assert invariance("flash_decoding", fixed, num_splits=3).invariant
    # the heuristic reads the batch size too
    assert not invariance("flash_decoding", fixed).invariant


@pytest.mark.parametrize(
    ("name", "kernel", "device"),
    [("lean_attention", "lean", H100), ("lean_aiter", "lean_aiter", MI300X)],
)
def test_stream_k_is_not_batch_invariant(name: str, kernel: str, device: str) -> None:
    fixed = dataclasses.replace(RAGGED, max_context_len=16_384)
    for workload in (RAGGED, fixed):
        assert not invariance(name, workload, kernel, device).invariant


def test_the_counterexample_by_hand() -> None:
    """One head, tiles of 256, 3 CTAs.

    Alone, 6 tiles are dealt 2 to a CTA: cut at 2 and 4. Two such requests are 12 tiles, 4 to a CTA:
    the first is cut at 4, the second at 2.
    """
    workload = Workload((6 * 256,) * 2, 1, 1, 64)
    found = invariance("lean_attention", workload, "lean", num_ctas=3)
    assert found == Invariance(
        invariant=False,
        batches=1,
        counterexample="request 0 of 1,536 tokens is cut at KV tiles [2, 4] of output tile 0 alone "
        "but at [4] in a batch of 2 with lengths 1,536, 1,536",
    )


def test_a_moved_border_is_a_difference_even_if_the_count_is_the_same() -> None:
    """Two CTAs: 3 tiles alone are dealt 2 and 1; behind a request of 1 tile, 1 and 2."""
    workload = Workload((256, 768), 1, 1, 64)
    found = invariance("lean_attention", workload, "lean", num_ctas=2)
    wanted = "request 1 of 768 tokens is cut at KV tiles [2] of output tile 0 alone but at [1] "
    assert found.counterexample.startswith(wanted)


def test_invariance_is_deterministic() -> None:
    assert invariance("lean_attention") == invariance("lean_attention")


@pytest.mark.parametrize("name", partitioners())
def test_every_partitioner_can_be_asked(name: str) -> None:
    """Of one head, which all take, and of requests with more KV tiles (of 64) than an H100 has SMs."""
    found = invariance(name, Workload((28_000, 14_000), 2, 1, 256))
    assert bool(found.counterexample) == (not found.invariant)
    assert found.batches == 9 or not found.invariant
