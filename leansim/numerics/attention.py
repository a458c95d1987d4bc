"""Computes attention the way a schedule does: segment by segment, partials merged in its order.

Answers whether cutting and merging reproduce whole-context attention. Ignores time, paging and
which CTA runs when: a result depends on segment borders and merge order only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from leansim.arrays import BoolArray, IntArray
from leansim.errors import UnknownNameError
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.workload import Workload

Precision = Literal["float64", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FloatArray = npt.NDArray[np.floating[Any]]
SCORES_AT_ONCE = 2**22  # of the heads that share a reference: 32 MB in float64


# -- number formats ------------------------------------------------------------------------------


def accumulator(precision: Precision) -> type[np.float32] | type[np.float64]:
    """Return the type sums and partials are kept in: float32, or float64 for "float64".

    Raises `UnknownNameError`.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    return np.float64 if precision == "float64" else np.float32


def rounded(values: FloatArray, precision: Precision) -> FloatArray:
    """Round to the nearest number of a format, ties to even; the result is an accumulator array."""
    wide: FloatArray = np.asarray(values, dtype=accumulator(precision))
    if precision == "float16":
        return wide.astype(np.float16).astype(np.float32)
    return _to_bfloat16(wide) if precision == "bfloat16" else wide


def _to_bfloat16(values: FloatArray) -> FloatArray:
    """Keep the upper 16 bits of each float32; the carry of rounding may run into the exponent."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept = ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), kept)


# -- the reduction -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over some of the keys, not yet divided by its sum.

    Per row: `m` the largest score (`-inf` before any key), `l` the sum of `exp(score - m)`, both
    `[rows]`, and `o = sum exp(score - m) v`, `[rows, value_dim]`.
    """

    m: FloatArray
    l: FloatArray  # noqa: E741 - the name it has in every paper
    o: FloatArray


def empty(rows: int, dim: int, dtype: npt.DTypeLike = np.float64) -> Partial:
    """Return the partial over no keys, the identity of `merge`."""
    m = np.full(rows, -np.inf, dtype)
    return Partial(m, np.zeros(rows, dtype), np.zeros((rows, dim), dtype))


def _relative(m: FloatArray, top: FloatArray) -> FloatArray:
    """`exp(m - top)` for `m <= top`, and 0 instead of NaN where both are -inf."""
    return np.exp(m - np.where(np.isneginf(top), 0, top).astype(top.dtype))


def merge(a: Partial, b: Partial) -> Partial:
    """Merge partials over disjoint keys: associative, and commutative to the last bit."""
    top = np.maximum(a.m, b.m)
    wa, wb = _relative(a.m, top), _relative(b.m, top)
    return Partial(top, wa * a.l + wb * b.l, wa[:, None] * a.o + wb[:, None] * b.o)


def finish(partial: Partial) -> tuple[FloatArray, FloatArray]:
    """Return `(O [rows, value_dim], natural lse [rows])`: 0 and -inf for a row without keys."""
    seen = partial.l > 0
    total = np.where(seen, partial.l, 1).astype(partial.l.dtype)
    return partial.o / total[:, None], np.where(seen, partial.m + np.log(total), -np.inf)


def from_normalised(o: FloatArray, lse: FloatArray) -> Partial:
    """Read a stored partial back: O already divided, all weight in its lse (`l` is 1, or 0)."""
    return Partial(lse, np.where(np.isneginf(lse), 0, 1).astype(lse.dtype), o)


def merge_normalised(
    stored: Sequence[tuple[FloatArray, FloatArray]],
) -> tuple[FloatArray, FloatArray]:
    """Merge `(O, lse)` partials as a combine kernel does, in the order given.

    First the joint lse, then `O = sum_i exp(lse_i - lse) O_i`. `stored` must not be empty.
    """
    top = reduce(np.maximum, (lse for _, lse in stored))
    total = reduce(np.add, (_relative(lse, top) for _, lse in stored))
    seen = total > 0
    lse = np.where(seen, top + np.log(np.where(seen, total, 1)), -np.inf).astype(top.dtype)
    return reduce(np.add, (_relative(own, lse)[:, None] * o for o, own in stored)), lse


# -- one KV tile, one segment --------------------------------------------------------------------


