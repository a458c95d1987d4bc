"""The figures: steps over the batch on the A100, and the cost of raggedness on two cards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

CONTEXTS = (513, 1025, 2049, 4033)


def steps_figure(done: pd.DataFrame) -> Figure:
    """Time over the batch for a few contexts: measured as dots, simulated as lines."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    kept = [n for n in CONTEXTS if n in set(done["context_len"])]
    for number, context_len in enumerate(kept):
        rows = done[done["context_len"] == context_len].sort_values("batch_size")
        colour = f"C{number}"
        axes.plot(rows["batch_size"], rows["measured_us"], ".", color=colour, markersize=3)
        axes.plot(rows["batch_size"], rows["simulated_us"], "-", color=colour, linewidth=1,
                  label=f"{context_len:,} tokens")  # fmt: skip
    if kept:
        axes.legend(frameon=False)
    axes.set_xlabel("requests")
    axes.set_ylabel("kernel time (µs)")
    axes.set_title("FlashAttention-2 on an A100: measured (dots), simulated (lines)", fontsize=10)
    return figure


def raggedness_figure(cards: Mapping[str, pd.DataFrame]) -> Figure:
    """Simulated over measured cost of raggedness, a panel per card."""
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(cards), sharex=True, sharey=True))
    for axes, (title, rows) in zip(panels, cards.items(), strict=True):
        points = axes.scatter(
            rows["measured"], rows["simulated"], c=np.log2(rows["n"]), s=8, cmap="viridis"
        )
        ends = [
            rows[["measured", "simulated"]].to_numpy().min(),
            rows[["measured", "simulated"]].to_numpy().max(),
        ]
        axes.plot(ends, ends, color="grey", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("measured: as they are / all at the mean")
    panels[0].set_ylabel("simulated")
    figure.colorbar(points, ax=panels, label="requests (log2)")
    return figure
