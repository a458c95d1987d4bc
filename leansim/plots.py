"""Figures from stored results; nothing is simulated here.

Lines are kernels, panels are devices. Axes of the sweep that a figure does not show are averaged
geometrically, with the middle half shaded (all of it if there are few), and the figure says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.errors import StoreError
from leansim.points import Point
from leansim.sweeps import read_results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: distinguishable with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
_ENOUGH_FOR_QUARTILES = 8
X_LABELS = {
    "context_len": "context length (tokens)",
    "mean_context_len": "mean context length (tokens)",
    "batch_size": "batch size (requests)",
    "context_scale": "context scale",
    "num_q_heads": "query heads",
}


def plot(folder: str | Path, baseline: str | None = None) -> list[Path]:
    """Draw every figure a sweep's results support, as PNG beside them, and return the paths.

    Latency and speedup over each numeric axis with several values, SM busy fraction, and a winner
    map where there are two such axes. Raises `StoreError` for missing results or baseline.
    """
    table, manifest = read_results(folder)
    baseline = baseline or manifest["config"].get("baseline")
    table = table[table["error"].isna()]
    policies = list(dict.fromkeys(table["policy"]))
    if baseline is not None and baseline not in policies:
        raise StoreError(f"{folder}: no results for baseline {baseline!r}; there are {policies}")
    axes = [name for name in ("context_len", "batch_size") if table[name].nunique() > 1]
    if table["context_scale"].nunique() > 1:
        axes.append("mean_context_len")
    title = str(manifest["config"]["name"])
    drawn = []
    for axis in axes:
        drawn += [
            _save(line_figure(table, axis, "latency_s", title, None), folder, f"latency_{axis}"),
            _save(line_figure(table, axis, "sm_busy_fraction", title, None), folder, f"busy_{axis}"),
        ]
        if baseline is not None:
            figure = line_figure(table, axis, "speedup", title, baseline)
            drawn.append(_save(figure, folder, f"speedup_{axis}"))
    if len(axes) >= 2:
        drawn.append(_save(winner_map(table, axes[0], axes[1], title), folder, "winner_map"))
    if not drawn:
        raise StoreError(f"{folder}: nothing to draw: no axis has two values")
    return drawn


def with_speedup(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Add `speedup`: the baseline's latency over the row's, at the same point but for the kernel."""
    point = [c for c in table.columns if c in point_columns() and c not in ("kernel", "overrides")]
    point = [column for column in point if table[column].notna().any()]
    base = table[table["policy"] == baseline].drop_duplicates(point).set_index(point)["latency_s"]
    joined = table.join(base.rename("baseline_s"), on=point)
    return joined.assign(speedup=joined["baseline_s"] / joined["latency_s"]).dropna(subset="speedup")


def point_columns() -> set[str]:
    """Columns of results that describe the point rather than the outcome."""
    return {field.alias or name for name, field in Point.model_fields.items()}


