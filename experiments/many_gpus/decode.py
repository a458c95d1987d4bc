"""One long request on eight GPUs: heads divided, contexts divided and merged, or KV going round."""

from __future__ import annotations

from calls import Attention, Call

from leansim.checkout.pages import Part, Rows, tokens
from leansim.points.travel import RANK_MERGES

DEVICE, MODEL = "h100_sxm", "llama_3_70b"
KERNELS = ("flash_decoding", "lean", "vllm_fa3")
CONTEXTS = tuple(2**17 * n for n in (1, 8, 32, 80))
LAYOUTS = ((8, 1, "all_gather"), (2, 4, "helix"), *((1, 8, merge) for merge in RANK_MERGES))


def _call(kernel: str, context: int, layout: tuple[int, int, str]) -> Call:
    heads, ranks, merge = layout
    return Call(DEVICE, kernel, MODEL, 1, context, heads, ranks, merge)


def calls() -> list[Call]:
    """Every call of the tables."""
    return [_call(k, context, one) for k in KERNELS for context in CONTEXTS for one in LAYOUTS]


def _named(layout: tuple[int, int, str]) -> str:
    heads, ranks, merge = layout
    parts = [f"heads over {heads}"] if heads > 1 else []
    return ", ".join([*parts, *([f"contexts over {ranks}: {merge}"] if ranks > 1 else [])])


def _times(attention: Attention, kernel: str) -> Rows:
    rows = []
    for layout in LAYOUTS:
        found = {c: attention[_call(kernel, c, layout)] for c in CONTEXTS}
        rows.append(
            {
                "layout": _named(layout),
                **{
                    tokens(context): f"{one.metrics.latency_s * 1e6:,.0f}"
                    + (f" ({one.metrics.share_travel:.0%})" if layout[1] > 1 else "")
                    for context, one in found.items()
                },
            }
        )
    return rows


def ring_over_tree(attention: Attention) -> dict[int, float]:
    """How many times longer circulating KV takes than merging partials as a tree, by context."""
    return {
        context: attention[_call("flash_decoding", context, (1, 8, "ring"))].metrics.latency_s
        / attention[_call("flash_decoding", context, (1, 8, "tree"))].metrics.latency_s
        for context in CONTEXTS
    }


def part(attention: Attention, claimed: float) -> Part:
    """Latency of a layer by layout and kernel."""
    ratios = ring_over_tree(attention).values()
    least, most_times = min(ratios), max(ratios)
    most = CONTEXTS[-1]
    held = attention[_call("lean", most, (8, 1, "all_gather"))].resolved.held_bytes
    lean = attention[_call("lean", most, (8, 1, "all_gather"))].metrics.latency_s
    fixed = attention[_call("flash_decoding", most, (8, 1, "all_gather"))].metrics.latency_s
    return Part(
        "One request of 128k to 10M tokens on eight H100s (64 query and 8 KV heads of Llama-3-70B)",
        (
            f"KV that goes round a ring takes {least:.0f} to {most_times:.0f} times as long as",
            "partials that merge: each hop moves a rank's KV over a link of 450 GB/s, where DRAM",
            "has 3,000, and every rank then attends to all of it. Tree Attention reports up to",
            f"{claimed:g} times over a ring, on more GPUs than a node has. Merging costs 10 to 34",
            "us whatever the context: most with vLLM's three collectives, least with one exchange",
            "(Helix) or small all-reduces (tree). Where heads are divided, one KV head is left to",
            f"a GPU, and LeanAttention's cap of 32 CTAs a head makes it {lean / fixed:.1f} times",
            "as slow as FlashDecoding at 10M tokens; where contexts are divided, each GPU has all",
            f"eight, and it is level. KV of all layers is {held / 1e9:,.0f} GB on each GPU at 10M",
            "tokens either way, which no card holds.",
        ),
        tuple(
            (f"{kernel}: us of a layer (share that travels)", _times(attention, kernel))
            for kernel in KERNELS
        ),
    )
