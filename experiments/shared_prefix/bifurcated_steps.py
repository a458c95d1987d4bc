"""Bifurcated attention's decode steps: what they spare, claimed and simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from calls import Call, Times, device_of

from leansim.checkout.pages import Part, Rows, tokens

LAYERS, HEADS, SUFFIX = 32, 32, 128
PLAIN, CASCADES = "flash_decoding", ("vllm_cascade", "lean_cascade")
DEVICE = "h100_sxm"


def cells(claims: dict[Any, Any]) -> Iterator[tuple[Call, float, float]]:
    """The plain call of each row that shares, and ms of a step without and with bifurcated attention."""
    for context_len, columns in claims.items():
        for samples, plain, other in zip(*columns.values(), strict=True):
            if samples > 1:
                call = Call(DEVICE, PLAIN, samples, int(context_len), SUFFIX, HEADS, HEADS)
                yield call, float(plain), float(other)


def calls(claims: dict[Any, Any]) -> list[Call]:
    """Plain and cascades of each row."""
    kernels = (PLAIN, *CASCADES)
    return [replace(call, kernel=kernel) for call, _, _ in cells(claims) for kernel in kernels]


def part(times: Times, claims: dict[Any, Any]) -> Part:
    """What is spared of a step, claimed and simulated, and what more samples than two add to that."""
    peak = device_of(DEVICE).dram_bandwidth_bytes_per_s
    rows: Rows = []
    at_two: dict[int, tuple[float, ...]] = {}
    over = []
    for call, plain_ms, other_ms in cells(claims):
        plain = times[call]
        simulated = (LAYERS * (plain - times[replace(call, kernel=one)]) / 1e6 for one in CASCADES)
        spared = (plain_ms - other_ms, *simulated)
        before = at_two.setdefault(call.prefix_len, spared)
        since = [now - then for now, then in zip(spared, before, strict=True)]
        if since[0] > 0.0:
            over.append(since[-1] / since[0])
        kv_bytes = LAYERS * call.spared_bytes
        rows.append(
            {
                "context": tokens(call.prefix_len),
                "samples": call.batch_size,
                "KV spared": f"{kv_bytes / 1e9:.1f} GB",
                "at 3.35 TB/s": f"{kv_bytes / peak * 1e3:.1f} ms",
                "claimed": f"{spared[0]:.1f} ms",
                **{name: f"{ms:.1f} ms" for name, ms in zip(CASCADES, spared[1:], strict=True)},
                "since 2 samples: claimed": f"{since[0]:.1f} ms",
                "simulated": f"{since[-1]:.1f} ms",
                "simulated share of the plain step": f"{LAYERS * plain / 1e6 / plain_ms:.0%}",
            }
        )
    sentences = (
        "Claimed is the difference of two columns of whole steps, both compiled. Simulated is "
        f"{LAYERS} layers x (time of `{PLAIN}` - time of the cascade) for one call: {LAYERS} x "
        f"(samples - 1) x context x {HEADS} heads x 512 B less to read. Each sample has {SUFFIX} "
        "tokens of its own (assumed); both sides read them.",
        "A bifurcated step takes some 3 ms more with two samples than with one (11.8 beside 8.6 ms "
        "at 8k, 17.2 beside 12.2 at 16k): its scores are written out, and its graph is another. No "
        "kernel here does that. Since two samples it cancels: there Lean cascade's gain is "
        f"{min(over):.1f} to {max(over):.1f} times the claimed one.",
        "From 8 to 16 samples at 8k the plain column's 34.4 GB more take 8.9 ms, which is 3.9 TB/s, "
        "of a card that has 3.35: samples find in L2 what another has just read, here as well. The "
        "last column is what of a step is simulated to be attention.",
    )
    return Part("Bifurcated attention's steps (H100, 7B, multi-head)", sentences, (("By row", rows),))
