"""What the scripts of experiments share: the option that says where results go, and parts of pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from leansim.files.writing import write_between, write_whole

_AS_WRITTEN = argparse.RawTextHelpFormatter


def parser_of(description: str | None, here: Path) -> argparse.ArgumentParser:
    """A script's arguments: `-o FOLDER` is where it writes, by default `here`, its own folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_AS_WRITTEN)
    said = "where to write; here by default"
    parser.add_argument("-o", "--out", type=_folder, default=here, metavar="FOLDER", help=said)
    return parser


def write_part(page: Path, mark: str, text: str, out: Path, here: Path) -> None:
    """Write a part of a page between its marks, or as `MARK.md` where `out` is not `here`."""
    if out == here:
        write_between(page, mark, text)
    else:
        write_whole(out / f"{mark}.md", text.strip() + "\n")


def _folder(text: str) -> Path:
    return Path(text).resolve()
