"""Finished points on disk: one SQLite file, a row per point, written as each chunk finishes.

A row is keyed by everything its result depends on, so a sweep that is interrupted, killed or
started again never repeats a point, and processes of one machine may share a store.

The log is written ahead (WAL) with `synchronous=NORMAL`: a commit reaches the operating system, so
`kill -9` at any moment loses no committed row and corrupts nothing. Only a power cut may take the
last commits with it; a sync per commit would guard those at the price of every sweep's speed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from leansim.answers import Row
from leansim.errors import StoreError

FILE_NAME = "points.sqlite"
LAYOUT = 1
_BUSY_S = 60.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS points"
    " (key TEXT PRIMARY KEY NOT NULL, row TEXT NOT NULL, runs INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sweep (content TEXT NOT NULL)",
)


class Store:
    """Rows by key, each with how often it was simulated. Use as a context manager."""

    def __init__(self, folder: Path, create: bool = True) -> None:
        """Open, creating folder and file if needed and allowed. Raises `StoreError`."""
        self.path = folder / FILE_NAME
        if not create and not self.path.is_file():
            raise StoreError(f"{self.path}: found nothing; wanted a results store")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # No implicit transactions: each method says where its own begins and ends.
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            self._open()
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreError(f"{self.path}: found {error}; wanted a results store") from None

    def _open(self) -> None:
        _patiently(self._connection, "PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self._transaction() as connection:
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if layout != LAYOUT and tables:
                found = f"a store of layout {layout}"
                raise StoreError(f"{self.path}: found {found}; wanted {LAYOUT}, or another folder")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={LAYOUT}")

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
        self._connection.close()

    def put(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Add rows in one transaction and release their claims.

        A key already there keeps its row, and counts one more run.
        """
        values = [(key, json.dumps(row, sort_keys=True)) for key, row in rows]
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO points (key, row, runs) VALUES (?, ?, 1)"
                " ON CONFLICT (key) DO UPDATE SET runs = runs + 1",
                values,
            )
            connection.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key, _ in values])

    def claim(self, keys: Sequence[str], anyway: bool = False) -> tuple[set[str], set[str]]:
        """Claim points before simulating them: (those to simulate now, those already finished).

        Points in neither are claimed by another process, or by one that was killed; `anyway` takes
        them too. A claim is a hint that spares work: nothing waits for one, and none expires.
        """
        marks = ",".join("?" * len(keys))
        with self._transaction() as connection:
            select = f"SELECT key FROM {{}} WHERE key IN ({marks})"
            finished = {key for (key,) in connection.execute(select.format("points"), keys)}
            claimed = {key for (key,) in connection.execute(select.format("claims"), keys)}
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
        select = "SELECT key, row, runs FROM points"
        with closing(other._connection.execute(select)) as cursor:
            rows = cursor.fetchall()
        with self._transaction() as connection:
            present = dict(connection.execute("SELECT key, row FROM points").fetchall())
            for key, row, _ in rows:
                if present.get(key, row) != row:
                    found = f"two results for the point of key {key}"
                    raise StoreError(f"{other.path}: found {found}; wanted what {self.path} has")
            connection.executemany(
                "INSERT OR IGNORE INTO points (key, row, runs) VALUES (?, ?, ?)", rows
            )

    def keys(self) -> set[str]:
        """Keys of all rows."""
        with closing(self._connection.execute("SELECT key FROM points")) as cursor:
            return {key for (key,) in cursor}

    def runs(self) -> dict[str, int]:
        """How often each point was simulated to the end: 1, unless work was done twice."""
        with closing(self._connection.execute("SELECT key, runs FROM points")) as cursor:
            return dict(cursor.fetchall())

    def rows(self, keys: Iterable[str]) -> Iterator[Row | None]:
        """Rows in the order of `keys`, None where there is none."""
        with closing(self._connection.execute("SELECT key, row FROM points")) as cursor:
            table = dict(cursor.fetchall())
        for key in keys:
            yield json.loads(table[key]) if key in table else None

    def describe(self, sweep: Mapping[str, Any]) -> None:
        """Write down what the latest sweep into this store is to do."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM sweep")
            connection.execute("INSERT INTO sweep (content) VALUES (?)", (json.dumps(sweep),))

    def description(self) -> dict[str, Any] | None:
        """What the latest sweep into this store was to do, None before the first."""
        found = self._connection.execute("SELECT content FROM sweep").fetchone()
        return None if found is None else dict(json.loads(found[0]))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; other writers wait. Raises `StoreError`."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path}: found {error}; wanted to read and write it") from None


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
