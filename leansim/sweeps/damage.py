"""What a store does about damage: notices it, reads without doing any, and recovers what is whole.

A row is whole if its checksum says so, wherever in the file its bytes are found.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

# Key and checksum as `Store` writes them, with the record behind them.
_ROW = re.compile(rb"((?:refused:)?[0-9a-f]{32})([0-9a-f]{8})(?=\{)")
_PAGE_BYTES = 4096
_SIDE_FILES = ("", "-wal", "-shm")


def checksum(key: str, text: str) -> str:
    """CRC-32 of a key and its record, in hexadecimal."""
    return f"{zlib.crc32(text.encode(), zlib.crc32(key.encode())):08x}"


def is_whole(key: Any, told: Any, row: Any) -> bool:
    """Whether a row, as it was read, is as it was written."""
    if not (isinstance(key, bytes) and isinstance(told, bytes) and isinstance(row, bytes)):
        return False
    return told == b"%08x" % zlib.crc32(row, zlib.crc32(key))


def text_of(key: Any) -> str:
    """A key as it was read, for people, and for deleting it."""
    return key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error of SQLite means that the file is damaged, or none of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def found(connection: sqlite3.Connection) -> str | None:
    """What is wrong with the pages of a file, if anything."""
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return None if said == b"ok" else text_of(said).splitlines()[-1]


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store that need not be writable, nor its folder, and leave nothing new beside it.

    Where a writer was killed, and its log cannot be read as it is, both are copied first.
    """
    with ExitStack() as stack:
        log = path.with_name(f"{path.name}-wal")
        if not log.exists() or not log.stat().st_size:
            yield stack.enter_context(closing(_connected(path, "immutable=1")))
            return
        try:
            connection = _connected(path, "mode=ro")
        except sqlite3.OperationalError:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            for file, to in ((path, copy), (log, copy.with_name(log.name))):
                shutil.copyfile(file, to)
            connection = _connected(copy, "mode=rw")
        yield stack.enter_context(closing(connection))


def _connected(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    connection.text_factory = bytes
    return connection


def whole_rows(path: Path) -> list[tuple[str, str, int]]:
    """Key and record of all rows whose bytes are in a damaged store or its log, and whole; and 1 run.

    Also of rows that were removed and not yet written over. A row over several pages is not found.
    """
    rows = {}
    for file in (path, path.with_name(f"{path.name}-wal")):
        content = file.read_bytes() if file.exists() else b""
        for match in _ROW.finditer(content):
            key, told = match.groups()
            row = _record(content[match.end() : match.end() + _PAGE_BYTES])
            if row is not None and is_whole(key, told, row):
                rows[key.decode()] = row.decode()
    return [(key, row, 1) for key, row in rows.items()]


def _record(content: bytes) -> bytes | None:
    """The record that some bytes begin with."""
    try:
        _, end = json.JSONDecoder().raw_decode(content.decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    return content[:end]


def set_aside(path: Path) -> Path:
    """Rename a damaged store and its log, and return the new name."""
    for number in range(1, 10_000):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            break
    for end in _SIDE_FILES:
        file = path.with_name(path.name + end)
        if file.exists():
            file.rename(aside.with_name(aside.name + end))
    return aside
