"""The results store: what is committed stays, and processes share it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from leansim.errors import StoreError
from leansim.points import keys
from leansim.sweeps.store import FILE_NAME, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def test_rows_come_back_in_the_order_asked_for(store: Store) -> None:
    rows = [("b", {"x": 0.1, "error": None}), ("a", {"x": 1e-300, "error": "why"})]
    store.put(rows)
    assert list(store.rows(["a", "none", "b"])) == [rows[1][1], None, rows[0][1]]
    assert store.keys() == {"a", "b"}


def test_a_row_once_there_stays_and_a_second_run_is_counted(store: Store) -> None:
    store.put([("a", {"x": 1}), ("b", {"x": 2})])
    store.put([("a", {"x": 3})])
    assert next(store.rows(["a"])) == {"x": 1}
    assert store.runs() == {"a": 2, "b": 1}
    store.forget(["a"])
    store.put([("a", {"x": 3})])
    assert (next(store.rows(["a"])), store.runs()["a"]) == ({"x": 3}, 1)


def test_claims_part_the_work_and_none_is_stuck(tmp_path: Path) -> None:
    with Store(tmp_path) as one, Store(tmp_path) as other:
        one.put([("done", {})])
        assert one.claim(["a", "b", "done"]) == ({"a", "b"}, {"done"})
        assert other.claim(["b", "c", "done"]) == ({"c"}, {"done"})
        assert other.claim(["b", "done"], anyway=True) == ({"b"}, {"done"})
        one.put([("a", {}), ("b", {})])
        assert other.claim(["a", "b"], anyway=True) == (set(), {"a", "b"})
        one.forget(["a", "c"])
        assert one.claim(["a", "c"]) == ({"a", "c"}, set())


def test_a_failing_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(TypeError):
        store.put([("a", {}), ("b", {"x": object()})])
    refused = "WHEN NEW.key = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
    store._connection.execute(f"CREATE TRIGGER no BEFORE INSERT ON points {refused}")
    with pytest.raises(StoreError, match="found no; wanted to read and write it"):
        store.put([("a", {}), ("b", {})])
    assert store.keys() == set()
    store.put([("a", {})])
    assert store.keys() == {"a"}


def test_adopting_another_store(tmp_path: Path) -> None:
    with Store(tmp_path / "one") as one, Store(tmp_path / "two") as two:
        one.put([("a", {"x": 1})])
        two.put([("a", {"x": 1}), ("b", {"x": 2})])
        one.adopt(two)
        one.adopt(two)
        assert list(one.rows("ab")) == [{"x": 1}, {"x": 2}]
        assert one.runs() == {"a": 1, "b": 1}
        two.put([("c", {"x": 1})])
        one.put([("c", {"x": 2})])
        with pytest.raises(StoreError, match="two results for the point of key c"):
            one.adopt(two)


def test_what_a_store_is_for(store: Store) -> None:
    assert store.description() is None
    store.describe({"a": 1})
    store.describe({"a": 2})
    assert store.description() == {"a": 2}


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found nothing; wanted a results store"):
        Store(tmp_path, create=False)
    (tmp_path / FILE_NAME).write_text("not a database, and long enough to be read as one" * 100)
    with pytest.raises(StoreError, match="wanted a results store"):
        Store(tmp_path)
    (tmp_path / "old").mkdir()
    with closing(sqlite3.connect(tmp_path / "old" / FILE_NAME)) as old:
        old.execute("CREATE TABLE points (key TEXT PRIMARY KEY, row TEXT)")
    with pytest.raises(StoreError, match="found a store of layout 0; wanted 2"):
        Store(tmp_path / "old")


WRITER = """
import sys
from pathlib import Path
from leansim.sweeps.store import Store
name, count = sys.argv[1], int(sys.argv[2])
with Store(Path("shared")) as store:
    for i in range(count):
        store.put([(f"{name}-{i}-{j}", {"i": i}) for j in range(4)] + [("both", {})])
        print(i, flush=True)
"""


def writer(tmp_path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, name, str(count)]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


def test_processes_open_and_write_one_store_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path, name, 100) for name in "abcd"]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with Store(tmp_path / "shared") as store:
        assert len(store.keys()) == 4 * 100 * 4 + 1
        assert store.runs()["both"] == 400


def test_a_killed_writer_loses_nothing_it_committed(tmp_path: Path) -> None:
    with writer(tmp_path, "a", 10**9) as process:
        assert process.stdout is not None
        last = [process.stdout.readline() for _ in range(50)][-1]
        os.kill(process.pid, signal.SIGKILL)
        last = process.stdout.read().splitlines()[-1:] or [last]
    with Store(tmp_path / "shared") as store:
        keys = store.keys()
        assert {f"a-{i}-{j}" for i in range(int(last[0])) for j in range(4)} <= keys
        assert (len(keys) - 1) % 4 == 0, "a transaction is whole"
    with closing(sqlite3.connect(tmp_path / "shared" / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_keys_know_the_source_of_the_time_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed line anywhere in the model is another model, whatever the version says."""
    package = Path(keys.__file__).parent.parent
    copied = tmp_path / "leansim"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__", "data"))
    monkeypatch.setattr(keys, "__file__", str(copied / "points" / "keys.py"))
    digest = keys.model_digest.__wrapped__
    before = digest()
    assert before == digest() == keys.model_digest()
    for name in ("timing/memory.py", "engine/sharing.py", "partitioners/stream_k.py"):
        with (copied / name).open("a") as file:
            file.write("# another model\n")
        assert digest() != before
        before = digest()
    with (copied / "cli" / "main.py").open("a") as file:
        file.write("# the same model\n")
    assert digest() == before
