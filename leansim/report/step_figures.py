"""Draws decode steps: what share of a step attention has, over the context."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from leansim.report.sheet import COLOURS
from leansim.sweeps.compare import ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from leansim.steps.step import Steps

_MARKERS = "os^vDP*X"
_IN_A_ROW = 3
_PANEL = ("model", "device", "gpus", "kernel")


def share_figures(steps: Steps) -> dict[str, Figure]:
    """Attention's share of a step over the context, a panel per model, GPUs and kernel.

    A line per batch size. None where there is one context.
    """
    table = steps.table
    if table["mean_context_len"].nunique() < 2:
        return {}
    from matplotlib.figure import Figure

    panels = list(table.groupby(list(_PANEL), sort=False))
    across = min(_IN_A_ROW, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.0 * across + 0.6, 3.2 * down + 0.7), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    sizes = sorted(table["batch_size"].unique())
    for panel, (names, mine) in zip(axes, panels, strict=False):
        _draw(panel, mine, sizes)
        model, device, gpus, kernel = names
        panel.set_title(f"{model} on {gpus} x {device}, {kernel}", fontsize=9)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="batch size", loc="outside right upper", frameon=False)
    figure.supxlabel("context length (tokens)", fontsize=10)
    figure.supylabel("share of the step that is attention", fontsize=10)
    return {"attention_share": figure}


def _draw(panel: Axes, mine: pd.DataFrame, sizes: list[int]) -> None:
    for i, size in enumerate(sizes):
        line = mine[mine["batch_size"] == size].sort_values("mean_context_len")
        panel.plot(
            line["mean_context_len"],
            line["attention_share"],
            label=str(size),
            color=COLOURS[i % len(COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
        )
    panel.set_xscale("log", base=2)
    contexts = sorted(mine["mean_context_len"].unique())
    every = max(1, math.ceil(len(contexts) / 6))
    panel.set_xticks(contexts[::every], ticks(contexts, "context_len")[::every], fontsize=8)
    panel.tick_params(labelbottom=True)
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.grid(alpha=0.3)
    panel.minorticks_off()
