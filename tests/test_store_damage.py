"""Stores and manifests that a disk or a hand has damaged: what is whole is kept, the rest named."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sweeping import TOTAL, grid, results, runs

from leansim.errors import StoreError
from leansim.files.artifacts import MANIFEST
from leansim.report.plots import plot
from leansim.sweeps import damage
from leansim.sweeps.merging import merge
from leansim.sweeps.store import FILE_NAME, Store
from leansim.sweeps.sweep import RESULTS, read_results, sweep

KEYS = [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(400)]
ROWS = {key: {"x": i, "text": "é|" * 100, "error": None} for i, key in enumerate(KEYS)}
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep and its results, never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert sweep(grid(), folder, jobs=1).simulated == TOTAL
    return folder


@pytest.fixture
def damaged(tmp_path: Path, whole: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        connection.execute(statement)


def filled(folder: Path) -> Path:
    with Store(folder) as store:
        store.put(ROWS.items())
    return folder / FILE_NAME


# --- rows ----------------------------------------------------------------------------------------

CHANGES = {
    "a digit": "UPDATE points SET row = replace(row, 'latency_s\": ', 'latency_s\": 1') WHERE rowid = 2",
    "a cut row": "UPDATE points SET row = substr(row, 1, 40) WHERE rowid = 2",
    "no row": "UPDATE points SET row = '' WHERE rowid = 2",
    "a blob": "UPDATE points SET row = x'00ff' WHERE rowid = 2",
    "no text": "UPDATE points SET row = CAST(x'ff' AS TEXT) WHERE rowid = 2",
    "a number": "UPDATE points SET checksum = 7 WHERE rowid = 2",
    "another's row": "UPDATE points SET (row, checksum) ="
    " (SELECT row, checksum FROM points WHERE rowid = 3) WHERE rowid = 2",
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_changed_row_is_not_believed_but_simulated_again(
    damaged: Path, whole: Path, changed: str
) -> None:
    change(damaged, CHANGES[changed])
    done = sweep(grid(), damaged, jobs=1)
    assert (done.simulated, done.reused) == (1, TOTAL - 1)
    assert results(damaged) == results(whole)
    kept, told = done.damage
    assert f"{FILE_NAME}: found 1 rows that were changed; {TOTAL - 1} rows are whole and kept" in kept
    assert f"{FILE_NAME}: found a row that was changed, of device=a100_sxm_80gb, kernel=fa2" in told
    assert done.notes()[:2] == [kept, told]
    assert sweep(grid(), damaged, jobs=1).damage == ()


def test_a_changed_row_of_another_grid_is_named_too(damaged: Path) -> None:
    change(damaged, CHANGES["a digit"])
    _, told = sweep(grid(batch_size=9), damaged, jobs=1).damage
    assert told.endswith("found 1 rows of other points that were changed: left out")


def test_a_changed_row_is_no_answer_of_a_reader_which_changes_nothing(damaged: Path) -> None:
    change(damaged, CHANGES["a digit"])
    before = (damaged / FILE_NAME).read_bytes()
    with Store(damaged, create=False) as store:
        keys = store.keys()
        assert len(keys) == len(store.runs()) == TOTAL - 1
        (lost,) = store.dropped
        assert list(store.rows([lost])) == [None]
    assert (damaged / FILE_NAME).read_bytes() == before
    assert sorted(path.name for path in damaged.glob(f"{FILE_NAME}*")) == [FILE_NAME]


def test_merging_shards_with_a_changed_row(tmp_path: Path) -> None:
    small = grid(batch_size=[1, 2])
    for i in (1, 2):
        sweep(small, tmp_path, jobs=1, shard=f"{i}/2")
    change(tmp_path / "shard-2-of-2", CHANGES["a digit"])
    found = (
        "found 1 rows that were changed: left out\nmerge: found 47 of 48 points, 1 missing, the first: "
    )
    with pytest.raises(StoreError, match=found):
        merge(tmp_path)
    assert not (tmp_path / RESULTS).exists()
    merged = merge(tmp_path, partial=True)
    assert len(merged.table) == 47
    assert "found 1 rows that were changed" in merged.notes()[0]
    sweep(small, tmp_path, jobs=1, shard="2/2")
    assert len(merge(tmp_path).table) == 48


DESCRIPTIONS = {
    "a changed one": ("UPDATE sweep SET content = replace(content, '1000', '1001')", "was changed"),
    "none": ("DELETE FROM sweep", "found no sweep in it"),
    "null": (f"UPDATE sweep SET content = 'null', checksum = '{damage.checksum('', 'null')}'", "found"),
    "an empty one": (f"UPDATE sweep SET content = '{{}}', checksum = '{damage.checksum('', '{}')}'",
                     "found no sweep in it"),
    "a list": (f"UPDATE sweep SET content = '[1]', checksum = '{damage.checksum('', '[1]')}'", "found"),
    "no table": ("DROP TABLE sweep", "no such table: sweep"),
    "no points": ("DROP TABLE points", "no such table: points"),
}  # fmt: skip


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_merging_a_store_that_does_not_say_what_it_is(tmp_path: Path, case: str) -> None:
    statement, found = DESCRIPTIONS[case]
    part = sweep(grid(batch_size=1), tmp_path, jobs=1, shard="1/1").folder
    change(part, statement)
    with pytest.raises(StoreError, match=found):
        merge(tmp_path)
    assert not (tmp_path / RESULTS).exists()


# --- pages ---------------------------------------------------------------------------------------


def cut(share: float) -> Damage:
    def work(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return work


def flipped(seed: int, first: int = 0) -> Damage:
    """A page of noise, from the `first` one on."""

    def work(path: Path) -> None:
        content, draw = bytearray(path.read_bytes()), random.Random(seed)
        at = draw.randrange(first, len(content) // 4096) * 4096
        content[at : at + 4096] = draw.randbytes(4096)
        path.write_bytes(content)

    return work


def bits(seed: int) -> Damage:
    def work(path: Path) -> None:
        content, draw = bytearray(path.read_bytes()), random.Random(seed)
        for _ in range(8):
            content[draw.randrange(4096, len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return work


def check_recovery(folder: Path, work: Damage) -> int:
    """Damage a store; what opening it again keeps is as it was written. How many rows those are."""
    path = filled(folder)
    work(path)
    try:
        with Store(folder) as store:
            kept = dict(zip(KEYS, store.rows(KEYS), strict=True))
            assert all(row is None or row == ROWS[key] for key, row in kept.items())
            lost = [key for key in KEYS if kept[key] is None]
            assert not lost or store.recovery or store.dropped, "what is lost is told"
            store.put((key, ROWS[key]) for key in lost)
            assert list(store.rows(KEYS)) == list(ROWS.values())
    except StoreError:  # nothing in it is whole, or it is none of ours any more
        return 0
    with Store(folder) as store:
        assert (store.recovery, store.dropped) == (None, set())
        assert store.keys() == set(KEYS)
    return len(KEYS) - len(lost)


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.2])
def test_what_is_whole_of_a_cut_store_is_recovered(tmp_path: Path, share: float) -> None:
    assert check_recovery(tmp_path, cut(share)) >= 0.7 * share * len(KEYS)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_whole_beside_a_flipped_page_is_recovered(tmp_path: Path, seed: int) -> None:
    assert check_recovery(tmp_path, flipped(seed, first=3)) >= 0.8 * len(KEYS)


def test_without_its_first_page_too(tmp_path: Path) -> None:
    def beheaded(path: Path) -> None:
        path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:])

    assert check_recovery(tmp_path, beheaded) > 0.9 * len(KEYS)
    assert (tmp_path / f"{FILE_NAME}.damaged-1").exists(), "the damaged one is kept"


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(150))
def test_any_damage_at_all(tmp_path: Path, seed: int) -> None:
    for name, work in (("page", flipped(seed)), ("bits", bits(seed)), ("cut", cut((seed + 1) / 151))):
        check_recovery(tmp_path / name, work)


def test_a_sweep_goes_on_from_a_damaged_store(damaged: Path, whole: Path) -> None:
    cut(0.7)(damaged / FILE_NAME)
    done = sweep(grid(), damaged, jobs=1)
    assert 0 < done.simulated < TOTAL
    assert results(damaged) == results(whole)
    (told,) = done.damage
    assert f"{done.reused} rows are whole and kept, and the damaged store is " in told
    assert set(runs(damaged)) == {1}


@pytest.mark.parametrize("work", [cut(0.6), cut(0.0001), cut(0.0)])
def test_a_reader_says_what_to_do_about_a_damaged_store(damaged: Path, work: Damage) -> None:
    work(damaged / FILE_NAME)
    with pytest.raises(StoreError, match=f"{FILE_NAME}: found .*; wanted "):
        merge(damaged / "out", [damaged])
    assert not (damaged / "out").exists()


# --- reading without writing ---------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from leansim.sweeps.store import Store
store = Store(Path(sys.argv[1]))
store.put([("a", {"x": 1})])
os._exit(0)  # its log stays
"""


