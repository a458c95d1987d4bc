"""A schedule as the arrays that the kernels execute. NumPy only; nothing is decided here.

Row by row: what each segment needs to know, in the schedule's order, and what each row of the
combine kernel merges. Partial slots of an output tile lie together, in merge order. Where contexts are
not dense there are lists beside them: `listed`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from leansim.arrays import IntArray
from leansim.errors import PairingError, ScheduleError
from leansim.gpu.listed import listed_rows, merged_states
from leansim.schedule.schedule import IN_LAUNCH, Schedule
from leansim.schedule.tiling import TileGrid

Int32Array = npt.NDArray[np.int32]

# Columns of a segment: its output tile, request, counted head, first row of the head and valid rows;
# its first token that the tile attends to and the one after its last; its first KV tile and how many;
# the token that KV tiles count from; the slot of its partial or -1; how many peers it waits for; the
# tile's first slot; the request's tokens; the slot for what it has merged, or -1 where that is the
# output. Of a work tile tokens are those that it gathers, the request is the tile itself, whose pages it
# reads, and the first row is one of the listed rows.
SEGMENT = (
    "tile", "request", "head", "first_row", "rows", "kv_begin", "kv_end", "first_tile", "tiles",
    "origin", "slot", "peers", "first_slot", "context", "state",
)  # fmt: skip
# A row of the combine kernel: its tile's first slot and slots, its row in them and in the output. Where
# its partials are listed, the first of these and how many.
MERGED = ("first_slot", "slots", "row", "out_row")
# Rows are padded so that one never straddles a 64-byte border.
SEGMENT_COLUMNS, MERGED_COLUMNS = 16, 4
_MOST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class WorkList:
    """What the kernels read.

    `first [programs]` and `last [programs]` are each program's segments, rows of `segments [n, 16]`;
    `merged_rows [rows, 4]` are those of the combine kernel, none where there is no such kernel. There
    are `num_slots` partials of `grid.tile_rows` rows. Of work tiles there are `listed_rows [rows, 2]`,
    and `states [partials, 2]` row by row of the output; else these are None. All int32.
    """

    schedule: Schedule
    first: Int32Array
    last: Int32Array
    segments: Int32Array
    merged_rows: Int32Array
    num_slots: int
    listed_rows: Int32Array | None = None
    states: Int32Array | None = None

    @property
    def in_launch(self) -> bool:
        """Whether CTAs wait for each other."""
        return self.schedule.combine in IN_LAUNCH

    def column(self, name: str) -> Int32Array:
        """A column of `segments`, as a view."""
        view: Int32Array = self.segments[:, SEGMENT.index(name)]
        return view


def work_list(schedule: Schedule) -> WorkList:
    """Lay out a schedule for the kernels.

    Raises `ScheduleError` for one that int32 cannot index, `PairingError` for a part of a call.

    A CTA is a program, in the order of the schedule: the hardware issues programs in that order, and
    so a queue's order too. Slots beyond a tile's segments (`partials`) are empty partials, written by
    the CTAs without a segment, or where there is none by the CTA of the tile's last segment.
    """
    grid, tile = schedule.grid, schedule.output_tile
    if grid.is_part:
        raise PairingError(
            "the Triton kernels attend in one launch; found a part of a call that takes two"
        )
    published = schedule.is_partial & ~schedule.merges
    slots_of_tile, first_slot = _slots(schedule)
    state_slot = _state_slots(schedule, int(slots_of_tile.sum()))
    page_row, head, first_row = _of_tiles(grid)
    columns = np.zeros((schedule.num_segments, SEGMENT_COLUMNS), dtype=np.int64)
    peers = np.where(schedule.merges, schedule.segments_of_tile[tile] - 1, 0)
    first_tile, tiles = grid.first_kv_tile[tile] + schedule.start, schedule.stop - schedule.start
    origin = grid.tiling_begin[tile]
    values: tuple[IntArray, ...] = (
        tile, page_row[tile], head[tile], first_row[tile],
        grid.rows[tile], np.maximum(grid.kv_begin[tile], origin + first_tile * grid.tile_tokens),
        np.minimum(grid.kv_end[tile], origin + (first_tile + tiles) * grid.tile_tokens),
        first_tile, tiles, origin,
        _slot_of_segment(schedule, published, first_slot), peers, first_slot[tile],
        grid.context_lens[grid.request[tile]], state_slot[tile],
    )  # fmt: skip
    for at, value in enumerate(values):
        columns[:, at] = value
    cta, columns = _with_empty_partials(schedule, columns, slots_of_tile, first_slot)
    border = np.zeros(schedule.num_ctas + 1, dtype=np.int64)
    np.cumsum(np.bincount(cta, minlength=schedule.num_ctas), out=border[1:])
    num_slots = int(slots_of_tile.sum() + np.count_nonzero(state_slot >= 0))
    lists: list[IntArray] = []
    if grid.work is None:
        merged = _merged_rows(schedule, slots_of_tile, first_slot)
    else:
        rows = listed_rows(grid)
        first_state = np.where(state_slot < 0, first_slot, state_slot)
        counts, states = merged_states(schedule, first_state, rows)
        merged = _merged_lists(counts)
        lists = [rows, states]
    tables = [border[:-1], border[1:], columns, merged, *lists]
    if max(len(columns), *(int(table.max(initial=0)) for table in tables)) > _MOST:
        raise ScheduleError(
            f"found {len(columns):,} segments of tokens and rows that int32 cannot count"
        )
    first, last, segments, merged_rows, *narrow = (
        np.ascontiguousarray(table, dtype=np.int32) for table in tables
    )
    return WorkList(schedule, first, last, segments, merged_rows, num_slots, *narrow)


def _of_tiles(grid: TileGrid) -> tuple[IntArray, IntArray, IntArray]:
    """Row of the page table of each output tile, counted head, and first row of the head or the list."""
    work = grid.work
    if work is None:
        return grid.request, grid.head, grid.row_block * grid.tile_rows
    head = grid.head if not work.by_head else work.head[grid.request] * grid.heads + grid.head
    return np.arange(grid.num_output_tiles), head, np.cumsum(grid.rows) - grid.rows


def _slots(schedule: Schedule) -> tuple[IntArray, IntArray]:
    """Partial slots of each output tile, and its first: a CTA that merges in the launch needs none."""
    assert schedule.partials is not None
    slots = schedule.partials - (schedule.partials > 0) * (schedule.combine in IN_LAUNCH)
    return slots, np.cumsum(slots) - slots


def _state_slots(schedule: Schedule, first: int) -> IntArray:
    """Slot of what an output tile leaves once it is merged, -1 where that is the output: from `first`.

    Only where others serve its rows too and its partials do not go to the combine kernel.
    """
    slot = np.full(schedule.grid.num_output_tiles, -1, dtype=np.int64)
    if schedule.grid.is_shared is not None:
        assert schedule.partials is not None
        by_kernel = np.greater(schedule.partials, 0) & (schedule.combine == "kernel")
        left = schedule.grid.is_shared & ~by_kernel
        slot[left] = first + np.arange(np.count_nonzero(left))
    return slot


def _slot_of_segment(schedule: Schedule, published: npt.NDArray[np.bool_], first: IntArray) -> IntArray:
    """Slot of each segment, -1 for none: a tile's segments in merge order, the merger left out."""
    order = schedule.by_tile[published[schedule.by_tile]]
    tile = schedule.output_tile[order]
    slot = np.full(schedule.num_segments, -1, dtype=np.int64)
    slot[order] = first[tile] + np.arange(len(order)) - np.searchsorted(tile, tile)
    return slot


