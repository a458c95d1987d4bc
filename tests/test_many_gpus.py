"""The experiment on several GPUs: its pins, and what its README says of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

FOLDER = EXPERIMENTS / "many_gpus"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def pins() -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / "expected.csv").read_text().splitlines()))


def test_a_sample_of_the_pins(modules: Any, pins: list[dict[str, str]]) -> None:
    calls = modules["calls"]
    layers = [row for row in pins if row["of"] == "layer"][2::11]
    found = calls.attention_of(map(calls.call_of, layers))
    for row, one in zip(layers, found.values(), strict=True):
        assert one.result.latency_s * 1e9 == pytest.approx(float(row["time_ns"]), abs=1)
    steps = [row for row in pins if row["of"] == "step"][5::23]
    for row, one in zip(steps, calls.steps(map(calls.call_of, steps)).values(), strict=True):
        assert one.seconds * 1e9 == pytest.approx(float(row["time_ns"]), abs=1)


def test_every_call_is_pinned(modules: Any, pins: list[dict[str, str]]) -> None:
    pinned = [(row["of"], modules["calls"].call_of(row)) for row in pins]
    layers = [("layer", call) for call in dict.fromkeys(modules["decode"].calls())]
    assert pinned == [*layers, *(("step", call) for call in dict.fromkeys(modules["latent"].calls()))]


def test_a_ring_is_at_least_six_times_slower_than_a_tree(modules: Any) -> None:
    decode = modules["decode"]
    found = modules["calls"].attention_of(call for call in decode.calls() if call.kernel != "vllm_fa3")
    assert min(decode.ring_over_tree(found).values()) > 6


def test_dividing_contexts_loses_short_and_gains_long_as_reported(modules: Any) -> None:
    """ROCm/ATOM#847: 0.78 with 1k in and out, 1.18 with 8k and 1k, 1.50 with 8k and 8k."""
    latent = modules["latent"]
    steps = modules["calls"].steps(call for call in latent.calls() if call.batch_size == 256)
    found = [latent.speedup(steps, 256, context) for context in (1536, 8704, 12_288)]
    assert found == sorted(found)
    assert found == pytest.approx([0.78, 1.18, 1.50], rel=0.10)
