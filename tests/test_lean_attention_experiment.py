"""LeanAttention's evaluation as published here: pins hold, the page is what pins say, draws are right.

A change that moves the pins is a model change: run the experiment's `run.py` again, and say why.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import EXPERIMENTS, modules_of

from leansim.partitioners.lean_attention import LeanAttention
from leansim.points.point import resolve

FOLDER = EXPERIMENTS / "lean_attention"
MODULES = (
    "calls", "parts", "over_context", "busy", "ragged", "tensor_parallel", "published", "when_it_pays",
    "end_to_end",
    "figures", "run",
)  # fmt: skip
EVERY = 61


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, Any]]:
    """The experiment's modules, which no other test shall find under these names."""
    with modules_of(FOLDER, *MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def pinned(here: dict[str, Any]) -> dict[Any, Any]:
    """The pins: calls and what they come to."""
    rows = csv.DictReader((FOLDER / "expected.csv").read_text().splitlines())
    found: dict[Any, Any] = here["calls"].pinned(rows)
    return found


def test_every_call_is_pinned(here: dict[str, Any], pinned: dict[Any, Any]) -> None:
    assert list(pinned) == list(dict.fromkeys(here["run"].calls()))


def test_pins_are_what_is_simulated(here: dict[str, Any], pinned: dict[Any, Any]) -> None:
    calls = here["calls"]
    some = list(pinned)[7::EVERY]
    kernels = {call.kernel for call in some}
    assert kernels >= {calls.LEAN, calls.UNCAPPED, calls.ORT, calls.BEST, calls.BEST_EACH, "triton_lean"}
    assert {bool(call.ragged) for call in some} == {bool(call.model) for call in some} == {False, True}
    assert calls.times_of(some, jobs=1) == {call: pinned[call] for call in some}


def test_results_are_what_the_pins_say(here: dict[str, Any], pinned: dict[Any, Any]) -> None:
    assert here["run"].results(pinned) == (FOLDER / "RESULTS.md").read_text()


def test_no_rule_is_faster_than_the_best_split_counts(
    here: dict[str, Any], pinned: dict[Any, Any]
) -> None:
    """All counts are searched, on the kernel that both heuristics split; stream-K may still win."""
    calls, cells = here["calls"], here["over_context"].cells()
    for call in cells:
        best = pinned[call.by(calls.BEST)].latency_ns
        assert best <= pinned[call.by(calls.NEW)].latency_ns + 1, call
    for call in here["ragged"].searched():
        each, one = (pinned[call.by(kernel)].latency_ns for kernel in (calls.BEST_EACH, calls.BEST))
        assert each <= one + 1, call
    assert any(
        pinned[call.by(calls.LEAN)].latency_ns < pinned[call.by(calls.BEST)].latency_ns for call in cells
    )


def test_lean_gains_and_loses_where_it_is_said_to(here: dict[str, Any], pinned: dict[Any, Any]) -> None:
    calls, over = here["calls"], here["over_context"]
    for device, head_dim in ((d, n) for d in over.DEVICES for n in over.HEAD_DIMS):
        assert 7 < over.tiles_for(pinned, device, head_dim, over.LARGEST) < 15
    few = [call for call in over.cells() if call.output_tiles == 1 and call.context_len >= 65536]
    assert all(calls.gain(pinned, call, calls.BEST) < 0.9 for call in few)
    ragged = [call for call in here["ragged"].cells() if call.ragged == "mean 0.1"]
    assert all(calls.gain(pinned, call, calls.NEW) > 1.1 for call in ragged)
    assert all(calls.gain(pinned, call, calls.ORT) > 2.5 for call in ragged), "padding gives it away"


def test_the_cap_matters_below_a_32nd_of_the_slots(here: dict[str, Any]) -> None:
    calls = here["calls"]
    for heads, same in ((1, False), (6, False), (7, True), (32, True)):
        call = calls.Call(calls.A100, calls.LEAN, 1, 524288, heads, heads)
        capped, free = (resolve(call.by(k).point).schedule for k in (calls.LEAN, calls.UNCAPPED))
        assert (capped.num_ctas == free.num_ctas) is same, "216 slots are 6.75 times 32"
        assert free.num_ctas == 216
    point = calls.Call(calls.A100, calls.UNCAPPED, 1, 4096, 1, 1).point
    assert resolve(point).partitioner == LeanAttention(max_splits_per_head=None)


# -- contexts --------------------------------------------------------------------------------------


@given(
    batch=st.integers(2, 64),
    longest=st.integers(1000, 131072),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_a_batch_has_the_ratio_that_is_asked_for(
    here: dict[str, Any], batch: int, longest: int, share: float, seed: int
) -> None:
    """`share` places the ratio between the least that a batch can have, 1 / batch, and 1."""
    ratio = 1 / batch + share * (1 - 1 / batch)
    lens = here["calls"].mean_ratio(batch, longest, ratio, seed)
    assert len(lens) == batch
    assert max(lens) == lens[0] == longest
    assert min(lens) >= 1
    assert abs(np.mean(lens) - ratio * longest) <= 1.0, "but for rounding, and contexts of at least 1"


def test_a_ratio_that_the_longest_alone_exceeds_is_refused(here: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="more than 1/4"):
        here["calls"].mean_ratio(4, 1000, 0.25, 0)


def test_sglangs_lengths_are_between_r_times_the_context_and_it(here: dict[str, Any]) -> None:
    lens = here["calls"].evenly_from(1000, 16384, 0.5, 3)
    assert 8192 <= min(lens) < 8300
    assert 16300 < max(lens) <= 16384
    assert set(here["calls"].evenly_from(16, 16384, 1.0, 0)) == {16384}


# -- eight GPUs, and what others published ---------------------------------------------------------


def test_eight_gpus_are_one_with_an_eighth_of_the_heads(
    here: dict[str, Any], pinned: dict[Any, Any]
) -> None:
    """By the pins for all; and simulated here, for MHA and GQA."""
    calls, divided = here["calls"], here["tensor_parallel"]
    equal, pairs = divided.same(pinned)
    assert equal == pairs > 100
    for model, heads in (("opt_30b", (7, 7)), ("llama_3_405b", (16, 1))):
        call = divided.divided(model, 1, 32768).by(calls.LEAN)
        alone = calls.Call(calls.A100, calls.LEAN, 1, 32768, *heads)
        assert call.point.model is not None
        assert alone.point.model is None
        assert calls.found_of(call) == calls.found_of(alone)


def test_the_copy_of_kv_by_hand(here: dict[str, Any]) -> None:
    """16 x 8,192 tokens of 16 heads of 64: K and V of 268,435,456 B each, read and written.

    1,073,741,824 B at 0.93 of 3.352e12 B/s or so, as the device says, are about 345 us; the published
    row has 666 us with attention.
    """
    published = here["published"]
    row = {"batch": 16, "context": 8192, "heads": 16, "head_dim": 64}
    call = published.ort_call(row)
    assert published.concat_us(call) == pytest.approx(345, rel=0.05)
    assert published.concat_us(call) < 666


def test_measured_batches_are_placed_by_their_tiles(here: dict[str, Any]) -> None:
    pays = here["when_it_pays"]
    dots = pays.dots()
    assert {dot.card for dot in dots} == {"h100", "h200"}
    for dot in dots:
        requests, context = (int(part) for part in dot.shape.split(" of ")[0].split(" x "))
        assert dot.mean_context == context
        assert dot.tiles % requests == 0
        slots = dot.tiles / dot.tiles_per_slot
        assert slots / 132 == pytest.approx(round(slots / 132)), "some CTAs on each of 132 SMs"
    few = [dot for dot in dots if dot.batch == "uniform" and dot.tiles_per_slot < 0.1]
    assert np.mean([dot.measured < 1.0 for dot in few]) > 0.9
