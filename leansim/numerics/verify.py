"""Checks a schedule: exact cover and exact numbers.

Counts cover afresh and replays output tiles against whole-context attention.
Ignores time. A large workload is replayed in part; the report says how much of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import NumericsError
from leansim.numerics.attention import (
    FloatArray,
    Gathered,
    Precision,
    accumulator,
    kv_head_of,
    merge_order,
    nothing_merged,
    positions,
    rounded,
    row_owners,
    tile_states,
)
from leansim.numerics.cover import Cover, count_cover, token_borders
from leansim.numerics.reference import head_inputs, lists_of, reference_heads
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.workload import Workload

# Largest error allowed, as a share of `softmax(scores) @ |v|`, the size of what is summed, so that
# an output near zero by cancellation is not held to more digits than its terms have. The reference
# takes inputs rounded to the precision, so rounding them is no error.
TOLERANCES: dict[Precision, float] = {
    # Some 10^4 roundings of 2^-53; a sum of 10^6 terms in blocks stays far below it.
    "float64": 1e-12,
    # 64 roundings of 2^-24: scores of up to some 10 (their error passes through exp), the lse of
    # partials, the products and sums. Holds for inputs of unit variance, as used here.
    "float32": 64 * 2.0**-24,
    # Two roundings to 8 significant bits, 2^-8 each at worst: the probabilities and the output.
    # A twentieth more for second order and the float32 sums.
    "bfloat16": 1.05 * 2 * 2.0**-8,
    # The same with 11 significant bits. Probabilities below 2^-14 of the largest lose bits, but
    # 2^-25 of the largest each at worst: lost in the margin while scores have unit variance.
    "float16": 1.05 * 2 * 2.0**-11,
}
_MOST_KEPT = 2**22  # elements of a head's keys: with its values, in three precisions, 300 MB
DEFAULT_PRECISIONS: tuple[Precision, ...] = ("float64", "float32", "bfloat16")


@dataclass(frozen=True)
class PrecisionCheck:
    """Errors of replayed output tiles; `tolerance` is for the one relative to softmax @ |v|."""

    precision: Precision
    max_abs_error: float
    rms_error: float
    max_rel_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; NaN is not."""
        return self.max_rel_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What `verify` found out about a schedule.

    `replayed_tiles` of `cover.output_tiles` were computed; they show `replayed_patterns` of
    `patterns` ways (context length, row block, borders) in which output tiles are cut.
    """

    cover: Cover
    checks: tuple[PrecisionCheck, ...]
    replayed_tiles: int
    replayed_tokens: int
    replayed_patterns: int
    patterns: int
    facts: dict[str, str | int]

    @property
    def passed(self) -> bool:
        """Whether the cover is exact and every precision is within tolerance."""
        return self.cover.exact and all(check.passed for check in self.checks)

    @classmethod
    def of_all(cls, found: Sequence[Verification]) -> Verification:
        """What was found out about schedules that run one after the other: the worst of their errors."""
        last = found[-1]
        sums = ("output_tiles", "rows", "kv_tiles", "kv_tokens", "segments", "partials_merged")
        cover = Cover(
            **{name: sum(getattr(one.cover, name) for one in found) for name in sums},
            problem="; ".join(filter(None, (one.cover.problem for one in found))),
        )
        alike = zip(*(one.checks for one in found), strict=True)
        return cls(
            cover=cover,
            checks=tuple(max(some, key=lambda check: check.max_rel_error) for some in alike),
            replayed_tiles=sum(one.replayed_tiles for one in found),
            replayed_tokens=sum(one.replayed_tokens for one in found),
            replayed_patterns=sum(one.replayed_patterns for one in found),
            patterns=sum(one.patterns for one in found),
            facts=last.facts,
        )

    def rows(self) -> list[dict[str, str | float | bool]]:
        """One record for each precision, for tables."""
        return [{**asdict(check), "passed": check.passed} for check in self.checks]

    def raise_if_failed(self) -> None:
        """Raise `NumericsError` that lists all that is wrong, if anything is."""
        wrong = [self.cover.problem] if self.cover.problem else []
        wrong += [
            f"{check.precision}: relative error {check.max_rel_error:.3g}, "
            f"wanted at most {check.tolerance:.3g}"
            for check in self.checks
            if not check.passed
        ]
        if wrong:
            raise NumericsError("schedule is not exact: " + "; ".join(wrong))


def verify(
    schedule: Schedule,
    precisions: Sequence[Precision] = DEFAULT_PRECISIONS,
    seed: int = 0,
    max_tokens: int = 1 << 18,
) -> Verification:
    """Count the cover of a schedule and replay output tiles against whole-context attention.

    `max_tokens` is the most KV tokens replayed, in each precision; one output tile is replayed
    whatever its length. Inputs are drawn as needed, one KV head at a time. Finding fault is not an
    error: see `Verification.raise_if_failed`. Raises `UnknownNameError` for a precision.
    """
    order, borders = merge_order(schedule)
    tokens = np.subtract(*token_borders(schedule.grid)[::-1])
    pattern = _patterns(schedule, order, borders)
    chosen = _sample(pattern, np.diff(borders), tokens, max_tokens)
    errors = np.zeros((len(chosen), len(precisions), 4))
    for (request, kv_head), rows in _by_head(schedule.grid, chosen).items():
        inputs = _Inputs(schedule.grid.asked, request, kv_head, seed)
        for row in rows:
            errors[row] = _tile_errors(schedule, chosen[row], (order, borders), precisions, inputs)
    return Verification(
        cover=count_cover(schedule),
        checks=tuple(_check(p, errors[:, i]) for i, p in enumerate(precisions)),
        replayed_tiles=len(chosen),
        replayed_tokens=int(tokens[chosen].sum()),
        replayed_patterns=len(np.unique(pattern[chosen])),
        patterns=len(np.unique(pattern)),
        facts=_facts(schedule),
    )


def _patterns(schedule: Schedule, order: IntArray, borders: IntArray) -> IntArray:
    """Assign numbers to the ways output tiles are cut: by context length, row block, segments."""
    grid = schedule.grid
    lens, block = grid.context_lens[grid.request], grid.row_block
    segments = np.stack([schedule.start[order], schedule.stop[order]], axis=1)
    known: dict[tuple[int, int, bytes], int] = {}
    pattern = np.empty(grid.num_output_tiles, dtype=np.int64)
    for tile in range(grid.num_output_tiles):
        mine = segments[borders[tile] : borders[tile + 1]].tobytes()
        key = (int(lens[tile]), int(block[tile]), mine)
        pattern[tile] = known.setdefault(key, len(known))
    return pattern


def _sample(pattern: IntArray, segments: IntArray, tokens: IntArray, max_tokens: int) -> list[int]:
    """Choose output tiles within a budget: one of each pattern, then a second of each, and so on.

    Among equals, one of each segment count before another of any, the most split first.
    """
    turns: dict[tuple[int, ...], int] = {}

    def turn(*key: int) -> int:
        turns[key] = turns.get(key, -1) + 1
        return turns[key]

    ranks = []
    for tile, (way, count) in enumerate(zip(pattern.tolist(), segments.tolist(), strict=True)):
        again = turn(way)
        ranks.append((again, turn(again, count), -count, tile))
    chosen: list[int] = []
    left = max_tokens
    for *_, tile in sorted(ranks):
        if not chosen or tokens[tile] <= left:
            chosen.append(tile)
            left -= int(tokens[tile])
    return sorted(chosen)


def _by_head(grid: TileGrid, tiles: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Places of tiles by the request whose rows they are held against, and the KV head."""
    found: dict[tuple[int, int], list[int]] = {}
    for place, tile in enumerate(tiles):
        request = int(row_owners(grid, tile)[0][-1])
        found.setdefault((request, kv_head_of(grid, tile)), []).append(place)
    return found


