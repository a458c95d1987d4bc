"""Lists that the kernels read where contexts are not dense: rows of work tiles, partials of rows.

A work tile has rows of any requests, and a row of the output partials of several work tiles.
"""

from __future__ import annotations

import numpy as np

from leansim.arrays import IntArray
from leansim.numerics.attention import positions, row_owners
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid

# A listed row: where it is in Q and the output, and the last of its tile's tokens that it sees.
LISTED = ("out_row", "last_token")
# A listed partial: its slot, and the row in it.
STATE = ("slot", "row")
LISTED_COLUMNS, STATE_COLUMNS = 2, 2


def listed_rows(grid: TileGrid) -> IntArray:
    """Rows of all work tiles, `LISTED`."""
    load, rows = grid.asked, []
    for tile in range(grid.num_output_tiles):
        request, token, head = row_owners(grid, tile)
        out_row = (request * load.query_len + token) * load.num_q_heads + head
        row_at, key_at = positions(grid, tile)
        rows.append(np.stack((out_row, np.searchsorted(key_at, row_at, side="right") - 1), axis=1))
    return np.concatenate(rows)


def merged_states(schedule: Schedule, first: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """How many partials a kernel merges to each row of the output, and `STATE` of them, row by row.

    `first` is the first slot of each work tile, `rows` are the listed ones. Partials of a row are in the
    order of the work tiles that leave them. No rows where no kernel merges.
    """
    grid, out_row = schedule.grid, rows[:, LISTED.index("out_row")]
    if schedule.states is None:
        return np.zeros(0, dtype=np.int64), np.zeros((0, STATE_COLUMNS), dtype=np.int64)
    tile = np.repeat(np.arange(grid.num_output_tiles), grid.rows)
    row = np.arange(len(tile)) - (np.cumsum(grid.rows) - grid.rows)[tile]
    count = schedule.states[tile]
    entry = np.repeat(np.arange(len(tile)), count)
    number = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count, count)
    states = np.stack((first[tile[entry]] + number, row[entry]), axis=1)
    order = np.argsort(out_row[entry], kind="stable")
    return np.bincount(out_row[entry], minlength=grid.asked.num_query_rows), states[order]
