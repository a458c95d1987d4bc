"""Writes files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from leansim.errors import ConfigError, Problem


def write_whole(path: Path, text: str) -> None:
    """Write a file, and its folder where there is none, so that it is there whole or not at all."""
    if path.is_dir():
        raise ConfigError("command line", [Problem("--out", f"the folder {path}", "wanted a file")])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_together({path: text})


def write_together(files: Mapping[Path, str]) -> None:
    """Write several files so that a failure before the last moment changes none of them."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, part in parts.items():
            part.write_text(files[path], encoding="utf-8")
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
