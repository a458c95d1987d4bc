"""DeFT's ways to group a tree's KV: nodes, chunks of nodes, and the flattened tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from calls import Call, Times

from leansim.checkout.pages import Part, Rows, geometric_mean, tokens

DEVICE, LAYERS, BRANCH = "a100_sxm_80gb", 32, 200
KERNELS = {
    "seq": "flash_decoding",
    "node": "deft_node",
    "node_chunk": "deft_node_chunk",
    "flatten": "deft_flatten",
}
BASE = "flatten"
Pair = tuple[float, float]  # claimed and simulated


def cells(claims: dict[Any, Any]) -> Iterator[tuple[Call, dict[str, float]]]:
    """The flattened call of each prompt and width, and the ms that are claimed for each way."""
    prompts = claims["prompt_lens"]
    for width, ways in claims.items():
        if width == "prompt_lens":
            continue
        for i, prompt in enumerate(prompts):
            call = Call(DEVICE, KERNELS[BASE], int(width), prompt, BRANCH, 32, 8)
            yield call, {way: float(ms[i]) for way, ms in ways.items()}


def calls(claims: dict[Any, Any]) -> list[Call]:
    """Every way of each cell."""
    found = [replace(call, kernel=KERNELS[way]) for call, claimed in cells(claims) for way in claimed]
    return [*found, *(_apart(call) for call, _ in cells(claims))]


def _apart(call: Call) -> Call:
    """Each branch's context for itself, none with a page of another."""
    return replace(call, kernel=KERNELS["seq"]).apart


def part(times: Times, claims: dict[Any, Any]) -> Part:
    """Each way over the flattened tree, claimed and simulated; and what the longest prompt adds."""
    rows: Rows = []
    growth: Rows = []
    off: dict[str, list[float]] = {}
    shortest: dict[int, dict[str, Pair]] = {}
    for call, claimed in cells(claims):
        simulated = {way: LAYERS * times[replace(call, kernel=KERNELS[way])] / 1e6 for way in claimed}
        found = {way: (ms, simulated[way]) for way, ms in claimed.items()}
        found["seq, own pages"] = found["seq"][0], LAYERS * times[_apart(call)] / 1e6
        row, ratios = _over_base(found)
        for way, (said, ratio) in ratios.items():
            off.setdefault(way, []).append(ratio / said)
        where = {"width": call.batch_size, "prompt": tokens(call.prefix_len)}
        rows.append({**where, **row, "flatten, simulated": f"{simulated[BASE]:.2f} ms"})
        first = shortest.setdefault(call.batch_size, found)
        if call.prefix_len == max(claims["prompt_lens"]):
            added = {way: (a - first[way][0], b - first[way][1]) for way, (a, b) in found.items()}
            growth.append({"width": call.batch_size, **_over_base(added)[0]})
    sentences = (
        "Ratios of attention times per step. Simulated is one launch over the tree's work tiles: "
        "each node whole, cut at 1,024 tokens, or all dealt in equal parts; `seq` reads each "
        f"branch's context for itself. Each branch has {BRANCH} tokens of its own, the mean of 400 "
        "steps (assumed).",
        "Simulated over claimed ratio, geometric mean: "
        + ", ".join(f"`{way}` {geometric_mean(one):.2f}" for way, one in off.items())
        + ".",
        "The claimed times have some 10 ms a step that no prompt changes, 0.3 ms a layer, more "
        "than the whole call is simulated to take with short prompts; they damp every claimed "
        "ratio. The second table has what a prompt of 20k adds to the times of one of 1k, where "
        "they cancel.",
        "`seq` has the prompt's pages in common, and what runs together reads them from DRAM once; "
        "it is still off, as FlashAttention-2's tile loop here takes longer than L2 would. With "
        "pages of each branch's own (*seq, own pages*) it is further off.",
        "Which GPU it was is not said; an A100 is assumed. DeFT's kernels are Triton's, the prices "
        "here FlashAttention-2's: the ratios are what a schedule makes of one set of prices, and "
        "the milliseconds are not DeFT's.",
    )
    tables = (("By width and prompt", rows), ("What 20k tokens of prompt add to 1k", growth))
    return Part("DeFT's groupings (Llama-3.1-8B, A100 assumed)", sentences, tables)


def _over_base(found: dict[str, Pair]) -> tuple[dict[str, str], dict[str, Pair]]:
    """Claimed and simulated ratios to the base, as cells and as numbers."""
    said, ms = found[BASE]
    ratios = {way: (a / said, b / ms) for way, (a, b) in found.items() if way != BASE}
    cells_of = {f"{way}: claimed, simulated": f"{a:.2f}, {b:.2f}" for way, (a, b) in ratios.items()}
    return cells_of, ratios
