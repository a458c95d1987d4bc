"""Draws tables of results: lines over an axis, and maps of the fastest kernel over two.

Panels are devices. A kernel has one colour and marker in every panel and figure of a table. Fields
that a figure does not show are averaged over the points that every kernel finished, and the line
under the figure says which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from leansim.report.sheet import Sheet, Style, inches_of, plain, styles_of
from leansim.sweeps.compare import TIE, Comparison, compare, ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TIE_COLOUR = "#DDDDDD"
_ENOUGH_FOR_QUARTILES = 8
_MOST_MARKERS = 40
_MOST_SHADED = 6  # kernels; more bands over each other show nothing
_X_LABELS = {
    "context_len": "context length (tokens)",
    "mean_context_len": "mean context length (tokens)",
    "max_context_len": "longest context the call is told of (tokens)",
    "batch_size": "batch size (requests)",
    "context_scale": "context scale (times the given lengths)",
    "context_len_cv": "spread of context lengths (coefficient of variation)",
    "num_q_heads": "query heads",
    "num_kv_heads": "KV heads",
    "head_dim": "head dimension",
    "head_dim_v": "head dimension of V",
    "query_len": "query length (tokens)",
    "window": "sliding window (tokens)",
    "page_tokens": "page size (tokens)",
    "tensor_parallel": "tensor parallelism (GPUs)",
    "kv_ranks": "GPUs that each context is divided over",
    "num_sms": "SMs",
}


def line_figure(
    results: pd.DataFrame, axis: str, value: str, title: str, baseline: str | None
) -> Figure:
    """Draw one value over one axis: a panel per device, a line per kernel.

    `value` is `latency_s`, `sm_busy_fraction`, or `speedup`, which wants a `baseline`.
    """
    from matplotlib.lines import Line2D

    compared = compare(results, (axis,), baseline)
    styles = {k: v for k, v in styles_of(results).items() if (compared.table["policy"] == k).any()}
    lines, shaded = _statistics(compared, axis, value)
    handles: list[Artist] = [
        Line2D([], [], label=plain(f"{policy} (baseline)"), color=style.colour)
        if policy == baseline
        else Line2D([], [], label=plain(policy), **style.line())
        for policy, style in styles.items()
    ]
    wide = 5.0 if results["device"].nunique() < 3 else 4.2
    sheet = Sheet(results, (wide, 4.2), handles)
    for device, panel in sheet.panels():
        for policy, style in styles.items():
            mine = lines[(lines["device"] == device) & (lines["policy"] == policy)]
            if not mine.empty:
                _line(panel, mine.set_index(axis), style, policy == baseline)
    sheet.name_panels(results, compared, baseline)
    _scale_x(sheet.axes, np.array(sorted(compared.table[axis].unique()), dtype=float), axis, wide)
    _scale_y(sheet.axes[0], lines, value)
    sheet.label(_X_LABELS.get(axis, axis), _value_label(value, baseline))
    mean = "arithmetic mean" if value == "sm_busy_fraction" else "geometric mean"
    sheet.say(f"{title}: {_subject(value, baseline)}", [*compared.notes(mean), *shaded])
    return sheet.figure


def _statistics(compared: Comparison, axis: str, value: str) -> tuple[pd.DataFrame, list[str]]:
    """Low, middle and high value per device, kernel and place; and what lies between low and high."""
    scale = 1e6 if value == "latency_s" else 1.0
    rows = compared.table.assign(value=compared.table[value] * scale)
    rows["log"] = np.log(rows["value"].clip(lower=1e-300))
    groups = rows.groupby(["device", "policy", axis])
    sizes = groups.size()
    quartiles = len(sizes) > 0 and bool(sizes.min() >= _ENOUGH_FOR_QUARTILES)
    edge = 0.25 if quartiles else 0.0
    middle = groups["value"].mean() if value == "sm_busy_fraction" else np.exp(groups["log"].mean())
    lines = middle.to_frame("middle")
    lines["low"], lines["high"] = groups["value"].quantile(edge), groups["value"].quantile(1 - edge)
    if compared.table["policy"].nunique() > _MOST_SHADED:
        return lines.assign(low=middle, high=middle).reset_index(), []
    shaded = bool((lines["high"] > lines["low"] * (1 + 1e-9)).any())
    what = "the middle half" if quartiles else "the whole range"
    return lines.reset_index(), [f"shaded: {what}"] if shaded else []


def _line(panel: Axes, line: pd.DataFrame, style: Style, is_baseline: bool) -> None:
    if is_baseline:
        panel.axhline(1.0, color=style.colour, linewidth=1.2)
        return
    x, low, high = line.index.to_numpy(dtype=float), line["low"].to_numpy(), line["high"].to_numpy()
    looks = style.line() if len(x) <= _MOST_MARKERS else {**style.line(), "marker": ""}
    panel.plot(x, line["middle"].to_numpy(), **looks)
    if np.any(high > low * (1 + 1e-9)):
        panel.fill_between(x, low, high, color=style.colour, alpha=0.10, linewidth=0)


def _scale_x(panels: Sequence[Axes], values: np.ndarray, axis: str, wide: float) -> None:
    """Put ticks on values of the axis, as many as there is room for, on a log scale if they span it."""
    if len(values) == 0:
        panels[0].set_xticks([])
        return
    log = values[0] > 0 and values[-1] >= 4 * values[0]
    places = np.log(values) if log else values
    ends = (places[-1] - places[0]) or 1.0
    names = ticks(values.tolist(), axis)
    shown = _with_room((places - places[0]) / ends * 0.8 * wide, [inches_of(n, 9) for n in names])
    if log:
        panels[0].set_xscale("log", base=2)
    panels[0].set_xticks([values[i] for i in shown], [names[i] for i in shown])
    for panel in panels:
        panel.tick_params(labelsize=9, labelbottom=True)
        panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)


def _with_room(places: np.ndarray, widths: Sequence[float]) -> list[int]:
    """Which labels to write, all in inches: every one, second or third, or else those that fit."""

    def fit(one: int, other: int) -> bool:
        return bool(places[other] - places[one] >= (widths[one] + widths[other]) / 2 + 0.1)

    for step in (1, 2, 3):
        some = list(range(0, len(places), step))
        if all(fit(one, other) for one, other in itertools.pairwise(some)):
            return some
    shown = [0]
    for i in range(1, len(places)):
        if fit(shown[-1], i):
            shown.append(i)
    return shown


def _scale_y(panel: Axes, lines: pd.DataFrame, value: str) -> None:
    """Shares from 0 to 1, times on a log scale if they span one, and no axis that magnifies noise."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if lines.empty:
        return
    formatter = FuncFormatter(lambda at, _: f"{at:,.10g}")
    panel.yaxis.set_major_formatter(formatter)
    drawn = lines[["low", "middle", "high"]].to_numpy()  # a mean may lie outside the middle half
    low, high = float(drawn.min()), float(drawn.max())
    if value == "sm_busy_fraction":
        panel.set_ylim(0, 1.02)
    elif value == "latency_s" and high >= 5 * low:
        panel.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if high < 2e3 * low else (1.0,)
        panel.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
        panel.yaxis.set_major_formatter(formatter)
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        low, high = (min(low, 1.0), max(high, 1.0)) if value == "speedup" else (low, high)
        room = max(0.05 * (high - low), 0.05 * high - (high - low) / 2)
        panel.set_ylim(low - room, high + room)


