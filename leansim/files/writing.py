"""Writes files whole or not at all: whoever reads one sees the old content or the new.

What is written goes to a file beside it first, which then takes its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from leansim.errors import ConfigError, Problem

# A text, or what writes the content to a path it is given.
Content = str | Callable[[Path], object]


def write_whole(path: Path, content: Content) -> None:
    """Write a file, and its folder where there is none, so that it is there whole or not at all."""
    if path.is_dir():
        raise ConfigError("command line", [Problem("--out", f"the folder {path}", "wanted a file")])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_together({path: content})


def write_between(path: Path, mark: str, text: str) -> None:
    """Replace what stands in a page between `<!-- mark -->` and `<!-- /mark -->`, each on its line.

    Raises `ConfigError` where the page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    filled, count = block.subn(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", page)
    if not count:
        wanted = f"wanted <!-- {mark} --> and <!-- /{mark} -->"
        raise ConfigError(str(path), [Problem("marks", "none of that name", wanted)])
    write_whole(path, filled)


def write_together(files: Mapping[Path, Content]) -> None:
    """Write several files so that a failure before the last moment changes none of them.

    Another process may be writing them too: the last one wins, file by file.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, part in parts.items():
            content = files[path]
            if isinstance(content, str):
                part.write_text(content, encoding="utf-8")
            else:
                content(part)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
