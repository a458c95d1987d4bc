"""Grids that are large: counted without being expanded, read in parts, refused with their size."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import leansim
from leansim.errors import ConfigError, StoreError
from leansim.files.strict_yaml import parse
from leansim.points.grid import MOST_ON_A_CURVE, MOST_POINTS, PointGrid, build
from leansim.sweeps.store import Store
from leansim.sweeps.sweep import Shard, manifest, sweep

BASE = "name: x\ndevice: h100_sxm\nkernel: [fa2, lean]\nnum_q_heads: 8\nnum_kv_heads: 8\nhead_dim: 64\n"
THOUSAND = list(range(1, 1001))


def grid(text: str) -> PointGrid:
    return build(parse(BASE + text, "f.yaml"))


def huge(extra: str = "") -> PointGrid:
    axes = f"batch_size: {THOUSAND}\ncontext_len: {THOUSAND}\nseed: {THOUSAND[:800]}\n{extra}"
    return grid(axes)


def test_a_huge_grid_is_counted_and_not_made() -> None:
    began = time.perf_counter()
    found = huge("baseline: fa2")
    assert found.size == 2 * 1000 * 1000 * 800
    assert found.policies == ["fa2", "lean"]
    last = found.at(found.size - 1)
    assert (last.kernel, last.batch_size, last.context_len, last.seed) == ("lean", 1000, 1000, 800)
    assert len(found.points(slice(5, None, 10**6))) == 1600
    with pytest.raises(ConfigError, match=f"found 1,600,000,000 points; wanted at most {MOST_POINTS:,}"):
        found.points()
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("verb", ["plan", "predict", "verify", "oracle", "splits", "explain", "regret",
                                  "buckets", "invariance", "tune"])  # fmt: skip
def test_every_verb_refuses_it_with_its_size(verb: str) -> None:
    with pytest.raises(ConfigError, match="1,600,000,000 points"):
        getattr(leansim, verb)(huge())


def test_a_sweep_refuses_it_and_leaves_nothing(tmp_path: Any) -> None:
    for shard, size in ((None, "1,600,000,000"), ("2/100", "16,000,000")):
        with pytest.raises(ConfigError, match=f"{size} points"):
            sweep(huge(), tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="leansim sweep"):
        leansim.run(huge())


def test_a_merge_refuses_it_and_says_where_results_are(tmp_path: Path) -> None:
    """Shards of such a sweep have tables of their own; only one of all points is refused."""
    shard = tmp_path / "shard-1-of-2"
    with Store(shard) as store:
        store.describe(manifest(huge()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=f"1,600,000,000 points; wanted at most {MOST_POINTS:,} .*own"):
        leansim.merge(tmp_path, partial=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_parts_are_the_whole_in_order() -> None:
    found = grid(
        "batch_size: [1, 2, 3]\ncontext_len: [5, 6, 7]\nseed: [0, 1]\nzip: [[batch_size, context_len]]"
    )
    whole = found.points()
    fields = [(point.batch_size, point.context_len, point.kernel, point.seed) for point in whole]
    assert fields == [
        (b, c, k, s) for (b, c), k, s in product([(1, 5), (2, 6), (3, 7)], ["fa2", "lean"], [0, 1])
    ]
    shards = [found.points(Shard(index, 5).part) for index in range(1, 6)]
    assert [len(shard) for shard in shards] == [3, 3, 2, 2, 2]
    assert sorted(map(repr, whole)) == sorted(repr(point) for shard in shards for point in shard)
    assert shards[1] == whole[1::5]


@pytest.mark.parametrize(
    ("curve", "complaint"),
    [
        (
            f"{{context_scale: {list(range(1, MOST_ON_A_CURVE + 2))}}}",
            f"at most {MOST_ON_A_CURVE} items",
        ),
        ("{batch_size: [1, 1e12]}", "wanted a whole number of requests, at most 1,048,576"),
        ("{batch_size: [1, 2000000]}", "at most 1,048,576"),
        ("{context_scale: [1, 1e300]}", "context_scale: found 1e[+]300"),
        ("{context_scale: [true]}", "found True"),
    ],
)
def test_a_curve_has_limits(curve: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        leansim.run(grid(f"batch_size: 2\ncontext_len: 64\ncurve: {curve}"))


def test_a_seed_is_refused_before_anything_is_simulated(tmp_path: Any) -> None:
    for seed in (2**63, 10**30, -1):
        with pytest.raises(ConfigError, match=r"seed\[1\]: found"):
            sweep(grid(f"batch_size: 2\ncontext_len: 64\nseed: [1, {seed}]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = sweep(grid(f"batch_size: 2\ncontext_len: 64\nseed: {2**63 - 1}"), tmp_path / "out", jobs=1)
    assert found.table["seed"].tolist() == [2**63 - 1] * 2
