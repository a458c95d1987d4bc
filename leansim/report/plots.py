"""Every figure that a sweep's stored results support; nothing is simulated here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from leansim.errors import StoreError
from leansim.files.artifacts import Digests, write_artifacts
from leansim.files.writing import Content
from leansim.report.figures import line_figure, winner_map
from leansim.report.sheet import png
from leansim.sweeps.compare import axes_of, finished, has_speedup, point_columns, varying, with_speedup
from leansim.sweeps.sweep import read_results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["line_figure", "plot", "point_columns", "winner_map", "with_speedup"]


def plot(folder: str | Path, baseline: str | None = None) -> list[Path]:
    """Draw every figure a sweep's results support, as PNG beside them, and return the paths.

    Latency, SM busy fraction and, with a baseline, speedup over each numeric axis with several
    values, and a winner map of the first two such axes where there are several kernels. Raises
    `StoreError` for missing results or baseline, or where there is nothing to draw.
    """
    table, manifest = read_results(folder)
    done = finished(table)
    policies = list(dict.fromkeys(done["policy"]))
    if baseline is not None and baseline not in policies:
        raise StoreError(f"{folder}: no results for baseline {baseline!r}; there are {policies}")
    axes = axes_of(table)
    if not axes:
        raise StoreError(f"{folder}: nothing to draw: {_why_nothing(table)}")
    baseline = baseline or manifest["config"].get("baseline")
    title, out = str(manifest["config"]["name"]), Path(folder)
    files: dict[str, Content] = {}
    for axis in axes:
        for value, name in (("latency_s", "latency"), ("sm_busy_fraction", "busy")):
            files[f"{name}_{axis}.png"] = png(partial(line_figure, table, axis, value, title, None))
        if baseline is not None and has_speedup(table, baseline):
            draw = partial(line_figure, table, axis, "speedup", title, baseline)
            files[f"speedup_{axis}.png"] = png(draw)
    if len(axes) >= 2 and len(policies) >= 2:
        files["winner_map.png"] = png(partial(winner_map, table, axes[0], axes[1], title))
    write_artifacts(out, files, manifest, _all_but_figures)
    return [out / name for name in files]


def _all_but_figures(before: Digests, _: Digests) -> list[str]:
    return [name for name in before if not name.endswith(".png")]


def _why_nothing(results: pd.DataFrame) -> str:
    if finished(results).empty:
        return "every point was refused"
    names = [*varying(results), *(["kernel"] if results["policy"].nunique() > 1 else [])]
    if not names:
        return "there is one point"
    return f"no numeric axis has two values or more; what varies is {', '.join(names)}"
