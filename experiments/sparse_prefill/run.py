"""Sparse prefill: what density the published speedups imply, and from which context a list pays.

    python experiments/sparse_prefill/run.py [-o FOLDER]

Writes RESULTS.md, a figure and expected.csv, here or into another folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from prefill import (
    Machine,
    Shape,
    attention_flop,
    attention_s,
    break_even,
    density,
    heads_density,
    index_s,
    linear_s,
    tokens_of,
)

from leansim.answers import Row
from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.report.sheet import COLOURS, save
from leansim.specs import catalog

HERE = Path(__file__).resolve().parent
FACTS: dict[str, Any] = read(HERE / "published.yaml").data
MINFERENCE = FACTS["minference"]
POINTS = {int(n): float(speedup) for n, speedup in MINFERENCE["speedups"].items()}
HEADS = [tuple(entry) for entry in MINFERENCE["heads"]]
WIDTHS = (1, 4, 8, 16, 128)
DEVICES = tuple(FACTS["rates"])
BUDGETS = (2048, 4096, 8192, 16384, 32768)
SLOWER = (1.0, 1.25, 1.5, 2.0)


def shape() -> Shape:
    """Llama-3-8B."""
    model = catalog.model(FACTS["model"]["name"])
    return Shape(model.num_layers, model.num_q_heads, model.num_kv_heads, model.head_dim,
                 FACTS["model"]["linear_parameters"])  # fmt: skip


def machine(name: str) -> Machine:
    """The rate of FlashAttention-2's forward as measured, and the bandwidth that the device reaches."""
    device = catalog.device(name)
    measured = Shape(1, 32, 8, 128, 0)
    rate = attention_flop(8192, measured) * FACTS["rates"][name]["iterations_per_s"]
    return Machine(rate, device.dram_bandwidth_bytes_per_s * device.dram_efficiency)


def index_share(n: int, name: str) -> float:
    """Choosing over dense attention."""
    asked = (MINFERENCE["last_queries"], MINFERENCE["score_passes"])
    return index_s(n, shape(), machine(name), *asked) / attention_s(n, shape(), machine(name))


def attention_left(n: int, speedup: float, name: str, whole: bool) -> float:
    """The share of attention's time that a speedup of attention, or of the whole prefill, leaves."""
    if not whole:
        return 1 / speedup
    attention = shape().layers * attention_s(n, shape(), machine(name))
    linear = linear_s(n, shape(), machine(name))
    return ((attention + linear) / speedup - linear) / attention


def implied() -> Part:
    """What density each published point implies."""
    rows, pins, name = [], {}, DEVICES[0]
    for n, speedup in POINTS.items():
        row: Row = {"context": f"{n:,}", "published": f"{speedup:g}x"}
        for whole in (False, True):
            left = attention_left(n, speedup, name, whole) - index_share(n, name)
            kept, tokens = max(0.0, left), tokens_of(left, n)
            label = "whole prefill" if whole else "attention"
            pins[f"{n} tokens, {label}, density"] = kept
            row[f"density ({label})"] = f"{kept:.1%}"
            row[f"tokens a query ({label})"] = f"{tokens:,.0f}"
            if not whole:
                row["width of a diagonal"] = f"{width_of(kept, n):.1f}"
        rows.append(row)
    mean = sum(count * (v + s) for v, s, count in HEADS) / sum(count for *_, count in HEADS)
    sentences = (
        "What is left of attention's pairs if a published speedup is all due to that, less what "
        "choosing costs (on an A100). The page does not say whether its speedups are of attention "
        f"or of the whole prefill, so both are read. The heads' lists have {mean:,.0f} tokens in "
        "the mean (counted from the repository's file for Llama-3-8B).",
        "Read as attention's, a query sees some 20,000 to 35,000 tokens at every context: a list "
        "of nearly constant length, as the files have it, but six to nine times as long. A "
        "diagonal is walked in blocks of 64 by 64, so it costs one token where it lies beside "
        "others and up to 128 alone; *width* is what it costs on the average for the counted "
        "lists to have that density. Read as of the whole prefill, fewer tokens are left at some "
        "contexts than the lists have, and 5.2x at 256K is nearly all that linear layers allow "
        "(next table). So it is attention, more likely.",
    )
    return Part("What the published speedups imply", sentences, (("By context", rows),), pins)


def width_of(wanted: float, n: int) -> float:
    """Tokens that a diagonal costs for the heads' lists to have a density, to 0.1%."""
    low, high = 1.0, 2.0 * MINFERENCE["block"]
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if heads_density(n, HEADS, middle) > wanted else (middle, high)
    return high


