"""The search over whole numbers: exact where it says so, near enough to exact elsewhere."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansim.study.search import EXHAUSTIVE, cheapest, geometric


@given(st.lists(st.integers(0, 9), min_size=1, max_size=EXHAUSTIVE), st.integers(1, 100))
def test_few_values_are_all_tried(costs: list[int], guess: int) -> None:
    values = [3 * i + 1 for i in range(len(costs))]
    cost = dict(zip(values, costs, strict=True))
    found = cheapest(values, lambda value, _: cost[value], guess)
    assert found == values[costs.index(min(costs))], "the smallest of equals"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 40))
def test_what_is_ruled_out_changes_nothing(costs: list[int], guess: int) -> None:
    values = list(range(1, len(costs) + 1))
    asked = []

    def cost(value: int, below: float) -> float:
        asked.append(value)
        return costs[value - 1] if costs[value - 1] < below else math.inf

    found = cheapest(values, cost, guess)
    assert costs[found - 1] == min(costs)
    assert len(asked) == len(set(asked)), "each once"


@pytest.mark.parametrize("work", [3, 7, 40, 100])
@pytest.mark.parametrize("slots", [108, 132, 264])
def test_waves_of_many_values_are_searched_exactly(work: int, slots: int) -> None:
    """Rounds of equal runs plus a price per run: a saw-tooth whose teeth the coarse grid can miss."""
    values = list(range(1, 3000))

    def cost(count: int, _: float = 0.0) -> float:
        waves = math.ceil(work * count / slots)
        return waves * (2.0 + 3000 / count) + 0.3 * count

    found = cheapest(values, cost, max(1, slots // work))
    assert cost(found) == min(cost(value) for value in values)


def test_the_grid_has_both_ends_and_no_wide_steps() -> None:
    values = list(range(1, 10_000))
    chosen = geometric(values, 100)
    assert (chosen[0], chosen[-1]) == (0, 9998)
    steps = [(values[a], values[b] / values[a]) for a, b in itertools.pairwise(chosen)]
    assert all(ratio < 1.4 for value, ratio in steps if value > 8)
    assert all(ratio < 1.12 for value, ratio in steps if 12 < value < 1500)
