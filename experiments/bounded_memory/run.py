"""Bounded memories: what decode attention costs over the context, and which schedule suits them.

    python experiments/bounded_memory/run.py [-o FOLDER]

Writes RESULTS.md, two figures and expected.csv (ns), here or into another folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from memories import Memory, memories

import leansim
from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.report.sheet import COLOURS, save

HERE = Path(__file__).resolve().parent
DEVICES = ("a100_sxm_80gb", "h100_sxm")
KERNELS = ("fa2", "flash_decoding", "lean")
BATCHES = (1, 16)
# Half a segment beyond whole ones, so that what UIO-LLMs keep raw is as much as it is on the average.
CONTEXTS = tuple(2**power + 512 for power in range(11, 21))
SHOWN = (CONTEXTS[2], CONTEXTS[6], CONTEXTS[-1])
SAW = 100 * 1024
RESIDUES = (0, 256, 512, 768, 1023)
Times = dict[str, int]


def named(device: str, kernel: str, batch: int, memory: str, context: int) -> str:
    """The name of a call among the pins."""
    return f"{device}, {kernel}, batch {batch}, {memory}, {context} tokens"


def call(device: str, kernel: str, batch: int, fields: dict[str, Any]) -> leansim.Point:
    """A layer of Llama-3-8B: 32 query heads over 8 KV heads of 128, bfloat16, pages of 16."""
    return leansim.point(device=device, kernel=kernel, model="llama_3_8b", batch_size=batch, **fields)


def timed(points: dict[str, leansim.Point]) -> Times:
    """Latency of each point, ns. Raises what stands in the way of one."""
    times: Times = {}
    for name, answer in zip(points, leansim.predict([*points.values()]), strict=True):
        if isinstance(answer, Exception):
            raise answer
        times[name] = round(answer.latency_s * 1e9)
    return times


def points_of(chosen: list[Memory], contexts: tuple[int, ...]) -> dict[str, leansim.Point]:
    """Every device, kernel and batch with the memories and contexts given."""
    return {
        named(device, kernel, batch, memory.name, n): call(device, kernel, batch, memory.fields(n))
        for device in DEVICES
        for kernel in KERNELS
        for batch in BATCHES
        for memory in chosen
        for n in contexts
    }


def sizes() -> Part:
    """Tokens that are read, by arithmetic."""
    rows = [
        {"memory": memory.name, **{f"{n:,}": f"{memory.kept(n):,}" for n in SHOWN}}
        for memory in memories()
    ]
    sentences = (
        "Tokens of KV that a decode step reads. UIO-LLMs' memory still grows, by a 32nd or an 8th of a "
        "token each token; those of LongVQ and SparseK do not. A memory is attended to exactly, and is "
        "not the context: nothing here says that the answer is that of dense attention.",
    )
    pins = {f"{memory.name}, {n} tokens": memory.kept(n) for memory in memories() for n in SHOWN}
    return Part("Tokens read", sentences, (("By context", rows),), pins)


def latencies(times: Times) -> Part:
    """What a call takes with each memory, and how many times as fast as dense it is."""
    rows = []
    for batch in BATCHES:
        for memory in memories():
            row = {"batch": batch, "memory": memory.name}
            for device in DEVICES:
                for n in SHOWN:
                    best, kernel = fastest(times, device, batch, memory.name, n)
                    dense, _ = fastest(times, device, batch, "dense", n)
                    row[f"{device[:4]} {n:,}"] = f"{best / 1e3:.1f} {kernel} ({dense / best:.1f}x)"
            rows.append(row)
    last, one = CONTEXTS[-1], "LongVQ 1024+512"
    dense, kept = ({batch: fastest(times, "h100_sxm", batch, name, last)[0] for batch in BATCHES}
                   for name in ("dense", one))  # fmt: skip
    sentences = (
        "Llama-3-8B's attention, one layer, the fastest of FlashAttention-2, FlashDecoding and Lean in "
        "each cell and, in brackets, how many times as fast as the fastest dense call it is.",
        f"One request gains far less than bytes say: of {last:,} tokens {one} reads {last / 1536:.0f} "
        f"times fewer and is {dense[1] / kept[1]:.0f}x as fast on an H100, since a call of so few "
        f"tokens is mostly launch, latency and merge; sixteen gain {dense[16] / kept[16]:.0f}x. SparseK "
        "keeps as many tokens as LongVQ of one size, and takes as long here: these kernels are not "
        "charged for gathering single tokens.",
    )
    caption = "Latency, us, with its kernel (times as fast as dense)"
    return Part("Latency", sentences, ((caption, rows),), times)


def fastest(times: Times, device: str, batch: int, memory: str, context: int) -> tuple[int, str]:
    """The least time of the kernels, ns, and whose it is."""
    return min((times[named(device, kernel, batch, memory, context)], kernel) for kernel in KERNELS)


def schedules(times: Times) -> Part:
    """Lean and FlashDecoding beside each other, over memories at the longest context."""
    rows, last = [], CONTEXTS[-1]
    for device in DEVICES:
        for batch in BATCHES:
            for memory in memories():
                mine = {k: times[named(device, k, batch, memory.name, last)] for k in KERNELS}
                rows.append(
                    {
                        "device": device,
                        "batch": batch,
                        "memory": memory.name,
                        "tokens": f"{memory.kept(last):,}",
                        **{f"{kernel}_us": f"{time / 1e3:.1f}" for kernel, time in mine.items()},
                        "lean over flash_decoding": f"{mine['flash_decoding'] / mine['lean']:.2f}x",
                    }
                )
    lost = {batch: _slower([row for row in rows if row["batch"] == batch]) for batch in BATCHES}
    sentences = (
        f"At {last:,} tokens, of which a bounded memory leaves few tiles. Lean is slower than "
        f"FlashDecoding in {lost[1]} cells with one request, and in {lost[16]} with sixteen. It loses "
        "where one request has some thousand to some ten thousand tokens: every CTA gets a share, and "
        "the host merges its dozens of peers one after the other. Below that it has fewer peers and "
        "mostly wins, down to some 600 tokens, where two tiles at least for each CTA leave most idle. "
        "FlashAttention-2 does not split: with one request its 8 CTAs read each memory alone.",
    )
    return Part("Schedules", sentences, (("Which schedule suits a memory", rows),))


def _slower(rows: list[dict[str, Any]]) -> str:
    """In how many rows of a bounded memory Lean is slower by half a percent or more."""
    ratios = [float(row["lean over flash_decoding"][:-1]) for row in rows if row["memory"] != "dense"]
    return f"{sum(ratio < 0.995 for ratio in ratios)} of {len(ratios)}"


def saw() -> Part:
    """UIO-LLMs between two compressions."""
    uio = [memory for memory in memories() if memory.name.startswith("UIO")]
    contexts = tuple(SAW + residue for residue in RESIDUES)
    pins = timed(points_of(uio, contexts))
    rows = []
    for memory in uio:
        for kernel in ("flash_decoding", "lean"):
            row = {"memory": memory.name, "kernel": kernel}
            for n, residue in zip(contexts, RESIDUES, strict=True):
                time = pins[named("h100_sxm", kernel, 1, memory.name, n)]
                row[f"+{residue}"] = f"{time / 1e3:.1f} ({memory.kept(n):,} tokens)"
            rows.append(row)
    sentences = (
        f"One request of {SAW:,} tokens and some more on an H100: what is raw grows until it is a "
        "segment, and is then compressed by a prefill of a segment and its memory, not priced here.",
    )
    return Part("Between two compressions", sentences, (("Latency, us", rows),), pins)


def figure(times: Times) -> Figure:
    """Latency over context: a column per device, a row per batch, a colour per memory.

    SparseK's lines would lie on those of LongVQ.
    """
    chosen = [memory for memory in memories() if not memory.name.startswith("SparseK")]
    drawn = Figure(figsize=(10.5, 7.0), layout="constrained")
    panels = drawn.subplots(len(BATCHES), len(DEVICES), sharex=True, sharey=True, squeeze=False)
    for row, batch in enumerate(BATCHES):
        for column, device in enumerate(DEVICES):
            axes = panels[row, column]
            for number, memory in enumerate(chosen):
                for kernel, style in (("flash_decoding", "-"), ("lean", ":")):
                    line = [times[named(device, kernel, batch, memory.name, n)] / 1e3 for n in CONTEXTS]
                    axes.plot(CONTEXTS, line, style, color=COLOURS[number], linewidth=1.4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{device}, batch {batch}", fontsize=10)
            axes.grid(alpha=0.2, which="major")
            axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1024:g}k" if n < 2**20 else "1M")
    for axes in panels[-1]:
        axes.set_xlabel("context (tokens)")
    for axes in panels[:, 0]:
        axes.set_ylabel("latency of a layer (µs)")
    handles = [Line2D([], [], color=COLOURS[i], label=m.name.replace("LongVQ", "LongVQ, SparseK"))
               for i, m in enumerate(chosen)]  # fmt: skip
    handles += [Line2D([], [], color="dimgray", linestyle=s, label=k)
                for k, s in (("flash_decoding", "-"), ("lean", ":"))]  # fmt: skip
    drawn.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return drawn


def schedule_figure(times: Times) -> Figure:
    """FlashDecoding's time over Lean's, against the tokens that are read."""
    drawn = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = drawn.subplots()
    for number, (device, batch) in enumerate((d, b) for d in DEVICES for b in BATCHES):
        ratios = {
            memory.kept(n): times[named(device, "flash_decoding", batch, memory.name, n)]
            / times[named(device, "lean", batch, memory.name, n)]
            for memory in memories()
            if not memory.name.startswith("SparseK")
            for n in CONTEXTS
        }
        tokens = np.array(sorted(ratios))
        axes.plot(tokens, [ratios[n] for n in tokens], "o-", color=COLOURS[number], markersize=3,
                  linewidth=1.2, label=f"{device}, batch {batch}")  # fmt: skip
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1024:g}k" if n < 2**20 else "1M")
    axes.set_xlabel("tokens of KV that are read")
    axes.set_ylabel("Lean's speed over FlashDecoding's")
    axes.legend(frameon=False, fontsize=8)
    return drawn


def main() -> None:
    """Run every part, write the results and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    times = timed(points_of(memories(), CONTEXTS))
    write_page(out, [sizes(), latencies(times), schedules(times), saw()])
    save(figure(times), out / "latency.png")
    save(schedule_figure(times), out / "schedules.png")


if __name__ == "__main__":
    main()
