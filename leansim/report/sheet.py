"""What figures have in common: a style per kernel, panels per device, legend, title and notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.answers import printable
from leansim.files.writing import Content, write_whole
from leansim.sweeps.compare import Comparison, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, with wine for their yellow: distinguishable with any colour vision. After
# eight kernels they come again, with other lines, markers and hatches. Grey is for ties.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
_MARKERS = ("osD^vP*X", "^vosXDPh", "Dp<>H8^d", "s*oXvhPd")
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True)
class Style:
    """How a kernel looks: as a line, and as a patch."""

    colour: str
    marker: str
    dash: str
    hatch: str
    width: float

    def line(self) -> dict[str, Any]:
        """Properties of its line."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "linewidth": self.width,
            "markersize": 2.2 + 2.0 * self.width,
        }

    def patch(self) -> dict[str, Any]:
        """Properties of its patches."""
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0.5}


def styles_of(results: pd.DataFrame) -> dict[str, Style]:
    """A style for each kernel; the first are drawn wider, so that equal lines all show."""
    styles = {}
    for i, policy in enumerate(dict.fromkeys(results["policy"])):
        turn, at = (i // len(COLOURS)) % len(_DASHES), i % len(COLOURS)
        width = max(1.2, 2.1 - 0.25 * i)
        styles[policy] = Style(COLOURS[at], _MARKERS[turn][at], _DASHES[turn], _HATCHES[turn], width)
    return styles


class Sheet:
    """A figure with a panel per device, one legend beside them, a title above and notes below."""

    def __init__(
        self, results: pd.DataFrame, panel: tuple[float, float], handles: Sequence[Artist]
    ) -> None:
        from matplotlib.figure import Figure

        self.devices = list(dict.fromkeys(results["device"]))
        n = len(self.devices)
        self.columns = n if n <= 3 else math.ceil(math.sqrt(n))
        rows = math.ceil(n / self.columns)
        self.beside = max((inches_of(str(h.get_label()), 9) for h in handles), default=0.0) + 0.7
        self.width = max(0.6 + self.columns * panel[0] + self.beside, 4.5)
        self.height = max(rows * panel[1], 0.2 * len(handles) + 0.5)
        self.high = self.height / rows
        self.figure = Figure(figsize=(self.width, self.height), layout="constrained")
        grid = self.figure.subplots(rows, self.columns, sharex=True, sharey=True, squeeze=False)
        self.axes: list[Axes] = list(grid.ravel()[:n])
        for unused in grid.ravel()[n:]:
            unused.set_visible(False)
        if handles:
            self.figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)

    def panels(self) -> Iterator[tuple[str, Axes]]:
        """Each device with its panel."""
        return zip(self.devices, self.axes, strict=True)

    def name_panels(
        self, results: pd.DataFrame, compared: Comparison, baseline: str | None = None
    ) -> None:
        """Title panels with their devices, and say which kernels are not there, or why none is."""
        width = max((self.width - self.beside) / self.columns - 1.0, 1.2)
        for device, panel in self.panels():
            shown = set(compared.table.loc[compared.table["device"] == device, "policy"])
            asked = dict.fromkeys(results.loc[results["device"] == device, "policy"])
            title = wrapped(device, 11, width)
            if not shown:
                text = wrapped(_why_empty(results, device, baseline), 10, width)
                where = panel.transAxes
                panel.text(0.5, 0.5, text, transform=where, ha="center", va="center", color="dimgray")
            elif missing := [policy for policy in asked if policy not in shown]:
                present = [policy for policy in asked if policy in shown]
                few = len(present) < len(missing)
                note = f"only {', '.join(present)}" if few else f"no results: {', '.join(missing)}"
                title += "\n" + wrapped(note, 11, width)
            panel.set_title(title, fontsize=11)

    def label(self, x: str, y: str) -> None:
        """Label the axes: x under every panel, y once a row."""
        across = wrapped(x, 10, (self.width - self.beside) / self.columns - 0.3)
        up = "\n".join(wrapped(line, 10, self.high - 0.6) for line in y.split("\n"))
        for i, panel in enumerate(self.axes):
            panel.set_xlabel(across)
            if i % self.columns == 0:
                panel.set_ylabel(up)

    def say(self, title: str, notes: Sequence[str]) -> None:
        """Write title and notes, wrapped to the figure's width, and make the figure higher for them."""
        panels = self.width - self.beside  # the legend begins where they end
        above = wrapped(title, 11, panels - 0.3)
        below = wrapped("; ".join(notes), 8, self.width - 0.3)
        self.figure.suptitle(above, fontsize=11, x=panels / 2 / self.width)
        self.figure.supxlabel(below, fontsize=8)
        lines = 0.2 * (above.count("\n") + 1) + 0.15 * (below.count("\n") + 1)
        self.figure.set_size_inches(self.width, self.height + lines)


def plain(text: str) -> str:
    """Keep matplotlib from reading a formula into a name, and from drawing what has no shape."""
    return printable(text).replace("$", r"\$")


@cache
def inches_of(text: str, size: float) -> float:
    """Width of a text at a font size in points."""
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    return float(np.asarray(TextPath((0, 0), text, size=size).vertices)[:, 0].max()) / 72


def wrapped(text: str, size: float, width: float) -> str:
    """Break a text into lines no wider than `width` inches, inside words too if it must be."""
    lines = [""]
    for word in plain(text).split():
        rest = word
        while (wide := inches_of(rest, size)) > width:
            fits = max(1, int(len(rest) * width / wide) - 1)
            lines.append(rest[:fits])
            rest = rest[fits:]
        longer = f"{lines[-1]} {rest}".strip()
        if inches_of(longer, size) > width:
            lines.append(rest)
        else:
            lines[-1] = longer
    return "\n".join(line for line in lines if line)


def _why_empty(results: pd.DataFrame, device: str, baseline: str | None) -> str:
    mine = finished(results[results["device"] == device])
    if mine.empty:
        return "no results"
    if baseline is not None and baseline not in set(mine["policy"]):
        return f"no results of the baseline {baseline}"
    return "no point that every kernel finished"


def png(figure: Figure | Callable[[], Figure]) -> Content:
    """The PNG of a figure, or of what draws it no sooner than it is written."""
    return lambda part: (figure() if callable(figure) else figure).savefig(part, dpi=130, format="png")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    write_whole(path, png(figure))
    return path
