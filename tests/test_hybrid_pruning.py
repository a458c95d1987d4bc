"""Hybrid Dynamic Pruning: the bound by hand, the bytes of the stand-in index, and the pins."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import page, pins_of, read_pins
from leansim.points.point import resolve

FOLDER = EXPERIMENTS / "hybrid_pruning"


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def times() -> dict[str, int]:
    """The pinned latencies."""
    pins = read_pins(FOLDER)
    return {case: int(value) for (part, case), value in pins.items() if part == "Simulated"}


def test_the_bound_by_hand(here: dict[str, Any]) -> None:
    """8 of 16 bits of K are a quarter of K and V: 0.25 + 0.1; read once 0.25 x 0.9 + 0.1."""
    bounds = here["bounds"]
    assert bounds.share_of_bytes(8, 0.1) == pytest.approx(0.35)
    assert bounds.share_of_bytes(8, 0.1, pruned=0.5) == pytest.approx(0.30)
    assert bounds.share_read_once(8, 0.1) == pytest.approx(0.325)
    assert bounds.share_read_once(8, 1.0) == 1.0
    assert bounds.most_kept(8) == 0.75
    assert bounds.share_of_bytes(8, bounds.most_kept(8)) == 1.0
    with pytest.raises(ValueError, match="wanted a divisor of 32"):
        bounds.page_of(5)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_index_has_the_bytes_of_the_integer_parts(here: dict[str, Any], bits: int) -> None:
    """32,768 tokens, 8 KV heads of 128: 2 bytes of K, of which bits / 16 are integer."""
    run = here["run"]
    load = resolve(run.call("lean", 1, 32768, run.chosen(bits, 0.25, 32768))).workload
    assert load.index_bytes == 32768 * 8 * 128 * 2 * bits // 16
    assert load.kept_lens.max() == 8192


def test_pins_are_what_is_simulated(here: dict[str, Any], times: dict[str, int]) -> None:
    """Every seventh; else run `python experiments/hybrid_pruning/run.py`, and say what moved and why."""
    run = here["run"]
    points = run.points()
    assert list(points) == list(times)
    some = {name: points[name] for name in list(points)[3::7]}
    assert run.timed(some) == {name: times[name] for name in some}


def test_results_are_what_the_pins_say(here: dict[str, Any], times: dict[str, int]) -> None:
    parts = here["run"].parts(times)
    assert pins_of(parts) == read_pins(FOLDER)
    assert page(parts) == (FOLDER / "RESULTS.md").read_text()


def test_no_call_beats_the_bound_and_many_requests_come_near(
    here: dict[str, Any], times: dict[str, int]
) -> None:
    run, bounds = here["run"], here["bounds"]
    for kernel in run.KERNELS:
        for batch, context in run.CASES:
            for bits in run.FACTS["integer_bits"]:
                for kept in run.FACTS["kept"]:
                    name = run.named(kernel, batch, context, f"{bits} bits, {kept:g} kept")
                    gain = times[run.named(kernel, batch, context, "dense")] / times[name]
                    bound = 1 / bounds.share_of_bytes(bits, kept)
                    assert gain < 1.02 * bound
                    assert batch == 1 or gain > 0.7 * bound
