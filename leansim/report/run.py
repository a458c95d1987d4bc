"""Writes a run's artifacts to a folder: results, figures, timelines, manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from leansim.answers import render
from leansim.files.writing import write_together, write_whole
from leansim.points.simulate import Simulation, table_of
from leansim.report.figures import line_figure
from leansim.report.sheet import save
from leansim.results.perfetto import write_trace
from leansim.sweeps.compare import has_speedup, with_speedup, x_column
from leansim.sweeps.run import Run
from leansim.sweeps.sweep import manifest


def write_run(run: Run, folder: Path) -> list[Path]:
    """Write every artifact of a run and return the paths.

    `results.csv` (all metrics, and speedups where there is a baseline), `table.md`, a timeline for
    Perfetto per kernel and device, and `manifest.json`. Where the run has a curve, its numbers in
    `curve.csv` and `speedup_curve.png`, or `latency_curve.png` without a baseline or another kernel;
    of several axes each has its own, such as `curve_batch_size.csv`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = "\n".join(f"- {note.strip()}" for note in run.notes())
    files = {
        folder / "results.csv": run.table.to_csv(index=False),
        folder / "table.md": f"{render(run.rows(), 'md')}\n\n{notes}\n",
        folder / "manifest.json": json.dumps(manifest(run.config), indent=2) + "\n",
    }
    write_together(files)
    written = list(files)
    if run.curve:
        written += _write_curve(run, folder)
    for simulation in run.simulations:
        name = re.sub(r"[^\w.+-]+", "_", f"{simulation.point.device}-{simulation.point.policy}")
        path = folder / "timelines" / f"{name}.json"
        write_trace(simulation.result, path)
        written.append(path)
    return written


def _write_curve(run: Run, folder: Path) -> list[Path]:
    written, begin = [], 0
    for axis, values in run.config.curve.items():
        end = begin + len(values) * len(run.simulations)
        suffix = f"_{axis}" if len(run.config.curve) > 1 else ""
        written += _write_axis(run, run.curve[begin:end], axis, suffix, folder)
        begin = end
    return written


def _write_axis(
    run: Run, curve: Sequence[Simulation], axis: str, suffix: str, folder: Path
) -> list[Path]:
    table = table_of(curve)
    baseline = run.config.baseline
    if baseline is not None:
        table = with_speedup(table, baseline).drop(columns="baseline_s")
    written = [folder / f"curve{suffix}.csv"]
    write_whole(written[0], table.to_csv(index=False))
    if baseline is not None and not has_speedup(table, baseline):
        baseline = None
    value = "latency_s" if baseline is None else "speedup"
    figure = line_figure(table, x_column(table, axis), value, run.config.name, baseline)
    name = "latency" if baseline is None else "speedup"
    return [*written, save(figure, folder / f"{name}_curve{suffix}.png")]
