"""Two streams on an edge device: walked, in closed form and by hand; shares of the gain; pins."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import page, pins_of, read_pins

FOLDER = EXPERIMENTS / "edge_pipeline"


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


def test_everything_is_what_is_pinned_and_printed(here: dict[str, Any]) -> None:
    """Else run `python experiments/edge_pipeline/run.py`, and say what moved and why."""
    parts = here["run"].parts()
    assert pins_of(parts) == read_pins(FOLDER)
    assert page(parts) == (FOLDER / "RESULTS.md").read_text()


def test_three_blocks_by_hand(here: dict[str, Any]) -> None:
    """Product 2, softmax 3. MAC: QK1 0-2, QK2 2-4, PV1 5-7, QK3 7-9, PV2 9-11, PV3 12-14.

    VEC: 2-5, 5-8, 9-12. With softmax 5: VEC 2-7, 7-12, 12-17, and PV3 17-19.
    """
    pipeline = here["pipeline"]
    assert pipeline.walked(3, 2, 3) == pipeline.overlapped(3, 2, 3) == 14
    assert pipeline.walked(3, 2, 5) == pipeline.overlapped(3, 2, 5) == 19
    assert pipeline.walked(1, 2, 3) == pipeline.overlapped(1, 2, 3) == 7


@given(blocks=st.integers(1, 40), product=st.floats(0.01, 10), softmax=st.floats(0.01, 10))
def test_the_closed_form_is_what_is_walked(
    here: dict[str, Any], blocks: int, product: float, softmax: float
) -> None:
    walked = here["pipeline"].walked(blocks, product, softmax)
    assert here["pipeline"].overlapped(blocks, product, softmax) == pytest.approx(walked)
    serial = blocks * (2 * product + softmax)
    assert serial / 2 <= walked * 1.000001 <= serial * 1.000002  # no more than twice as fast


def test_passes_by_hand(here: dict[str, Any]) -> None:
    """Of 1,024 tokens and d 64 a quarter of K and V is 32 rows of scores: 32 passes, 64 for two."""
    passes = here["pipeline"].passes
    assert passes(0.25, 1024, 64) == 32
    assert passes(0.25, 1024, 64, score_blocks=2) == 64
    assert passes(1.1, 1024, 64) == 1
    assert here["pipeline"].moved(1) == 1


@given(ratio=st.floats(0.05, 20), memory=st.floats(0.01, 2), buffer=st.floats(0.01, 4))
def test_both_terms_make_the_gain_and_overlap_is_two_at_most(
    here: dict[str, Any], ratio: float, memory: float, buffer: float
) -> None:
    device = here["pipeline"].Device(ratio, memory, buffer, 1024, 64)
    overlap, rest = device.gains
    assert 1 <= overlap <= 2
    assert rest >= 1
    assert overlap * rest == pytest.approx(device.flat / device.mas_at_best)
    assert device.mas_same_tiles >= device.mas_at_best
