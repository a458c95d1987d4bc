"""Batches of unlike lengths: which schedule gains, by how unlike they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any

from calls import (
    A100,
    BEST,
    BEST_EACH,
    FA2,
    H100,
    LEAN,
    NEW,
    OLD,
    ORT,
    SHORT,
    Call,
    Times,
    gain,
)  # fmt: skip
from parts import Part, Rows, figures_of, geometric_mean, tokens

DEVICES, BATCHES = (A100, H100), (4, 8, 16, 32)
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
LONGEST, HEADS, SEEDS = (16384, 131072), ((32, 8), (32, 32)), (0, 1)
OTHERS = (FA2, OLD, NEW, ORT)
KERNELS = (*OTHERS, LEAN)
FIGURE = "ragged.png"
# SGLang's comparison: its Triton decode, at most 8 splits, and Lean on the same loop.
SPLIT_K, WORK_CENTRIC = "sglang_triton", "sglang_triton+lean_attention"
SGLANG_SEEDS = (0, 1, 2, 3)


@cache
def cells() -> tuple[Call, ...]:
    """The unsplit call of each cell; a ratio that the longest request alone exceeds is left out."""
    grid = product(DEVICES, HEADS, BATCHES, LONGEST, RATIOS, SEEDS)
    found = [
        Call(device, FA2, batch, longest, *heads, ragged=f"mean {ratio}", seed=seed)
        for device, heads, batch, longest, ratio, seed in grid
        if ratio * batch > 1.2
    ]
    return tuple(call for call in found if call.fits)


@cache
def searched() -> tuple[Call, ...]:
    """Cells whose split counts are searched: of the first seed, GQA."""
    return tuple(call for call in cells() if call.seed == SEEDS[0] and call.num_kv_heads == 8)


def sglang_calls(claims: dict[str, Any]) -> list[Call]:
    """A call of each published row and seed."""
    rows = [*claims["ragged"]]
    return [
        Call(
            H100, SPLIT_K, row["batch"], row["context"], row["q_heads"], row["kv_heads"],
            ragged=f"from {row['ratio']}", seed=seed,
        )
        for row in rows
        for seed in SGLANG_SEEDS
    ]  # fmt: skip


def calls(claims: dict[str, Any]) -> list[Call]:
    """Every call."""
    drawn = [call.by(kernel) for call in cells() for kernel in KERNELS]
    best = [call.by(kernel) for call in searched() for kernel in (BEST, BEST_EACH)]
    theirs = [call.by(one) for call in sglang_calls(claims) for one in (SPLIT_K, WORK_CENTRIC)]
    return [*drawn, *best, *theirs]


def part(times: Times, claims: dict[str, Any]) -> Part:
    """Gains by ratio, by batch and heads, beside search, and SGLang's rows."""
    sentences = (
        "The paper evaluates batches of unlike lengths over a *batch context ratio*, whose definition "
        "and results could not be read; its author's site says more than 2x. **Our reading** is mean "
        f"over longest context of the batch. {len(cells())} cells: batches of "
        f"{', '.join(map(str, BATCHES))}, longest context 16k or 128k, ratios of "
        f"{', '.join(map(str, RATIOS))} as far as a batch can have them (the longest request alone is "
        "1 / batch), 32 query heads over 8 or 32 KV heads of 128, two draws of each. One request is "
        "the longest; the others are longest x u^p, u uniform, p such that the mean is right.",
        _gains_said(times),
        _padded(times),
        _losses(times),
        "**SGLang's rows** (lengths drawn evenly in [r x context, context]) were measured end to end "
        "on an MI355X, so that only the direction compares: the gain in inter-token latency grows as "
        "lengths get less alike. Simulated is the attention of one layer on an H100, SGLang's Triton "
        f"decode (at most 8 splits) over stream-K on the same loop. {_direction(times, claims)}",
    )
    tables = (
        ("Lean's speedup by ratio, geometric mean (largest), all cells", _by_ratio(times)),
        ("Lean's speedup, all ratios", _by_shape(times)),
        ("Time over the best split counts per request, geometric mean (worst), GQA", _regrets(times)),
        ("SGLang's ragged rows: published end to end, MI355X; simulated attention, H100",
         _theirs(times, claims)),
    )  # fmt: skip
    shown = (("gain by batch context ratio", FIGURE),)
    return Part("3. Ragged batches", sentences, tables, figures=shown)


def _gains_said(times: Times) -> str:
    most = max(cells(), key=lambda call: gain(times, call, NEW))
    low, even = (_over_each(times, _some(ratio)) for ratio in (0.2, 1.0))
    return (
        f"Over the newer heuristic Lean is {_geo(times, cells(), NEW):.2f}x in the geometric mean, "
        f"up to {gain(times, most, NEW):.2f}x ({most.named}, {most.ragged}, {SHORT[most.device]}); "
        f"over the older {_geo(times, cells(), OLD):.2f}x, over FlashAttention-2 "
        f"{_geo(times, cells(), FA2):.2f}x. At a ratio of 0.2 the means over these three are "
        f"{low}, where all lengths are equal {even}. A split count is one for the whole call, and "
        "the rules look at the number of requests and at the longest: with many requests they do not "
        "split at all, and all wait for the longest."
    )


def _over_each(times: Times, some: Sequence[Call]) -> str:
    return ", ".join(f"{_geo(times, some, over):.2f}x" for over in (NEW, OLD, FA2))


