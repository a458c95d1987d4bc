"""Writes a run's artifacts to a folder: results, figures, timelines, manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from leansim.answers import printable, render, spreadsheet
from leansim.files.artifacts import file_names, write_artifacts
from leansim.files.writing import Content
from leansim.points.asked import label
from leansim.points.simulate import Simulation
from leansim.report.figures import line_figure
from leansim.report.sheet import png
from leansim.results.perfetto import trace
from leansim.sweeps.compare import has_speedup, with_speedup, x_column
from leansim.sweeps.run import Run
from leansim.sweeps.sweep import manifest
from leansim.sweeps.totals import table_over_layers


def write_run(run: Run, folder: Path) -> list[Path]:
    """Write every artifact of a run and return the paths.

    `results.csv` (all metrics, and speedups where there is a baseline), `table.md`, a timeline for
    Perfetto per kernel and device, and `manifest.json`. Where the run has a curve, its numbers in
    `curve.csv` and `speedup_curve.png`, or `latency_curve.png` without a baseline or another kernel;
    of several axes each has its own, such as `curve_batch_size.csv`.
    """
    tables = "\n\n".join(
        f"{printable(title)}\n\n{render(rows, 'md')}" for title, rows in run.sections().items()
    )
    notes = "\n".join(f"- {printable(note.strip())}" for note in run.notes())
    files: dict[str, Content] = {
        "results.csv": spreadsheet(run.table).to_csv(index=False),
        "table.md": f"{tables}\n\n{notes}\n",
        **dict(_curves(run)),
    }
    labels = [tuple(map(str, label(one.point).values())) for one in run.simulations]
    names = file_names(labels)
    for told, simulation in zip(labels, run.simulations, strict=True):
        files[f"timelines/{names[told]}.json"] = trace(simulation.result)
    return write_artifacts(folder, files, manifest(run.config))


def _curves(run: Run) -> Iterator[tuple[str, Content]]:
    begin = 0
    for axis, values in run.config.curve.items():
        end = begin + len(values) * len(run.simulations)
        suffix = f"_{axis}" if len(run.config.curve) > 1 else ""
        yield from _curve(run, run.curve[begin:end], axis, suffix)
        begin = end


def _curve(
    run: Run, curve: Sequence[Simulation], axis: str, suffix: str
) -> Iterator[tuple[str, Content]]:
    table = table_over_layers(curve)
    baseline = run.config.baseline
    if baseline is not None:
        table = with_speedup(table, baseline).drop(columns="baseline_s")
    yield f"curve{suffix}.csv", spreadsheet(table).to_csv(index=False)
    if baseline is not None and not has_speedup(table, baseline):
        baseline = None
    value = "latency_s" if baseline is None else "speedup"
    draw = partial(line_figure, table, x_column(table, axis), value, run.config.name, baseline)
    name = "latency" if baseline is None else "speedup"
    yield f"{name}_curve{suffix}.png", png(draw)
