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

Precision = Literal["float64", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FloatArray = npt.NDArray[np.floating[Any]]


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
    rows: IntArray | slice = slice(None),
) -> Partial:
    """Fold the KV tiles of a segment in the grid's tile order.

    `inputs` are q of the output tile's rows, or of some `rows` of them, `[rows, head_dim]`, and k, v of
    what it attends to, `[tokens, dim]`: of its request's whole context and KV head where that is dense.
    Only tokens in the output tile's `[kv_begin, kv_end)` are read.
    """
    q, k, v = inputs
    row_at, key_at = positions(grid, output_tile)
    position = row_at[rows, None]
    size = grid.tile_tokens
    base = int(grid.tiling_begin[output_tile] + grid.first_kv_tile[output_tile] * size)
    begin, end = int(grid.kv_begin[output_tile]), int(grid.kv_end[output_tile])
    partial = empty(len(q), v.shape[-1], accumulator(precision))
    for tile in reversed(kv_tiles) if grid.tile_order == "backward" else kv_tiles:
        low, high = max(base + tile * size, begin), min(base + (tile + 1) * size, end)
        key = key_at[low:high]
        mask = key <= position
        if grid.workload.window is not None:
            mask &= key > position - grid.workload.window
        partial = tile_attention(q, k[low:high], v[low:high], mask, precision, before=partial)
    return partial


def positions(grid: TileGrid, output_tile: int) -> tuple[IntArray, IntArray]:
    """Where in their contexts the rows of an output tile are, `[rows]`, and what they may attend to."""
    request, token, _ = row_owners(grid, output_tile)
    row_at = grid.asked.lens[request] - grid.asked.query_len + token
    item = int(grid.request[output_tile])
    if grid.work is None:
        return row_at, np.arange(grid.context_lens[item])
    return row_at, grid.work.kept(item, kv_head_of(grid, output_tile))


# -- a whole schedule ----------------------------------------------------------------------------


