"""The race of searches: what is pinned of those that need no extra, and of the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import read_pins

FOLDER = EXPERIMENTS / "tuning"
PINS = read_pins(FOLDER)


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def some(here: dict[str, Any]) -> list[Any]:
    """The cases of the fewest settings."""
    return [case for case in here["race"].cases() if case.name.startswith("FlashDecoding")]


def test_pins_are_what_searches_without_the_extra_need(here: dict[str, Any], some: list[Any]) -> None:
    """Else run `python experiments/tuning/run.py`, and say what moved and why."""
    counts = here["run"].raced(some, here["run"].WITHOUT_EXTRA)
    assert len(some) == 2
    for case in some:
        for method, evaluations in counts[case.name].items():
            pinned = PINS["Simulations to within 1%", f"{case.name}, {method}"]
            assert f"{here['race'].median(evaluations):.6g}" == pinned
        near, _, best_s = case.oracle
        assert PINS["What there is to gain", f"{case.name}, oracle, ns"] == str(round(best_s * 1e9))
        assert PINS["What there is to gain", f"{case.name}, best setting, ns"] == str(
            round(case.best_s * 1e9)
        )
        assert near is not None
        assert near <= min(here["race"].median(found) for found in counts[case.name].values())


def test_a_gaussian_process_gets_there(some: list[Any]) -> None:
    pytest.importorskip("sklearn", reason="the extra `tune` is not installed")
    for method in ("GP", "GP, pruned"):
        found = some[0].evaluations(method, 0)
        assert found is not None
        assert found <= 20


def test_the_oracle_wins_where_requests_are_alike() -> None:
    for case in ("FlashDecoding 1 x 128k", "FlashDecoding 6 x 32k", "Lean 3 x 16k"):
        mine = {key: value for (_, key), value in PINS.items() if key.startswith(case)}
        oracle = float(mine.pop(f"{case}, oracle, simulations to near"))
        others = [
            float(mine[f"{case}, {name}"])
            for name in ("random", "random, pruned", "GP", "GP, pruned", "grid")
        ]
        assert 0 < oracle <= min(others)
