"""MLA's latent KV, which dividing heads copies to each GPU: what dividing contexts costs and saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calls import Call, Steps

from leansim.checkout.pages import Part, Rows, tokens

DEVICE, MODEL, KERNEL = "h200_sxm", "deepseek_v3", "flash_mla"
BATCHES = (16, 64, 128, 256)
CONTEXTS = (1536, 4096, 8704, 12_288, 65_536)
LAYOUTS = (
    (8, 1, "all_gather"),
    (1, 8, "all_gather"),
    (1, 8, "all_to_all"),
    (1, 8, "helix"),
    (2, 4, "all_to_all"),
)
BY_HEADS, VLLM = LAYOUTS[:2]


def _call(size: int, context: int, layout: tuple[int, int, str]) -> Call:
    heads, ranks, merge = layout
    return Call(DEVICE, KERNEL, MODEL, size, context, heads, ranks, merge)


def calls() -> list[Call]:
    """Every step of the tables."""
    return [_call(size, context, one) for size in BATCHES for context in CONTEXTS for one in LAYOUTS]


def speedup(steps: Steps, size: int, context: int, layout: tuple[int, int, str] = VLLM) -> float:
    """A step with heads divided over one with contexts divided."""
    return steps[_call(size, context, BY_HEADS)].seconds / steps[_call(size, context, layout)].seconds


def _rows(steps: Steps) -> Rows:
    rows = []
    for size in BATCHES:
        for context in CONTEXTS:
            mine = steps[_call(size, context, BY_HEADS)]
            parted = {one: steps[_call(size, context, one)] for one in LAYOUTS[1:]}
            rows.append(
                {
                    "batch": size,
                    "context": tokens(context),
                    "heads over 8, ms": f"{mine.seconds * 1e3:.1f}" + ("" if mine.fits else " !"),
                    **{
                        f"{ranks} ranks: {merge}": f"{mine.seconds / one.seconds:.2f}"
                        + ("" if one.fits else " !")
                        for (_, ranks, merge), one in parted.items()
                    },
                    "GB on a GPU": " / ".join(
                        f"{(one.weight_bytes + one.attention[0].resolved.held_bytes) / 1e9:.0f}"
                        for one in (mine, parted[VLLM])
                    ),
                }
            )
    return rows


def _beside(steps: Steps, said: Mapping[str, Any]) -> Rows:
    rows = []
    for tokens_in, tokens_out, heads, ranks in said["atom_847"]["rows"]:
        context = tokens_in + tokens_out // 2
        ours = {size: speedup(steps, size, context) for size in BATCHES}
        rows.append(
            {
                "tokens in, out": f"{tokens(tokens_in)}, {tokens(tokens_out)}",
                "reported": f"{heads / ranks:.2f}",
                **{f"simulated, batch {size}": f"{ratio:.2f}" for size, ratio in ours.items()},
            }
        )
    return rows


def _room(steps: Steps) -> Rows:
    """Requests of each context that fit, by bytes of one."""
    rows = []
    for context in CONTEXTS:
        row: dict[str, Any] = {"context": tokens(context)}
        for name, layout in (("heads over 8", BY_HEADS), ("contexts over 8", VLLM)):
            one = steps[_call(BATCHES[0], context, layout)]
            resolved = one.attention[0].resolved
            free = resolved.device.dram_bytes - one.weight_bytes
            row[name] = int(free // (resolved.held_bytes / BATCHES[0]))
        rows.append(row)
    return rows


def part(steps: Steps, said: Mapping[str, Any]) -> Part:
    """Where dividing contexts loses, where it gains, and how many requests fit."""
    dcp = dict(said["vllm_25049"]["rows"])
    return Part(
        "DeepSeek-V3 on eight H200s: one latent head, whole on every GPU unless contexts are divided",
        (
            "With short contexts dividing them loses: every rank takes all 128 query heads to its",
            "shard of KV, and collectives come before and after. With long ones it gains, and",
            "most in how many requests fit. ROCm/ATOM#847 reports the same on eight MI355X, at a",
            "concurrency that the part that could be read does not say: other cards, other",
            "kernels, so that what counts is the direction, and where it turns. vllm#25049",
            f"reports {dcp[4] / dcp[1]:.2f} and {dcp[8] / dcp[1]:.2f} times the throughput with 4",
            "and 8 ranks, where 4,096 requests wait: there memory decides how many run at once.",
        ),
        (
            ("Speedup of dividing contexts as vLLM does, reported and simulated", _beside(steps, said)),
            (
                "Step with heads divided, and the speedup of dividing contexts; !: does not fit",
                _rows(steps),
            ),
            ("Requests that fit in memory", _room(steps)),
        ),
    )
