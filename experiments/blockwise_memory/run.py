"""Activation memory of a layer over the context: four schedules walked, and what was published.

    python experiments/blockwise_memory/run.py [-o FOLDER]

Writes RESULTS.md, a figure and expected.csv, here or into another folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from walk import SCHEDULES, Layer, Walk, feeds_at_once, formula

from leansim.answers import Row
from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.report.sheet import COLOURS, save

HERE = Path(__file__).resolve().parent
FACTS: dict[str, Any] = read(HERE / "published.yaml").data
HEADS, HIDDEN, BLOCK, INNER = 32, 4096, 1024, 64
WALKED = Layer(b=1, s=32768, n=HEADS, h=HIDDEN, c=BLOCK, inner=INNER)
CONTEXTS = tuple(2**power for power in range(11, 19))
GIB = 2**30


def formulas() -> Part:
    """The walk beside the table's formulas."""
    rows, pins = [], {}
    bch = WALKED.b * WALKED.c * WALKED.h
    for name, schedule in SCHEDULES.items():
        walk = schedule(WALKED)
        for sublayer in ("attention", "ffn"):
            walked, said = walk.made_peak[sublayer], formula(name, sublayer, WALKED)
            pins[f"{name}, {sublayer}, bytes"] = walked
            rows.append(
                {
                    "schedule": name,
                    "sublayer": sublayer,
                    "published": FACTS["formulas"][name][sublayer],
                    "published_mib": f"{said / 2**20:,.1f}",
                    "walked_mib": f"{walked / 2**20:,.1f}",
                    "more, in bch": f"{(walked - said) / bch:+.2f}",
                    "off": f"{walked / said - 1:+.1%}",
                }
            )
    sentences = (
        "Bytes of what a sublayer makes, beside what it is given, at the worst moment of its "
        f"schedule: {WALKED.s:,} tokens, {HEADS} heads, hidden {HIDDEN:,}, blocks of {BLOCK:,}, "
        "bfloat16. The walk and the formulas agree in every term that grows with the context, but "
        "for vanilla's output of 2bsh, which the formula leaves out beside its scores. Blockwise, "
        "formulas leave out what one block needs: keys and values (4bch) and the network's hidden "
        "layer (8bch).",
        "The ring's do not agree: six blocks are what the walk finds too, but a block in bfloat16 "
        "takes 2bch bytes, as the same paper says of keys and values where it counts what is "
        "sent, so six are 12bch and not 6bch. Its network is walked in pieces of 64 tokens; in "
        "one piece its hidden layer alone would be 8bch.",
    )
    return Part("The walk and the formulas", sentences, (("At most live", rows),), pins)


