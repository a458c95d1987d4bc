"""Orders of ring attention's blocks: which rows of a rank attend to which keys in each round.

A new order is two functions: which tokens a rank holds, and its block of a round. Knows no time, and
ignores batches: all is of one request, whose tokens divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.numerics.attention import (
    FloatArray,
    finish,
    merge_normalised,
    tile_attention,
)
from leansim.numerics.reference import reference_heads


@dataclass(frozen=True)
class Block:
    """Local rows of a rank's queries, and local keys of the rank whose KV it holds in a round.

    `causal`: there are as many keys as rows, and the i-th row sees those up to the i-th.
    """

    rows: range
    keys: range
    causal: bool

    @property
    def pairs(self) -> int:
        """Scores that count: `n (n + 1) / 2` of a causal block of n rows, else `rows * keys`."""
        rows, keys = len(self.rows), len(self.keys)
        return rows * (rows + 1) // 2 if self.causal else rows * keys


@dataclass(frozen=True)
class Order:
    """`held(rank, ranks, tokens)`: positions of the tokens a rank holds; `tokens` are those of a rank.

    `block(rank, step, tokens)`: what it does in round `step`, with KV of rank `(rank - step) % ranks`;
    None: it waits.
    """

    name: str
    held: Callable[[int, int, int], IntArray]
    block: Callable[[int, int, int], Block | None]


def _contiguous(rank: int, _ranks: int, tokens: int) -> IntArray:
    return np.arange(rank * tokens, (rank + 1) * tokens)


def _mirrored(rank: int, ranks: int, tokens: int) -> IntArray:
    """Of `2 * ranks` chunks the one of its own number, and the one as far from the end."""
    half = tokens // 2
    chunks = (rank, 2 * ranks - 1 - rank)
    return np.concatenate([np.arange(c * half, (c + 1) * half) for c in chunks])


def _strided(rank: int, ranks: int, tokens: int) -> IntArray:
    return np.arange(tokens) * ranks + rank


def _ring(rank: int, step: int, tokens: int) -> Block | None:
    """Its own KV causally, all KV of ranks before it, none of those behind it."""
    everything = range(tokens)
    return Block(everything, everything, step == 0) if step <= rank else None


def _zigzag(rank: int, step: int, tokens: int) -> Block:
    """All rows see the first chunk of ranks before it, the last chunk's rows both of those behind it."""
    everything, half = range(tokens), tokens // 2
    if step == 0:
        return Block(everything, everything, True)
    if step <= rank:
        return Block(everything, range(half), False)
    return Block(range(half, tokens), everything, False)


def _striped(rank: int, step: int, tokens: int) -> Block:
    """Always causal: with the diagonal of ranks before it, without of those behind it."""
    if step <= rank:
        return Block(range(tokens), range(tokens), True)
    return Block(range(1, tokens), range(tokens - 1), True)


RING = Order("ring", _contiguous, _ring)
ZIGZAG = Order("zigzag", _mirrored, _zigzag)
STRIPE = Order("stripe", _strided, _striped)
ORDERS = (RING, ZIGZAG, STRIPE)


def round_times(order: Order, ranks: int, tokens: int) -> list[float]:
    """Time of each round in full blocks, where the rank with most decides: 1/2, 1, 1, 1 of a ring of 4.

    A causal block of many tokens counts half of a full one.
    """
    found = []
    for step in range(ranks):
        blocks = (order.block(rank, step, tokens) for rank in range(ranks))
        found.append(max(block.pairs for block in blocks if block is not None) / tokens**2)
    return found


def balance(order: Order, ranks: int, tokens: int) -> float:
    """Share of the time of all rounds that would do if work were equal: `ranks / 2` full blocks.

    By hand, of many tokens: a ring of 4 takes 1/2 + 1 + 1 + 1 = 3.5 where 2 would do, 57.1%; of 8
    7.5 where 4 would, 53.3%; in zigzag and striped order each round takes 1/2, which is all there is.
    """
    total = ranks * tokens
    ideal = total * (total + 1) / 2 / ranks / tokens**2
    return ideal / sum(round_times(order, ranks, tokens))


def replay_error(order: Order, ranks: int = 4, tokens: int = 16, dim: int = 8, seed: int = 0) -> float:
    """Largest difference of an order's rounds, merged as they come, from causal softmax over all.

    Float64, one head. Each round's `(O, lse)` folds into what a rank has, as in the ring.
    """
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((ranks * tokens, dim)) for _ in range(3))
    wanted = reference_heads(q[:, None], k, v)[:, 0]
    found = np.full_like(wanted, np.nan)
    for rank in range(ranks):
        mine = order.held(rank, ranks, tokens)
        found[mine] = _folded(order, rank, ranks, tokens, (q, k, v))
    return float(np.abs(found - wanted).max())


def _folded(
    order: Order, rank: int, ranks: int, tokens: int, inputs: tuple[FloatArray, FloatArray, FloatArray]
) -> FloatArray:
    """Output of a rank's rows."""
    q, k, v = inputs
    mine = order.held(rank, ranks, tokens)
    o, lse = np.zeros((tokens, v.shape[1])), np.full(tokens, -np.inf)
    for step in range(ranks):
        block = order.block(rank, step, tokens)
        if block is None:
            continue
        rows, keys = np.array(block.rows), np.array(block.keys)
        theirs = order.held((rank - step) % ranks, ranks, tokens)[keys]
        shape = (len(rows), len(keys))
        mask = np.tri(*shape, dtype=bool) if block.causal else np.ones(shape, dtype=bool)
        partial = tile_attention(q[mine[rows]], k[theirs], v[theirs], mask, "float64")
        o[rows], lse[rows] = merge_normalised([(o[rows], lse[rows]), finish(partial)])
    return o