def _with_empty_partials(
    schedule: Schedule, columns: IntArray, slots: IntArray, first: IntArray
) -> tuple[IntArray, IntArray]:
    """CTA and columns of all segments, those of empty partials included, sorted by CTA."""
    extra = np.zeros_like(slots)
    if schedule.combine == "kernel":
        extra = np.where(slots > 0, slots - schedule.segments_of_tile, 0)
    if not extra.any():
        return schedule.cta, columns
    tile = np.repeat(np.arange(len(slots)), extra)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(extra) - extra, extra)
    last = np.zeros(len(slots), dtype=np.int64)
    last[schedule.output_tile[schedule.by_tile]] = schedule.by_tile  # a tile's last in merge order
    idle = np.flatnonzero(np.diff(schedule.segments_of_cta) == 0)
    writer = schedule.cta[last[tile]]
    writer[: len(idle)] = idle[: len(tile)]
    added = columns[last[tile]]
    added[:, SEGMENT.index("tiles")] = added[:, SEGMENT.index("kv_end")] = 0
    added[:, SEGMENT.index("slot")] = (first + schedule.segments_of_tile)[tile] + number
    cta = np.concatenate((schedule.cta, writer))
    order = np.argsort(cta, kind="stable")
    return cta[order], np.concatenate((columns, added))[order]


