"""Writes what a split study found to a folder: records, tables, manifest."""

from __future__ import annotations

import json
from pathlib import Path

from leansim.points.grid import GridConfig
from leansim.sweeps.sweep import manifest
from leansim.tables import Tabled, render


def write_study(
    folder: Path,
    config: GridConfig,
    found: Tabled,
) -> list[Path]:
    """Write `results.csv`, `table.md` (a table per section) and `manifest.json`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in ("results.csv", "table.md", "manifest.json")]
    written[0].write_text(render(found.records(), "csv") + "\n")
    parts = [f"## {title}\n\n{render(rows, 'md')}" for title, rows in found.sections().items() if rows]
    told = "\n".join(f"- {note}" for note in found.notes())
    written[1].write_text("\n\n".join([f"# {config.name}", *parts, told]).rstrip() + "\n")
    written[2].write_text(json.dumps(manifest(config), indent=2) + "\n")
    return written
