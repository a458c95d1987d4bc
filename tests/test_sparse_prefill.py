"""Sparse prefill: densities by hand, what is inverted comes back, break-even, and the pins."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import page, pins_of, read_pins

FOLDER = EXPERIMENTS / "sparse_prefill"


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


def test_everything_is_what_is_pinned_and_printed(here: dict[str, Any]) -> None:
    """Else run `python experiments/sparse_prefill/run.py`, and say what moved and why."""
    parts = here["run"].parts()
    assert pins_of(parts) == read_pins(FOLDER)
    assert page(parts) == (FOLDER / "RESULTS.md").read_text()


def test_density_is_that_of_counted_pairs(here: dict[str, Any]) -> None:
    """Of 4,096 queries that see 512 tokens at most: pairs counted one by one, to the diagonal's half."""
    prefill, n, tokens = here["prefill"], 4096, 512
    counted = np.minimum(np.arange(n) + 0.5, tokens).sum() / (n**2 / 2)
    assert prefill.density(n, tokens) == pytest.approx(counted, rel=1e-4)
    assert prefill.density(16, 4) == 0.4375
    assert prefill.density(16, 99) == 1.0
    assert prefill.tokens_of(0.4375, 16) == pytest.approx(4)


def test_the_measured_call_takes_what_was_measured(here: dict[str, Any]) -> None:
    """1 / 373.4 s; 2 x 8192^2 x 128 x 32 FLOP x 373.4 = 205 TFLOP/s, two thirds of the datasheet."""
    run, prefill = here["run"], here["prefill"]
    measured = prefill.Shape(1, 32, 8, 128, 0)
    found = prefill.attention_s(8192, measured, run.machine("a100_sxm_80gb"))
    assert found == pytest.approx(1 / 373.4)
    assert run.machine("a100_sxm_80gb").flop_per_s == pytest.approx(205e12, rel=0.005)


def test_implied_densities_give_the_published_speedups_back(here: dict[str, Any]) -> None:
    run, prefill = here["run"], here["prefill"]
    name = run.DEVICES[0]
    assert sum(count for *_, count in run.HEADS) == 1024
    for n, speedup in run.POINTS.items():
        share = run.index_share(n, name)
        left = run.attention_left(n, speedup, name, whole=False) - share
        assert run.speedup_of(n, run.width_of(left, n), name) == pytest.approx(speedup, rel=0.002)
        whole = run.attention_left(n, speedup, name, whole=True)
        attention = run.shape().layers * prefill.attention_s(n, run.shape(), run.machine(name))
        linear = prefill.linear_s(n, run.shape(), run.machine(name))
        assert (attention + linear) / (whole * attention + linear) == pytest.approx(speedup)


def test_break_even_by_hand(here: dict[str, Any]) -> None:
    """A tile twice as long: 2 (2 b - b^2) = 1 at b = 1 - sqrt(1/2) = 0.2929, n = 3.414 B."""
    break_even = here["prefill"].break_even
    assert break_even(4096, 2.0, 0.0) == pytest.approx(4096 / 0.29289, rel=0.011)
    assert break_even(4096, 1.25, 0.0) < break_even(4096, 2.0, 0.0) < break_even(8192, 2.0, 0.0)
    assert break_even(4096, 2.0, 0.5) > break_even(4096, 2.0, 0.0)
    assert break_even(2**21, 1.25, 0.0) is None
