"""Text to the terminal: whatever a name holds, it moves no cursor and stops no command."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from leansim.answers import printable_lines


def say(text: str) -> None:
    """Print what was asked for, on standard output."""
    print(printable_lines(text))


def tell(text: str) -> None:
    """Print what is said beside that, on standard error."""
    print(printable_lines(text), file=sys.stderr)


def tell_written(paths: Iterable[Path], folder: Path) -> None:
    """Tell which files a verb wrote into a folder."""
    names = [str(path.relative_to(folder)) for path in paths]
    tell(f"\nwrote {len(names)} files under {folder}/: {', '.join(names)}")


def never_fail() -> None:
    """Have both streams write out what their encoding lacks; what is no terminal is UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