def tile_attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    mask: BoolArray,
    precision: Precision,
    *,
    before: Partial | None = None,
) -> Partial:
    """Take one online-softmax step: fold a KV tile into what came `before` it.

    `q [rows, head_dim]`, `k [tokens, head_dim]`, `v [tokens, value_dim]`, `mask [rows, tokens]`
    true where a row sees a key. Inputs, and the probabilities that enter PV, are rounded to
    `precision`; the row sums are of the unrounded probabilities, as in FlashAttention-2.
    """
    carry = empty(len(q), v.shape[-1], accumulator(precision)) if before is None else before
    scale = accumulator(precision)(q.shape[-1] ** -0.5)
    scores = rounded(q, precision) @ rounded(k, precision).T * scale
    scores = np.where(mask, scores, -np.inf).astype(scores.dtype)
    top = np.maximum(carry.m, scores.max(axis=1, initial=-np.inf))
    weight = _relative(carry.m, top)
    p = _relative(scores, np.broadcast_to(top[:, None], scores.shape))
    o = weight[:, None] * carry.o + rounded(p, precision) @ rounded(v, precision)
    return Partial(top, weight * carry.l + p.sum(axis=1), o)


def segment_attention(
    grid: TileGrid,
    output_tile: int,
    kv_tiles: range,
    inputs: tuple[FloatArray, FloatArray, FloatArray],
    precision: Precision,
) -> Partial:
    """Fold the KV tiles of a segment in the grid's tile order.

    `inputs` are q of the output tile's rows `[rows, head_dim]` and k, v of its request and KV head
    `[context_len, dim]`. Only tokens in the output tile's `[kv_begin, kv_end)` are read.
    """
    q, k, v = inputs
    tokens, _ = row_owners(grid, output_tile)
    position = (len(k) - grid.workload.query_len + tokens)[:, None]
    size = grid.tile_tokens
    base = int(grid.tiling_begin[output_tile] + grid.first_kv_tile[output_tile] * size)
    begin, end = int(grid.kv_begin[output_tile]), int(grid.kv_end[output_tile])
    partial = empty(len(q), v.shape[-1], accumulator(precision))
    for tile in reversed(kv_tiles) if grid.tile_order == "backward" else kv_tiles:
        low, high = max(base + tile * size, begin), min(base + (tile + 1) * size, end)
        key = np.arange(low, high)
        mask = key <= position
        if grid.workload.window is not None:
            mask &= key > position - grid.workload.window
        partial = tile_attention(q, k[low:high], v[low:high], mask, precision, before=partial)
    return partial


# -- a whole schedule ----------------------------------------------------------------------------


def row_owners(grid: TileGrid, output_tile: int) -> tuple[IntArray, IntArray]:
    """Return the new token and the query head of each row of an output tile, `[rows]` each."""
    row = grid.row_block[output_tile] * grid.tile_rows + np.arange(grid.rows[output_tile])
    head = np.full(len(row), grid.head[output_tile])
    if not grid.packed:
        return row, head
    group = grid.workload.group_size
    return row // group, head * group + row % group


def kv_head_of(grid: TileGrid, output_tile: int) -> int:
    """Return the KV head that an output tile reads."""
    head = int(grid.head[output_tile])
    return head if grid.packed else head // grid.workload.group_size


def merge_order(schedule: Schedule) -> tuple[IntArray, IntArray]:
    """Return segments in merge order, and `[num_output_tiles + 1]` where each tile's begin."""
    order = schedule.by_tile
    tiles = np.arange(schedule.grid.num_output_tiles + 1)
    return order, np.searchsorted(schedule.output_tile[order], tiles)


def replay_tile(
    schedule: Schedule,
    segments: Iterable[int],
    inputs: tuple[FloatArray, FloatArray, FloatArray],
    precision: Precision,
) -> FloatArray:
    """Compute one output tile, `[rows, value_dim]`, from its segments in merge order.

    `inputs` as in `segment_attention`. What passes through memory is a normalised O and its lse in
    the accumulator's type; a host keeps its own partial as it is. NaN where nothing is written.
    """
    out = np.full((len(inputs[0]), inputs[2].shape[-1]), np.nan, accumulator(precision))
    own: Partial | None = None
    stored: list[tuple[FloatArray, FloatArray]] = []
    for i in segments:
        tile, kv_tiles = int(schedule.output_tile[i]), range(schedule.start[i], schedule.stop[i])
        partial = segment_attention(schedule.grid, tile, kv_tiles, inputs, precision)
        if not schedule.is_partial[i]:
            out = finish(partial)[0]
        elif schedule.merges[i]:
            own = partial
        else:
            stored.append(finish(partial))
    if own is not None:
        out = finish(reduce(merge, (from_normalised(*peer) for peer in stored), own))[0]
    elif stored and schedule.combine == "kernel":
        out = merge_normalised(stored)[0]
    return rounded(out, precision)


