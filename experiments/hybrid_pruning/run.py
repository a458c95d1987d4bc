"""Hybrid Dynamic Pruning: what its integer pass lets decode save, in bytes and simulated.

    python experiments/hybrid_pruning/run.py [-o FOLDER]

Writes RESULTS.md, a figure and expected.csv (ns), here or into another folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bounds import most_kept, page_of, share_of_bytes, share_read_once
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import leansim
from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.report.sheet import COLOURS, save

HERE = Path(__file__).resolve().parent
FACTS: dict[str, Any] = read(HERE / "pruning.yaml").data
KERNELS = ("flash_decoding", "lean")
CASES = ((1, 32768), (1, 131072), (16, 32768))
DEVICE = "h100_sxm"
BLOCK = 2  # of Hybrid Dynamic Pruning
Times = dict[str, int]


def call(kernel: str, batch: int, context: int, mask: str | None = None) -> leansim.Point:
    """A layer of Llama-3-8B: 32 query heads over 8 KV heads of 128, bfloat16."""
    return leansim.point(device=DEVICE, kernel=kernel, model="llama_3_8b", batch_size=batch,
                         context_len=context, mask=mask)  # fmt: skip


def chosen(bits: int, kept: float, context: int) -> str:
    """A share of the context, in pages whose bounds are as many bytes as so many bits of each key."""
    page = page_of(bits, FACTS["number_bits"])
    budget = round(kept * context / page) * page
    return f"top_k(budget={budget}, page={page}, selector=quest)"


def pruned_of(kept: float, heads: float) -> str:
    """As many of each head's blocks, and of some heads none."""
    return f"random(density={kept}, block={BLOCK}, pruned_heads={heads})"


def named(kernel: str, batch: int, context: int, what: str) -> str:
    """The name of a call among the pins."""
    return f"{kernel}, batch {batch}, {context} tokens, {what}"


def points() -> dict[str, leansim.Point]:
    """Dense calls, calls with a pass, and calls with pruned heads, for which no pass is timed."""
    found = {}
    for kernel in KERNELS:
        for batch, context in CASES:
            found[named(kernel, batch, context, "dense")] = call(kernel, batch, context)
            for kept in FACTS["kept"]:
                for bits in FACTS["integer_bits"]:
                    what = f"{bits} bits, {kept:g} kept"
                    found[named(kernel, batch, context, what)] = call(
                        kernel, batch, context, chosen(bits, kept, context)
                    )
                for heads in FACTS["pruned_heads"]:
                    what = f"{heads:g} of heads pruned, {kept:g} kept"
                    found[named(kernel, batch, context, what)] = call(
                        kernel, batch, context, pruned_of(kept, heads)
                    )
    return found


def timed(asked: dict[str, leansim.Point]) -> Times:
    """Latency of each point, ns. Raises what stands in the way of one."""
    times: Times = {}
    for name, answer in zip(asked, leansim.predict([*asked.values()]), strict=True):
        if isinstance(answer, Exception):
            raise answer
        times[name] = round(answer.latency_s * 1e9)
    return times


def bytes_part() -> Part:
    """The bound, by arithmetic."""
    rows, pins = [], {}
    for bits in FACTS["integer_bits"]:
        for heads in FACTS["pruned_heads"]:
            row = {"integer bits": f"{bits} of 16", "heads pruned": f"{heads:.0%}"}
            for kept in FACTS["kept"]:
                share, once = (f(bits, kept, heads) for f in (share_of_bytes, share_read_once))
                pins[f"{bits} bits, {heads:g} of heads, {kept:g} kept"] = share
                row[f"{kept:.0%} kept"] = f"{share:.3f} ({1 / share:.2f}x; {1 / once:.2f}x)"
            rows.append(row)
    four, eight = (most_kept(bits) for bits in (4, 8))
    sentences = (
        "Bytes read over those of dense attention, (K_int + kept (K + V)) / (K + V), and in "
        "brackets how many times as fast that is at most, and where integer parts lie apart and "
        "are not read again. The pass reads the integer part of every key, of pruned heads too: "
        "with 4 of 16 bits it is an eighth of the KV, with 8 a quarter, so decode gets 8x or 4x "
        f"as fast at most whatever is pruned, and slower where more than {four:.1%} or "
        f"{eight:.0%} is kept.",
    )
    return Part("The bound in bytes", sentences, (("Share of bytes", rows),), pins)


def simulated(times: Times) -> Part:
    """Calls with a pass, beside the bound."""
    rows = []
    for kernel in KERNELS:
        for batch, context in CASES:
            dense = times[named(kernel, batch, context, "dense")]
            for bits in FACTS["integer_bits"]:
                row = {"kernel": kernel, "batch": batch, "context": f"{context:,}",
                       "dense_us": f"{dense / 1e3:.1f}", "integer bits": bits}  # fmt: skip
                for kept in FACTS["kept"]:
                    time = times[named(kernel, batch, context, f"{bits} bits, {kept:g} kept")]
                    row[f"{kept:.0%} kept"] = (
                        f"{dense / time:.2f}x ({1 / share_of_bytes(bits, kept):.2f}x)"
                    )
                rows.append(row)
    one, many = (
        times[named("flash_decoding", *case, "dense")]
        / times[named("flash_decoding", *case, "8 bits, 0.1 kept")]
        for case in (CASES[0], CASES[2])
    )
    sentences = (
        "Llama-3-8B's attention on an H100: a launch that reads the index and selects, then "
        "attention to a list. The index is that of pages of 8 or 4 tokens whose least and largest "
        "key are as many bytes as integer parts of 4 or 8 bits; which tokens are kept is drawn. "
        "In brackets the bound.",
        f"With 8 bits and a tenth kept the bound is {1 / share_of_bytes(8, 0.1):.2f}x; one "
        f"request of 32,768 tokens gets {one:.2f}x, as a launch more and its two latencies weigh "
        f"there, and sixteen get {many:.2f}x.",
    )
    caption = "Times as fast as dense (bound in bytes)"
    return Part("Simulated", sentences, ((caption, rows),), times)


