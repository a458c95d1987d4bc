"""Speedup over context on one GPU: Lean, both FlashDecoding heuristics, and the best split count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise, product

from calls import (
    A100,
    BEST,
    FA2,
    H100,
    LEAN,
    NEW,
    OLD,
    ORT,
    SHORT,
    UNCAPPED,
    Call,
    Found,
    Times,
    gain,
    us,
)  # fmt: skip
from parts import Part, Rows, figures_of, geometric_mean, tokens

DEVICES, HEAD_DIMS = (A100, H100), (64, 128)
# Requests and heads (MHA: each head of each request is an output tile).
BATCHES_AND_HEADS = (
    *((1, heads) for heads in (1, 2, 4, 8, 16, 32, 64, 128)),
    *((4, heads) for heads in (8, 32, 56)),
    *((16, heads) for heads in (8, 32)),
)
CONTEXTS = (1024, 4096, 16384, 65536, 262144, 524288)
LEANS = (LEAN, ORT, UNCAPPED)
KERNELS = (FA2, OLD, NEW, *LEANS, BEST)
# What the paper's abstracts claim (v1 over FlashAttention-2, v2 over FlashDecoding): mean, largest.
PAPER = {FA2: "2.6 / 8.33 (512k)", OLD: "1.73 / 2.18 (256k)", NEW: "1.73 / 2.18 (256k)"}
PARTS: dict[str, Callable[[Call], bool]] = {
    "all": lambda _: True,
    "1-8 output tiles": lambda call: call.output_tiles <= 8,
    "16-64 output tiles": lambda call: 8 < call.output_tiles <= 64,
    "128-512 output tiles": lambda call: call.output_tiles > 64,
    "256k and longer": lambda call: call.context_len >= 262144,
}
LARGEST, MEAN = 8.33, 2.6
CAP_CONTEXTS = (131072, 524288, 1048576, 2097152, 10_000_000)
FIGURE = "possible_gain.png"


@cache
def cells() -> tuple[Call, ...]:
    """The unsplit call of each cell."""
    grid = product(DEVICES, HEAD_DIMS, BATCHES_AND_HEADS, CONTEXTS)
    found = [
        Call(device, FA2, batch, context, heads, heads, head_dim)
        for device, head_dim, (batch, heads), context in grid
    ]
    return tuple(call for call in found if call.fits)


@cache
def capped_cells() -> tuple[Call, ...]:
    """One request and one KV head, of long contexts."""
    return tuple(Call(device, FA2, 1, context, 1, 1) for device in DEVICES for context in CAP_CONTEXTS)


def calls() -> list[Call]:
    """Every call."""
    return [call.by(kernel) for call in (*cells(), *capped_cells()) for kernel in KERNELS]


def part(times: Times) -> Part:
    """The means, what of the possible gain each takes, where 8.33x is, and what the cap costs."""
    sentences = (
        f"{len(cells())} cells, all lengths equal: "
        f"{', '.join(f'{b} x {h}' for b, h in BATCHES_AND_HEADS)} (requests x heads, MHA), contexts "
        f"of {', '.join(map(tokens, CONTEXTS))}, head dims 64 and 128, A100-80GB and H100, KV cold, "
        "but those whose KV does not fit 80 GB. Each mean is over its part of this grid and no "
        "other; the paper's grid is not known. "
        "[speedup_over_context](../speedup_over_context/README.md) has 5,000 points of a denser one.",
        _possible(times),
        _eightfold(times),
        _over_flash_decoding(times),
        _capped(times),
    )
    tables = (
        ("LeanAttention's speedup, by baseline and part of the grid", _means(times)),
        ("Speedup over FlashAttention-2, geometric mean by output tiles", _by_tiles(times)),
        ("Time over the best split count's: geometric mean (worst)", _regrets(times)),
        ("Lean over FlashAttention-2 at 512k by output tiles, one request", _few_heads(times)),
        ("One request, one KV head of 128: latency and CTAs", _caps(times)),
    )
    shown = (("speedup over FlashAttention-2 by output tiles", FIGURE),)
    return Part("1. Speedup over context on one GPU", sentences, tables, figures=shown)


def _possible(times: Times) -> str:
    best_of = share_of_gain(times, cells())
    return (
        f"**The possible gain.** `{BEST}` is what search over all split counts finds on "
        "FlashDecoding's kernel; lengths are equal here, so no count per request would differ. Of "
        "the gain that it has over the unsplit kernel (in logarithms, over all cells) the older "
        f"heuristic takes {best_of[OLD]:.0%}, the newer {best_of[NEW]:.0%} and Lean "
        f"{best_of[LEAN]:.0%}. So most of what the paper reports over FlashAttention-2 is splitting "
        "as such, which any good split count has. They differ by where: with at most 8 output tiles "
        f"Lean takes {_regret(times, 0, 8, LEAN):.2f}x the time of the best count (the older "
        f"heuristic {_regret(times, 0, 8, OLD):.2f}x, the newer {_regret(times, 0, 8, NEW):.2f}x); "
        f"with 128 and more it beats the best split count, at {_regret(times, 64, 512, LEAN):.2f}x its "
        f"time (the heuristics {_regret(times, 64, 512, OLD):.2f}x and "
        f"{_regret(times, 64, 512, NEW):.2f}x)."
    )


def _over_flash_decoding(times: Times) -> str:
    most = max(cells(), key=lambda call: gain(times, call, OLD))
    alike = [call for call in cells() if call.output_tiles == most.output_tiles]
    return (
        "**Over FlashDecoding** the mean of 1.73x is not reached by the schedule alone on this grid: "
        f"Lean is {_geo(times, cells(), OLD):.2f}x over the older heuristic and "
        f"{_geo(times, cells(), NEW):.2f}x over the newer in the geometric mean, and slower in "
        f"{_slower(times, OLD):.0%} and {_slower(times, NEW):.0%} of the cells. It loses with few "
        "output tiles, where one host merges many partials one after the other, and gains where "
        "FlashDecoding's rule leaves a wave part empty or pays for its combine kernel. The largest "
        f"gain, {gain(times, most, OLD):.2f}x over the older heuristic ({most.named}, "
        f"{SHORT[most.device]}), is near the paper's 2.18x: {most.output_tiles} output tiles are one "
        "for nearly each SM, so that rule does not split, and the other slots are empty. The mean "
        f"over all cells with {most.output_tiles} output tiles is {_geo(times, alike, OLD):.2f}x."
    )


def _capped(times: Times) -> str:
    cap = capped_cells()
    gains = {call: gain(times, call, LEAN, UNCAPPED) for call in cap}
    most, least = max(cap, key=gains.__getitem__), min(cap, key=gains.__getitem__)
    long = [call for call in cells() if call.output_tiles <= 8 and call.context_len == 524288]

    def where(call: Call) -> str:
        return f"one head, {call.context_len:,} tokens, {SHORT[call.device]}"

    return (
        "**The cap.** ONNX Runtime cuts no head for more than about 32 CTAs, and `lean` follows it. "
        f"`{UNCAPPED}` lets as many share a head as there are slots. It differs with fewer output "
        "tiles than slots / 32 only: below 7 on the A100 and 9 on the H100 (somewhat more where an "
        f"SM has three CTAs). It gains up to {gains[most]:.2f}x over the capped one ({where(most)}) "
        f"and loses down to {gains[least]:.2f}x ({where(least)}), as its host merges up to "
        f"{max(times[call.by(UNCAPPED)].splits for call in cap)} partials in turn. In the cells with "
        f"at most 8 output tiles at 512k it makes {_geo(times, long, LEAN, UNCAPPED):.2f}x. Neither is "
        "near FlashDecoding there, whose combine kernel merges many partials at a time: what Lean "
        "wants with few heads is not more CTAs but a merge that is not one host's."
    )


def share_of_gain(times: Times, some: Sequence[Call]) -> dict[str, float]:
    """Of the logarithms of the best split count's gains over FlashAttention-2, what kernels take."""
    possible = sum(math.log(gain(times, call, FA2, BEST)) for call in some)
    return {
        kernel: sum(math.log(gain(times, call, FA2, kernel)) for call in some) / possible
        for kernel in KERNELS
    }


