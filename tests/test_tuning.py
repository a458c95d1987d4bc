"""Tuning a partitioner's options: the space, the search, pruned or not, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leansim
from leansim.errors import PartitionerError, StoreError, UnknownNameError
from leansim.points.point import resolve
from leansim.study.oracle import oracle
from leansim.study.space import Dimension, dimensions
from leansim.study.surrogates import SURROGATES, ByLot
from leansim.study.tuning import FORWARD, Setting, searched, size_of, tune

GQA = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128}
LEAN = leansim.point(device="h100_sxm", kernel="lean", batch_size=2, context_len="6k", **GQA)


def numbers(most: int, name: str = "n") -> Dimension:
    return Dimension(name, range(1, most + 1))


def bowl(*at: int) -> Callable[[Setting], float]:
    """Least at a place, and more by the square of how far off a setting is, in logarithms."""
    return lambda setting: (
        1 + sum(np.log((one + 1) / (best + 1)) ** 2 for one, best in zip(setting, at, strict=True))
    )


# -- the space ---------------------------------------------------------------------------------


@given(most=st.integers(1, 5000), data=st.data(), numeric=st.booleans())
def test_a_place_is_that_of_its_value(most: int, data: st.DataObject, numeric: bool) -> None:
    dimension = Dimension("n", range(most), numeric)
    at = np.array([data.draw(st.integers(0, most - 1))])
    assert 0 <= dimension.place(at) <= 1
    assert dimension.at(dimension.place(at)) == at
    assert dimension.at(np.array([-0.5, 1.5])).tolist() == [0, most - 1]


def test_the_space_follows_from_options_and_workload() -> None:
    """6,144 tokens are 96 tiles of 64, 4 output tiles of them; at most 2 CTAs fit on an SM."""
    grid = resolve(LEAN).grid
    space = {one.name: one.values for one in dimensions(resolve(LEAN))}
    assert space["num_ctas"] == range(1, min(2 * grid.slots, grid.total_kv_tiles) + 1)
    assert space["ctas_per_sm"] == range(1, grid.ctas_per_sm + 1)
    assert set(space) == {"num_ctas", "ctas_per_sm", "max_splits_per_head"}
    (lengths,) = dimensions(resolve(LEAN), ["lengths"])
    assert (lengths.values, lengths.numeric) == (("actual", "longest"), False)
    split = LEAN.model_copy(update={"kernel": "fa2+fixed_split_size"})
    (tokens,) = dimensions(resolve(split))
    step = resolve(split).grid.tile_tokens
    assert list(tokens.values)[:2] == [step, 2 * step]
    assert tokens.values[-1] == 6144
    (counts,) = dimensions(resolve(LEAN.model_copy(update={"kernel": "flash_decoding"})), ["num_splits"])
    assert counts.values[-1] == min(128, int(grid.num_kv_tiles.max()))


def test_what_cannot_be_tuned_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'num_ctas'"):
        dimensions(resolve(LEAN), ["num_cta"])
    fa2 = LEAN.model_copy(update={"kernel": "fa2"})
    with pytest.raises(PartitionerError, match="no option that is a whole number"):
        dimensions(resolve(fa2))
    xqa = LEAN.model_copy(update={"kernel": "lean+trtllm_xqa"})
    with pytest.raises(PartitionerError, match="min_wave: found an option of other values"):
        dimensions(resolve(xqa), ["num_splits", "min_wave"])
    with pytest.raises(UnknownNameError, match="known: gp, random"):
        tune(LEAN, surrogate="forest")  # type: ignore[arg-type]


# -- the search --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3), budget=st.integers(1, 80),
       memory=st.integers(0, 6), seed=st.integers(0, 9))  # fmt: skip
def test_no_setting_is_tried_twice_and_small_spaces_are_exhausted(
    sizes: list[int], budget: int, memory: int, seed: int
) -> None:
    space = [numbers(size, str(i)) for i, size in enumerate(sizes)]
    found = searched(bowl(*(0 for _ in sizes)), space, ByLot, memory, budget, seed)
    tried = [setting for setting, _ in found]
    assert len(set(tried)) == len(tried) == min(budget, size_of(space))
    assert all(0 <= at < size for setting in tried for at, size in zip(setting, sizes, strict=True))
    assert found == searched(bowl(*(0 for _ in sizes)), space, ByLot, memory, budget, seed)


def test_pruning_searches_between_the_best_only() -> None:
    """After 3 + 12 evaluations those that follow lie between the 3 best of all, 12 at a time."""
    space, memory = [numbers(1000, "a"), numbers(1000, "b")], 3
    found = searched(bowl(20, 700), space, ByLot, memory, memory + 4 * FORWARD, 1)
    for pruned in range(3):
        known = memory + FORWARD + pruned * FORWARD
        best = np.array(sorted((s for s, _ in found[:known]), key=dict(found).__getitem__)[:memory])
        later = np.array([setting for setting, _ in found[known : known + FORWARD]])
        assert (later >= best.min(axis=0)).all()
        assert (later <= best.max(axis=0)).all()
    assert len(found) == memory + 4 * FORWARD


def test_pruning_helps_a_lot_to_find_what_is_not_at_an_edge() -> None:
    """Of 15 seeds the median of the best cost, less the least there is, in a space of a million."""
    space = [numbers(1000, "a"), numbers(1000, "b")]
    least = {
        memory: np.median([min(c for _, c in searched(bowl(30, 40), space, ByLot, memory, 60, seed))
                           for seed in range(15)])
        for memory in (0, 5)
    }  # fmt: skip
    assert least[5] - 1 < (least[0] - 1) / 2


def test_what_is_refused_is_passed_over() -> None:
    def cost(setting: Setting) -> float:
        return float("inf") if setting[0] % 2 else bowl(500)(setting)

    found = searched(cost, [numbers(2000)], ByLot, 5, 60, 0)
    assert np.isinf([c for _, c in found]).any()
    assert min(c for _, c in found) < 1.1


def test_a_gaussian_process_needs_few() -> None:
    pytest.importorskip("sklearn", reason="the extra `tune` is not installed")
    space = [numbers(1000, "a"), numbers(1000, "b")]
    for memory in (0, 5):
        best = [min(c for _, c in searched(bowl(20, 700), space, SURROGATES["gp"], memory, 30, seed))
                for seed in range(3)]  # fmt: skip
        assert max(best) < 1.02


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(StoreError, match=r"no scikit-learn.*surrogate random.*\[tune\]"):
        tune(LEAN)


# -- the verb ----------------------------------------------------------------------------------


def test_trials_are_simulations_of_the_options() -> None:
    (found,) = leansim.tune(LEAN, options=["num_ctas"], surrogate="random", budget=12)
    assert len(found.trials) == 12
    for trial in found.trials[:3]:
        spec: dict[str, Any] = {
            "name": "lean_attention",
            "options": {"lengths": "actual"} | trial.options,
        }
        point = leansim.point(device="h100_sxm", kernel="lean", batch_size=2, context_len="6k", **GQA,
                              partitioner=spec)  # fmt: skip
        assert leansim.simulate(point).metrics.latency_s == trial.latency_s
    assert found.own_s == leansim.simulate(LEAN).metrics.latency_s
    assert found.best.latency_s == min(trial.latency_s for trial in found.trials)
    assert found.evaluations_to(found.best.latency_s) == found.trials.index(found.best) + 1
    assert found.evaluations_to(0.0) is None
    assert found.rows()[0]["as_fast"] == "1.000x"
    assert found.table["num_ctas"].tolist() == [trial.options["num_ctas"] for trial in found.trials]
    assert "12 of " in found.notes()[0]


def test_all_split_counts_tried_the_best_is_the_oracles() -> None:
    """6 splits at most: every one is tried, so the least latency is what `splits` would find."""
    point = leansim.point(
        device="h100_sxm", kernel="flash_decoding", batch_size=1, context_len=768, **GQA
    )
    (found,) = leansim.tune(point, options="num_splits", surrogate="random", budget=100)
    assert len(found.trials) == size_of(found.space)
    assert found.best.latency_s == pytest.approx(
        oracle(point, ["flash_decoding"]).best.latency_s, rel=0.02
    )


def test_several_points_have_an_answer_each() -> None:
    other = LEAN.model_copy(update={"batch_size": 5})
    found = leansim.tune([LEAN, other], surrogate="random", budget=2)
    assert [len(one.trials) for one in found] == [2, 2]
    assert [one.resolved.point for one in found] == [LEAN, other]
    assert len(found.table) == 4
