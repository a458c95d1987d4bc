"""Draws the batches on which libraries are measured: other ones than those of the campaign.

Contexts are no powers of two, and ragged batches are in flight at other seeds, with other batch sizes.
The order is random, so that as far as a budget goes there is a sample of the whole.

    batches          for any library that pages KV
    batches_torch    for PyTorch's entry, whose ragged batches have one KV head
    batches_small    little KV: workspaces of a fixed size hold their partials
    batches_latent   latent KV, of DeepSeek's models
    batches_few      few batch sizes and head shapes: what compiles for each of them
    waves            one context, CTAs from less than a wave to five: how later waves begin
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leansim.points.point import point_from_row, resolve
from leansim.specs.traces import builtin_traces

FOLDER = Path(__file__).resolve().parent / "shapes"
UNIFORM, RAGGED = 160, 84
# Groups of 1, 4 and 8: those that all libraries have.
HEADS = ((32, 8), (64, 8), (8, 1), (16, 2), (20, 5), (4, 1), (24, 24), (40, 40), (8, 8))
ONE_KV_HEAD = ((8, 1), (4, 1), (1, 1), (16, 1))
UNIFORM_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
RAGGED_BATCHES = (3, 6, 12, 20, 24, 40, 48, 80, 96, 160)
SHORTEST, LONGEST = 200, 300_000
MOST_KV_BYTES, LITTLE_KV_BYTES = 2 * 2**30, 200 * 2**20
LATENT_HEADS, LATENT_CONTEXTS = (128, 64, 32, 16), (500, 100_000)
FEW = ((1, (32, 8)), (8, (64, 8)), (48, (8, 1)), (4, (16, 2)), (24, (20, 5)), (16, (8, 8)))
WAVES_CTAS = (96, 120, 132, 140, 160, 200, 264, 272, 300, 340, 396, 410, 480, 600, 660)
WAVES_CONTEXTS = (1500, 6000)
# Device and kernel are another's: who measures has his own.
FIXED = {"device": "h100_sxm", "kernel": "fa2", "q_dtype": "bfloat16", "kv_dtype": "bfloat16",
         "page_tokens": 16, "launch": "graph"}  # fmt: skip


def uniform(random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Batches of one context length, log-uniform; without end."""
    while True:
        heads, dim = HEADS[random.integers(len(HEADS))], (128, 128, 64)[random.integers(3)]
        batch = UNIFORM_BATCHES[random.integers(len(UNIFORM_BATCHES))]
        context = _log_uniform(random, SHORTEST, LONGEST)
        yield _shape(heads, dim, batch_size=batch, context_len=context)


def ragged(
    random: np.random.Generator, heads_of: tuple[tuple[int, int], ...]
) -> Iterator[dict[str, Any]]:
    """Requests in flight in the built-in traces; without end."""
    while True:
        heads, dim = heads_of[random.integers(len(heads_of))], (128, 128, 64)[random.integers(3)]
        batch = RAGGED_BATCHES[random.integers(len(RAGGED_BATCHES))]
        yield _shape(heads, dim, batch_size=batch, **_in_flight(random))


def latent(random: np.random.Generator, traces: bool) -> Iterator[dict[str, Any]]:
    """Batches of a latent cache, uniform or of requests in flight; without end."""
    same = {"head_dim_v": 512, "latent_kv": "true", "kernel": "flash_mla", "page_tokens": 64}
    while True:
        heads = (LATENT_HEADS[random.integers(len(LATENT_HEADS))], 1)
        if traces:
            batch = RAGGED_BATCHES[random.integers(len(RAGGED_BATCHES))]
            yield _shape(heads, 576, batch_size=batch, **_in_flight(random), **same)
        else:
            batch = UNIFORM_BATCHES[random.integers(len(UNIFORM_BATCHES))]
            context = _log_uniform(random, *LATENT_CONTEXTS)
            yield _shape(heads, 576, batch_size=batch, context_len=context, **same)


def few(random: np.random.Generator, traces: bool) -> Iterator[dict[str, Any]]:
    """Uniform or ragged batches of few batch sizes and head shapes, in turn; without end."""
    while True:
        for batch, heads in FEW:
            for dim in (64, 128):
                if not traces:
                    context = _log_uniform(random, SHORTEST, LONGEST)
                    yield _shape(heads, dim, batch_size=batch, context_len=context)
                elif batch > 1:
                    yield _shape(heads, dim, batch_size=batch, **_in_flight(random))


def waves() -> Iterator[dict[str, Any]]:
    """A request of one head for each CTA, of equal contexts."""
    for ctas in WAVES_CTAS:
        for context in WAVES_CONTEXTS:
            for dim in (64, 128):
                yield _shape((1, 1), dim, batch_size=ctas, context_len=context)


def kv_bytes(shape: dict[str, Any]) -> int:
    """Bytes of its KV: what is drawn, and checked."""
    point = {key: str(value) for key, value in (FIXED | shape).items() if value != ""}
    return resolve(point_from_row(point, "shapes")).workload.kv_bytes


def small_enough(shape: dict[str, Any]) -> bool:
    """Whether its KV is not too large to draw and to check in no time."""
    return kv_bytes(shape) <= MOST_KV_BYTES


def little(shape: dict[str, Any]) -> bool:
    """Whether partials of its KV fit a workspace of some hundred MB."""
    return kv_bytes(shape) <= LITTLE_KV_BYTES


def _in_flight(random: np.random.Generator) -> dict[str, Any]:
    """A trace and a seed, by which requests in flight are drawn."""
    traces = list(builtin_traces())
    return {"trace": traces[random.integers(len(traces))], "seed": int(random.integers(100, 1000))}


def _log_uniform(random: np.random.Generator, least: int, most: int) -> int:
    return int(np.exp(random.uniform(np.log(least), np.log(most))))


def _shape(heads: tuple[int, int], dim: int, **more: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("batch_size", "context_len", "trace", "seed"), "")
    return {**blank, "num_q_heads": heads[0], "num_kv_heads": heads[1], "head_dim": dim, **more}


def main() -> None:
    """Write the files of shapes."""
    FOLDER.mkdir(exist_ok=True)
    random = np.random.default_rng(20261127)
    same = list(islice(filter(small_enough, uniform(random)), UNIFORM))
    files = {
        "batches": HEADS[:7],
        # PyTorch's entry for several lengths copies Q and O where there are several KV heads.
        "batches_torch": ONE_KV_HEAD,
    }
    for name, heads in files.items():
        unlike = islice(filter(small_enough, ragged(random, heads)), RAGGED)
        _write(name, [*same, *unlike], random)
    for name, fits, alike, unlike in (
        ("batches_small", little, uniform(random), ragged(random, HEADS[:7])),
        ("batches_latent", small_enough, latent(random, False), latent(random, True)),
        ("batches_few", small_enough, few(random, False), few(random, True)),
    ):
        drawn = [*islice(filter(fits, alike), UNIFORM), *islice(filter(fits, unlike), RAGGED)]
        _write(name, drawn, random)
    _write("waves", list(filter(small_enough, waves())), random)


def _write(name: str, shapes: list[dict[str, Any]], random: np.random.Generator) -> None:
    table = pd.DataFrame([FIXED | shape for shape in shapes])
    table.iloc[random.permutation(len(table))].to_csv(FOLDER / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
