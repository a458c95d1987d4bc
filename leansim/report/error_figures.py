"""Draws what a validation found: predicted against measured, and errors over context and batch.

A panel per measured table; a colour per kernel.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from leansim.files.writing import Content
from leansim.report.sheet import Sheet, plain, png, styles_of
from leansim.sweeps.compare import ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = (3.4, 2.9)
_AXES = {"context_len": "context length (tokens)", "batch_size": "batch size (requests)"}
_TICKS = {"context_len": [2, 16, 128, 1024, 8192, 65536], "batch_size": [1, 4, 16, 64, 256, 1024]}
_EDGES = (0.05, 0.95)
_MOST_POINTS = 4000
# Errors beyond are drawn at the edge.
_LARGEST = 1.0


def drawn(validated: pd.DataFrame) -> dict[str, Content]:
    """Every figure of a validation as PNG, by the name of its file."""
    done = validated[validated["refused"] == ""]
    return {
        "predicted_measured.png": png(partial(scatter, done)),
        **{f"error_over_{axis}.png": png(partial(error_over, done, axis)) for axis in _AXES},
    }


def scatter(done: pd.DataFrame) -> Figure:
    """Predicted over measured latency in microseconds, on log scales; grey is 10% either way."""
    sheet, parts = _sheet(done)
    ends = [done[["measured_s", "predicted_s"]].to_numpy().min() * 0.8e6,
            done[["measured_s", "predicted_s"]].to_numpy().max() * 1.2e6]  # fmt: skip
    for _, panel, kernels in parts:
        panel.fill_between(
            ends, [e * 0.9 for e in ends], [e * 1.1 for e in ends], color="#DDDDDD", linewidth=0
        )
        for rows, style in kernels:
            some = rows.iloc[:_MOST_POINTS]
            measured, predicted = some["measured_s"] * 1e6, some["predicted_s"] * 1e6
            panel.plot(measured, predicted, ".", color=style.colour, markersize=2, alpha=0.4)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(*ends)
        panel.set_ylim(*ends)
        panel.tick_params(labelsize=8, labelbottom=True)
    sheet.label("measured (µs)", "predicted (µs)")
    sheet.say("Predicted against measured latency", [_counted(done), "grey: within 10%"])
    return sheet.figure


def error_over(done: pd.DataFrame, axis: str) -> Figure:
    """Signed error over a column: the median, and where nine tenths of the rows lie."""
    sheet, parts = _sheet(done)
    for _, panel, kernels in parts:
        panel.axhline(0.0, color="black", linewidth=0.6)
        panel.axhspan(-10, 10, color="#DDDDDD", linewidth=0, zorder=0)
        for rows, style in kernels:
            grouped = rows.assign(error=rows["error"].clip(-_LARGEST, _LARGEST)).groupby(axis)["error"]
            low, high = (grouped.quantile(edge) for edge in _EDGES)
            x = low.index.to_numpy(dtype=float)
            panel.plot(x, grouped.median().to_numpy() * 100, **{**style.line(), "markersize": 3})
            panel.fill_between(
                x, low.to_numpy() * 100, high.to_numpy() * 100,
                color=style.colour, alpha=0.15, linewidth=0,
            )  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_xticks(_TICKS[axis], ticks(_TICKS[axis], axis))
        panel.tick_params(labelsize=8, labelbottom=True)
    sheet.label(_AXES[axis], "error (%),\nabove 0 predicts too long")
    band = f"line: median; shaded: the middle {_EDGES[1] - _EDGES[0]:.0%}"
    name = _AXES[axis].partition(" (")[0]
    sheet.say(f"Signed error over {name}", [_counted(done), band, "grey: within 10%"])
    return sheet.figure


def _sheet(done: pd.DataFrame) -> tuple[Sheet, list[tuple[str, Axes, list[tuple[pd.DataFrame, Any]]]]]:
    """A sheet with a panel per table, and for each the rows and style of every kernel."""
    from matplotlib.lines import Line2D

    labelled = done.assign(policy=done["kernel"], device=done["table"])
    styles = styles_of(labelled)
    handles = [
        Line2D([], [], label=plain(kernel), color=style.colour, linewidth=2)
        for kernel, style in styles.items()
    ]
    sheet = Sheet(labelled, _PANEL, handles)
    parts = []
    for name, panel in sheet.panels():
        mine = done[done["table"] == name]
        panel.set_title(plain(name), fontsize=10)
        kernels = [(rows, styles[str(kernel)]) for kernel, rows in mine.groupby("kernel")]
        parts.append((name, panel, kernels))
    return sheet, parts


def _counted(done: pd.DataFrame) -> str:
    return f"{len(done):,} rows"