def totals() -> Part:
    """Over the context: what is made, and everything that is live."""
    rows, pins = [], {}
    for s in CONTEXTS[::2]:
        row: Row = {"context": f"{s:,}"}
        for name in SCHEDULES:
            live = walked(name, s).live_peak
            pins[f"{name}, {s} tokens, live bytes"] = live
            row[name] = f"{most_made(name, s) / GIB:,.3f} ({live / GIB:,.3f})"
        rows.append(row)
    s = CONTEXTS[::2][-1]
    made = most_made("memory_efficient", s) / most_made("blockwise", s)
    live = walked("memory_efficient", s).live_peak / walked("blockwise", s).live_peak
    at_once = [name for name in SCHEDULES if feeds_at_once(walked(name, 8192).ops, 8192 // BLOCK)]
    sentences = (
        f"GiB of a layer's activations; blocks of {BLOCK:,}, the ring's of one host. The "
        "published ratio of memory-efficient to blockwise is 8bsh / 2bsh = 4; the walk finds "
        f"{made:.2f}. With the layer's input in it, which has to stay since keys and values are "
        f"made from it again and again, (in brackets) it is 10bsh / 4bsh: {live:.2f}. Of "
        "everything live the gain is no more than that.",
        f"Each query block's network follows its attention at once in: {', '.join(at_once)}.",
    )
    return Part("Over the context", sentences, (("GiB made (GiB live)", rows),), pins)


def layer_of(s: int) -> Layer:
    """Such a layer at a context."""
    return Layer(b=1, s=s, n=HEADS, h=HIDDEN, c=min(BLOCK, s), inner=INNER)


@cache
def walked(name: str, s: int) -> Walk:
    """A schedule of such a layer, walked."""
    return SCHEDULES[name](layer_of(s))


def most_made(name: str, s: int) -> int:
    """The larger of the two sublayers, bytes."""
    return max(walked(name, s).made_peak.values())


def contexts() -> Part:
    """Ratios of the longest contexts that were trained."""
    rows = []
    for entry in FACTS["contexts"]:
        over = {
            "memory_efficient / vanilla": entry["memory_efficient"] / entry["vanilla"],
            "blockwise / memory_efficient": entry["blockwise"] / entry["memory_efficient"],
            "blockwise / vanilla": entry["blockwise"] / entry["vanilla"],
            "ring / blockwise": entry["ring"] / entry["blockwise"],
        }
        rows.append({"machine": entry["machine"], "model": entry["model"], "devices": entry["devices"]}
                    | {name: f"{ratio:g}x" for name, ratio in over.items()})  # fmt: skip
    claims = FACTS["claims"]
    sentences = (
        "Ratios of Ring Attention's table 3. How long a context fits depends on weights, "
        "optimiser state, logits and what is recomputed, so only ratios are looked at, and those "
        "are powers of two, as the contexts tried are. Ring over blockwise is the number of "
        "devices in every row, as it is in the walk: a host has one block of the sequence. "
        "Blockwise over memory-efficient is 2x to 4x, where activations alone give 4 (of what is "
        f"made) or 2.5 (of what is live); claimed are up to {claims['over_memory_efficient']}x, "
        f"and {claims['over_vanilla']}x over vanilla.",
    )
    return Part("Longest contexts", sentences, (("As published", rows),))


def least_block(tflops: float, gb_per_s: float) -> float:
    """Tokens of a block from which on a hop hides: `4 d c^2 / F >= 4 c d / B`, so `c >= F / B`."""
    return tflops * 1e12 / (gb_per_s * 1e9)


def rings() -> Part:
    """The least block and sequence of each host and link."""
    rows, pins = [], {}
    for entry in FACTS["hosts"]:
        block = least_block(entry["tflops"], entry["gb_per_s"])
        pins[f"{entry['host']}, tokens of a block"] = round(block)
        held = 6 * 2 * block * HIDDEN
        rows.append(
            {
                "host": entry["host"],
                "F / B": f"{block:,.0f}",
                "published": f"{entry['block']:g}k" if "block" in entry else None,
                "sequence 6c": f"{6 * block:,.0f}",
                "published 6c": f"{entry['sequence']:g}k" if "sequence" in entry else None,
                f"six blocks, h = {HIDDEN:,}": f"{held / 2**20:,.0f} MiB",
            }
        )
    sentences = (
        "A hop sends 4cd bytes while 4dc^2 FLOP are done, so it hides from c = F / B on. The "
        "paper's numbers follow, to their digits, but those of InfiniBand: 312 / 12.5 is 24.96 "
        "thousand where it prints 24.5, and six times as much 149.8 where it prints 149.5. It "
        "takes the whole datasheet rate for granted; kernels that reach half of it hide hops with "
        "half the block. With a causal mask half is computed, and the block doubles. InfiniBand "
        "is that of one GPU.",
    )
    return Part("Blocks that hide a hop", sentences, (("Per host and link", rows),), pins)


def token_bytes(head_dim: int, element: int) -> int:
    """Q, K, V and O, and a maximum and a sum: `(4 d + 2) * element` bytes for each token."""
    return (4 * head_dim + 2) * element


def spans() -> Part:
    """How many tokens of one head a card holds."""
    graph, rows, pins = FACTS["graph"], [], {}
    for head_dim in graph["head_dims"]:
        for element in (2, 4):
            for entries in (0, 2, 16):
                entry = graph["column_bytes"] + element
                csr = graph["row_offset_bytes"] + entry * entries if entries else 0
                each = token_bytes(head_dim, element) + csr
                fits = {gb: int(size // each) for gb, size in (("80 GB", 80e9), ("80 GiB", 80 * GIB))}
                pins[f"d {head_dim}, {element} bytes, {entries} entries, tokens of 80 GB"] = fits[
                    "80 GB"
                ]
                rows.append(
                    {
                        "head_dim": head_dim,
                        "bytes of a number": element,
                        "list": f"CSR, {entries} a row" if entries else "none (a rule)",
                        "bytes per token": each,
                        **{gb: f"{count / 1e6:.1f}M" for gb, count in fits.items()},
                    }
                )
    sentences = (
        "Longer Attention Span reports 160 million tokens on an A100 of 80 GB: one head, one "
        "request. Q, K, V, O and two statistics in 16 bits are 516 bytes a token at head dim 64, "
        "which is 155 million tokens of 80 GB and 166 million of 80 GiB, on both sides of what is "
        "reported. Head dim 128, or 32 bits, or a CSR list of more than two entries a row would "
        "not reach it.",
    )
    return Part("160 million tokens", sentences, (("What fits", rows),), pins)


def figure() -> Figure:
    """Bytes of a layer over the context, a line for each schedule: made solid, live dotted."""
    drawn = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = drawn.subplots()
    for number, name in enumerate(SCHEDULES):
        made = [most_made(name, s) / GIB for s in CONTEXTS]
        live = [walked(name, s).live_peak / GIB for s in CONTEXTS]
        axes.plot(CONTEXTS, made, "-", color=COLOURS[number], label=name.replace("_", "-"))
        axes.plot(CONTEXTS, live, ":", color=COLOURS[number])
    axes.axhline(80, color="grey", linewidth=0.8)
    axes.text(CONTEXTS[-1], 86, "80 GiB", fontsize=8, color="dimgray", ha="right")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(0.01, 1000)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1024:g}k")
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("activations of a layer (GiB)")
    title = "solid: made,\ndotted: all that is live"
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, loc="upper left",
                bbox_to_anchor=(1.0, 1.0))  # fmt: skip
    axes.grid(alpha=0.2)
    return drawn


def parts() -> list[Part]:
    """All of the page."""
    return [formulas(), totals(), contexts(), rings(), spans()]


def main() -> None:
    """Write the results, the figure and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    write_page(out, parts())
    save(figure(), out / "activations.png")


if __name__ == "__main__":
    main()