def selecting_ns(times: Times, kernel: str, batch: int, context: int, bits: int, kept: float) -> int:
    """What the pass adds: a call with it, less one that is given a list of as many tokens."""
    with_pass = times[named(kernel, batch, context, f"{bits} bits, {kept:g} kept")]
    return with_pass - times[named(kernel, batch, context, f"0 of heads pruned, {kept:g} kept")]


def splits_of(kept: float, heads: float) -> int | None:
    """Into how many FlashDecoding cuts each head of one request of 32,768 tokens."""
    asked = call("flash_decoding", 1, 32768, pruned_of(kept, heads))
    return leansim.plan(asked)[0].schedule.num_splits


def heads_part(times: Times) -> Part:
    """What pruning whole heads saves beside, for each schedule."""
    rows, kept, bits = [], 0.25, 8
    for batch, context in CASES:
        for heads in FACTS["pruned_heads"]:
            row = {"batch": batch, "context": f"{context:,}", "heads pruned": f"{heads:.0%}"}
            bound = 1 / share_of_bytes(bits, kept, heads)
            for kernel in KERNELS:
                alone = times[named(kernel, batch, context, f"{heads:g} of heads pruned, {kept:g} kept")]
                total = alone + selecting_ns(times, kernel, batch, context, bits, kept)
                dense = times[named(kernel, batch, context, "dense")]
                row[f"{kernel}_us"] = f"{alone / 1e3:.1f}"
                row[f"{kernel}, with the pass"] = f"{dense / total:.2f}x"
            rows.append(row | {"bound": f"{bound:.2f}x"})
    first = {h: named("flash_decoding", 1, 32768, f"{h:g} of heads pruned, 0.25 kept") for h in (0, 0.5)}
    whole, half = (f"{times[first[h]] / 1e3:.1f} us in {splits_of(kept, h)} splits" for h in (0, 0.5))
    sentences = (
        "A quarter of the blocks is kept, and of some KV heads none; attention alone, and with "
        "the pass of 8 bits, which reads the integer parts of pruned heads too. Half of the heads "
        "gone is half of the bytes, but not of the time with one request of 32,768 tokens: "
        f"FlashDecoding takes {whole} with all heads and {half} with half of them. Its rule fills "
        "the machine with more splits where heads are fewer, and there are more partials to merge.",
    )
    return Part("Pruned heads", sentences, (("Latency of attention, us, and gain with the pass", rows),))


def claims() -> Part:
    """What is claimed, and that it is of another machine."""
    said = FACTS["claims"]
    low, high = said["throughput_over_accelerators"]
    sentences = (
        f"Its authors claim {said['over_i7']}x over an i7, {said['over_t4']}x over a T4, and "
        f"{low}x to {high}x the throughput of other accelerators, for a co-processor of theirs "
        "that prunes in hardware while whole sequences are encoded. None of it is comparable with "
        "a decode step on a GPU, and nothing here is held against it. Sparsities, thresholds and "
        "bits could not be read.",
    )
    return Part("What is claimed", sentences)


def figure(times: Times) -> Figure:
    """Gain over the share that is kept: the bound as a line, simulated calls as points."""
    drawn = Figure(figsize=(8.6, 3.8), layout="constrained")
    panels = drawn.subplots(1, len(FACTS["integer_bits"]), sharey=True)
    kept = np.geomspace(0.03, 1, 100)
    for axes, bits in zip(panels, FACTS["integer_bits"], strict=True):
        axes.plot(kept, 1 / (bits / 32 + kept), color="black", linewidth=1.2)
        for number, (batch, context) in enumerate(CASES):
            for kernel, marker in zip(KERNELS, ("o", "x"), strict=True):
                dense = times[named(kernel, batch, context, "dense")]
                gains = [dense / times[named(kernel, batch, context, f"{bits} bits, {k:g} kept")]
                         for k in FACTS["kept"]]  # fmt: skip
                axes.plot(FACTS["kept"], gains, marker, color=COLOURS[number], markersize=5,
                          markerfacecolor="none")  # fmt: skip
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks([0.05, 0.1, 0.25, 0.5, 1], ["5%", "10%", "25%", "50%", "100%"])
        axes.minorticks_off()
        axes.set_xlabel("share of blocks kept")
        axes.set_title(f"{bits} of 16 bits are integer", fontsize=10)
        axes.set_ylim(0, 7)
    panels[0].set_ylabel("times as fast as dense")
    handles = [Line2D([], [], color="black", label="bound in bytes")]
    handles += [Line2D([], [], color=COLOURS[i], marker="s", ls="", label=f"batch {b}, {n // 1024}k")
                for i, (b, n) in enumerate(CASES)]  # fmt: skip
    handles += [Line2D([], [], color="dimgray", marker=m, linestyle="", markerfacecolor="none", label=k)
                for k, m in zip(KERNELS, ("o", "x"), strict=True)]  # fmt: skip
    drawn.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return drawn


def parts(times: Times) -> list[Part]:
    """All of the page."""
    return [bytes_part(), simulated(times), heads_part(times), claims()]


def main() -> None:
    """Write the results, the figure and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    times = timed(points())
    write_page(out, parts(times))
    save(figure(times), out / "saving.png")


if __name__ == "__main__":
    main()