def replay(
    schedule: Schedule,
    q: FloatArray,
    k: Sequence[FloatArray],
    v: Sequence[FloatArray],
    precision: Precision = "float64",
) -> FloatArray:
    """Compute attention as the schedule does; what no segment writes stays NaN.

    `q [batch, query_len, num_q_heads, head_dim]`; per request `k [context_len, num_kv_heads,
    head_dim]` and `v [context_len, num_kv_heads, value_dim]`. Returns `[batch, query_len,
    num_q_heads, value_dim]` rounded to `precision`. Raises `UnknownNameError` for a precision.
    """
    grid = schedule.grid
    out = np.full((*q.shape[:3], grid.workload.value_dim), np.nan, accumulator(precision))
    order, borders = merge_order(schedule)
    for tile in range(grid.num_output_tiles):
        request, kv_head = int(grid.request[tile]), kv_head_of(grid, tile)
        tokens, heads = row_owners(grid, tile)
        inputs = (q[request, tokens, heads], k[request][:, kv_head], v[request][:, kv_head])
        segments = order[borders[tile] : borders[tile + 1]].tolist()
        out[request, tokens, heads] = replay_tile(schedule, segments, inputs, precision)
    return out


# -- what it is compared with --------------------------------------------------------------------


def reference_heads(
    q: FloatArray, k: FloatArray, v: FloatArray, window: int | None = None
) -> FloatArray:
    """Softmax attention of query heads over the whole context of their KV head at once, in float64.

    `q [query_len, heads, head_dim]` are the last tokens of the context `k [context_len, head_dim]`,
    `v [context_len, value_dim]`; token at position p sees keys in `(p - window, p]`. Returns
    `[query_len, heads, value_dim]`.
    """
    q, k, v = (x.astype(np.float64, copy=False) for x in (q, k, v))
    new, past = len(q), len(k) - len(q)
    hidden = ~np.tri(new, len(k), past, dtype=bool)
    if window is not None:
        hidden |= np.tri(new, len(k), past - window, dtype=bool)
    out = np.empty((*q.shape[:2], v.shape[1]))
    at_once = max(1, SCORES_AT_ONCE // hidden.size)
    for first in range(0, q.shape[1], at_once):
        some = q[:, first : first + at_once]
        scores = (some.reshape(-1, k.shape[1]) @ k.T).reshape(*some.shape[:2], len(k))
        scores /= np.sqrt(k.shape[1])
        np.copyto(scores, -np.inf, where=hidden[:, None])
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        summed = weights.reshape(-1, len(k)) @ v
        out[:, first : first + at_once] = summed.reshape(*some.shape[:2], -1)
    return out


def reference(
    workload: Workload, q: FloatArray, k: Sequence[FloatArray], v: Sequence[FloatArray]
) -> FloatArray:
    """Whole-context float64 attention of a workload; layouts as in `replay`."""
    out = np.empty((*q.shape[:3], workload.value_dim))
    for request in range(workload.batch_size):
        for kv_head in range(workload.num_kv_heads):
            heads = slice(kv_head * workload.group_size, (kv_head + 1) * workload.group_size)
            keys, values = k[request][:, kv_head], v[request][:, kv_head]
            out[request, :, heads] = reference_heads(q[request, :, heads], keys, values, workload.window)
    return out


def head_inputs(
    workload: Workload, request: int, kv_head: int, seed: int, scale: float = 1.0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw normal inputs of one request and KV head; the same whatever else is drawn.

    Returns q `[query_len, group_size, head_dim]`, k `[context_len, head_dim]`, v `[context_len,
    value_dim]`, float64; v is the leading part of k where the cache is latent. Scores have a standard
    deviation of `scale`.
    """
    rng = np.random.default_rng([seed, request, kv_head])
    tokens = workload.context_lens[request]
    q = rng.standard_normal((workload.query_len, workload.group_size, workload.head_dim))
    k = rng.standard_normal((tokens, workload.head_dim))
    if workload.latent_kv:
        return scale * q, k, k[:, : workload.value_dim]
    return scale * q, k, rng.standard_normal((tokens, workload.value_dim))


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
