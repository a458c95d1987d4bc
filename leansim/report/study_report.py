"""Writes what a split study found to a folder: records, tables, figures, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from leansim.answers import Tabled, marked_down, printable_lines, render
from leansim.files.artifacts import file_names, write_artifacts
from leansim.files.writing import Content
from leansim.points.grid import PointGrid
from leansim.report.sheet import png
from leansim.sweeps.sweep import manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_study(
    folder: Path, config: PointGrid, found: Tabled, figures: Mapping[str, Figure] | None = None
) -> list[Path]:
    """Write `results.csv`, `table.md` (a table per section), figures by name and `manifest.json`.

    Returns the paths.
    """
    parts = [
        f"## {marked_down(title)}\n\n{render(rows, 'md')}"
        for title, rows in found.sections().items()
        if rows
    ]
    told = "\n".join(f"- {printable_lines(note)}" for note in found.notes())
    head = f"# {marked_down(config.name)}"
    figures = figures or {}
    names = file_names((name,) for name in figures)
    files: dict[str, Content] = {
        "results.csv": render(found.records(), "csv") + "\n",
        "table.md": "\n\n".join([head, *parts, told]).rstrip() + "\n",
        **{f"{names[name,]}.png": png(figure) for name, figure in figures.items()},
    }
    return write_artifacts(folder, files, manifest(config))
