"""Blockwise transformers' memory: walks against formulas and by hand, the order, and the pins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

from leansim.checkout.pages import page, pins_of, read_pins

FOLDER = EXPERIMENTS / "blockwise_memory"


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, ModuleType]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def small(here: dict[str, Any]) -> Any:
    """2 requests of 24 tokens, 4 heads, hidden 16, blocks of 3: 2bch is 192 bytes, 2bsh is 1,536."""
    return here["walk"].Layer(b=2, s=24, n=4, h=16, c=3, inner=1)


def test_everything_is_what_is_pinned_and_printed(here: dict[str, Any]) -> None:
    """Else run `python experiments/blockwise_memory/run.py`, and say what moved and why."""
    parts = here["run"].parts()
    assert pins_of(parts) == read_pins(FOLDER)
    assert page(parts) == (FOLDER / "RESULTS.md").read_text()


def test_peaks_by_hand(here: dict[str, Any], small: Any) -> None:
    """Memory-efficient: 1,536 + 2 x 192 and 4 x 1,536; in all the hidden layer and what it is made of.

    Blockwise: the output beside K and V of a block, or beside its hidden layer; the input is live too.
    """
    walk = here["walk"]
    efficient, blocks = walk.memory_efficient(small), walk.blockwise(small)
    assert efficient.made_peak == {"attention": 1920, "ffn": 6144}
    assert efficient.live_peak == 6144 + 1536
    assert blocks.made_peak == {"attention": 1920, "ffn": 1536 + 768}
    assert blocks.live_peak == 2 * 1536 + 768
    assert walk.vanilla(small).made_peak["attention"] == 2 * 2 * 4 * 24**2 + 1536


@pytest.mark.parametrize("name", ["vanilla", "memory_efficient", "blockwise"])
@pytest.mark.parametrize("sublayer", ["attention", "ffn"])
def test_the_walk_and_the_formula_grow_alike(
    here: dict[str, Any], small: Any, name: str, sublayer: str
) -> None:
    """What twice the context adds is the same, but for vanilla's output beside its scores."""
    walk, twice = here["walk"], replace(small, s=2 * small.s)
    walked = [walk.SCHEDULES[name](layer).made_peak[sublayer] for layer in (small, twice)]
    said = [walk.formula(name, sublayer, layer) for layer in (small, twice)]
    output = small.tokens_bytes(small.s) if (name, sublayer) == ("vanilla", "attention") else 0
    assert walked[1] - walked[0] == said[1] - said[0] + output


def test_a_rings_host_holds_six_blocks_however_long_the_sequence(
    here: dict[str, Any], small: Any
) -> None:
    """Twice what the formula says: it counts a block as bch bytes, which is its numbers."""
    walk = here["walk"]
    for layer in (small, replace(small, s=10 * small.s)):
        assert walk.ring(layer).live_peak == 6 * small.tokens_bytes(small.c)
        assert walk.ring(layer).live_peak == 2 * walk.formula("ring", "attention", layer)


def test_the_network_follows_at_once(here: dict[str, Any], small: Any) -> None:
    walk = here["walk"]
    ops = walk.blockwise(small).ops
    assert walk.feeds_at_once(ops, small.blocks)
    assert not walk.feeds_at_once(walk.memory_efficient(small).ops, small.blocks)
    late = [op for op in ops if op[0] == "attend"] + [op for op in ops if op[0] == "feed"]
    assert not walk.feeds_at_once(late, small.blocks)


def test_published_blocks_and_ratios(here: dict[str, Any]) -> None:
    run = here["run"]
    for host in run.FACTS["hosts"]:
        if "block" in host:
            block = run.least_block(host["tflops"], host["gb_per_s"]) / 1e3
            assert block == pytest.approx(host["block"], rel=0.055)
            assert 6 * block == pytest.approx(host["sequence"], rel=0.01)
    for row in run.FACTS["contexts"]:
        assert row["ring"] == row["devices"] * row["blockwise"]
        assert 2 <= row["blockwise"] / row["memory_efficient"] <= 4


def test_tokens_of_160_million(here: dict[str, Any]) -> None:
    """(4 x 64 + 2) x 2 = 516 bytes: 80e9 / 516 = 155.04 million, 80 x 2^30 / 516 = 166.47 million."""
    assert here["run"].token_bytes(64, 2) == 516
    assert 80e9 / 516 < here["run"].FACTS["graph"]["tokens"] < 80 * 2**30 / 516
