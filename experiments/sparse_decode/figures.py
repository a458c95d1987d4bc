"""The figures: latency over the budget, and the context from which on choosing is worth it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from budgets import BATCHES, BUDGETS, CONTEXTS, Curves
from matplotlib.figure import Figure


def budget_figure(found: Curves) -> Figure:
    """A panel for each context, a colour for each batch: dense dashed, Quest solid, SparseK dotted."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(CONTEXTS), sharex=True, sharey=True))
    for axes, context in zip(panels, CONTEXTS, strict=True):
        for number, batch in enumerate(BATCHES):
            colour = f"C{number}"
            axes.axhline(
                found.of(batch, context, "dense") / 1e3, color=colour, linestyle="--", linewidth=1
            )
            for kind, style in (("quest", "o-"), ("sparsek", ".:")):
                times = [found.of(batch, context, kind, budget) / 1e3 for budget in BUDGETS]
                label = f"batch {batch}" if kind == "quest" else None
                axes.plot(BUDGETS, times, style, color=colour, markersize=4, linewidth=1.2, label=label)
        axes.set_title(f"{context:,} tokens", fontsize=10)
        axes.set_xlabel("tokens kept")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    panels[0].set_ylabel("latency (µs)")
    panels[0].legend(frameon=False, fontsize=8, title="dense dashed, Quest solid,\nSparseK dotted",
                     title_fontsize=8)  # fmt: skip
    return figure


def break_even_figure(worth: pd.DataFrame) -> Figure:
    """Context over budget, a line for each batch; what is at none that was tried is left out."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, row in worth.iterrows():
        contexts = [row[str(budget)] for budget in BUDGETS]
        axes.plot(BUDGETS, contexts, "o-", color=f"C{number}", markersize=4,
                  label=f"batch {int(row['batch'])}")  # fmt: skip
    axes.plot(BUDGETS, BUDGETS, color="grey", linewidth=0.8, label="context = kept")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(BUDGETS[0] / 1.5, 4 * BUDGETS[-1])
    axes.set_xlabel("tokens kept")
    axes.set_ylabel("context (tokens)")
    axes.set_title("From here on Quest is faster than dense", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure
