"""Finished points on disk: one SQLite file, a row per point, written as each chunk finishes.

A row is keyed by everything its result depends on, so a sweep that is interrupted, killed or
started again never repeats a point, and processes of one machine may share a store.

The log is written ahead (WAL) with `synchronous=NORMAL`: a commit reaches the operating system, so
`kill -9` at any moment loses no committed row and corrupts nothing. Only a power cut may take the
last commits with it; a sync per commit would guard those at the price of every sweep's speed.

Each row has a checksum, so that what a disk or a hand has changed since is noticed: see `damage`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from leansim.answers import Row
from leansim.errors import StoreError
from leansim.sweeps import damage
from leansim.sweeps.damage import checksum

FILE_NAME = "points.sqlite"
LAYOUT = 2
_BUSY_S = 60.0
# A row's key, checksum and record follow each other in the file, where `damage` looks for them.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS points"
    " (key TEXT PRIMARY KEY NOT NULL, checksum TEXT NOT NULL, row TEXT NOT NULL, runs INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sweep (content TEXT NOT NULL, checksum TEXT NOT NULL)",
)


class Store:
    """Rows by key, each with how often it was simulated. Use as a context manager.

    `dropped` are the keys of rows found that are not as they were written, which no answer has, and
    `recovery` says what became of a damaged file, if it was one.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        """Open, creating folder and file if need be; or, without `create`, to read what is there.

        Reading writes nothing, not even where it may. A damaged file is set aside and a new one begun
        with the rows that are whole. Raises `StoreError`.
        """
        self.path = folder / FILE_NAME
        self.dropped: set[str] = set()
        self.recovery: str | None = None
        self._opened = ExitStack()
        if not create and not self.path.is_file():
            raise StoreError(f"{self.path}: found nothing; wanted a results store")
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
                self._open_to_write()
            else:
                self._connection = self._opened.enter_context(damage.reading(self.path))
                self._check_layout()
        except BaseException as error:
            self._opened.close()
            if not isinstance(error, OSError | sqlite3.Error):
                raise
            raise StoreError(f"{self.path}: found {error}; wanted a results store") from None

    def _open_to_write(self) -> None:
        try:
            self._connect()
            found = damage.found(self._connection)
            if found is None and not self._has_changed_rows():
                return
            rows = None if found else list(self._whole())
        except sqlite3.DatabaseError as error:
            if not damage.is_damage(error):
                raise
            found, rows = str(error), None
        self._opened.close()
        if rows is None and not (rows := damage.whole_rows(self.path)):
            raise StoreError(f"{self.path}: found {found}; wanted a results store")
        aside = damage.set_aside(self.path)
        self._connect()
        self._insert(rows)
        found = found or f"{len(self.dropped)} rows that were changed"
        kept = f"{len(rows)} rows are whole and kept"
        self.recovery = f"{self.path}: found {found}; {kept}, and the damaged store is {aside}"

    def _connect(self) -> None:
        # No implicit transactions: each method says where its own begins and ends.
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        self._connection = self._opened.enter_context(closing(connection))
        self._connection.text_factory = bytes
        _patiently(self._connection, "PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self._transaction() as connection:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                self._check_layout()
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={LAYOUT}")

    def _check_layout(self) -> None:
        ((layout,),) = self._read("PRAGMA user_version")
        if layout != LAYOUT:
            found = f"a store of layout {layout}"
            raise StoreError(f"{self.path}: found {found}; wanted {LAYOUT}, or another folder")

    def _has_changed_rows(self) -> bool:
        self.keys()
        return bool(self.dropped)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def put(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Add rows in one transaction and release their claims.

        A key already there keeps its row, and counts one more run.
        """
        texts = [(key, json.dumps(row, sort_keys=True)) for key, row in rows]
        values = [(key, checksum(key, text), text) for key, text in texts]
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO points (key, checksum, row, runs) VALUES (?, ?, ?, 1)"
                " ON CONFLICT (key) DO UPDATE SET runs = runs + 1",
                values,
            )
            connection.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key, _ in texts])

    def claim(self, keys: Sequence[str], anyway: bool = False) -> tuple[set[str], set[str]]:
        """Claim points before simulating them: (those to simulate now, those already finished).

        Points in neither are claimed by another process, or by one that was killed; `anyway` takes
        them too. A claim is a hint that spares work: nothing waits for one, and none expires.
        """
        marks = ",".join("?" * len(keys))
        with self._transaction() as connection:
            select = f"SELECT key FROM {{}} WHERE key IN ({marks})"
            finished, claimed = (
                {key.decode() for (key,) in connection.execute(select.format(table), keys)}
                for table in ("points", "claims")
            )
            mine = set(keys) - finished - (set() if anyway else claimed)
            connection.executemany(
                "INSERT OR IGNORE INTO claims (key) VALUES (?)", [(key,) for key in mine]
            )
        return mine, finished

    def forget(self, keys: Iterable[str]) -> None:
        """Remove rows and claims, as if the points had never been simulated."""
        gone = [(key,) for key in keys]
        with self._transaction() as connection:
            connection.executemany("DELETE FROM points WHERE key = ?", gone)
            connection.executemany("DELETE FROM claims WHERE key = ?", gone)

    def adopt(self, other: Store) -> None:
        """Copy another store's rows and their counts of runs.

        Raises `StoreError` where both have a point and disagree about its result.
        """
        rows = list(other._whole())
        present = {key: row for key, row, _ in self._whole()}
        for key, row, _ in rows:
            if present.get(key, row) != row:
                found = f"two results for the point of key {key}"
                raise StoreError(f"{other.path}: found {found}; wanted what {self.path} has")
        self._insert(rows)

    def _insert(self, rows: Iterable[tuple[str, str, int]]) -> None:
        """Add keys, records and runs; what is there stays."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO points (key, checksum, row, runs) VALUES (?, ?, ?, ?)",
                ((key, checksum(key, row), row, runs) for key, row, runs in rows),
            )

    def keys(self) -> set[str]:
        """Keys of all rows."""
        return {key for key, _, _ in self._whole()}

    def runs(self) -> dict[str, int]:
        """How often each point was simulated to the end: 1, unless work was done twice."""
        return {key: runs for key, _, runs in self._whole()}

    def rows(self, keys: Iterable[str]) -> Iterator[Row | None]:
        """Rows in the order of `keys`, None where there is none."""
        table = {key: row for key, row, _ in self._whole()}
        for key in keys:
            yield json.loads(table[key]) if key in table else None

    def describe(self, sweep: Mapping[str, Any]) -> None:
        """Write down what the latest sweep into this store is to do."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM sweep")
            text = json.dumps(sweep)
            connection.execute(
                "INSERT INTO sweep (content, checksum) VALUES (?, ?)", (text, checksum("", text))
            )

    def description(self) -> dict[str, Any] | None:
        """What the latest sweep into this store was to do, None before the first."""
        for content, told in self._read("SELECT content, checksum FROM sweep"):
            found = json.loads(content) if damage.is_whole(b"", told, content) else None
            if not isinstance(found, dict):
                what = "a description of its sweep that was changed"
                raise StoreError(f"{self.path}: found {what}; wanted it as `leansim sweep` wrote it")
            return found
        return None

    def _whole(self) -> Iterator[tuple[str, str, int]]:
        """Key, record and runs of each row that is as it was written; the others are `dropped`."""
        for key, told, row, runs in self._read("SELECT key, checksum, row, runs FROM points"):
            if damage.is_whole(key, told, row):
                yield key.decode(), row.decode(), runs
            else:
                self.dropped.add(damage.text_of(key))

    def _read(self, statement: str) -> Iterator[tuple[Any, ...]]:
        """Every read but those of a transaction; texts are bytes. Raises `StoreError`."""
        try:
            with closing(self._connection.execute(statement)) as cursor:
                yield from cursor
        except (sqlite3.Error, UnicodeDecodeError) as error:  # what SQLite quotes may be no text
            wanted = "wanted to read it"
            if isinstance(error, UnicodeDecodeError) or damage.is_damage(error):
                wanted = "wanted a whole store: a sweep into its folder recovers the rows that are"
            raise StoreError(f"{self.path}: found {error}; {wanted}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; other writers wait. Raises `StoreError`."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: found {error}; wanted to read and write it") from error


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Execute a statement that SQLite does not wait for locks in by itself."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
