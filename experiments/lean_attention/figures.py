"""The figures: speedups over output tiles, busy fractions, ragged gains, GPUs, and when Lean pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import busy
import numpy as np
import over_context
import ragged
import tensor_parallel
import when_it_pays
from calls import BEST, FA2, LEAN, NEW, OLD, ORT, SHORT, UNCAPPED, Call, Times, gain
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from parts import geometric_mean, tokens

from leansim.report.sheet import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    FA2: "FlashAttention-2", OLD: "FlashDecoding, up to v2.5.6", NEW: "FlashDecoding, since v2.5.7",
    LEAN: "Lean", ORT: "Lean, padded (ONNX Runtime)", UNCAPPED: "Lean, uncapped",
    BEST: "best split count",
}  # fmt: skip
COLOUR_OF = dict(zip((LEAN, NEW, OLD, ORT, UNCAPPED, FA2), COLOURS, strict=False)) | {BEST: "#000000"}
MARK_OF = dict(zip((LEAN, NEW, OLD, ORT, UNCAPPED, FA2, BEST), "osDv^x.", strict=True))
SMALL = 8


def _style(kernel: str) -> dict[str, Any]:
    dash = ":" if kernel == BEST else "--" if kernel in (ORT, UNCAPPED) else "-"
    return {
        "color": COLOUR_OF[kernel], "marker": MARK_OF[kernel], "linestyle": dash, "markersize": 4,
        "linewidth": 1.4, "label": NAMES[kernel],
    }  # fmt: skip


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL
    )


def _plain_ticks(axis: Any, ticks: Sequence[float], texts: Sequence[str]) -> None:
    axis.set_ticks(ticks, texts, fontsize=SMALL)
    axis.set_ticks([], minor=True)


# -- parts -----------------------------------------------------------------------------------------


def possible_gain(times: Times) -> Figure:
    """Speedup over FlashAttention-2 by output tiles: a panel per GPU and context, one request."""
    contexts = (4096, 65536, 524288)
    kernels = (OLD, NEW, LEAN, UNCAPPED, BEST)
    heads = [heads for batch, heads in over_context.BATCHES_AND_HEADS if batch == 1]
    figure, panels = _panels(2, len(contexts), 9.0, 6.2)
    for axes, (device, context) in zip(panels, product(over_context.DEVICES, contexts), strict=True):
        for kernel in kernels:
            gains = [gain(times, Call(device, FA2, 1, context, h, h), FA2, kernel) for h in heads]
            axes.plot(heads, gains, **_style(kernel))
        for level, text in (
            (over_context.LARGEST, "8.33: the paper's largest"),
            (over_context.MEAN, "2.6: its mean"),
        ):
            axes.axhline(level, color="grey", linewidth=0.8)
            axes.text(
                heads[-1], level * 1.05, text, ha="right", va="bottom", fontsize=6.5, color="#555555"
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_title(f"{SHORT[device]}, {tokens(context)} tokens", fontsize=9)
        _plain_ticks(axes.xaxis, heads, [str(h) for h in heads])
        _plain_ticks(axes.yaxis, [1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        axes.grid(alpha=0.25, linewidth=0.5)
    for axes in panels[-len(contexts) :]:
        axes.set_xlabel("output tiles: heads of one request\n(MHA, head dim 128)", fontsize=SMALL)
    figure.supylabel("times as fast as FlashAttention-2", fontsize=9)
    _legend(figure, panels[0], len(kernels))
    return figure


def busy_maps(times: Times) -> Figure:
    """SM busy fraction: a row of panels per GPU, a panel per kernel, requests and heads over context."""
    sizes = [(batch, heads) for batch in busy.BATCHES for heads in busy.HEADS]
    figure, panels = _panels(len(busy.DEVICES), len(busy.KERNELS), 11.5, 8.2)
    image = None
    for axes, (device, kernel) in zip(panels, product(busy.DEVICES, busy.KERNELS), strict=True):
        shares = np.full((len(sizes), len(busy.CONTEXTS)), math.nan)
        for call in busy.cells():
            if call.device != device:
                continue
            row, column = (
                sizes.index((call.batch_size, call.num_q_heads)),
                busy.CONTEXTS.index(call.context_len),
            )
            shares[row, column] = share = times[call.by(kernel)].busy
            ink = "white" if share < 0.6 else "black"
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=ink
            )
        axes.set_facecolor("#DDDDDD")
        image = axes.imshow(
            shares, colormaps["viridis"], vmin=0.0, vmax=1.0, origin="lower", aspect="auto"
        )
        axes.set_xticks(range(len(busy.CONTEXTS)), [tokens(one) for one in busy.CONTEXTS], fontsize=7)
        axes.set_yticks(range(len(sizes)), [f"{b} x {h}" for b, h in sizes], fontsize=7)
        for border in range(len(busy.HEADS), len(sizes), len(busy.HEADS)):
            axes.axhline(border - 0.5, color="white", linewidth=1.5)
        axes.set_title(f"{SHORT[device]}: {NAMES[kernel]}", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=0.6, format=lambda share, _: f"{share:.0%}")
    bar.ax.tick_params(labelsize=SMALL)
    figure.supxlabel("context (tokens)", fontsize=9)
    figure.supylabel("requests x heads (MHA, head dim 128)", fontsize=9)
    figure.suptitle(
        "SM busy fraction (%): slot time with a CTA that does not wait; grey: KV does not fit",
        fontsize=10,
    )
    return figure


def ragged_gains(times: Times) -> Figure:
    """Lean's speedup by batch context ratio: a panel per GPU and heads, means with all cells as dots."""
    figure, panels = _panels(len(ragged.DEVICES), len(ragged.HEADS), 8.2, 6.4)
    shown = {FA2: -0.012, OLD: -0.004, NEW: 0.004, ORT: 0.012}
    for axes, (device, heads) in zip(panels, product(ragged.DEVICES, ragged.HEADS), strict=True):
        mine = [
            call for call in ragged.cells() if (call.device, call.num_kv_heads) == (device, heads[1])
        ]
        for over, aside in shown.items():
            means = []
            for ratio in ragged.RATIOS:
                gains = [gain(times, call, over) for call in mine if call.ragged == f"mean {ratio}"]
                means.append(geometric_mean(gains))
                axes.plot(
                    [ratio + aside] * len(gains),
                    gains,
                    "o",
                    color=COLOUR_OF[over],
                    ms=2.6,
                    alpha=0.45,
                    mew=0,
                )
            axes.plot(
                ragged.RATIOS,
                means,
                **{**_style(over), "label": f"over {NAMES[over]}", "linestyle": "-"},
            )
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_yscale("log", base=2)
        _plain_ticks(axes.yaxis, [0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes.set_xticks(ragged.RATIOS, [f"{ratio:g}" for ratio in ragged.RATIOS], fontsize=SMALL)
        axes.set_title(f"{SHORT[device]}, {heads[0]}/{heads[1]} heads", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.5)
    for axes in panels[-len(ragged.HEADS) :]:
        axes.set_xlabel("batch context ratio (our reading): mean over longest", fontsize=SMALL)
    figure.supylabel("Lean is so many times as fast", fontsize=9)
    figure.suptitle(
        "Lines: geometric means; dots: batches of 4 to 32, longest context 16k or 128k", fontsize=10
    )
    _legend(figure, panels[0], 2)
    return figure


def eight_gpus(times: Times) -> Figure:
    """Lean's speedup on one A100 and on eight, and how attention scales, by model; one request, 32k."""
    batch, context = 1, 32768
    models = tensor_parallel.MODELS
    calls = [tensor_parallel.divided(model, batch, context) for model in models]
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = np.arange(len(models))
    for over, colour in ((FA2, COLOUR_OF[FA2]), (NEW, COLOUR_OF[NEW])):
        for gpus, marker in ((1, "o"), (8, "D")):
            ones = [call if gpus == 8 else tensor_parallel.whole(call) for call in calls]
            gains = [gain(times, one, over) if one is not None else math.nan for one in ones]
            face = colour if gpus == 8 else "white"
            left.plot(
                gains, at, marker, color=colour, markerfacecolor=face, ms=6,
                label=f"over {NAMES[over]}, {gpus} GPU{'s' if gpus > 1 else ''}",
            )  # fmt: skip
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_xscale("log", base=2)
    _plain_ticks(left.xaxis, [0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
    left.set_xlabel("Lean is so many times as fast", fontsize=9)
    left.set_title("Lean's speedup on one GPU and on eight", fontsize=9)
    for shift, kernel in zip((-0.27, -0.09, 0.09, 0.27), (FA2, OLD, NEW, LEAN), strict=True):
        scales = [tensor_parallel.scaling(times, call, kernel) for call in calls]
        right.barh(at + shift, scales, 0.18, color=COLOUR_OF[kernel], label=NAMES[kernel])
    right.axvline(8.0, color="black", linewidth=0.8)
    right.set_xlabel("times as fast on eight GPUs as on one (8: as many as GPUs)", fontsize=9)
    right.set_title("How attention scales", fontsize=9)
    names = []
    for model, call in zip(models, calls, strict=True):
        shape = f"{8 * call.num_q_heads}/{call.num_kv_heads * 8}"
        names.append(shape if model.startswith("heads_") else f"{model}: {shape}")
    for axes in (left, right):
        axes.set_yticks(at, names if axes is left else [""] * len(names), fontsize=SMALL)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=SMALL)
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.suptitle(
        f"Attention of one layer on A100s, {batch} request of {tokens(context)} tokens", fontsize=10
    )
    return figure


# -- when it pays ----------------------------------------------------------------------------------

LEAST_X, MOST_X = 0.0016, 14.0


def when_it_pays_map(times: Times) -> Figure:
    """Ground: simulated speedup over tiles per slot and context; dots: measured on two cards."""
    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    norm, colours = LogNorm(1 / 2, 2), colormaps["RdBu"]
    measured = when_it_pays.dots()
    for axes, kind in zip(panels, (when_it_pays.UNIFORM, when_it_pays.RAGGED), strict=True):
        mine = [dot for dot in measured if dot.batch == kind]
        _ground(axes, times, kind, norm, colours)
        _dots(axes, mine, norm, colours)
        _means(axes, mine)
        axes.set(xscale="log", xlim=(LEAST_X, MOST_X))
        axes.set_yscale("log", base=2)
        axes.set_ylim(360, 1_100_000)
        ticks = [0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]
        _plain_ticks(axes.yaxis, when_it_pays.CONTEXTS, [tokens(one) for one in when_it_pays.CONTEXTS])
        _plain_ticks(axes.xaxis, ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("output tiles per slot (requests x KV heads / resident CTAs)", fontsize=9)
    panels[0].set_title("All contexts of one length", fontsize=9)
    title = f"Unlike lengths (simulated: mean {when_it_pays.RATIO:g} of the longest; measured: traces)"
    panels[1].set_title(title, fontsize=9)
    panels[0].set_ylabel("mean context (tokens)", fontsize=9)
    title = "Speedup of LeanAttention over the faster of FlashDecoding and no split, all on one kernel"
    figure.suptitle(title, fontsize=11)
    _key(figure, panels, norm, colours)
    return figure


def _ground(axes: Axes, times: Times, kind: str, norm: LogNorm, colours: Any) -> None:
    """Simulated cells."""
    mine = [call for call in when_it_pays.cells() if bool(call.ragged) == (kind == when_it_pays.RAGGED)]
    places = {when_it_pays.place(call): when_it_pays.speedup(times, call) for call in mine}
    x, y = (sorted({place[axis] for place in places}) for axis in (0, 1))
    field = np.full((len(y), len(x)), math.nan)
    for (across, up), ratio in places.items():
        field[y.index(up), x.index(across)] = ratio
    axes.set_facecolor("#E4E4E4")
    axes.pcolormesh(_edges(x), _edges(y), field, norm=norm, cmap=colours, linewidth=0)


def _dots(axes: Axes, mine: Sequence[when_it_pays.Dot], norm: LogNorm, colours: Any) -> None:
    """A circle per batch that was measured: its left half on the H100, its right half on the H200."""
    batches: dict[tuple[float, int, str], dict[str, float]] = {}
    for dot in mine:
        place = dot.tiles_per_slot, dot.mean_context, dot.shape
        batches.setdefault(place, {})[dot.card] = dot.measured
    for (across, up, _), on in batches.items():
        left, right = (colours(norm(on[card])) if card in on else "white" for card in when_it_pays.CARDS)
        axes.plot(
            across, up, "o", ms=7.5, fillstyle="left", markerfacecolor=left, markerfacecoloralt=right,
            markeredgecolor="black", markeredgewidth=0.6,
        )  # fmt: skip


def _means(axes: Axes, mine: Sequence[when_it_pays.Dot]) -> None:
    """The measured mean of each band of output tiles per slot, above the dots."""
    borders = (LEAST_X, 0.1, 1.0, MOST_X)
    for low, high in pairwise(borders):
        some = [dot.measured for dot in mine if low < dot.tiles_per_slot <= high]
        text = f"measured\n{geometric_mean(some):.2f}x"
        axes.text(math.sqrt(low * high), 600_000, text, ha="center", va="center", fontsize=9)
        if high < MOST_X:
            axes.axvline(high, color="black", linewidth=0.8, linestyle=":")


def _edges(values: Sequence[float]) -> Any:
    """Borders half-way between values, by ratio."""
    logs = np.log(values)
    inner = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.r_[2 * logs[0] - inner[0], inner, 2 * logs[-1] - inner[-1]])


def _key(figure: Figure, panels: Any, norm: LogNorm, colours: Any) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), extend="both", pad=0.02)
    ticks = (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2)
    bar.ax.yaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=SMALL)
    bar.ax.yaxis.set_ticks([], minor=True)
    bar.set_label("times as fast    (red: Lean is slower, blue: faster)", fontsize=9)
    circle = {"marker": "o", "linestyle": "", "ms": 7.5, "markeredgecolor": "black"}
    handles = [
        Line2D(
            [], [], **circle, fillstyle="left", markerfacecolor="#777777", markerfacecoloralt="white",
            label="measured: left half H100, right half H200; means above are of both",
        ),
        Patch(facecolor="#9CC9E0", label="ground: simulated, H100"),
        Patch(facecolor="#E4E4E4", label="not simulated"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
