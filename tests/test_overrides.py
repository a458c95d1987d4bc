"""What `--set` puts in the place of a number: a choice, nothing, or a number of some instances alone."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.specs import catalog
from leansim.specs.kernel import Kernel
from leansim.specs.overrides import overridden


def changed(kernel: str, **changes: Any) -> Kernel:
    return overridden(catalog.kernel(kernel), {key.replace("__", "."): v for key, v in changes.items()})


def test_a_choice_takes_the_place_of_numbers_and_of_their_sources() -> None:
    kernel = changed("sglang_triton", tiles__loop={"name": "pipelined", "stages": 1})
    assert {kernel.loop(tile)[0] for tile in kernel.tiles} == {"pipelined"}
    kernel = changed("sglang_fa3", tiles__loop="pipelined")
    assert {kernel.loop(tile)[0] for tile in kernel.tiles} == {"pipelined"}
    assert "tiles.loop" not in kernel.sources


@pytest.mark.parametrize("path", ["tiles.whole_pages", "ctas.self_contained", "merge.shared"])
def test_what_is_so_can_be_taken_back(path: str) -> None:
    kernel = overridden(catalog.kernel("trtllm_xqa"), {path: False})
    assert path not in kernel.sources


def test_a_number_can_become_none() -> None:
    assert changed("trtllm_gen", merge__grain_bytes=None).merge.grain_bytes is None
    kernel = changed("trtllm_xqa", start__query=None)
    assert all(kernel.mechanism(tile, "start").query is None for tile in kernel.tiles)
    assert not any(key.startswith("tiles.start.query") for key in kernel.sources)


def test_a_number_of_what_some_instances_have_changes_in_these_alone() -> None:
    kernel = changed("trtllm_xqa", start__query__clk=0)
    queries = [kernel.mechanism(tile, "start").query for tile in kernel.tiles]
    assert {query.clk for query in queries if query is not None} == {0}
    assert queries.count(None) == [tile.start.get("query") for tile in kernel.tiles].count(None) > 0


def test_numbers_given_as_text_keep_their_source() -> None:
    kernel = changed("fa2", compute__mma_efficiency="0.5", tiles__whole_pages=False)
    assert kernel.compute.mma_efficiency == 0.5
    assert kernel.sources["compute.mma_efficiency"].startswith("assumed: overridden")
