"""Counts what a schedule covers, afresh from its workload: every KV token of every row, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.numerics.attention import row_owners
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid


@dataclass(frozen=True)
class Cover:
    """What the segments of a schedule add up to.

    Sums over output tiles; `partials_merged` counts what combines read, a host's own included.
    `problem` is empty if all is covered exactly once and each split output tile has one combiner.
    """

    output_tiles: int
    rows: int
    kv_tiles: int
    kv_tokens: int
    segments: int
    partials_merged: int
    problem: str = ""

    @property
    def exact(self) -> bool:
        """Whether everything is covered exactly once."""
        return not self.problem


def token_borders(grid: TileGrid) -> tuple[IntArray, IntArray]:
    """Derive `[begin, end)` of the tokens each output tile attends to from the workload's mask."""
    workload = grid.workload
    tiles_per_request = grid.heads * grid.row_blocks
    lens = np.repeat(np.asarray(workload.context_lens), tiles_per_request)
    block = np.arange(len(lens)) % grid.row_blocks
    share = workload.group_size if grid.packed else 1
    last_row = np.minimum((block + 1) * grid.tile_rows, share * workload.query_len) - 1
    past = lens - workload.query_len
    begin = np.zeros_like(lens)
    if workload.window is not None:
        begin = np.maximum(past + block * grid.tile_rows // share - workload.window + 1, 0)
    return begin, past + last_row // share + 1


def count_cover(schedule: Schedule) -> Cover:
    """Count what the segments cover, from the workload; O(KV tiles) time and memory."""
    grid, tile = schedule.grid, schedule.output_tile
    begin, end = token_borders(grid)
    origin = begin if grid.shifted else begin // grid.tile_tokens * grid.tile_tokens
    count = -(-(end - origin) // grid.tile_tokens)
    low = np.maximum(origin[tile] + schedule.start * grid.tile_tokens, begin[tile])
    high = np.minimum(origin[tile] + schedule.stop * grid.tile_tokens, end[tile])
    tokens = np.bincount(tile, weights=high - low, minlength=len(begin)).astype(np.int64)
    assert schedule.partials is not None
    return Cover(
        output_tiles=len(begin),
        rows=int(grid.rows.sum()),
        kv_tiles=int(count.sum()),
        kv_tokens=int(tokens.sum()),
        segments=len(tile),
        partials_merged=int(schedule.partials.sum()),
        problem="; ".join(_cover_problems(schedule, count, tokens - (end - begin))),
    )


def _cover_problems(schedule: Schedule, count: IntArray, excess: IntArray) -> Iterator[str]:
    """Say what is not covered exactly once; `count` KV tiles are wanted of each output tile."""
    grid, tile = schedule.grid, schedule.output_tile
    yield from _row_problems(grid)
    if np.any((schedule.start < 0) | (schedule.stop > count[tile])):
        yield "a segment leaves its output tile"
        return
    base = np.r_[0, np.cumsum(count + 1)]  # one spare cell after each output tile, for its end
    opened = np.bincount(base[tile] + schedule.start, minlength=base[-1])
    closed = np.bincount(base[tile] + schedule.stop, minlength=base[-1])
    times = np.cumsum(opened - closed)
    wanted = np.ones_like(times)
    wanted[base[1:] - 1] = 0
    if len(wrong := np.flatnonzero(times != wanted)):
        owner = int(np.searchsorted(base, wrong[0], side="right")) - 1
        yield (
            f"KV tile {wrong[0] - base[owner]} of output tile {owner} is covered {times[wrong[0]]} "
            f"times ({len(wrong)} such)"
        )
    if len(wrong := np.flatnonzero(excess)):
        yield f"output tile {wrong[0]} reads {excess[wrong[0]]:+d} KV tokens ({len(wrong)} such)"
    yield from _combiner_problems(schedule)


def _row_problems(grid: TileGrid) -> Iterator[str]:
    """Say which rows do not get all that they attend to, from the workload."""
    asked = grid.asked
    if grid.is_part:
        return  # the rest is in another launch
    if grid.work is None:
        if grid.rows.sum() != asked.num_query_rows:
            yield f"output tiles have {grid.rows.sum()} query rows in all"
        return
    kept = np.broadcast_to(asked.block_lens[:, :, -1], (asked.batch_size, asked.num_kv_heads))
    wanted = np.repeat(kept, asked.group_size, axis=1)
    found = np.zeros((asked.batch_size, asked.query_len, asked.num_q_heads), dtype=np.int64)
    for tile, tokens in enumerate((grid.kv_end - grid.kv_begin).tolist()):
        np.add.at(found, row_owners(grid, tile), tokens)
    newest = found[:, -1]  # of a request's new tokens the one that nothing is hidden to
    if len(wrong := np.argwhere(newest != wanted)):
        request, head = wrong[0]
        yield (
            f"request {request}, query head {head} gets {newest[request, head]} KV tokens, "
            f"wanted {wanted[request, head]}"
        )


def _combiner_problems(schedule: Schedule) -> Iterator[str]:
    """Say which output tiles in partials have not one combiner; a kernel or a last CTA always is."""
    tiles = schedule.grid.num_output_tiles
    counts = np.bincount(schedule.output_tile, minlength=tiles)
    split = (counts > 1) | (np.asarray(schedule.partials) > 0)
    hosts = np.bincount(schedule.output_tile[schedule.start == 0], minlength=tiles)
    combiners = {"none": np.zeros(tiles), "host": hosts}.get(schedule.combine, np.ones(tiles))
    if len(wrong := np.flatnonzero(split & (combiners != 1))):
        found = int(combiners[wrong[0]])
        yield f"output tile {wrong[0]} has partials and {found} combiners ({len(wrong)} such)"
