"""Sweeps in parts: the shards of a grid, and their merging."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from sweeping import AXES, TOTAL, grid, leansim, results, runs

from leansim.errors import ConfigError, StoreError
from leansim.sweeps import merging
from leansim.sweeps import sweep as sweeps
from leansim.sweeps.sweep import RESULTS, Shard, sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, simulated in turn and never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert sweep(grid(), folder, jobs=1).simulated == TOTAL
    return folder


@pytest.mark.parametrize("count", [1, 3, 7, TOTAL + 1])
def test_shards_part_the_points(count: int) -> None:
    points = grid().points()
    parts = [points[Shard(i, count).part] for i in range(1, count + 1)]
    assert sorted(map(repr, itertools.chain(*parts))) == sorted(map(repr, points))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted i/n with i from 1 to n"):
        Shard.parse(text)


def test_merged_shards_equal_the_whole(whole: Path, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        part = sweep(grid(), tmp_path, jobs=1, shard=f"{i}/3")
        assert part.folder == tmp_path / f"shard-{i}-of-3"
        assert len(part.table) == TOTAL // 3
    merged = merging.merge(tmp_path)
    assert (merged.simulated, merged.reused, merged.refused) == (0, TOTAL, 24)
    assert results(tmp_path) == results(whole)
    assert merging.merge(tmp_path).folder == tmp_path, "merging again is no mistake"
    assert set(runs(tmp_path)) == {1}
    assert sweep(grid(), tmp_path, jobs=1).simulated == 0, "and a sweep goes on from there"


@pytest.mark.thorough
def test_merge_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(AXES))
    for shard in ("1/4", "3/4"):
        done = leansim("sweep", "s.yaml", "-o", "out", "--shard", shard, "-j", "1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    missing = leansim("merge", "out", cwd=tmp_path)
    assert missing.returncode == 2
    first = "device=a100_sxm_80gb, kernel=fa2, batch_size=1, context_len=2000, num_q_heads=8"
    assert f"found 36 of 72 points, 36 missing, the first: {first}" in missing.stderr
    assert not (tmp_path / "out" / RESULTS).exists()
    folders = ("out/shard-1-of-4", "out/shard-3-of-4")
    there = leansim("merge", "joined", *folders, "--partial", "--no-plots", cwd=tmp_path)
    assert "36 points in joined: 0 simulated, 36 already there" in there.stdout
    for shard in ("2/4", "4/4"):
        leansim("sweep", "s.yaml", "-o", "out", "--shard", shard, "-j", "1", cwd=tmp_path)
    rest = leansim("merge", "joined", "out/shard-2-of-4", "out/shard-4-of-4", cwd=tmp_path)
    assert "72 points in joined" in rest.stdout
    assert (tmp_path / "joined" / "winner_map.png").exists()


def test_merge_refuses_what_does_not_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    small = grid(batch_size=1)
    sweep(small, one, jobs=1, shard="1/2")
    sweep(grid(batch_size=2), two, jobs=1, shard="2/2")
    shards = [one / "shard-1-of-2", two / "shard-2-of-2"]
    with pytest.raises(StoreError, match="found another config; wanted that of"):
        merging.merge(tmp_path / "out", shards)
    with pytest.raises(StoreError, match="found no shards"):
        merging.merge(tmp_path / "out")
    with pytest.raises(StoreError, match="found nothing; wanted a results store"):
        merging.merge(tmp_path / "out", [tmp_path])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sweeps, "__version__", "0.0.9")
    sweep(small, two, jobs=1, shard="2/2")
    with pytest.raises(StoreError, match=r"found another model version \(0\.0\.9\)"):
        merging.merge(tmp_path / "out", shards)
    with pytest.raises(StoreError, match=r"found results of version 0\.0\.9; wanted"):
        merging.merge(tmp_path / "out", shards[1:])
