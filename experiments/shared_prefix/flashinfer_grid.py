"""FlashInfer's cascade over vLLM's PagedAttention, as its post of January 2024 has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from calls import Call, Times
from relay import kernel_of

from leansim.checkout.pages import Part, Rows, geometric_mean, tokens
from leansim.engine.program import PS_PER_S
from leansim.points.simulate import simulate

AS_POSTED, SLOWER, SPLIT, LEAN = (
    "flashinfer_2024", "flashinfer_2024_fa2", "flashinfer_cascade", "lean_cascade",
)  # fmt: skip
HEADS, LONGEST = 32, 32768


def cells(claims: dict[str, Any]) -> Iterator[tuple[Call, float]]:
    """The baseline's call of each cell of the post, and the speedup over it that the post claims."""
    for row in claims["rows"]:
        length = row["prefix_len"] + row["suffix_len"]
        for batch_size, speedup in zip(claims["batch_sizes"], row["speedups"], strict=True):
            kernel = kernel_of(batch_size, length, HEADS)
            where = row["device"], kernel, batch_size, row["prefix_len"], row["suffix_len"]
            yield Call(*where, HEADS, HEADS, "warm", "float16"), float(speedup)


def calls(claims: dict[str, Any]) -> list[Call]:
    """Baseline and cascades of each cell."""
    kernels = (AS_POSTED, SLOWER, SPLIT, LEAN)
    return [
        one
        for base, _ in cells(claims)
        for one in (base, base.apart, *(replace(base, kernel=kernel) for kernel in kernels))
    ]


def part(times: Times, claims: dict[str, Any]) -> Part:
    """Claimed beside simulated, with pages that the baseline's requests share and with their own."""
    rows: Rows = []
    over: dict[str, list[float]] = {"shared": [], "short": [], "apart": [], "slower": []}
    for base, claimed in cells(claims):
        ratio = {
            kernel: times[base] / times[replace(base, kernel=kernel)]
            for kernel in (AS_POSTED, SLOWER, SPLIT, LEAN)
        }
        apart = times[base.apart] / times[replace(base, kernel=AS_POSTED)]
        over["shared"].append(ratio[AS_POSTED] / claimed)
        over["apart"].append(apart / claimed)
        over["slower"].append(ratio[SLOWER] / claimed)
        if base.prefix_len < LONGEST:
            over["short"].append(ratio[AS_POSTED] / claimed)
        rows.append(
            {
                "device": base.device,
                "prefix": tokens(base.prefix_len),
                "suffix": tokens(base.suffix_len),
                "batch": base.batch_size,
                "claimed": f"{claimed:g}x",
                "simulated": f"{ratio[AS_POSTED]:.1f}x",
                "own pages": f"{apart:.1f}x",
                "slower prefix": f"{ratio[SLOWER]:.1f}x",
                "baseline": f"{times[base] / 1e3:,.0f} us",
                "cascade": f"{times[replace(base, kernel=AS_POSTED)] / 1e3:,.0f} us",
                "split prefix": f"{ratio[SPLIT]:.1f}x",
                "Lean cascade": f"{ratio[LEAN]:.1f}x",
            }
        )
    few = next(base for base, _ in cells(claims) if base.prefix_len == LONGEST)
    paces = [_pace(replace(few, kernel=kernel)) for kernel in (AS_POSTED, SLOWER)]
    mean = {name: geometric_mean(some) for name, some in over.items()}
    off = sorted(max(one, 1.0 / one) for one in over["shared"])
    sentences = (
        f"The simulated speedup is {mean['shared']:.2f} times the claimed one in the geometric mean, "
        f"{mean['short']:.2f} times with prefixes below {tokens(LONGEST)}; half of the claims are met "
        f"within a factor of {off[len(off) // 2]:.2f}, all within {off[-1]:.1f}.",
        "The baseline's requests must have had the prefix's pages in common: 256 contexts of 32k "
        "tokens are 138 GB in copies, more than the cards hold. Simulated so, what runs together "
        "reads a page from DRAM once and the rest of them from L2. Had each request pages of its own "
        f"(*own pages*), all from DRAM, the speedup would be {mean['apart']:.2f} times the claimed. "
        "With the longest prefix and many requests the truth is between: CTAs that begin together "
        "are not together to the end, and L2 has not kept for all what the first of them read.",
        f"How long the prefix call takes is open, too. With {few.batch_size} requests its "
        f"32 CTAs draw {paces[0]:.0f} GB/s each on the H100, as the tile loop of FlashInfer's "
        "prefill kernel has no chain that was measured or counted; at FlashAttention-2's prices "
        f"they draw {paces[1]:.0f} (column *slower prefix*: {mean['slower']:.2f} times the claims). "
        "Ratios alone do not tell which of the two it is, and nothing was tuned to them.",
        "The post's prefix call is unsplit. The last two columns are what a split one "
        "(FlashInfer's cascade of today) and Lean cascade would give over the same baseline.",
    )
    return Part("FlashInfer's cascade (January 2024)", sentences, (("By cell", rows),))


def _pace(call: Call) -> float:
    """What each CTA of the prefix call draws, GB/s."""
    simulation = simulate(call.point)
    prefix = simulation.program.launches[0]
    seconds = simulation.result.launch_end[0] / PS_PER_S
    read = call.prefix_len * call.num_kv_heads * 128 * 2 * 2
    return read / (prefix.last_cta - prefix.first_cta) / seconds / 1e9
