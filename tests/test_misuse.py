"""Things users do by mistake or on purpose, each answered with a named error or the right number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import leansim
from leansim.errors import ConfigError, LeansimError, PartitionerError
from leansim.files.strict_yaml import parse
from leansim.points import grid as config
from leansim.points.point import point, resolve
from leansim.points.settings import parse_value
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ONE = {"device": "h100_sxm", "kernel": "fa2", "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128}
BASE = "name: x\ndevice: h100_sxm\nkernel: [fa2, lean]\nnum_q_heads: 8\nnum_kv_heads: 8\nhead_dim: 64\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batch_size: [1, 2]\ncontext_len: [1k, 2k]\nseed: [1, 2]\n"
         "zip: [[batch_size, context_len], [batch_size, seed]]", "batch_size again"),
        ("batch_size: [1, 2]\ncontext_len: 5\nzip: [[batch_size, batch_size]]", "an axis twice"),
        ("batch_size: true\ncontext_len: 5", "not true or false"),
        ("batch_size: 1\ncontext_len: 5\nbaseline: fa2+flash_decoding", "wanted one of fa2, lean"),
        ("batch_size: 1\ncontext_len: 5\ncurve: {batch_size: [1, 2.5]}", "whole number of requests"),
        ("batch_size: 1\ncontext_len: 5\ncurve: &a {batch_size: *a}", "nesting without end"),
        ("batch_size: 1\ncontext_len: 1e30", r"context_len\[0\]: found 1e\+30"),
        ("batch_size: " + "9" * 400, "wanted"),
        ("batch_size: 1\ncontext_len: 5\nfoo: " + "[" * 2000, "deep nesting|valid YAML"),
    ],
)  # fmt: skip
def test_files(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config.build(parse(BASE + text)).points()


@pytest.mark.parametrize(
    "overrides",
    [
        {"device.num_sms.foo": 1},
        {"device.kernel_gap_s.graph.0": 1},
        {"kernel.combine.threads": 1},
        {"device.dram_efficiency": [[1e9, 0.9], [1e6, 0.5]]},
        {"device.dram_saturation_exponent": 5000},
        {"device.cta_launch_s": 1e300},
        {"device.dram_bandwidth_bytes_per_s": 1e-300},
        {"device.sm_clock_hz": 1e-300},
        {"kernel.compute.softmax_fma_per_score": 1e300},
        {"device.num_sms": 0},
    ],
    ids=str,
)
def test_impossible_numbers(overrides: dict[str, Any]) -> None:
    kernel = "lean" if "kernel.combine.threads" in overrides else "fa2"
    fields = {**ONE, "kernel": kernel, "batch_size": 2, "context_len": 4096, "overrides": overrides}
    with pytest.raises(LeansimError):
        leansim.simulate(point(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 10**9, "context_len": 5},
        {"batch_size": 1, "context_len": 5, "context_scale": 1e30},
        {"batch_size": 4, "context_len": 5000, "context_len_cv": 1e200},
        {"batch_size": 1, "context_len": 5, "window": 10**30},
        {"context_lens": (5,), "context_len_cv": 2.0},
    ],
    ids=str,
)
def test_huge_and_idle_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(LeansimError):
        resolve(point(**ONE, **fields))


def test_a_trailing_comma_is_not_another_point() -> None:
    with pytest.raises(ConfigError, match="between and after commas"):
        parse_value("1,2,")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("top_k(budget=64, page=16)", "top_k(budget=64, page=16)"),
        (
            "top_k(budget=64, page=16), dilated(window=3,stride=2)",
            ["top_k(budget=64, page=16)", "dilated(window=3,stride=2)"],
        ),
        ("window_sink(window=64), 3", ["window_sink(window=64)", 3]),
        ("1,2", [1, 2]),
    ],
)
def test_a_comma_in_parentheses_makes_no_list(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_a_flag_is_not_blamed_on_the_file() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: command line: batch_size\[0\]: found 0"):
        config.build(parse(BASE + "batch_size: 2\ncontext_len: 5", "f.yaml"), ["batch_size=0"])


@dataclass(frozen=True)
class Raising:
    def __call__(self, *_: Any) -> Schedule:
        return 1 // 0  # type: ignore[return-value]


@dataclass(frozen=True)
class ReturningText:
    def __call__(self, *_: Any) -> Schedule:
        return "a schedule"  # type: ignore[return-value]


@dataclass(frozen=True)
class OnAnotherGrid:
    def __call__(self, grid: TileGrid, _: Device) -> Schedule:
        n = grid.num_output_tiles
        other = grid.with_slots(1, 1)
        return Schedule(other, np.arange(n), np.arange(n), np.zeros(n), grid.num_kv_tiles, num_ctas=n)


@pytest.mark.parametrize("partitioner", [Raising(), ReturningText(), OnAnotherGrid()], ids=repr)
def test_bad_partitioners_are_named(partitioner: Any) -> None:
    resolved = resolve(point(**ONE, batch_size=2, context_len=300))
    with pytest.raises(PartitionerError, match=type(partitioner).__name__):
        _ = replace(resolved, partitioner=partitioner).schedule


def test_row_blocks_read_kv_from_dram_once() -> None:
    """Four row blocks of packed rows, or 32 unpacked query heads, share the KV of a head.

    The rest are rows, which pass DRAM once: Q, the output, and partials on their way out, not back.
    """
    shape = {"device": "h100_sxm", "num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    batch = {"batch_size": 4, "context_len": 4096, "query_len": 64}
    for kernel in ("lean", "fa2"):
        simulation = leansim.simulate(point(kernel=kernel, **shape, **batch))
        kv, metrics = simulation.resolved.workload.kv_bytes, simulation.metrics
        rows = metrics.q_bytes + metrics.o_bytes + metrics.partial_bytes / 2
        assert 0.99 * kv <= metrics.dram_bytes - rows <= kv * (1 + 1e-12)  # early rows see a little less
        assert metrics.kv_bytes > 3 * kv


def test_the_tail_is_not_the_whole_run_because_one_slot_is_unused() -> None:
    simulation = leansim.simulate(point(**{**ONE, "kernel": "lean"}, batch_size=1, context_len=2**20))
    assert simulation.schedule.num_ctas < simulation.schedule.grid.slots
    assert simulation.metrics.tail_s < 0.05 * simulation.metrics.makespan_s


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"kernel.loops.pipelined.stages": 0}, "out of range"),
        ({"kernel.loops.pipelined.stages": 10**30}, "stages: .*wanted a number from 0 to 1e18"),
        ({"kernel.loops.pipelined.stages": -1}, "wanted a number from 0"),
        ({"kernel.tiles.loop.busy_s": "fa2"}, "busy_s: "),
        ({"kernel.tiles.loop.busy_s.sm_90": True}, "not true or false"),
        ({"device.sources": "x"}, "unknown device number 'sources'"),
        ({"kernel.name": "x"}, "unknown kernel number 'name'"),
    ],
    ids=str,
)
def test_numbers_of_loops_and_what_is_no_number(overrides: dict[str, Any], complaint: str) -> None:
    fields = {**ONE, "kernel": "fa3", "batch_size": 2, "context_len": 4096, "overrides": overrides}
    with pytest.raises(LeansimError, match=complaint):
        leansim.simulate(point(**fields))