def curves() -> Part:
    """The counted lists' speedup at widths that are assumed."""
    rows, name = [], DEVICES[0]
    for n, speedup in POINTS.items():
        row: Row = {"context": f"{n:,}", "published": f"{speedup:g}x"}
        for width in WIDTHS:
            row[f"width {width}"] = f"{speedup_of(n, width, name):.2f}x"
        attention = shape().layers * attention_s(n, shape(), machine(name))
        linear = linear_s(n, shape(), machine(name))
        row["most of a whole prefill"] = f"{(attention + linear) / linear:.1f}x"
        rows.append(row)
    errors = {
        w: np.mean([abs(speedup_of(n, w, name) / s - 1) for n, s in POINTS.items()]) for w in WIDTHS
    }
    best = min(errors, key=errors.__getitem__)
    sentences = (
        "Attention's speedup with the counted lists, at tokens per diagonal that are assumed; a "
        f"listed tile takes as long as a dense one. A width of {best} is nearest to what is "
        f"published, off by {errors[best]:.0%} in the mean. That is a width chosen by hand "
        "against six points, of unknown device and model, and no test of it.",
    )
    pins = {f"{n} tokens, width {w}": speedup_of(n, w, name) for n in POINTS for w in WIDTHS}
    return Part("The counted lists", sentences, (("Attention's speedup", rows),), pins)


def speedup_of(n: int, width: float, name: str) -> float:
    """Of attention, with choosing."""
    return 1 / (heads_density(n, HEADS, width) + index_share(n, name))


def choosing() -> Part:
    """What choosing costs beside dense attention."""
    contexts = (8192, 16384, 32768, 131072, 1048576)
    rows = []
    for name in DEVICES:
        row: Row = {"device": name, "TFLOP/s": f"{machine(name).flop_per_s / 1e12:.0f}"}
        for n in contexts:
            dense = attention_s(n, shape(), machine(name))
            row[f"{n:,}"] = f"{dense * 1e3:,.2f} ms, {index_share(n, name):.2%}"
        rows.append(row)
    pins = {f"{name}, {n} tokens, share": index_share(n, name) for name in DEVICES for n in contexts}
    queries, passes = MINFERENCE["last_queries"], MINFERENCE["score_passes"]
    sentences = (
        f"A layer's dense attention, and choosing as a share of it: scores of {queries} queries, "
        f"4 bytes, {passes} times through memory (assumed). The share falls as 1 / n.",
    )
    return Part("What choosing costs", sentences, (("Dense attention, and choosing", rows),), pins)


def accelerate() -> Part:
    """Where a list begins to pay, and what 1.04x at 32k leaves."""
    said, name = FACTS["sparse_accelerate"], DEVICES[0]
    n = said["context"]
    left = attention_left(n, said["speedup"], name, whole=True)
    rows, pins = [], {}
    for tokens in BUDGETS:
        row: Row = {"tokens a query": f"{tokens:,}"}
        for slower in SLOWER:
            found = break_even(tokens, slower, index_share(1024, name))
            pins[f"{tokens} tokens, tile {slower:g}x"] = found or 0
            row[f"tile {slower:g}x"] = "none" if found is None else f"{found:,}"
        rows.append(row | {f"density at {n:,}": f"{density(n, tokens):.0%}"})
    pins["attention left at 32k"] = left
    attention = shape().layers * attention_s(n, shape(), machine(name))
    share = attention / (attention + linear_s(n, shape(), machine(name)))
    sentences = (
        f"SparseAccelerate reports a time to first token {said['speedup']}x as fast at {n:,} "
        f"tokens, and an effect from {said['effective_from']:,} on. In an 8B model attention is "
        f"{share:.0%} of a prefill of that length if all runs at one rate, so {left:.0%} of "
        f"attention's time is left, choosing included ({index_share(n, name):.1%}): near "
        "break-even. Its kernels, its baseline and its lists are unknown, so the table has where "
        "a list of so many tokens breaks even, if a listed tile takes so many times as long as a "
        "dense one. An effect from "
        "16K on means lists of 8,000 tokens or so, if a listed tile takes a quarter longer.",
        "Memory is what that method is for: "
        f"{said['memory_mb'][0]:,} MB against {said['memory_mb'][1]:,} MB. That is not modelled.",
    )
    return Part("Break-even", sentences, (("Least context from which a list pays", rows),), pins)


def figure() -> Figure:
    """Attention's speedup over the context: published, and the counted lists at some widths."""
    drawn = Figure(figsize=(6.8, 4.0), layout="constrained")
    axes = drawn.subplots()
    contexts = np.unique(np.rint(np.geomspace(8192, 2**20, 80)).astype(int))
    for number, width in enumerate(WIDTHS):
        line = [speedup_of(int(n), width, DEVICES[0]) for n in contexts]
        axes.plot(contexts, line, color=COLOURS[number], label=f"{width} token{'s' * (width > 1)}")
    axes.plot(list(POINTS), list(POINTS.values()), "ks", markersize=5, label="published")
    said = FACTS["sparse_accelerate"]
    axes.plot([said["context"]], [said["speedup"]], "k^", markersize=6, label="SparseAccelerate, whole")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
    axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1024:g}k" if n < 2**20 else "1M")
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("times as fast as dense")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, title="a diagonal costs", title_fontsize=8,
                loc="upper left", bbox_to_anchor=(1.0, 1.0))  # fmt: skip
    return drawn


def parts() -> list[Part]:
    """All of the page."""
    return [implied(), curves(), choosing(), accelerate()]


def main() -> None:
    """Write the results, the figure and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    write_page(out, parts())
    save(figure(), out / "speedup.png")


if __name__ == "__main__":
    main()
