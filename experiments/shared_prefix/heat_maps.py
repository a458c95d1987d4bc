"""Draws maps over requests and prefixes: gains, and regrets."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from calls import Call
from matplotlib import colormaps
from matplotlib.figure import Figure

from leansim.checkout.pages import tokens

Cells = Mapping[Call, tuple[float, str]]  # a ratio, and what stands in its cell


def map_figure(panels: Mapping[str, Cells], title: str, most: float) -> Figure:
    """Draw a panel per title, two in a row: red below a ratio of 1, down to `1 / most`, blue above."""
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(8.0, 2.0 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
    for axes, (name, cells) in zip(grid.ravel(), panels.items(), strict=True):
        x = sorted({cell.prefix_len for cell in cells})
        y = sorted({cell.batch_size for cell in cells})
        shares = np.zeros((len(y), len(x)))
        for cell, (ratio, text) in cells.items():
            column, row = x.index(cell.prefix_len), y.index(cell.batch_size)
            shares[row, column] = share = 0.5 + 0.5 * math.log(ratio) / math.log(most)
            ink = "white" if abs(share - 0.5) > 0.35 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)
        axes.imshow(shares, colormaps["RdBu"], vmin=0.0, vmax=1.0, origin="lower", aspect="auto")
        axes.set_xticks(range(len(x)), [tokens(one) for one in x], fontsize=7)
        axes.set_yticks(range(len(y)), [str(one) for one in y], fontsize=7)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("shared prefix (tokens)", fontsize=8)
    figure.supylabel("requests", fontsize=8)
    return figure