def tiles_for(times: Times, device: str, head_dim: int, wanted: float) -> float:
    """Output tiles at which Lean is `wanted` times as fast as FA2 at 512k, between those simulated."""
    one = [call for call in cells() if (call.device, call.head_dim) == (device, head_dim)]
    row = [call for call in one if call.batch_size == 1 and call.context_len == 524288]
    gains = [(call.output_tiles, gain(times, call, FA2)) for call in row]
    for (few, more), (many, less) in pairwise(gains):
        if more >= wanted > less:
            share = math.log(more / wanted) / math.log(more / less)
            return float(few * (many / few) ** share)
    return math.nan


def _eightfold(times: Times) -> str:
    eight = {(d, n): tiles_for(times, d, n, LARGEST) for d in DEVICES for n in HEAD_DIMS}
    mean = {(d, n): tiles_for(times, d, n, MEAN) for d in DEVICES for n in HEAD_DIMS}
    said = "; ".join(
        f"{SHORT[d]}, head dim {n}: {eight[d, n]:.0f} and {mean[d, n]:.0f}" for d, n in eight
    )
    return (
        "**Where 8.33x comes from.** An unsplit kernel has a CTA per output tile, and each streams "
        "at the pace of its own chain, so at 512k Lean's gain over it is little but a count of "
        f"output tiles. It is 8.33x, and the mean's 2.6x, at so many ({said}). A grid of few heads "
        "and one request gives any mean up to that; with 128 tiles and more nothing is left but the "
        "last wave."
    )