def _value_label(value: str, baseline: str | None) -> str:
    labels = {
        "latency_s": "latency (µs)",
        "sm_busy_fraction": "SM busy fraction",
        "speedup": f"speedup over {baseline}\n(above 1 is faster)",
    }
    return labels[value]


def _subject(value: str, baseline: str | None) -> str:
    subjects = {"latency_s": "latency", "sm_busy_fraction": "share of time that SMs are busy"}
    return subjects.get(value, f"speedup over {baseline}")


def winner_map(results: pd.DataFrame, x_axis: str, y_axis: str, title: str) -> Figure:
    """Colour each cell of two axes by the fastest kernel; the number is the second's time over its."""
    from matplotlib.patches import Patch

    compared = compare(results, (x_axis, y_axis))
    styles = {k: v for k, v in styles_of(results).items() if (compared.table["policy"] == k).any()}
    x, y = (np.array(sorted(compared.table[axis].unique())) for axis in (x_axis, y_axis))
    size = [min(max(10 / max(len(v), 1), 0.05), most) for v, most in ((x, 0.6), (y, 0.42))]
    handles: list[Artist] = [Patch(label=plain(k), **style.patch()) for k, style in styles.items()]
    tie = Patch(facecolor=_TIE_COLOUR, label=f"tie (lead under {TIE:.1%})")
    sheet = Sheet(results, (max(1.6, size[0] * len(x)) + 0.9, size[1] * len(y) + 1.1), [*handles, tie])
    room = size[0] >= 0.4 and size[1] >= 0.2
    leads: list[float | None] = []
    for device, panel in sheet.panels():
        cells = list(_winners(compared.table[compared.table["device"] == device], x_axis, y_axis))
        leads += [lead for *_, lead in cells]
        for at_x, at_y, policy, lead in cells:
            at = int(np.searchsorted(x, at_x)), int(np.searchsorted(y, at_y))
            _cell(panel, at, None if lead is not None and lead < 1 + TIE else styles[policy], lead, room)
        panel.set_xlim(-0.5, len(x) - 0.5)
        panel.set_ylim(-0.5, len(y) - 0.5)
    sheet.name_panels(results, compared)
    _name_cells(sheet.axes, (x, x_axis, size[0]), (y, y_axis, size[1]))
    sheet.label(_X_LABELS.get(x_axis, x_axis), _X_LABELS.get(y_axis, y_axis))
    numbers = _meaning(leads) if room else []
    sheet.say(f"{title}: fastest kernel", [*numbers, *compared.notes("geometric mean")])
    return sheet.figure