def test_a_store_that_a_killed_writer_left_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=True)
    (tmp_path / f"{FILE_NAME}-shm").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before[f"{FILE_NAME}-wal"]
    connected = damage._connected

    def refused(path: Path, how: str) -> sqlite3.Connection:
        if path.parent == tmp_path:
            raise sqlite3.OperationalError("unable to open database file")
        return connected(path, how)

    monkeypatch.setattr(damage, "_connected", refused)
    with Store(tmp_path, create=False) as store:
        assert list(store.rows(["a"])) == [{"x": 1}]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_reader_beside_a_writer_sees_what_is_committed(tmp_path: Path) -> None:
    with Store(tmp_path) as writer:
        writer.put([("a", {})])
        with Store(tmp_path, create=False) as reader:
            assert reader.keys() == {"a"}
            with pytest.raises(StoreError, match="readonly"):
                reader.put([("b", {})])


def test_a_folder_with_signs_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% #1?mode=memory&x"
    filled(folder)
    with Store(folder, create=False) as store:
        assert store.keys() == set(KEYS)


# --- results and manifest ------------------------------------------------------------------------

MANIFESTS = (
    "",
    "null",
    "[]",
    "{",
    "{}",
    '{"config": null}',
    '{"config": {}}',
    "[" * 9000,
    "\0",
    "\ud800",
)


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_manifest_that_is_none(damaged: Path, text: str) -> None:
    (damaged / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StoreError, match=rf"{MANIFEST}: found .*; wanted "):
        read_results(damaged)
    with pytest.raises(StoreError):
        plot(damaged)
    assert sweep(grid(), damaged, jobs=1).simulated == 0
    assert read_results(damaged)[1]["config"]["name"] == "small"


@pytest.mark.parametrize("work", [cut(0.5), cut(0.0), flipped(1), bits(2)])
def test_results_that_were_changed(damaged: Path, work: Damage) -> None:
    work(damaged / RESULTS)
    with pytest.raises(StoreError, match=f"{RESULTS}: found a file that was changed or cut"):
        plot(damaged)


def test_results_of_something_else(damaged: Path) -> None:
    import pandas as pd

    manifest = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps({"config": manifest["config"]}))  # lists nothing
    pd.DataFrame({"x": [1]}).to_parquet(damaged / RESULTS)
    with pytest.raises(StoreError, match="found no column 'device'; wanted results"):
        plot(damaged)
    (damaged / RESULTS).write_text("PAR1")
    with pytest.raises(StoreError, match=f"{RESULTS}: found .*; wanted results"):
        plot(damaged)
