"""Draws simulated over measured times, a panel per kernel, and so the speedups of Lean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from comparisons import LEAN
from measured import RAGGED, UNIFORM

from leansim.report.sheet import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = {UNIFORM: "o", RAGGED: "x"}
_ACROSS = 3


def times(rows: pd.DataFrame) -> Figure:
    """Simulated over measured time: a panel per kernel, a colour per card, a marker per kind."""
    kernels = sorted(rows["kernel"].unique())
    figure, panels = _panels(math.ceil(len(kernels) / _ACROSS), min(_ACROSS, len(kernels)))
    ends = _ends(rows["measured_s"] * 1e6, rows["predicted_s"] * 1e6)
    cards = _colours(rows["card"])
    for panel, kernel in zip(panels, kernels, strict=False):
        mine = rows[rows["kernel"] == kernel]
        _frame(panel, ends)
        for (card, batch), part in mine.groupby(["card", "batch"]):
            panel.plot(
                part["measured_s"] * 1e6, part["predicted_s"] * 1e6, _MARKERS[batch],
                color=cards[card], ms=3.5, alpha=0.55, mew=0.8, label=f"{card}, {batch}",
            )  # fmt: skip
        panel.set_title(kernel, fontsize=9)
    for unused in panels[len(kernels) :]:
        unused.set_visible(False)
    _say(figure, panels, "measured (µs)", "simulated (µs)", "Simulated and measured time of a call")
    return figure


def speedups(found: pd.DataFrame) -> Figure:
    """Simulated over measured speedup of Lean: a row per card, a column per other schedule."""
    cards, over = sorted(found["card"].unique()), sorted(found["over"].unique())
    figure, panels = _panels(max(1, len(cards)), max(1, len(over)))
    kinds = dict(zip((UNIFORM, RAGGED), COLOURS, strict=False))
    ends = _ends(found["measured"], found["simulated"])
    for panel, (card, name) in zip(panels, ((c, o) for c in cards for o in over), strict=False):
        _frame(panel, ends)
        panel.axhline(1.0, color="grey", lw=0.6)
        panel.axvline(1.0, color="grey", lw=0.6)
        for batch, part in found[(found["card"] == card) & (found["over"] == name)].groupby("batch"):
            panel.plot(
                part["measured"], part["simulated"], _MARKERS[str(batch)], color=kinds[str(batch)],
                ms=4, alpha=0.7, mew=0.9, label=batch,
            )  # fmt: skip
        panel.set_title(f"{card}: {LEAN} over {name}", fontsize=9)
    _say(
        figure,
        panels,
        "measured speedup",
        "simulated speedup",
        "Speedup of LeanAttention, batch by batch",
    )
    return figure


def _panels(down: int, across: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * across + 1.4, 3.2 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    return figure, list(grid.ravel())


def _ends(*values: pd.Series[float]) -> tuple[float, float]:
    """Where both axes begin and end."""
    every = np.concatenate([one.to_numpy(dtype=float) for one in values])
    return (every.min() * 0.8, every.max() * 1.25) if len(every) else (0.5, 2.0)


def _colours(names: pd.Series[str]) -> dict[str, str]:
    return dict(zip(sorted(names.unique()), COLOURS, strict=False))


def _frame(panel: Axes, ends: tuple[float, float]) -> None:
    """Equal logarithmic axes, and in grey what is within 10% of the measured value."""
    line = np.array(ends)
    panel.fill_between(line, line * 0.9, line * 1.1, color="#DDDDDD", linewidth=0)
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    panel.tick_params(labelsize=8, labelbottom=True)


def _say(figure: Figure, panels: Sequence[Axes], x: str, y: str, title: str) -> None:
    """Labels, one legend of all panels, and the title."""
    labelled = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = sorted(labelled)
    figure.legend(
        [labelled[name] for name in names], names, loc="outside right upper", frameon=False, fontsize=9
    )
    figure.supxlabel(f"{x}; grey: within 10%", fontsize=9)
    figure.supylabel(y, fontsize=9)
    figure.suptitle(title, fontsize=11)
