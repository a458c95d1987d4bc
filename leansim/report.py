"""Writes a run's artifacts to a folder: results, figures, timelines, manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path

from leansim.api import Run
from leansim.plots import line_figure
from leansim.sweeps import manifest, results_table
from leansim.tables import render, run_notes, run_rows
from leansim.timeline import write_trace


def write_run(run: Run, folder: Path) -> list[Path]:
    """Write every artifact of a run and return the paths.

    `results.csv` (all metrics), `table.md`, `speedup_curve.png` where the run has a curve and a
    baseline (with its numbers in `curve.csv`), one Perfetto timeline per kernel and device, and
    `manifest.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in ("results.csv", "table.md", "manifest.json")]
    table = results_table([s.point for s in run.simulations], [s.row for s in run.simulations])
    table.to_csv(written[0], index=False)
    notes = "\n".join(f"- {note.strip()}" for note in run_notes(run))
    written[1].write_text(f"{render(run_rows(run), 'md')}\n\n{notes}\n")
    written[2].write_text(json.dumps(manifest(run.config), indent=2) + "\n")
    if run.curve:
        written += _write_curve(run, folder)
    for simulation in run.simulations:
        name = re.sub(r"[^\w.+-]+", "_", f"{simulation.point.device}-{simulation.point.policy}")
        path = folder / "timelines" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        write_trace(simulation.result, path)
        written.append(path)
    return written


def _write_curve(run: Run, folder: Path) -> list[Path]:
    table = results_table([s.point for s in run.curve], [s.row for s in run.curve])
    table.to_csv(folder / "curve.csv", index=False)
    axis = next(iter(run.config.curve))
    axis = "mean_context_len" if axis == "context_scale" else axis
    value = "latency_s" if run.config.baseline is None else "speedup"
    figure = line_figure(table, axis, value, run.config.name, run.config.baseline)
    path = folder / ("latency_curve.png" if value == "latency_s" else "speedup_curve.png")
    figure.savefig(path, dpi=130)
    return [folder / "curve.csv", path]