def line_figure(table: pd.DataFrame, axis: str, value: str, title: str, baseline: str | None) -> Figure:
    """Draw one value over one axis: a panel per device, a line per kernel."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    if baseline is not None:
        table = with_speedup(table, baseline)
    devices = list(dict.fromkeys(table["device"]))
    figure = Figure(figsize=(1 + 5 * len(devices), 4.6), layout="constrained")
    panels = figure.subplots(1, len(devices), sharey=True, squeeze=False)[0]
    for panel, device in zip(panels, devices, strict=True):
        _lines(panel, table[table["device"] == device], axis, value, baseline)
        panel.set_title(device)
        panel.set_xlabel(X_LABELS.get(axis, axis))
    panels[0].set_ylabel(_value_label(value, baseline))
    panels[-1].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{title}: {_averaged_over(table, axis)}; shaded: the middle half", fontsize=10)
    return figure


def _lines(panel: Axes, table: pd.DataFrame, axis: str, value: str, baseline: str | None) -> None:
    for i, policy in enumerate(dict.fromkeys(table["policy"])):
        mine = table[table["policy"] == policy]
        scale = 1e6 if value == "latency_s" else 1.0
        groups = mine.groupby(axis)[value]
        x = np.array(sorted(groups.groups))
        middle = np.array([scale * _middle(groups.get_group(at), value) for at in x])
        edge = 0.25 if groups.size().min() >= _ENOUGH_FOR_QUARTILES else 0.0
        low = scale * groups.quantile(edge).loc[x].to_numpy()
        high = scale * groups.quantile(1 - edge).loc[x].to_numpy()
        colour = COLOURS[i % len(COLOURS)]
        if policy == baseline:
            panel.axhline(1.0, color=colour, linewidth=1.2, label=f"{policy} (baseline)")
            continue
        panel.plot(x, middle, color=colour, marker=MARKERS[i % 8], markersize=4, label=policy)
        if np.any(high > low * (1 + 1e-9)):
            panel.fill_between(x, low, high, color=colour, alpha=0.10, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(_tick)
    if value == "latency_s":
        panel.set_yscale("log")
    elif value == "sm_busy_fraction":
        panel.set_ylim(0, 1.02)
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)


def _middle(values: pd.Series[float], value: str) -> float:
    """Geometric mean of ratios and times, plain mean of shares."""
    numbers = values.to_numpy(dtype=float)
    return float(numbers.mean() if value == "sm_busy_fraction" else np.exp(np.log(numbers).mean()))


def _value_label(value: str, baseline: str | None) -> str:
    labels = {
        "latency_s": "latency (µs)",
        "sm_busy_fraction": "SM busy fraction",
        "speedup": f"speedup over {baseline} (above 1 is faster)",
    }
    return labels[value]


def _averaged_over(table: pd.DataFrame, *shown: str) -> str:
    """Say what a figure averages over, with the values."""
    hidden = []
    for column in sorted(point_columns() & set(table.columns)):
        if column == "context_scale" and "mean_context_len" in shown:
            continue
        if column in (*shown, "device", "kernel", "partitioner", "overrides"):
            continue
        values = list(dict.fromkeys(table[column].dropna()))
        if len(values) > 1:
            span = (
                f"{_tick(values[0])}-{_tick(values[-1])}"
                if _numeric(values)
                else f"{len(values)} values"
            )
            hidden.append(f"{column} {span}")
    return f"mean over {', '.join(hidden)}" if hidden else "one workload per point"


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def _tick(value: float, _: float | None = None) -> str:
    """Write token counts as people do: 512, 8k, 1M; small factors as they are."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if value >= size and math.isclose(value / size, round(value / size), rel_tol=1e-9):
            return f"{value / size:.0f}{unit}"
    return f"{value:g}"


def winner_map(table: pd.DataFrame, x_axis: str, y_axis: str, title: str) -> Figure:
    """Colour each cell of two axes by the fastest kernel; the number is its lead over the second."""
    from matplotlib.colors import ListedColormap  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    devices = list(dict.fromkeys(table["device"]))
    policies = list(dict.fromkeys(table["policy"]))
    x_values, y_values = (np.array(sorted(table[axis].unique())) for axis in (x_axis, y_axis))
    figure = Figure(
        figsize=(1.5 + len(devices) * (1 + 0.55 * len(x_values)), 2.2 + 0.45 * len(y_values)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(devices), squeeze=False)[0]
    for panel, device in zip(panels, devices, strict=True):
        mine = table[table["device"] == device].assign(log=lambda t: np.log(t["latency_s"]))
        mean = mine.pivot_table(index=[y_axis, x_axis], columns="policy", values="log")[policies]
        winner = np.full((len(y_values), len(x_values)), np.nan)
        for (y, x), row in mean.iterrows():
            order = row.sort_values()
            at = int(np.searchsorted(y_values, y)), int(np.searchsorted(x_values, x))
            winner[at] = policies.index(str(order.index[0]))
            lead = math.exp(order.iloc[1] - order.iloc[0]) if len(order) > 1 else 1.0
            text = f"{lead:.2f}" if lead >= 1.005 else "tie"
            panel.text(at[1], at[0], text, ha="center", va="center", color="white", fontsize=7)
        colours = ListedColormap(list(COLOURS[: len(policies)]))
        panel.imshow(
            winner, cmap=colours, vmin=-0.5, vmax=len(policies) - 0.5, origin="lower", aspect="auto"
        )
        panel.set_xticks(range(len(x_values)), [_tick(x) for x in x_values], fontsize=8)
        panel.set_yticks(range(len(y_values)), [_tick(y) for y in y_values], fontsize=8)
        panel.set_title(device)
        panel.set_xlabel(X_LABELS.get(x_axis, x_axis))
    panels[0].set_ylabel(X_LABELS.get(y_axis, y_axis))
    handles = [Patch(color=COLOURS[i], label=policy) for i, policy in enumerate(policies)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(policies), frameon=False)
    figure.suptitle(
        f"{title}: fastest kernel and its lead over the second (tie: under 0.5%); "
        + _averaged_over(table, x_axis, y_axis),
        fontsize=9,
    )
    return figure


def _save(figure: Figure, folder: str | Path, name: str) -> Path:
    path = Path(folder) / f"{name}.png"
    figure.savefig(path, dpi=130)
    return path
