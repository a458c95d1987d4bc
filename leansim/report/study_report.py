"""Writes what a split study found to a folder: records, tables, manifest."""

from __future__ import annotations

import json
from pathlib import Path

from leansim.answers import Tabled, render
from leansim.files.writing import write_together
from leansim.points.grid import PointGrid
from leansim.sweeps.sweep import manifest


def write_study(
    folder: Path,
    config: PointGrid,
    found: Tabled,
) -> list[Path]:
    """Write `results.csv`, `table.md` (a table per section) and `manifest.json`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {title}\n\n{render(rows, 'md')}" for title, rows in found.sections().items() if rows]
    told = "\n".join(f"- {note}" for note in found.notes())
    files = {
        folder / "results.csv": render(found.records(), "csv") + "\n",
        folder / "table.md": "\n\n".join([f"# {config.name}", *parts, told]).rstrip() + "\n",
        folder / "manifest.json": json.dumps(manifest(config), indent=2) + "\n",
    }
    write_together(files)
    return list(files)
