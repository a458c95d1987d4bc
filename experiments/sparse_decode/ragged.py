"""Who deals sparse lists best, where requests and heads keep unlike numbers of tokens."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from parts import Part, Pins, llama, timed, us
from reported import written_list

import leansim
from leansim.points.point import resolve

SCHEDULERS = ("flash_attention_2", "flash_decoding", "lean_attention")
BATCHES = (1, 8, 32)
CONTEXT, BLOCK, HEADS = 65536, 64, 8


def masks(folder: Path, batch: int) -> dict[str, str]:
    """Lists of one length for all, of none for half the heads, and of any length for each head."""
    rng = np.random.default_rng(batch)
    mean = CONTEXT // BLOCK // 10
    spread = np.exp(rng.standard_normal(batch * HEADS))
    lens = np.clip(np.rint(mean * spread / spread.mean()), 1, CONTEXT // BLOCK).astype(int).tolist()
    one = [int(np.rint(0.8 * CONTEXT / BLOCK))] + [mean // 2] * (batch * HEADS - 1)
    among = CONTEXT // BLOCK
    return {
        "a tenth of each head": "random(density=0.1)",
        "a fifth of half the heads": "random(density=0.2, pruned_heads=0.5)",
        "unlike heads (lognormal)": written_list(folder / f"{batch}.npz", lens, BLOCK, HEADS, among),
        "one long head": written_list(folder / f"one{batch}.npz", one, BLOCK, HEADS, among),
    }


def part() -> Part:
    """The table, and who wins."""
    pins: Pins = {}
    rows, wins = [], dict.fromkeys(SCHEDULERS, 0)
    with TemporaryDirectory() as folder:
        for batch in BATCHES:
            for name, mask in masks(Path(folder), batch).items():
                points = {
                    scheduler: llama(
                        kernel=f"fa2+{scheduler}", batch_size=batch, context_len=CONTEXT, mask=mask
                    )
                    for scheduler in SCHEDULERS
                }
                found = timed(points)
                best = min(found, key=lambda scheduler: found[scheduler])
                wins[best] += 1
                rows.append({"batch": batch, "lists": name, "longest / mean": _raggedness(points[best])}
                            | {scheduler: us(time) for scheduler, time in found.items()}
                            | {"fastest": best})  # fmt: skip
                pins |= {
                    f"{name}, batch {batch}, {scheduler}": time for scheduler, time in found.items()
                }
    told = ", ".join(f"{scheduler} {count}" for scheduler, count in wins.items())
    sentences = (
        "One kernel (FlashAttention-2's) and Llama-3-8B on an H100 at 65,536 tokens, lists of blocks "
        "of 64; only who deals the work differs. Where heads keep different numbers each request and "
        "head is a work tile of its own length.",
        f"Fastest of {len(rows)}: {told}. LeanAttention gives every CTA an equal share whatever the "
        "lists are; FlashDecoding has one split count for all, made for the longest; unsplit, the "
        "longest list decides alone.",
    )
    return Part("Who wins on ragged lists", sentences, (("Latency, us", pd.DataFrame(rows)),), pins)


def _raggedness(point: leansim.Point) -> str:
    tiles = resolve(point).grid.num_kv_tiles
    return f"{tiles.max() / tiles.mean():.1f}"
