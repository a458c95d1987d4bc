"""Draws the batches on which libraries are measured: other ones than those of the campaign.

Contexts are no powers of two, and ragged batches are in flight at other seeds, with other batch sizes.
The order is random, so that as far as a budget goes there is a sample of the whole.
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
MOST_KV_BYTES = 2 * 2**30
# Device and kernel are another's: who measures has his own.
FIXED = {"device": "h100_sxm", "kernel": "fa2", "q_dtype": "bfloat16", "kv_dtype": "bfloat16",
         "page_tokens": 16, "launch": "graph"}  # fmt: skip


def uniform(random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Batches of one context length, log-uniform; without end."""
    while True:
        heads, dim = HEADS[random.integers(len(HEADS))], (128, 128, 64)[random.integers(3)]
        batch = UNIFORM_BATCHES[random.integers(len(UNIFORM_BATCHES))]
        context = int(np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST))))
        yield _shape(heads, dim, batch_size=batch, context_len=context)


def ragged(
    random: np.random.Generator, heads_of: tuple[tuple[int, int], ...]
) -> Iterator[dict[str, Any]]:
    """Requests in flight in the built-in traces; without end."""
    traces = list(builtin_traces())
    while True:
        heads, dim = heads_of[random.integers(len(heads_of))], (128, 128, 64)[random.integers(3)]
        yield _shape(
            heads,
            dim,
            batch_size=RAGGED_BATCHES[random.integers(len(RAGGED_BATCHES))],
            trace=traces[random.integers(len(traces))],
            seed=int(random.integers(100, 1000)),
        )


def small_enough(shape: dict[str, Any]) -> bool:
    """Whether its KV is not too large to draw and to check in no time."""
    point = {key: str(value) for key, value in (FIXED | shape).items() if value != ""}
    return resolve(point_from_row(point, "shapes")).workload.kv_bytes <= MOST_KV_BYTES


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
        table = pd.DataFrame([FIXED | shape for shape in (*same, *unlike)])
        order = random.permutation(len(table))
        table.iloc[order].to_csv(FOLDER / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
