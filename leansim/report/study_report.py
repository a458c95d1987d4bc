"""Writes what a split study found to a folder: records, tables, manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leansim.files.writing import write_together
from leansim.points.grid import GridConfig
from leansim.report.text import Row, render
from leansim.study.regret import RegretMap
from leansim.sweeps.sweep import manifest

WORST = 20


def write_study(
    folder: Path,
    config: GridConfig,
    records: Sequence[Row],
    sections: Mapping[str, Sequence[Row]],
    notes: Sequence[str],
) -> list[Path]:
    """Write `results.csv`, `table.md` (a table per section) and `manifest.json`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {title}\n\n{render(rows, 'md')}" for title, rows in sections.items() if rows]
    told = "\n".join(f"- {note}" for note in notes)
    files = {
        folder / "results.csv": render(records, "csv") + "\n",
        folder / "table.md": "\n\n".join([f"# {config.name}", *parts, told]).rstrip() + "\n",
        folder / "manifest.json": json.dumps(manifest(config), indent=2) + "\n",
    }
    write_together(files)
    return list(files)


def regret_sections(found: RegretMap, worst: int = WORST) -> dict[str, list[dict[str, Any]]]:
    """Tables of a regret map: by device and policy, and the worst cells."""
    return {"Regret": found.summary(), "Worst cells": found.worst_rows(worst)}
