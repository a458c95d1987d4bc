"""Numbers of a device or kernel by their path: every number of an instance is reached, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.errors import ConfigError, LeansimError, PairingError, UnknownNameError
from leansim.points.point import Resolved, point, resolve
from leansim.points.simulate import simulate
from leansim.specs import catalog
from leansim.specs.kernel import Kernel
from leansim.specs.overrides import overridden

CALL = {"device": "h100_sxm", "batch_size": 4, "context_len": 4096, "num_q_heads": 32,
        "num_kv_heads": 8, "head_dim": 128}  # fmt: skip


def changed(kernel: str, **numbers: Any) -> Resolved:
    return resolve(point(**CALL, kernel=kernel, overrides=numbers))


def kernel_with(kernel: str, **changes: Any) -> Kernel:
    return overridden(catalog.kernel(kernel), {key.replace("__", "."): v for key, v in changes.items()})


def test_a_number_lies_over_what_tiles_say_of_it() -> None:
    """XQA's instances have fixed costs of their own on sm_90, all of them 1 us here."""
    path = "kernel.start.overhead_s"
    assert resolve(point(**CALL, kernel="trtllm_xqa")).instance.start.overhead_s > 2e-6
    for value in ({path: 1e-6}, {f"{path}.sm_90": 1e-6}):
        assert changed("trtllm_xqa", **value).instance.start.overhead_s == 1e-6
    assert changed("trtllm_xqa", **{f"{path}.sm_80": 1e-6}).instance.start.overhead_s > 2e-6


def test_a_loops_numbers_are_reached_where_they_stand() -> None:
    assert ("stages", 1) in changed("fa3", **{"kernel.loops.pipelined.stages": 1}).instance.loop.numbers
    chain = changed("sglang_triton", **{"kernel.loops.serial_chain.clk": 9000}).instance.loop
    assert (chain.name, dict(chain.numbers)["clk"]) == ("serial_chain", 9000)
    xqa = changed("trtllm_xqa", **{"kernel.loops.pipelined.chain_s.sm_90": 1e-5}).instance.loop
    assert dict(xqa.numbers) == {"stages": 2, "chain_s": 1e-5}


def test_a_tiles_numbers_are_those_of_all_or_of_one() -> None:
    assert changed("fa2", **{"kernel.tiles.tile_tokens": 32}).grid.tile_tokens == 32
    plain = resolve(point(**CALL, kernel="fa2")).grid.tile_tokens
    one = [changed("fa2", **{f"kernel.tiles.{i}.tile_tokens": 32}).grid.tile_tokens for i in range(10)]
    assert sorted({*one}) == sorted({32, plain})
    assert one.count(32) == 1


def test_what_was_changed_says_so() -> None:
    found = changed("sglang_triton", **{"kernel.loops.serial_chain.clk": 9000}).kernel
    assert found.sources["tiles.loop.clk"] == "assumed: overridden for this run"
    assert found.source_counts()["assumed"] > 0


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("kernel.strat.overhead_s", "did you mean 'start'"),
        ("kernel.start.overheads", "did you mean 'overhead_s'"),
        ("kernel.compute.mma_eff.sm_90", "did you mean 'mma_efficiency'"),
        ("kernel.loops.pipelind.stages", "did you mean 'pipelined'"),
        ("kernel.loops.serial_chain.clkk", "tile loop 'serial_chain' 'clkk' .did you mean 'clk'"),
        ("kernel.loops.pipelined.stage", "did you mean 'stages'"),
        ("kernel.tiles.99.threads", "unknown tile of the kernel '99'"),
        ("kernel.tiles.tile_token", "did you mean 'tile_tokens'"),
        ("kernel.tile_order.x", "unknown part"),
        ("device.num_sms.x", "unknown part"),
        ("device.dram_eficiency", "did you mean 'dram_efficiency'"),
    ],
)
def test_what_does_not_exist_is_named(path: str, complaint: str) -> None:
    kernel = "fa3" if "pipelined" in path else "sglang_triton"
    with pytest.raises((ConfigError, UnknownNameError, PairingError), match=complaint):
        simulate(point(**CALL, kernel=kernel, overrides={path: 1}))


def test_an_impossible_number_is_refused() -> None:
    with pytest.raises(LeansimError, match="less than or equal to 1"):
        changed("fa2", **{"kernel.compute.mma_efficiency.sm_90": 2.0})


def test_a_choice_takes_the_place_of_numbers_and_of_their_sources() -> None:
    kernel = kernel_with("sglang_triton", tiles__loop={"name": "pipelined", "stages": 1})
    assert {kernel.loop(tile)[0] for tile in kernel.tiles} == {"pipelined"}
    kernel = kernel_with("sglang_fa3", tiles__loop="pipelined")
    assert {kernel.loop(tile)[0] for tile in kernel.tiles} == {"pipelined"}
    assert "tiles.loop" not in kernel.sources


@pytest.mark.parametrize("path", ["tiles.whole_pages", "ctas.self_contained", "merge.shared"])
def test_what_is_so_can_be_taken_back(path: str) -> None:
    kernel = overridden(catalog.kernel("trtllm_xqa"), {path: False})
    assert path not in kernel.sources


def test_a_number_can_become_none() -> None:
    assert kernel_with("trtllm_gen", merge__grain_bytes=None).merge.grain_bytes is None
    kernel = kernel_with("trtllm_xqa", start__query=None)
    assert all(kernel.mechanism(tile, "start").query is None for tile in kernel.tiles)
    assert not any(key.startswith("tiles.start.query") for key in kernel.sources)


def test_a_number_of_what_some_instances_have_changes_in_these_alone() -> None:
    kernel = kernel_with("trtllm_xqa", start__query__clk=0)
    queries = [kernel.mechanism(tile, "start").query for tile in kernel.tiles]
    assert {query.clk for query in queries if query is not None} == {0}
    assert queries.count(None) == [tile.start.get("query") for tile in kernel.tiles].count(None) > 0


def test_numbers_given_as_text_keep_their_source() -> None:
    kernel = kernel_with("fa2", compute__mma_efficiency="0.5", tiles__whole_pages=False)
    assert kernel.compute.mma_efficiency == 0.5
    assert kernel.sources["compute.mma_efficiency"].startswith("assumed: overridden")
