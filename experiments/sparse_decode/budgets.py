"""Latency against the tokens that are kept, what choosing them costs, and where that is worth it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from parts import Part, Pins, llama, timed, us

import leansim

BATCHES = (1, 4, 16, 64)
CONTEXTS = (8192, 32768, 131072)
BUDGETS = (512, 1024, 2048, 4096)
WINDOW = 256
# Contexts that are tried for the break-even: four steps to an octave.
TRIED = tuple(sorted({round(2 ** (step / 4) / 256) * 256 for step in range(36, 69)}))


def quest(budget: int) -> str:
    """Pages of 16 tokens, chosen by the least and the largest key of each."""
    return f"top_k(budget={budget}, page=16, selector=quest)"


def sparsek(budget: int) -> str:
    """As many tokens, of which some are the last; what is dropped is never read again."""
    return f"top_k(budget={budget - WINDOW}, page=16, window={WINDOW})"


@dataclass(frozen=True, eq=False)
class Curves:
    """Times of every batch, context and budget, ns; `dense` for no list."""

    times: Pins

    def of(self, batch: int, context: int, kind: str, budget: int = 0) -> int:
        """One of them."""
        return self.times[named(batch, context, kind, budget)]


def named(batch: int, context: int, kind: str, budget: int = 0) -> str:
    """The name of a call among the pins."""
    kept = f", {budget} kept" if budget else ""
    return f"{kind}, batch {batch}, {context} tokens{kept}"


def curves() -> Curves:
    """Dense, Quest's and SparseK's calls."""
    points: dict[str, leansim.Point] = {}
    for batch in BATCHES:
        for context in CONTEXTS:
            call = {"batch_size": batch, "context_len": context}
            points[named(batch, context, "dense")] = llama(**call)
            for budget in BUDGETS:
                points[named(batch, context, "quest", budget)] = llama(**call, mask=quest(budget))
                points[named(batch, context, "sparsek", budget)] = llama(**call, mask=sparsek(budget))
    return Curves(timed(points))


def break_even() -> pd.DataFrame:
    """The least context from which on choosing is faster than reading all, by batch and budget.

    Empty where it is at none that was tried.
    """
    masks: dict[int, str | None] = {0: None} | {budget: quest(budget) for budget in BUDGETS}
    points = {
        f"{batch} {budget} {context}": llama(batch_size=batch, context_len=context, mask=mask)
        for batch in BATCHES
        for budget, mask in masks.items()
        for context in TRIED
    }
    times = timed(points)
    rows = []
    for batch in BATCHES:
        row: dict[str, object] = {"batch": batch}
        for budget in BUDGETS:
            gains = [
                times[f"{batch} {budget} {context}"] < times[f"{batch} 0 {context}"] for context in TRIED
            ]
            worse = np.flatnonzero(~np.array(gains))
            first = 0 if not len(worse) else int(worse[-1]) + 1
            row[str(budget)] = TRIED[first] if first < len(TRIED) else None
        rows.append(row)
    return pd.DataFrame(rows)


def part(found: Curves, worth: pd.DataFrame) -> Part:
    """What there is to say of them."""
    rows = []
    for batch in BATCHES:
        for context in CONTEXTS:
            dense = found.of(batch, context, "dense")
            row = {"batch": batch, "context": f"{context:,}", "dense_us": us(dense)}
            for kind in ("quest", "sparsek"):
                for budget in BUDGETS:
                    time = found.of(batch, context, kind, budget)
                    row[f"{kind} {budget}"] = f"{us(time)} ({dense / time:.1f}x)"
            rows.append(row)
    shown = worth.astype(object).map(lambda value: "none" if pd.isna(value) else f"{int(value):,}")
    shown.columns = ["batch", *(f"{budget} kept" for budget in BUDGETS)]
    large, small = found.of(16, 131072, "dense"), found.of(16, 131072, "quest", 2048)
    step = found.of(1, 32768, "dense") / found.of(1, 32768, "quest", 4096)
    sentences = (
        "Llama-3-8B on an H100, FlashDecoding's rule on FlashAttention-2's kernel, told of what is "
        "kept. Quest reads of every page of 16 tokens two keys, a sixteenth of its KV, before it "
        "attends to what it keeps; SparseK scored its tokens when they came, so nothing is read to "
        "choose, and what it drops is gone: it keeps as many tokens, the last 256 among them.",
        "In the limit of bandwidth Quest is 1 / (1/16 + kept / context) times as fast: "
        f"{1 / (1 / 16 + 1 / 64):.1f}x for 2,048 of 131,072 tokens, where {large / small:.1f}x is "
        "simulated with 16 requests. However small the budget, the index is left. Its authors report "
        "up to 7.03x for attention; kekzl/imp#1805 a decode step 1.25x as fast with one request, "
        f"32,768 tokens and 4,096 kept, where attention alone would be {step:.1f}x as fast here.",
        "With one request the launch that chooses, and the two latencies of memory in it, are worth "
        "it only beyond a few thousand tokens; with many, nearly as soon as there is more than is "
        "kept. Contexts that fit the budget are read whole and nothing is chosen.",
    )
    tables = (
        ("Latency by budget, us (times faster than dense)", pd.DataFrame(rows)),
        ("Break-even: least context from which on choosing is faster than reading all", shown),
    )
    return Part("Budgets", sentences, tables, found.times)


# -- patterns that nothing chooses in the call -----------------------------------------------------

PATTERNS = {
    "dense": None,
    "A-shape (window 4,096, sink 64)": "window_sink(window=4096, sink=64)",
    "window + sink (window 1,024, sink 4)": "window_sink(window=1024, sink=4)",
    "vertical-slash (1,000 and 6,096)": "vertical_slash(vertical=1000, slash=6096)",
    "vertical-slash (30 and 2,048)": "vertical_slash(vertical=30, slash=2048)",
    "block-diagonal (4,096)": "block_diagonal(block=4096)",
    "NSA (1,024 chosen, window 512)": "top_k(budget=1024, page=64, window=512, selector=nsa)",
    "strided (64, every 8th)": "strided(block=64, stride=8)",
    "dilated (2,048, every 4th)": "dilated(window=2048, stride=4)",
    **{
        f"random {density:.0%}": f"random(density={density})"
        for density in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9)
    },
}
PATTERN_BATCHES, PATTERN_CONTEXT = (1, 16), 131072


def patterns() -> Part:
    """MInference's patterns for the newest query, windows, and random densities."""
    points = {
        f"{name}, batch {batch}": llama(batch_size=batch, context_len=PATTERN_CONTEXT, mask=mask)
        for name, mask in PATTERNS.items()
        for batch in PATTERN_BATCHES
    }
    pins = timed(points)
    rows = []
    for name, mask in PATTERNS.items():
        kept, read = _kept(mask)
        row = {"list": name, "kept": f"{kept:,}", "least": f"{PATTERN_CONTEXT / read:.1f}x"}
        for batch in PATTERN_BATCHES:
            time, dense = pins[f"{name}, batch {batch}"], pins[f"dense, batch {batch}"]
            row[f"batch {batch}_us"] = f"{us(time)} ({dense / time:.1f}x)"
        rows.append(row)
    nsa = 65536 / (65536 / 16 + 1536)
    sentences = (
        "The same model and kernel at 131,072 tokens. `least` is what bytes alone would give. "
        "MInference chooses a pattern for each head and finds its lines by a look at the newest "
        "queries, in prefill: its published times are of prefill, and here are its patterns for one "
        "new token. Lists of single tokens wait for the entries that name them.",
        "NSA reads a compressed KV of each 16 tokens besides (its first branch, by whose scores blocks "
        f"are chosen), n / 16 + 1,536 tokens in all; of 65,536 that is 1 in {nsa:.1f}, the "
        "11.6x that is reported of it. Its branches are a call here and a launch before it; their gated "
        "sum is left out.",
    )
    return Part("Patterns", sentences, (("Latency of a list", pd.DataFrame(rows)),), pins)


