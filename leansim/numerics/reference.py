"""What a schedule's attention is compared with: softmax over whole contexts, and inputs for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import OutOfRangeError
from leansim.numerics.attention import FloatArray
from leansim.specs.workload import Workload

Lists: TypeAlias = Sequence[tuple[range, IntArray]]  # new tokens, and the tokens that they keep
SCORES_AT_ONCE = 2**22  # of the heads that share a reference: 32 MB in float64
MOST_ELEMENTS = 2**28  # of the keys of a head: 2 GB in float64


def reference_heads(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    window: int | None = None,
    lists: Lists = (),
    wanted: IntArray | None = None,
) -> FloatArray:
    """Softmax attention of query heads over the whole context of their KV head at once, in float64.

    `q [query_len, heads, head_dim]` are the last tokens of the context `k [context_len, head_dim]`,
    `v [context_len, value_dim]`; token at position p sees keys in `(p - window, p]`, of which others
    than those in its list are hidden. Returns `[query_len, heads, value_dim]`, 0 where all is hidden; of
    some new tokens alone if they are `wanted`.
    """
    tokens = np.arange(len(q)) if wanted is None else wanted
    position, key = (len(k) - len(q) + tokens)[:, None], np.arange(len(k))
    q, k, v = (x.astype(np.float64, copy=False) for x in (q[tokens], k, v))
    hidden = key > position
    if window is not None:
        hidden |= key <= position - window
    for of, kept in lists:
        mine = (tokens >= of.start) & (tokens < of.stop)
        hidden[mine] |= np.isin(key, kept, invert=True)
    if lists:  # keys that none of them sees weigh nothing, and may be most
        seen = ~hidden.all(axis=0)
        k, v, hidden = k[seen], v[seen], hidden[:, seen]
    out = np.empty((*q.shape[:2], v.shape[1]))
    at_once = max(1, SCORES_AT_ONCE // max(1, hidden.size))
    for first in range(0, q.shape[1], at_once):
        some = q[:, first : first + at_once]
        scores = (some.reshape(-1, k.shape[1]) @ k.T).reshape(*some.shape[:2], len(k))
        scores /= np.sqrt(k.shape[1])
        np.copyto(scores, -np.inf, where=hidden[:, None])
        top = scores.max(axis=2, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
        weights /= np.where(np.isneginf(top), 1.0, weights.sum(axis=2, keepdims=True))
        summed = weights.reshape(some.shape[0] * some.shape[1], len(k)) @ v
        out[:, first : first + at_once] = summed.reshape(*some.shape[:2], -1)
    return out


def reference(
    workload: Workload, q: FloatArray, k: Sequence[FloatArray], v: Sequence[FloatArray]
) -> FloatArray:
    """Whole-context float64 attention of a workload; layouts as in `replay`.

    Of what requests share each must hold a copy.
    """
    out = np.empty((*q.shape[:3], workload.value_dim))
    for request in range(workload.batch_size):
        for kv_head in range(workload.num_kv_heads):
            heads = slice(kv_head * workload.group_size, (kv_head + 1) * workload.group_size)
            keys, values = k[request][:, kv_head], v[request][:, kv_head]
            lists = lists_of(workload, request, kv_head)
            out[request, :, heads] = reference_heads(
                q[request, :, heads], keys, values, workload.window, lists
            )
    return out


def lists_of(workload: Workload, request: int, kv_head: int, wanted: IntArray | None = None) -> Lists:
    """Which new tokens of a request keep what of its context, for a KV head; empty without a mask.

    Of those alone that are `wanted`, if some are named.
    """
    if workload.mask is None:
        return ()
    blocks = [*enumerate(workload.query_blocks)]
    if wanted is not None:
        blocks = [blocks[i] for i in np.unique(workload.block_of(wanted)).tolist()]
    return [(tokens, workload.kept(request, kv_head, block)) for block, tokens in blocks]


def head_inputs(
    workload: Workload, request: int, kv_head: int, seed: int, scale: float = 1.0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw normal inputs of one request and KV head; the same whatever else is drawn.

    KV of a shared prefix is that of the first request that holds it.

    Returns q `[query_len, group_size, head_dim]`, k `[context_len, head_dim]`, v `[context_len,
    value_dim]`, float64; v is the leading part of k where the cache is latent. Scores have a standard
    deviation of `scale`. Raises `OutOfRangeError` for a context that is too long to draw.
    """
    q, k, v = _drawn(workload, request, kv_head, seed)
    for prefix in workload.prefixes:
        if request in prefix.requests[1:]:
            _, shared_k, shared_v = _drawn(workload, prefix.requests[0], kv_head, seed)
            span = slice(prefix.begin, prefix.end)
            k[span], v[span] = shared_k[span], shared_v[span]
    return scale * q, k, v


def _drawn(
    workload: Workload, request: int, kv_head: int, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Inputs of one request and KV head as if it shared nothing."""
    rng = np.random.default_rng([seed, request, kv_head])
    tokens = workload.context_lens[request]
    if tokens * workload.head_dim > MOST_ELEMENTS:
        most = MOST_ELEMENTS // workload.head_dim
        raise OutOfRangeError(f"verify: found a context of {tokens:,} tokens; wanted at most {most:,}")
    q = rng.standard_normal((workload.query_len, workload.group_size, workload.head_dim))
    k = rng.standard_normal((tokens, workload.head_dim))
    if workload.latent_kv:
        return q, k, k[:, : workload.value_dim]
    return q, k, rng.standard_normal((tokens, workload.value_dim))


def random_inputs(
    workload: Workload, seed: int, scale: float = 1.0
) -> tuple[FloatArray, list[FloatArray], list[FloatArray]]:
    """Draw `head_inputs` of all requests and KV heads, laid out as `replay` takes them."""
    queries, keys, values = [], [], []
    for request in range(workload.batch_size):
        heads = range(workload.num_kv_heads)
        drawn = [head_inputs(workload, request, head, seed, scale) for head in heads]
        queries.append(np.concatenate([q for q, _, _ in drawn], axis=1))
        keys.append(np.stack([k for _, k, _ in drawn], axis=1))
        values.append(np.stack([v for _, _, v in drawn], axis=1))
    return np.stack(queries), keys, values
