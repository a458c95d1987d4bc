"""Bounded memories: sizes by hand, the pins, and which schedule loses where."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import pins_of, read_pins

FOLDER = EXPERIMENTS / "bounded_memory"
PINS = read_pins(FOLDER)


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def times() -> dict[str, int]:
    """The pinned latencies."""
    return {case: int(value) for (part, case), value in PINS.items() if part == "Latency"}


def test_uios_memory_by_hand(here: dict[str, Any]) -> None:
    """100,000 = 97 x 1,024 + 672: 97 x 32 + 672 = 3,776, and 97 x 128 + 672 = 13,088."""
    tokens = here["memories"].uio_tokens
    assert tokens(100_000, 1024, 32) == 3776
    assert tokens(100_000, 1024, 128) == 13_088
    assert tokens(1023, 1024, 32) == 1023
    assert tokens(1024, 1024, 32) == 32


def test_a_memory_is_no_larger_than_the_context_and_is_what_is_simulated(here: dict[str, Any]) -> None:
    import leansim

    run = here["run"]
    for memory in here["memories"].memories():
        for n in (100, 1023, 1024, 5000, 300_000):
            point = run.call("h100_sxm", "fa2", 1, memory.fields(n))
            read = leansim.simulate(point).resolved.workload.kept_lens
            assert read.max() == memory.kept(n) <= n


def test_pins_are_what_is_simulated(here: dict[str, Any], times: dict[str, int]) -> None:
    """Every 40th call, and what is arithmetic; else run the experiment again, and say what moved."""
    run = here["run"]
    points = run.points_of(here["memories"].memories(), run.CONTEXTS)
    assert list(times) == list(points)
    some = {name: points[name] for name in list(points)[7::40]}
    assert run.timed(some) == {name: times[name] for name in some}
    parts = [run.sizes(), run.saw()]
    assert pins_of(parts).items() <= PINS.items()


def test_results_are_what_the_pins_say(here: dict[str, Any], times: dict[str, int]) -> None:
    run, page = here["run"], (FOLDER / "RESULTS.md").read_text()
    for part in (run.sizes(), run.latencies(times), run.schedules(times), run.saw()):
        assert part.written in page


def test_lean_loses_where_one_request_has_many_peers(
    here: dict[str, Any], times: dict[str, int]
) -> None:
    """4,608 tokens of one request, and not 768; sixteen requests fill the machine anyway."""
    named, last = here["run"].named, here["run"].CONTEXTS[-1]

    def ratio(batch: int, memory: str) -> float:
        lean, split = (
            times[named("h100_sxm", kernel, batch, memory, last)]
            for kernel in ("lean", "flash_decoding")
        )
        return lean / split

    assert ratio(1, "LongVQ 4096+512") > 1.04
    assert ratio(1, "LongVQ 256+512") < 1.0
    assert ratio(16, "LongVQ 4096+512") < 1.0