def _padded(times: Times) -> str:
    gains = [gain(times, call, ORT) for call in cells()]
    return (
        "**The padded one is not it.** `lean_ort` deals tiles as though each request were the "
        f"longest, as ONNX Runtime does; Lean is {geometric_mean(gains):.2f}x as fast in the "
        f"mean and up to {max(gains):.1f}x. At a ratio of 0.2 `lean_ort` is "
        f"{_geo(times, _some(0.2), NEW, ORT):.2f}x the speed of FlashDecoding's newer heuristic: "
        "padding gives away most of what stream-K gains on such batches."
    )


def _losses(times: Times) -> str:
    lost = [call for call in cells() if gain(times, call, NEW) < 1.0]
    uneven = [call for call in lost if call.ragged != "mean 1.0"]
    regret = {one: [gain(times, c, one, BEST_EACH) for c in searched()] for one in (NEW, LEAN, BEST)}
    mean = {one: geometric_mean(some) for one, some in regret.items()}
    return (
        f"**It loses** to the newer heuristic in {len(lost) / len(cells()):.0%} of the cells, at "
        f"worst {min(gain(times, call, NEW) for call in lost):.2f}x; {len(uneven)} of these "
        f"{len(lost)} have unlike lengths. Against what search finds with a split count for each "
        f"request ({len(searched())} cells, GQA, first draw), FlashDecoding's newer heuristic takes "
        f"{mean[NEW]:.2f}x the time in the mean, one best count for all {mean[BEST]:.2f}x and Lean "
        f"{mean[LEAN]:.2f}x, at worst {max(regret[LEAN]):.2f}x, on an H100. There the CTA that ends "
        "last has the shortest requests: each is a segment with a start of its own, however few its "
        "tokens, so that equal tiles are not equal times. Lean finds, without a search, nearly what "
        "the best counts have; one well chosen count for all has it too, but neither heuristic "
        "chooses it."
    )


def _some(ratio: float) -> list[Call]:
    return [call for call in cells() if call.ragged == f"mean {ratio}"]


def _geo(times: Times, some: Sequence[Call], over: str, by: str = LEAN) -> float:
    return geometric_mean(gain(times, call, over, by) for call in some)


def _by_ratio(times: Times) -> Rows:
    rows: Rows = []
    for device, ratio in product(DEVICES, RATIOS):
        some = [call for call in _some(ratio) if call.device == device]
        row: dict[str, Any] = {"device": SHORT[device], "mean / longest": ratio, "cells": len(some)}
        for over in OTHERS:
            row[f"over {over}"] = (
                f"{_geo(times, some, over):.2f} ({max(gain(times, call, over) for call in some):.2f})"
            )
        rows.append(row)
    return rows


def _by_shape(times: Times) -> Rows:
    rows: Rows = []
    for over, heads, longest in product((NEW, OLD, FA2, ORT), HEADS, LONGEST):
        some = [
            call
            for call in cells()
            if (call.num_q_heads, call.num_kv_heads) == heads and call.context_len == longest
        ]
        head = {"over": over, "heads": f"{heads[0]}/{heads[1]}", "longest": tokens(longest)}
        rows.append(head | figures_of([gain(times, call, over) for call in some]))
    return rows


def _regrets(times: Times) -> Rows:
    rows: Rows = []
    for device, ratio in product(DEVICES, RATIOS):
        some = [call for call in searched() if call in set(_some(ratio)) and call.device == device]
        row: dict[str, Any] = {"device": SHORT[device], "mean / longest": ratio}
        for kernel in (*KERNELS, BEST):
            over = [gain(times, call, kernel, BEST_EACH) for call in some]
            row[kernel] = f"{geometric_mean(over):.2f} ({max(over):.2f})"
        rows.append(row)
    return rows


def sglang_gains(times: Times, claims: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """Each published row with the simulated gain, geometric mean of its draws."""
    calls_of = iter(sglang_calls(claims))
    found = []
    for row in claims["ragged"]:
        mine = [next(calls_of) for _ in SGLANG_SEEDS]
        found.append((row, _geo(times, mine, SPLIT_K, WORK_CENTRIC)))
    return found


def _direction(times: Times, claims: dict[str, Any]) -> str:
    """How often a gain and its published one grow together, from one ratio to the next smaller."""
    by_batch: dict[tuple[Any, ...], list[tuple[float, float, float]]] = {}
    for row, simulated in sglang_gains(times, claims):
        key = (row["model"], row["batch"], row["context"])
        by_batch.setdefault(key, []).append((row["ratio"], row["itl"], simulated))
    steps = [
        (said - said_before, ours - ours_before)
        for rows in by_batch.values()
        for (_, said_before, ours_before), (_, said, ours) in pairwise(rows)
    ]
    grown = sum(ours > 0 for _, ours in steps)
    return (
        "From each ratio to the next smaller the published gain grows in "
        f"{sum(a > 0 for a, _ in steps)} of {len(steps)} steps, the simulated one in {grown}."
    )


def _theirs(times: Times, claims: dict[str, Any]) -> Rows:
    return [
        {
            "model": row["model"],
            "requests": row["batch"],
            "context": tokens(row["context"]),
            "ratio r": row["ratio"],
            "published: tokens/s": f"{row['tps']:.2f}x",
            "published: median ITL": f"{row['itl']:.2f}x",
            "simulated: attention": f"{simulated:.2f}x",
        }
        for row, simulated in sglang_gains(times, claims)
    ]
