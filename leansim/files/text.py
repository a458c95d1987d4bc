"""Opens text files, and says what is wrong with a path, a file or a text: too long, no text, no file."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from leansim.errors import ConfigError, Problem, suggestion

MOST_BYTES, MOST_NEIGHBOURS = 64 * 2**20, 4096
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def is_file(path: Path) -> bool:
    """Whether a path leads to a file; one with a NUL, or without end, does not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether there is anything at a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def nearest_file(path: Path) -> str:
    """` (did you mean 'x'?)` for what stands beside a path and is spelt most like it, or nothing."""
    try:
        beside = [entry.name for entry in itertools.islice(path.parent.iterdir(), MOST_NEIGHBOURS)]
    except (OSError, ValueError):
        return ""
    return suggestion(path.name, beside, cutoff=0.75)


@contextmanager
def opened(path: Path, wanted: str, most_bytes: int = MOST_BYTES) -> Iterator[TextIO]:
    """Open a UTF-8 file to read, with or without a byte-order mark; line ends stay as they are.

    Raises `ConfigError` for what is no file that can be read, or more than `most_bytes` of one, and
    where bytes that are read turn out to be no UTF-8. `wanted` ends it: "wanted a readable CSV".
    """
    try:
        mode = path.stat().st_mode
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "")
        if kind:
            raise _refused(path, kind, wanted)
        if (size := path.stat().st_size) > most_bytes:
            raise _refused(path, f"{size:,} bytes", f"wanted at most {most_bytes:,}")
        with path.open(newline="", encoding="utf-8-sig") as handle:
            yield handle
    except UnicodeDecodeError:
        raise _refused(path, "bytes that are not UTF-8", wanted) from None
    except OSError as error:
        hint = nearest_file(path) if isinstance(error, FileNotFoundError) else ""
        raise _refused(path, (error.strerror or str(error)).lower(), wanted + hint) from None
    except ValueError as error:  # a path with a NUL
        if isinstance(error, UnicodeError) or "null" in str(error):
            raise _refused(path, str(error), wanted) from None
        raise


def read_text(path: Path, wanted: str, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file, with plain line ends. Raises `ConfigError` as `opened`."""
    with opened(path, wanted, most_bytes) as handle:
        text = handle.read().replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(str(path), [Problem("syntax", "a NUL character", wanted, line, 1)])
    return text


def unprintable(text: str) -> str:
    """What in a text nothing can be named by or written with, or nothing."""
    if "\0" in text:
        return "a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "half of a surrogate pair"
    return ""


def _refused(path: Path, found: str, wanted: str) -> ConfigError:
    return ConfigError(os.fspath(path), [Problem("file", found, wanted)])
