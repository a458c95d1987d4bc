"""Draws split studies: regret over two axes, and latency over the number of splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from leansim.report.sheet import COLOURS, Sheet, inches_of, plain
from leansim.study.regret import RegretMap
from leansim.study.splits import SplitCurve
from leansim.sweeps.compare import axes_of, compare, finished, ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "os^vDP*X"
_DARKEST = 3.0  # a regret that is drawn as dark as any


def regret_figure(results: pd.DataFrame, policy: str, axes: tuple[str, str], title: str) -> Figure:
    """Draw one policy's regret over two axes: a panel per device, darker where it loses more.

    The number in a cell is the geometric mean of the regrets of the points there.
    """
    mine = results[results["policy"] == policy]
    compared = compare(mine, axes)
    x, y = (np.array(sorted(compared.table[axis].unique())) for axis in axes)
    wide, high = (max(most * min(1.0, 12 / max(len(v), 1)), 0.3) for v, most in ((x, 0.55), (y, 0.4)))
    sheet = Sheet(mine, (max(1.6, wide * len(x)) + 0.9, high * len(y) + 1.1), _scale())
    room = wide >= 0.4
    for device, panel in sheet.panels():
        here = compared.table[compared.table["device"] == device]
        logs = here.assign(log=np.log(here["regret"])).groupby(list(axes))["log"].mean()
        for at_x, at_y, log in logs.reset_index().itertuples(index=False):
            place = int(np.searchsorted(x, at_x)), int(np.searchsorted(y, at_y))
            _cell(panel, place, math.exp(log), room)
        panel.set_xlim(-0.5, len(x) - 0.5)
        panel.set_ylim(-0.5, len(y) - 0.5)
        for axis, values, size in ((panel.xaxis, (x, axes[0]), wide), (panel.yaxis, (y, axes[1]), 9.0)):
            names = ticks(values[0].tolist(), values[1])
            every = max(1, math.ceil((max(map(_inches, names)) + 0.08) / size))
            axis.set_ticks(range(0, len(names), every), names[::every], fontsize=8)
        panel.tick_params(labelbottom=True)
    sheet.name_panels(mine, compared)
    sheet.label(*(axis.replace("_", " ") for axis in axes))
    notes = ["number: latency over the best found on the same kernel"] if room else []
    sheet.say(f"{title}: regret of {policy}", [*notes, *compared.notes("geometric mean")])
    return sheet.figure


def _inches(text: str) -> float:
    return inches_of(text, 8)


def _scale() -> list[Artist]:
    from matplotlib.patches import Patch

    steps = (1.0, 1.1, 1.25, 1.5, 2.0, _DARKEST)
    labels = [f"{step:g}x" for step in steps[:-1]] + [f"{_DARKEST:g}x and more"]
    return [
        Patch(facecolor=_shade(step), edgecolor="gray", linewidth=0.5, label=label)
        for step, label in zip(steps, labels, strict=True)
    ]


def _shade(regret: float) -> tuple[float, float, float, float]:
    """White where nothing is lost, to dark orange; by the logarithm."""
    from matplotlib import colormaps

    share = min(1.0, math.log(max(regret, 1.0)) / math.log(_DARKEST))
    red, green, blue, alpha = colormaps["Oranges"](0.9 * share)
    return red, green, blue, alpha


def _cell(panel: Axes, place: tuple[int, int], regret: float, room: bool) -> None:
    from matplotlib.patches import Rectangle

    corner = place[0] - 0.5, place[1] - 0.5
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=_shade(regret), linewidth=0))
    if room:
        text = f"{regret:.2f}" if regret < 10 else f"{regret:.3g}"
        ink = "white" if regret > 1.9 else "black"
        panel.text(*place, text, ha="center", va="center", color=ink, fontsize=7.5)


def splits_figure(curves: Sequence[SplitCurve], title: str) -> Figure:
    """Draw latency over the number of splits: a panel per point, a marker per group of rules.

    Rules that cut requests into different numbers stand at the mean.
    """
    import pandas as pd
    from matplotlib.lines import Line2D

    names = [_panel_name(curve) for curve in curves]
    rules = list(dict.fromkeys(pick.label for curve in curves for pick in curve.picks))
    looks = {
        rule: (COLOURS[i % len(COLOURS)], _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)])
        for i, rule in enumerate(rules)
    }
    handles: list[Artist] = [
        Line2D([], [], label=plain(rule), color=colour, marker=marker, linestyle="", markersize=6)
        for rule, (colour, marker) in looks.items()
    ]
    sheet = Sheet(pd.DataFrame({"device": names}), (5.0, 4.0), handles)
    notes = []
    for (name, panel), curve in zip(sheet.panels(), curves, strict=True):
        latencies = np.array(curve.latencies_s) * 1e6
        panel.plot(curve.counts, latencies, color="black", linewidth=1.2, marker=".", markersize=3)
        panel.axvline(curve.knee, color="gray", linewidth=0.8, linestyle=":")
        for pick in curve.picks:
            colour, marker = looks[pick.label]
            at = float(np.mean(pick.splits))
            panel.plot([at], [pick.latency_s * 1e6], color=colour, marker=marker, markersize=6)
        _log_axes(panel)
        panel.set_title(name, fontsize=10)
        notes.append(curve.note())
    sheet.label("splits of a request", "latency (µs)")
    sheet.say(title, [*notes, "dotted: the knee; markers: split rules on the same kernel"])
    return sheet.figure


def _panel_name(curve: SplitCurve) -> str:
    point = curve.resolved.point
    return f"{point.device}, {point.policy}"


def _log_axes(panel: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    number = FuncFormatter(lambda at, _: f"{at:,.10g}")
    panel.xaxis.set_major_formatter(number)
    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=20))
    panel.yaxis.set_major_formatter(number)
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=9, labelbottom=True)
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)


def regret_figures(found: RegretMap) -> dict[str, Figure]:
    """A heat map per policy, over the first numeric axis and each of the others that vary, by name."""
    table = finished(found.table)
    axes = axes_of(table)
    figures = {}
    for policy in dict.fromkeys(table["policy"]):
        mine = table[table["policy"] == policy]
        for other in axes[1:]:
            if mine[other].nunique() > 1:
                name = f"regret_{policy}" + (f"_{other}" if len(axes) > 2 else "")
                figures[name] = regret_figure(table, policy, (axes[0], other), found.config.name)
    return figures
