"""Finished points on disk: one SQLite file, a row per point, written as each finishes.

A row is keyed by everything its result depends on, so a sweep that is interrupted, killed or
started again never repeats a point, and two processes may share a store.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from leansim.errors import StoreError

FILE_NAME = "points.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS points (key TEXT PRIMARY KEY, row TEXT NOT NULL)"


class Store:
    """Rows by key. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Open, creating the folder and the file if needed. Raises `StoreError`."""
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(_SCHEMA)
            self._connection.commit()
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreError(f"{self.path}: found {error}; wanted a results store") from None

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

    def put(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Add rows in one transaction; a key already there keeps its row."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO points (key, row) VALUES (?, ?)",
                [(key, json.dumps(row, sort_keys=True)) for key, row in rows],
            )

    def keys(self) -> set[str]:
        """Keys of all rows."""
        with closing(self._connection.execute("SELECT key FROM points")) as cursor:
            return {key for (key,) in cursor}

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any] | None]:
        """Rows in the order of `keys`, None where there is none."""
        with closing(self._connection.execute("SELECT key, row FROM points")) as cursor:
            table = dict(cursor.fetchall())
        for key in keys:
            yield json.loads(table[key]) if key in table else None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection:
            yield self._connection