def _kept(mask: str | None) -> tuple[int, float]:
    """Tokens that are attended to, and those whose bytes are read, with what chooses them."""
    call = leansim.point(
        device="h100_sxm",
        kernel="fa2",
        model="llama_3_8b",
        batch_size=1,
        context_len=PATTERN_CONTEXT,
        mask=mask,
    )
    load = leansim.simulate(call).resolved.workload
    kept = int(load.kept_lens.max())
    return kept, kept + load.index_bytes / (load.num_kv_heads * load.kv_bytes_per_token)


# -- a memory that is bounded ----------------------------------------------------------------------

SEGMENT = 1024
MEMORIES = (32, 128)


def bounded_tokens(tokens: int, memory: int, segment: int = SEGMENT) -> int:
    """KV of UIO-LLMs: each whole segment is `memory` entries, what comes after is raw."""
    return tokens // segment * memory + tokens % segment


def bounded() -> Part:
    """UIO-LLMs' KV and what a call takes, by arithmetic and simulated."""
    contexts = (8_000, 100_000, 1_000_000)
    lens = {(n, m): n if m == 0 else bounded_tokens(n, m) for n in contexts for m in (0, *MEMORIES)}
    pins = timed(
        {
            f"{n} tokens, memory {m or 'whole'}": llama(batch_size=1, context_len=kv)
            for (n, m), kv in lens.items()
        }
    )
    rows = []
    for n in contexts:
        row = {"context": f"{n:,}", "dense_us": us(pins[f"{n} tokens, memory whole"])}
        for m in MEMORIES:
            time = pins[f"{n} tokens, memory {m}"]
            row[f"{m} of {SEGMENT}"] = f"{lens[n, m]:,} tokens, {us(time)} us"
        rows.append(row)
    sentences = (
        "UIO-LLMs compress each segment of l tokens into m entries: KV = floor(n / l) m + n mod l, "
        "here with the l and m of its repository. The compression, a prefill of l + m tokens every "
        "l, is not priced, and what it computes is not attention to all tokens; two listings call "
        "the paper withdrawn or its results in need of further validation.",
    )
    return Part("A bounded memory", sentences, (("KV and latency", pd.DataFrame(rows)),), pins)
