"""MAS-Attention against FLAT: which share of the gain is overlap, and which is a buffer that is short.

    python experiments/edge_pipeline/run.py [-o FOLDER]

Writes RESULTS.md, a figure and expected.csv, here or into another folder.
"""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pipeline import Device, moved, overlap_gain, overlapped, passes, walked

from leansim.answers import Row
from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.report.sheet import COLOURS, save

HERE = Path(__file__).resolve().parent
FACTS: dict[str, Any] = read(HERE / "published.yaml").data
PUBLISHED = {"2.75x, simulated": FACTS["mas"]["simulated"],
             "1.76x, on an NPU": FACTS["mas"]["on_a_davinci_npu"]}  # fmt: skip
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
BUFFERS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)


def device(ratio: float, memory: float, buffer: float) -> Device:
    """One of the range, for the head shape of published.yaml."""
    return Device(ratio, memory, buffer, FACTS["tokens"], FACTS["head_dim"])


def overlaps() -> Part:
    """What overlap alone gives: walked, and in closed form."""
    rows, pins = [], {}
    for ratio in RATIOS:
        row: Row = {"VEC / MAC": f"{ratio:g}"}
        for blocks in (1, 4, 16, 256):
            serial, both = 2 + 2 * ratio, walked(blocks, 1.0, 2 * ratio) / blocks
            pins[f"VEC / MAC {ratio:g}, {blocks} blocks"] = serial / both
            row[f"{blocks} block{'s' * (blocks > 1)}"] = f"{serial / both:.3f}x"
        rows.append(row | {"no end": f"{overlap_gain(ratio):.3f}x"})
    worst = max(
        abs(walked(n, 1.0, 2 * r) - overlapped(n, 1.0, 2 * r)) for r in RATIOS for n in (1, 2, 4, 256)
    )
    need = FACTS["mas"]["on_a_davinci_npu"] - 1
    sentences = (
        "FLAT does a row block's QK, softmax and PV one after the other; MAS-Attention does QK of "
        "the next and PV of the last beside softmax. Both steps of every row block are walked; "
        f"the closed form differs by {worst:.1g}. The gain is (T_mac + T_vec) / max(T_mac, "
        "T_vec), 2x where they are equal.",
        f"So the 1.76x on a DaVinci NPU may be overlap alone, if VEC takes {need:.2f} to "
        f"{1 / need:.2f}  times as long as MAC; the 2.75x in simulation cannot be.",
    )
    return Part("Overlap", sentences, (("FLAT's time over both streams'", rows),), pins)


def shares() -> Part:
    """Of each published gain, the least share that is not overlap."""
    rows, pins = [], {}
    for name, gain in PUBLISHED.items():
        for ratio in RATIOS:
            most = min(gain, overlap_gain(ratio))
            rest = gain / most
            share = log(rest) / log(gain)
            pins[f"{name}, VEC / MAC {ratio:g}"] = share
            rows.append(
                {
                    "gain": name,
                    "VEC / MAC": f"{ratio:g}",
                    "overlap at most": f"{most:.2f}x",
                    "left for the buffer": f"{rest:.3f}x",
                    "share of the gain": f"{share:.0%}",
                }
            )
    gain = FACTS["mas"]["simulated"]
    sentences = (
        "What overlap cannot give has to be FLAT's own loss: reading K and V again since L1 is "
        f"short. Shares are of logarithms. Of {gain}x at least {log(gain / 2) / log(gain):.0%} is "
        "the buffer, and more where units are less alike.",
    )
    return Part("Shares", sentences, (("Of each published gain", rows),), pins)


def buffers() -> Part:
    """What a short buffer costs, and what MAS would do in FLAT's tiles."""
    rows, pins = [], {}
    for buffer in BUFFERS:
        again = passes(buffer, FACTS["tokens"], FACTS["head_dim"])
        row: Row = {"L1 / (K + V)": f"{buffer:g}", "passes over K and V": f"{again:.0f}",
                    "bytes": f"{moved(again):.1f}x"}  # fmt: skip
        for memory in FACTS["memory"]:
            one = device(1.0, memory, buffer)
            overlap, rest = one.gains
            pins[f"L1 {buffer:g}, memory {memory:g}, overlap"] = overlap
            pins[f"L1 {buffer:g}, memory {memory:g}, buffer"] = rest
            same = one.flat / one.mas_same_tiles
            pins[f"L1 {buffer:g}, memory {memory:g}, same tiles"] = same
            row[f"memory {memory:g}"] = f"{overlap:.2f} x {rest:.2f} = {overlap * rest:.2f} ({same:.2f})"
        rows.append(row)
    sentences = (
        f"A head of {FACTS['tokens']:,} tokens and {FACTS['head_dim']} numbers, VEC as slow as "
        "MAC: the gain by overlap times that by the buffer, if MAS-Attention moves everything "
        "once; in brackets, if it works in FLAT's tiles, of which it holds the scores of two row "
        "blocks. *Memory* is the time to move Q, K, V and O once over that of both products.",
        "In FLAT's tiles it gains nothing where FLAT waits for memory: it halves the row block "
        "and reads K and V twice as often, and may be half as fast. So the tilings that its "
        "authors search, and overwriting what will be needed later, are not a refinement but what "
        "the figure rests on.",
    )
    return Part("The buffer", sentences, (("Gain = overlap x buffer (in FLAT's tiles)", rows),), pins)


def figure() -> Figure:
    """The gain over VEC / MAC and the buffer, a panel for each weight of memory."""
    drawn = Figure(figsize=(11.0, 3.9), layout="constrained")
    panels = drawn.subplots(1, len(FACTS["memory"]), sharex=True, sharey=True)
    ratios, sizes = (np.geomspace(*FACTS[name], 160) for name in ("ratios", "buffers"))
    for axes, memory in zip(panels, FACTS["memory"], strict=True):
        gains = np.array([[np.prod(device(r, memory, b).gains) for r in ratios] for b in sizes])
        shown = axes.pcolormesh(ratios, sizes, gains, cmap="Blues", vmin=1, vmax=6, shading="gouraud")
        for number, gain in enumerate(PUBLISHED.values()):
            axes.contour(ratios, sizes, gains, [gain], colors=[COLOURS[number + 1]], linewidths=1.6)
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda b, _: f"1/{1 / b:g}" if b < 1 else f"{b:g}")
        axes.set_title(f"moving all once takes {memory:g} of MAC's time", fontsize=9)
        axes.set_xlabel("VEC's time over MAC's")
    panels[0].set_ylabel("L1 over the bytes of K and V")
    drawn.colorbar(shown, ax=panels, label="FLAT's time over MAS-Attention's", extend="max")
    handles = [Line2D([], [], color=COLOURS[i + 1], label=name) for i, name in enumerate(PUBLISHED)]
    panels[0].legend(handles=handles, fontsize=8, loc="upper left", framealpha=0.9)
    return drawn


def parts() -> list[Part]:
    """All of the page."""
    return [overlaps(), shares(), buffers()]


def main() -> None:
    """Write the results, the figure and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    write_page(out, parts())
    save(figure(), out / "gain.png")


if __name__ == "__main__":
    main()