def row_owners(grid: TileGrid, output_tile: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return request, new token and query head of each row of an output tile, `[rows]` each."""
    item, head = int(grid.request[output_tile]), _counted_head(grid, output_tile)
    if grid.work is None:
        row = grid.row_block[output_tile] * grid.tile_rows + np.arange(grid.rows[output_tile])
        request = np.full(len(row), item)
    else:
        request, row = np.divmod(grid.work.rows_of(item), grid.work.rows_per_head)
    if not grid.packed:
        return request, row, np.full(len(row), head)
    group = grid.workload.group_size
    return request, row // group, head * group + row % group


def source_of(grid: TileGrid, output_tile: int) -> int:
    """Return the request whose KV an output tile reads: the first of those that share it."""
    item = int(grid.request[output_tile])
    return item if grid.work is None else int(grid.work.source[item])


def kv_head_of(grid: TileGrid, output_tile: int) -> int:
    """Return the KV head that an output tile reads."""
    head = _counted_head(grid, output_tile)
    return head if grid.packed else head // grid.workload.group_size


def _counted_head(grid: TileGrid, output_tile: int) -> int:
    """The head of an output tile among all that have tiles of their own."""
    head, item = int(grid.head[output_tile]), int(grid.request[output_tile])
    if grid.work is None or not grid.work.by_head:
        return head
    return int(grid.work.head[item]) * grid.heads + head


def merge_order(schedule: Schedule) -> tuple[IntArray, IntArray]:
    """Return segments in merge order, and `[num_output_tiles + 1]` where each tile's begin."""
    order = schedule.by_tile
    tiles = np.arange(schedule.grid.num_output_tiles + 1)
    return order, np.searchsorted(schedule.output_tile[order], tiles)


def tile_states(
    schedule: Schedule,
    segments: Iterable[int],
    inputs: tuple[FloatArray, FloatArray, FloatArray],
    precision: Precision,
    rows: IntArray | slice = slice(None),
) -> list[tuple[FloatArray, FloatArray]]:
    """What an output tile leaves, from its segments in merge order: `(O, lse)` of whom nobody merged.

    `inputs` and `rows` as in `segment_attention`. What passes through memory is a normalised O and its
    lse in the accumulator's type; a host keeps its own partial as it is. Nothing where none merges.
    """
    own: Partial | None = None
    stored: list[tuple[FloatArray, FloatArray]] = []
    for i in segments:
        tile, kv_tiles = int(schedule.output_tile[i]), range(schedule.start[i], schedule.stop[i])
        partial = segment_attention(schedule.grid, tile, kv_tiles, inputs, precision, rows)
        if not schedule.is_partial[i]:
            return [finish(partial)]
        if schedule.merges[i]:
            own = partial
        else:
            stored.append(finish(partial))
    if own is not None:
        return [finish(reduce(merge, (from_normalised(*peer) for peer in stored), own))]
    return stored if schedule.combine == "kernel" else []


class Gathered:
    """Partials of rows that come from several output tiles, and their merge."""

    def __init__(self, rows: int, dim: int, dtype: npt.DTypeLike) -> None:
        """No partials yet of so many rows."""
        self._levels: list[tuple[FloatArray, FloatArray]] = []
        self._count = np.zeros(rows, dtype=np.int64)
        self._shape, self._dtype = (rows, dim), dtype

    def add(self, rows: IntArray, o: FloatArray, lse: FloatArray) -> None:
        """A partial of some rows."""
        while len(self._levels) <= self._count[rows].max():
            lse_of_all = np.full(self._shape[0], -np.inf, self._dtype)
            self._levels.append((np.zeros(self._shape, self._dtype), lse_of_all))
        for level in np.unique(self._count[rows]):
            mine = self._count[rows] == level
            self._levels[level][0][rows[mine]] = o[mine]
            self._levels[level][1][rows[mine]] = lse[mine]
        self._count[rows] += 1

    @property
    def is_served(self) -> BoolArray:
        """Which rows have a partial."""
        return np.greater(self._count, 0)

    def merged(self) -> tuple[FloatArray, FloatArray]:
        """`(O [rows, dim], lse [rows])`: 0 and -inf for rows without a partial."""
        if not self._levels:
            return np.zeros(self._shape, self._dtype), np.full(self._shape[0], -np.inf, self._dtype)
        return merge_normalised(self._levels)


def replay_states(
    schedule: Schedule,
    q: FloatArray,
    k: Sequence[FloatArray],
    v: Sequence[FloatArray],
    precision: Precision = "float64",
) -> tuple[FloatArray, FloatArray]:
    """Compute attention as the schedule does, and the lse beside it, neither rounded in the end.

    Arguments as in `replay`. Returns `[batch, query_len, num_q_heads, value_dim]`, and the same without
    the last: 0 and -inf for rows that attend to nothing, as on a rank that holds none of a context.
    """
    grid, shape = schedule.grid, q.shape[:3]
    rows = Gathered(int(np.prod(shape)), grid.workload.value_dim, accumulator(precision))
    order, borders = merge_order(schedule)
    for tile in range(grid.num_output_tiles):
        source, kv_head = source_of(grid, tile), kv_head_of(grid, tile)
        request, token, head = row_owners(grid, tile)
        keys, values = k[source][:, kv_head], v[source][:, kv_head]
        if grid.work is not None:
            kept = grid.work.kept(int(grid.request[tile]), kv_head)
            keys, values = keys[kept], values[kept]
        segments = order[borders[tile] : borders[tile + 1]].tolist()
        states = tile_states(schedule, segments, (q[request, token, head], keys, values), precision)
        for o, lse in states or [nothing_merged(len(request), values.shape[-1], precision)]:
            rows.add(np.ravel_multi_index((request, token, head), shape), o, lse)
    o, lse = rows.merged()
    return o.reshape(*shape, -1), lse.reshape(shape)


def nothing_merged(rows: int, dim: int, precision: Precision) -> tuple[FloatArray, FloatArray]:
    """What is found where a tile was to be merged and nobody did."""
    dtype = accumulator(precision)
    return np.full((rows, dim), np.nan, dtype), np.zeros(rows, dtype)


def replay(
    schedule: Schedule,
    q: FloatArray,
    k: Sequence[FloatArray],
    v: Sequence[FloatArray],
    precision: Precision = "float64",
) -> FloatArray:
    """Compute attention as the schedule does; what no segment writes stays NaN.

    `q [batch, query_len, num_q_heads, head_dim]`; per request `k [context_len, num_kv_heads,
    head_dim]` and `v [context_len, num_kv_heads, value_dim]`; of what requests share, those of the
    first are read. Returns `[batch, query_len, num_q_heads, value_dim]` rounded to `precision`. Raises
    `UnknownNameError` for a precision.
    """
    return rounded(replay_states(schedule, q, k, v, precision)[0], precision)