def _merged_rows(schedule: Schedule, slots: IntArray, first: IntArray) -> IntArray:
    """A row for each query row of the call, where a combine kernel follows."""
    if schedule.combine != "kernel":
        return np.zeros((0, MERGED_COLUMNS), dtype=np.int64)
    grid = schedule.grid
    tile = np.repeat(np.arange(grid.num_output_tiles), grid.rows)
    row = np.arange(len(tile)) - np.repeat(np.cumsum(grid.rows) - grid.rows, grid.rows)
    return np.stack((first[tile], slots[tile], row, output_rows(grid, tile, row)), axis=1)


def _merged_lists(counts: IntArray) -> IntArray:
    """A row for each that has so many partials listed."""
    merged = np.zeros((len(counts), MERGED_COLUMNS), dtype=np.int64)
    merged[:, MERGED.index("first_slot")] = np.cumsum(counts) - counts
    merged[:, MERGED.index("slots")] = counts
    merged[:, MERGED.index("out_row")] = np.arange(len(counts))
    return merged


def output_rows(grid: TileGrid, tile: IntArray, row: IntArray) -> IntArray:
    """Row of the output `[batch * query_len * num_q_heads]` that each row of an output tile is."""
    load, of_head = grid.workload, grid.row_block[tile] * grid.tile_rows + row
    group = load.group_size if grid.packed else 1
    token = grid.request[tile] * load.query_len + of_head // group
    out_row: IntArray = token * load.num_q_heads + grid.head[tile] * group + of_head % group
    return out_row


def one_at_a_time(work: WorkList) -> WorkList:
    """The same segments in programs that may run one after another, in order, to the end.

    What an interpreter needs, where a CTA that waits would wait for ever: each CTA goes as far as it
    can, and where it would wait its list is cut and goes on later. Without waits nothing changes.
    """
    if not work.in_launch:
        return work
    waits, tile = work.column("peers").tolist(), work.column("tile").tolist()
    slot, at, last = work.column("slot").tolist(), work.first.tolist(), work.last.tolist()
    missing = (work.schedule.segments_of_tile - 1).tolist()
    waiting: dict[int, int] = {}
    programs: list[tuple[int, int]] = []
    hosts_first = work.schedule.combine == "host"  # whose peers come later
    ready = deque(reversed(range(len(at))) if hosts_first else range(len(at)))
    while ready:
        cta = ready.popleft()
        begin = at[cta]
        while at[cta] < last[cta]:
            segment = at[cta]
            if waits[segment] and missing[tile[segment]]:
                waiting[tile[segment]] = cta
                break
            if slot[segment] >= 0:
                missing[tile[segment]] -= 1
                if not missing[tile[segment]] and tile[segment] in waiting:
                    ready.append(waiting.pop(tile[segment]))
            at[cta] += 1
        if at[cta] > begin or begin == last[cta]:
            programs.append((begin, at[cta]))
    borders = np.array(programs, dtype=np.int32)
    return replace(work, first=borders[:, 0].copy(), last=borders[:, 1].copy())