def _geo(times: Times, some: Sequence[Call], over: str, by: str = LEAN) -> float:
    return geometric_mean(gain(times, call, over, by) for call in some)


def _regret(times: Times, above: int, most: int, kernel: str) -> float:
    """Time over the best split count's, geometric mean of the cells with so many output tiles."""
    return _geo(times, [call for call in cells() if above < call.output_tiles <= most], kernel, BEST)


def _slower(times: Times, over: str) -> float:
    gains = [gain(times, call, over) for call in cells()]
    return sum(one < 1.0 for one in gains) / len(gains)


def _bands() -> Iterator[tuple[str, str, list[Call]]]:
    for device, (name, inside) in product(DEVICES, PARTS.items()):
        yield device, name, [call for call in cells() if call.device == device and inside(call)]


def _means(times: Times) -> Rows:
    rows: Rows = []
    for over, by, (name, inside) in product(PAPER, LEANS, PARTS.items()):
        gains = [gain(times, call, over, by) for call in cells() if inside(call)]
        if by == LEAN or name == "all":
            rows.append(
                {"over": over, "kernel": by, "grid": name, **figures_of(gains), "paper": PAPER[over]}
            )
    return rows


def _by_tiles(times: Times) -> Rows:
    return [
        {"device": SHORT[device], "grid": name}
        | {kernel: f"{_geo(times, some, FA2, kernel):.2f}" for kernel in KERNELS if kernel != FA2}
        for device, name, some in _bands()
    ]


def _regrets(times: Times) -> Rows:
    rows: Rows = []
    for device, name, some in _bands():
        row = {"device": SHORT[device], "grid": name}
        for kernel in KERNELS[:-1]:
            over = [gain(times, call, kernel, BEST) for call in some]
            row[kernel] = f"{geometric_mean(over):.2f} ({max(over):.2f})"
        rows.append(row)
    return rows


def _few_heads(times: Times) -> Rows:
    rows: Rows = []
    for heads in (heads for batch, heads in BATCHES_AND_HEADS if batch == 1):
        row = {"output tiles": heads}
        for device, head_dim in product(DEVICES, HEAD_DIMS):
            call = Call(device, FA2, 1, 524288, heads, heads, head_dim)
            texts = (f"{gain(times, call, FA2, by):.2f}" for by in (LEAN, UNCAPPED, BEST))
            row[f"{SHORT[device]}, d {head_dim}: lean / uncapped / best split"] = " / ".join(texts)
        rows.append(row)
    return rows


def _caps(times: Times) -> Rows:
    def cell(found: Found) -> str:
        return f"{us(found)} us ({found.splits})"

    return [
        {"device": SHORT[call.device], "context": tokens(call.context_len)}
        | {kernel: cell(times[call.by(kernel)]) for kernel in (OLD, NEW, LEAN, UNCAPPED, BEST)}
        for call in capped_cells()
    ]