def _meaning(leads: Sequence[float | None]) -> list[str]:
    """What numbers in cells mean, and cells without one."""
    number = "number: the second's time over the fastest's"
    alone = "no number: only one kernel has results there"
    found = {number: any(lead is not None for lead in leads), alone: None in leads}
    return [text for text, there in found.items() if there]


def _winners(results: pd.DataFrame, x: str, y: str) -> Iterator[tuple[float, float, str, float | None]]:
    """Each cell, its fastest kernel, and the second's time over the fastest's if there is a second."""
    logs = results.assign(log=np.log(results["latency_s"])).groupby([x, y, "policy"])["log"].mean()
    cells = logs.unstack()
    for i, (at_x, at_y) in enumerate(cells.index.to_list()):
        order = cells.iloc[i].dropna().sort_values()
        lead = math.exp(order.iloc[1] - order.iloc[0]) if len(order) > 1 else None
        yield float(at_x), float(at_y), str(order.index[0]), lead


def _cell(panel: Axes, at: tuple[int, int], style: Style | None, lead: float | None, room: bool) -> None:
    """Draw one cell: grey for a tie (no style), and what there is to say of the lead if it fits."""
    from matplotlib.patches import Rectangle

    looks = {"facecolor": _TIE_COLOUR} if style is None else style.patch()
    panel.add_patch(Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, **{**looks, "linewidth": 0}))
    if lead is None or not room:
        return
    text = "tie" if style is None else f"{lead:.2f}" if lead < 10 else f"{lead:.3g}"
    dark = style is not None and style.colour not in ("#E69F00", "#56B4E9", "#CC79A7")
    box = {"facecolor": style.colour, "linewidth": 0, "pad": 1.5} if style and style.hatch else None
    ink = "white" if dark else "black"
    panel.text(at[0], at[1], text, ha="center", va="center", color=ink, fontsize=7.5, bbox=box)


def _name_cells(
    panels: Sequence[Axes], x: tuple[np.ndarray, str, float], y: tuple[np.ndarray, str, float]
) -> None:
    """Name columns and rows of cells, every n-th where there are many."""
    names = [ticks(values.tolist(), axis) for values, axis, _ in (x, y)]
    widest = max((inches_of(name, 8) for name in names[0]), default=0.0) + 0.08
    every = [max(1, math.ceil(widest / x[2])), max(1, math.ceil(0.16 / y[2]))]
    for panel in panels:
        panel.set_xticks(range(0, len(names[0]), every[0]), names[0][:: every[0]], fontsize=8)
        panel.set_yticks(range(0, len(names[1]), every[1]), names[1][:: every[1]], fontsize=8)
        panel.tick_params(labelbottom=True)
