"""What share of a step attention has, and what its schedule changes of the whole step."""

from __future__ import annotations

from steps import Asked, Found

from leansim.checkout.pages import Part, Rows, tokens

MODELS = (("llama_3_8b", 1), ("llama_3_70b", 8))
DEVICE = "h100_sxm"
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = tuple(2**n for n in range(9, 18))
KERNELS = ("fa2", "flash_decoding", "lean", "vllm_fa3")


def calls() -> list[Asked]:
    """Every step of the grid."""
    return [
        Asked(DEVICE, kernel, model, gpus, size, context)
        for model, gpus in MODELS
        for size in BATCHES
        for context in CONTEXTS
        for kernel in KERNELS
    ]


def _cells(steps: Found, model: str, gpus: int, fitting: bool = True) -> list[dict[str, Asked]]:
    """The calls of each cell, by kernel; those that fit in memory."""
    cells = []
    for size in BATCHES:
        for context in CONTEXTS:
            cell = {k: Asked(DEVICE, k, model, gpus, size, context) for k in KERNELS}
            if not fitting or steps[cell["lean"]].fits:
                cells.append(cell)
    return cells


def _shares(steps: Found, model: str, gpus: int) -> Rows:
    told: dict[int, dict[str, str]] = {}
    for cell in _cells(steps, model, gpus):
        asked = cell["flash_decoding"]
        line = told.setdefault(asked.batch_size, {"batch": str(asked.batch_size)})
        line[tokens(asked.context_len)] = f"{steps[asked].attention_share:.0%}"
    return list(told.values())


def _gains(steps: Found, model: str, gpus: int) -> Rows:
    rows = []
    for kernel in KERNELS:
        whole, alone = [], []
        for cell in _cells(steps, model, gpus):
            mine, base = steps[cell[kernel]], steps[cell["fa2"]]
            whole.append(base.seconds / mine.seconds)
            alone.append(base.attention_spent.seconds / mine.attention_spent.seconds)
        rows.append(
            {
                "model": model,
                "gpus": gpus,
                "kernel": kernel,
                "cells": len(whole),
                "attention, mean": f"{sum(alone) / len(alone):.2f}",
                "attention, most": f"{max(alone):.2f}",
                "step, mean": f"{sum(whole) / len(whole):.2f}",
                "step, most": f"{max(whole):.2f}",
                "step, least": f"{min(whole):.2f}",
            }
        )
    return rows


def _energy(steps: Found, model: str, gpus: int) -> Rows:
    rows = []
    for size in (1, 16, 256):
        for context in (2**10, 2**13, 2**16):
            asked = {k: Asked(DEVICE, k, model, gpus, size, context) for k in ("fa2", "lean")}
            if not steps[asked["lean"]].fits:
                continue
            told = {
                f"{kernel}, J/token": "-".join(
                    f"{joules / size:.3g}"
                    for joules in (steps[one].energy.low_j, steps[one].energy.high_j)
                )
                for kernel, one in asked.items()
            }
            saved = steps[asked["lean"]].energy.low_j / steps[asked["fa2"]].energy.low_j - 1
            rows.append(
                {"model": model, "gpus": gpus, "batch": size, "context": tokens(context), **told}
                | {"lean": f"{saved:+.0%}"}
            )
    return rows


def part(steps: Found) -> Part:
    """Attention's share of a step, what schedules change of it, and of its energy."""
    each = [(f"Share of attention (FlashDecoding): {model} on {gpus}", _shares(steps, model, gpus))
            for model, gpus in MODELS]  # fmt: skip
    gains = [row for model, gpus in MODELS for row in _gains(steps, model, gpus)]
    joules = [row for model, gpus in MODELS for row in _energy(steps, model, gpus)]
    return Part(
        "What the schedule of attention changes end to end",
        (
            f"H100, batches of {min(BATCHES)} to {max(BATCHES)}, contexts of "
            f"{tokens(min(CONTEXTS))} to {tokens(max(CONTEXTS))}; cells whose KV and weights fit.",
            "Speedups are over FlashAttention-2 that does not split. A schedule is worth most where few",
            "requests have long contexts: then attention is most of the step, and most SMs would idle.",
            "Energy falls less than time: bytes are the same, and only idle power is saved.",
        ),
        (
            *each,
            ("Speedup over unsplit FlashAttention-2", gains),
            ("Energy of a step for each token, between two bounds", joules),
        ),
    )
