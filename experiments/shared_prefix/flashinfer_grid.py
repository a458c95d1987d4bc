"""FlashInfer's cascade over vLLM's PagedAttention, as its post of January 2024 has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from calls import Call, Times, device_of
from relay import kernel_of

from leansim.checkout.pages import Part, Rows, geometric_mean, tokens
from leansim.engine.program import PS_PER_S
from leansim.points.simulate import simulate

AS_POSTED, SLOWER, SPLIT, LEAN = (
    "flashinfer_2024", "flashinfer_2024_fa2", "flashinfer_cascade", "lean_cascade",
)  # fmt: skip
HEADS, LONGEST = 32, 32768
READING = 1.05  # how far off a value read off a figure may be


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
        for one in (base, *(replace(base, kernel=kernel) for kernel in kernels))
    ]


def least_base_us(base: Call) -> float:
    """What the baseline takes if L2 serves every page again that it has served before, us."""
    device = device_of(base.device)
    from_l2 = base.kv_bytes / device.l2_bandwidth_bytes_per_s
    from_dram = (base.kv_bytes - base.spared_bytes) / device.dram_bandwidth_bytes_per_s
    return max(from_l2, from_dram) * 1e6


def part(times: Times, claims: dict[str, Any]) -> Part:
    """Claimed beside simulated, with the baseline's pages from DRAM and from L2."""
    rows: Rows = []
    between, over, slower_over = 0, [], []
    for base, claimed in cells(claims):
        ratio = {
            kernel: times[base] / times[replace(base, kernel=kernel)]
            for kernel in (AS_POSTED, SLOWER, SPLIT, LEAN)
        }
        from_l2 = ratio[AS_POSTED] * least_base_us(base) / (times[base] / 1e3)
        between += from_l2 / READING <= claimed <= ratio[AS_POSTED] * READING
        over.append(ratio[AS_POSTED] / claimed)
        slower_over.append(ratio[SLOWER] / claimed)
        rows.append(
            {
                "device": base.device,
                "prefix": tokens(base.prefix_len),
                "suffix": tokens(base.suffix_len),
                "batch": base.batch_size,
                "claimed": f"{claimed:g}x",
                "from DRAM": f"{ratio[AS_POSTED]:.1f}x",
                "from L2": f"{from_l2:.1f}x",
                "slower prefix": f"{ratio[SLOWER]:.1f}x",
                "baseline": f"{times[base] / 1e3:,.0f} us",
                "cascade": f"{times[replace(base, kernel=AS_POSTED)] / 1e3:,.0f} us",
                "split prefix": f"{ratio[SPLIT]:.1f}x",
                "Lean cascade": f"{ratio[LEAN]:.1f}x",
            }
        )
    few = next(base for base, _ in cells(claims) if base.prefix_len == LONGEST)
    paces = [_pace(replace(few, kernel=kernel)) for kernel in (AS_POSTED, SLOWER)]
    sentences = (
        f"{between} of {len(rows)} claims are between what is simulated with the baseline's "
        "re-reads from L2 and from DRAM, within the 5% of reading figures. From DRAM the simulated "
        f"speedup is {geometric_mean(over):.2f} times the claimed one in the geometric mean, so too "
        "high: most with few requests and short prefixes, least with 128 requests and the longest "
        "prefix.",
        "The baseline's requests must have had the prefix's pages in common: 256 contexts of 32k "
        "tokens are 138 GB in copies, more than the cards hold. CTAs of PagedAttention that run "
        "together are of many requests, so some of what they read again is still in L2. leansim "
        "reads each context for itself, from DRAM; *from L2* is the least that the baseline could "
        "take instead, all of its KV at L2's bandwidth.",
        f"The prefix call is likely simulated too fast as well. With {few.batch_size} requests its "
        f"32 CTAs draw {paces[0]:.0f} GB/s each on the H100, as the tile loop of FlashInfer's "
        "prefill kernel has no chain that was measured or counted; at FlashAttention-2's prices "
        f"they draw {paces[1]:.0f} (column *slower prefix*, baseline from DRAM: "
        f"{geometric_mean(slower_over):.2f} times the claims). Ratios alone do not tell which of "
        "the two it is, and nothing was tuned to them.",
        "The post's prefix call is unsplit. The last two columns are what a split one "
        "(FlashInfer's cascade of today) and Lean cascade would give over the baseline from DRAM.",
    )
    return Part("FlashInfer's cascade (January 2024)", sentences, (("By cell", rows),))


def _pace(call: Call) -> float:
    """What each CTA of the prefix call draws, GB/s."""
    simulation = simulate(call.point)
    prefix = simulation.program.launches[0]
    seconds = simulation.result.launch_end[0] / PS_PER_S
    read = call.prefix_len * call.num_kv_heads * 128 * 2 * 2
    return read / (prefix.last_cta - prefix.first_cta) / seconds / 1e9