class _Inputs:
    """Inputs of a request and KV head: as they are drawn, and as the reference takes them."""

    def __init__(self, workload: Workload, request: int, kv_head: int, seed: int) -> None:
        self.request, self.kv_head = request, kv_head
        self.q, self.k, self.v = head_inputs(workload, request, kv_head, seed)
        self.rounded: dict[Precision, tuple[FloatArray, FloatArray, FloatArray]] = {}

    def of_reference(self, precision: Precision) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rounded, in float64: query, keys, and values beside their sizes. Kept, unless large."""
        if precision in self.rounded:
            return self.rounded[precision]
        q, k, v = (rounded(x, precision).astype(np.float64) for x in (self.q, self.k, self.v))
        found = q, k, np.hstack([v, np.abs(v)])
        if k.size <= _MOST_KEPT:
            self.rounded[precision] = found
        return found


def _tile_errors(
    schedule: Schedule,
    tile: int,
    in_order: tuple[IntArray, IntArray],
    precisions: Sequence[Precision],
    inputs: _Inputs,
) -> FloatArray:
    """Return `[precisions, 4]`: largest error, sum of squares, largest relative error, elements.

    They are of the rows that the tile has of one request. Other tiles that serve them are replayed too.
    """
    grid, request, kv_head = schedule.grid, inputs.request, inputs.kv_head
    owners, tokens_here, heads_here = row_owners(grid, tile)
    group = grid.asked.group_size
    q, k, v = inputs.q, inputs.k, inputs.v
    here = np.zeros((len(q), group), dtype=bool)
    here[tokens_here[owners == request], heads_here[owners == request] - kv_head * group] = True
    heads_here = np.unique(heads_here) - kv_head * group
    lists = lists_of(grid.asked, request, kv_head, tokens_here[owners == request])
    if grid.is_part:
        lists = [(range(len(q)), positions(grid, tile)[1])]
    errors = np.empty((len(precisions), 4))
    for i, precision in enumerate(precisions):
        rows = Gathered(q.shape[0] * group, v.shape[1], accumulator(precision))
        for other in _serving(grid, tile, request):
            owner, token, head = row_owners(grid, other)
            mine = np.flatnonzero(owner == request)
            token, member = token[mine], head[mine] - kv_head * group
            keys = positions(grid, other)[1]
            gathered = (q[token, member], k[keys], v[keys])
            segments = in_order[0][in_order[1][other] : in_order[1][other + 1]].tolist()
            states = tile_states(schedule, segments, gathered, precision, mine)
            for o, lse in states or [nothing_merged(len(mine), v.shape[1], precision)]:
                rows.add(token * group + member, o, lse)
        out = rounded(rows.merged()[0], precision).reshape(*q.shape[:2], -1)[:, heads_here]
        rq, rk, both = inputs.of_reference(precision)
        served = (rows.is_served.reshape(here.shape) & here)[:, heads_here]
        tokens = np.flatnonzero(served.any(axis=1))
        whole = reference_heads(rq[:, heads_here], rk, both, grid.asked.window, lists, tokens)
        wanted, size = np.split(whole[served[tokens]], 2, axis=1)
        error = np.abs(out[served] - wanted)
        relative = np.divide(error, size, out=np.zeros_like(error), where=(size > 0) | (error != 0))
        errors[i] = error.max(), np.sum(error**2), relative.max(), error.size
    return errors


def _serving(grid: TileGrid, tile: int, request: int) -> list[int]:
    """Output tiles that serve the rows which a tile has of a request, itself included.

    Where others do in another launch, it alone: what it attends to is then all that counts.
    """
    if grid.work is None or grid.work.is_part:
        return [tile]
    head, work, item = int(grid.head[tile]), grid.work, int(grid.request[tile])
    mine = work.rows_of(item)
    alike = [
        other
        for other in work.items_of(request).tolist()
        if work.head[other] == work.head[item] and np.isin(work.rows_of(other), mine).any()
    ]
    return [other * grid.heads + head for other in alike]


def _check(precision: Precision, errors: FloatArray) -> PrecisionCheck:
    """Summarise `[output tiles, 4]` errors as `_tile_errors` returns them."""
    return PrecisionCheck(
        precision=precision,
        max_abs_error=float(errors[:, 0].max()),
        rms_error=float(np.sqrt(errors[:, 1].sum() / errors[:, 3].sum())),
        max_rel_error=float(errors[:, 2].max()),
        tolerance=TOLERANCES[precision],
    )


def _facts(schedule: Schedule) -> dict[str, str | int]:
    """Read off what a reader of the report wants to know of the schedule."""
    grid = schedule.grid
    return {
        "workload": grid.workload.describe(),
        "combine": schedule.combine,
        "num_ctas": schedule.num_ctas,
        "num_empty_ctas": schedule.num_empty_ctas,
        "num_segments": schedule.num_segments,
        "max_segments_of_tile": int(schedule.segments_of_tile.max()),
        "split_output_tiles": int(np.count_nonzero(schedule.segments_of_tile > 1)),
    }
