"""FlashAttention-3's schedules, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leansim.partitioners.flash_attention_3 import (
    PREPARED_REQUESTS,
    FlashAttention3,
    FlashAttention3Varlen,
    dynamic_splits,
    longest_first,
    num_splits_heuristic,
    packs_gqa,
)
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.workload import Workload

MIB = 1024**2


def sms(num_sms: int, name: str = "h100_sxm") -> Device:
    return catalog.device(name).model_copy(update={"num_sms": num_sms})


def grid_of(lens: tuple[int, ...], heads: int = 1, rows: int = 1, **shape: Any) -> TileGrid:
    """Output tiles of `rows` row blocks, KV tiles of 128 tokens, on four SMs."""
    workload = Workload(lens, heads, heads, 128, query_len=rows, **shape)
    return TileGrid(workload, tile_rows=1, tile_tokens=128, num_sms=4, ctas_per_sm=1)


def segments(schedule: Schedule) -> list[tuple[int, ...]]:
    return [segment[1:] for segment in schedule.segments()]


def test_a_kv_head_beyond_l2_is_split_only_for_two_waves_of_rows_and_without_a_mask() -> None:
    """Four SMs are full with 8 row blocks; 120 MiB is three times 50, rounded up."""
    assert num_splits_heuristic(8, 100, 4, 8, 120 * MIB) == 3
    assert num_splits_heuristic(8, 100, 4, 8, 120 * MIB, masked=True) == 1
    assert num_splits_heuristic(8, 100, 4, 7, 120 * MIB) == 1
    assert num_splits_heuristic(8, 100, 4, 8, 50 * MIB) == 1
    assert num_splits_heuristic(8, 100, 4, 8, 120 * MIB, max_splits=2) == 2


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({}, True),  # 1/128 < 0.9 * 8/128
        ({"group_size": 1}, False),
        ({"group_size": 1, "num_splits": 2}, True),
        ({"group_size": 1, "paged": True}, True),
        ({"group_size": 1, "arch": "sm_89"}, True),
        ({"group_size": 1, "arch": "sm_100"}, False),
        ({"query_len": 128}, False),  # 1 is not below 0.9
        ({"query_len": 128, "varlen": True}, True),
        ({"query_len": 120, "group_size": 16}, False),  # 120/128 against 0.9 * 1
        ({"query_len": 115, "group_size": 128}, True),  # 115/128 = 0.898 against 0.9 * 1
    ],
)
def test_query_heads_are_packed_where_a_tile_would_be_emptier_without(
    options: dict[str, Any], packed: bool
) -> None:
    plain = {"query_len": 1, "group_size": 8, "tile_rows": 128}
    assert packs_gqa(**{**plain, **options}) is packed


def test_one_count_for_all_cuts_each_request_by_its_own_length() -> None:
    """9 and 2 tiles in 4 splits of ceil(9/4) = 3 and ceil(2/4) = 1: one and two splits are empty."""
    schedule = FlashAttention3(num_splits=4)(grid_of((9 * 128, 2 * 128)), sms(4))
    assert segments(schedule) == [(0, 0, 0, 3), (1, 0, 3, 6), (2, 0, 6, 9), (4, 1, 0, 1), (5, 1, 1, 2)]
    assert (schedule.num_ctas, schedule.num_empty_ctas) == (8, 3)
    assert schedule.partials is not None
    assert schedule.partials.tolist() == [4, 4]
    assert (schedule.combine, schedule.dispatch) == ("kernel", "grid")


def test_a_plain_grid_counts_row_blocks_first_then_splits_heads_requests() -> None:
    grid = grid_of((256, 256), heads=2, rows=2)
    schedule = FlashAttention3(num_splits=2)(grid, sms(4))
    columns = (grid.request, grid.head, grid.row_block)
    tile = schedule.output_tile
    found = list(zip(*(c[tile].tolist() for c in columns), schedule.start.tolist(), strict=True))
    wanted = [(b, h, m, s) for b in range(2) for h in range(2) for s in range(2) for m in range(2)]
    assert found == wanted


def test_each_request_has_its_own_count_and_the_longest_pieces_go_first() -> None:
    """Tiles 2, 16 and 6 on 4 SMs: shares of ceil(24 * 1.1 / 4) = 7, so 1, 3 and 1 splits.

    Pieces of 2, ceil(16/3) = 6 and 6 tiles: request 1, then 2 (equal, later in the batch), then 0.
    """
    schedule = FlashAttention3Varlen()(grid_of((2 * 128, 16 * 128, 6 * 128)), sms(4))
    one = [(0, 1, 0, 6), (1, 1, 6, 12), (2, 1, 12, 16)]
    assert segments(schedule) == [*one, (3, 2, 0, 6), (4, 0, 0, 2)]
    assert schedule.partials is not None
    assert schedule.partials.tolist() == [0, 3, 0]
    assert (schedule.num_splits, schedule.dispatch) == (4, "queue")
    unsorted = FlashAttention3Varlen(sort=False)(schedule.grid, sms(4))
    assert unsorted.output_tile.tolist() == [0, 1, 1, 1, 2]


def test_a_given_bound_is_kept_and_the_combine_kernel_runs_even_if_nothing_is_split() -> None:
    """32 requests of one tile each: shares of ceil(32 * 1.1 / 4) = 9 tiles, no request is split."""
    schedule = FlashAttention3Varlen(num_splits=32)(grid_of((128,) * 32), sms(4))
    assert (schedule.num_splits, schedule.num_segments, schedule.combine) == (32, 32, "kernel")
    assert not schedule.is_partial.any()
    alone = FlashAttention3Varlen(num_splits=2)(grid_of((16 * 128,)), sms(4))
    assert segments(alone) == [(0, 0, 0, 8), (1, 0, 8, 16)]


def test_a_window_bounds_the_splits_and_keeps_the_order() -> None:
    """Tiles 2 and 32, of which 300 tokens to the left are loaded by 1 row: ceil(301/128) = 3 < 5.

    Bounded by 4 the counts follow the whole contexts, 34 tiles, shares of ceil(34 * 1.1 / 4) = 10:
    1 and 4 splits of the 3 tiles that 4096 - 300 = 3796 to 4095 touch; the last split is empty.
    """
    grid = grid_of((2 * 128, 32 * 128), window=300)
    assert FlashAttention3Varlen()(grid, sms(4)).num_splits == 1
    schedule = FlashAttention3Varlen(num_splits=4)(grid, sms(4))
    assert segments(schedule) == [(0, 0, 0, 2), (1, 1, 0, 1), (2, 1, 1, 2), (3, 1, 2, 3)]
    assert (schedule.num_ctas, schedule.num_empty_ctas) == (5, 1)
    wide = replace(grid, workload=replace(grid.workload, window=32 * 128))
    assert FlashAttention3Varlen()(wide, sms(4)).num_splits == 4


def test_above_992_requests_nothing_is_split_and_each_992_are_sorted_apart() -> None:
    tiles = np.arange(PREPARED_REQUESTS + 2)
    ones = dynamic_splits(tiles + 1, 1, 8, 132, 32)
    assert set(ones.tolist()) == {1}
    order = longest_first(tiles, ones).tolist()
    assert order == [*range(PREPARED_REQUESTS - 1, -1, -1), PREPARED_REQUESTS + 1, PREPARED_REQUESTS]
    many = FlashAttention3Varlen()(grid_of((640,) * (PREPARED_REQUESTS + 1)), sms(132))
    assert (many.num_splits, many.combine) == (1, "none")


@pytest.mark.parametrize(
    ("partitioner", "device", "query_len", "dispatch"),
    [
        (FlashAttention3(num_splits=1), "h100_sxm", 1, "queue"),
        (FlashAttention3(num_splits=2), "h100_sxm", 1, "grid"),
        (FlashAttention3(num_splits=1), "a100_sxm_80gb", 1, "grid"),
        (FlashAttention3(num_splits=1), "a100_sxm_80gb", 2, "queue"),
        (FlashAttention3Varlen(num_splits=1), "h100_sxm", 1, "queue"),
        (FlashAttention3Varlen(num_splits=1), "a100_sxm_80gb", 1, "grid"),
        (FlashAttention3Varlen(num_splits=2), "a100_sxm_80gb", 1, "queue"),
    ],
)
def test_ctas_are_persistent_as_the_launch_template_says(
    partitioner: FlashAttention3 | FlashAttention3Varlen, device: str, query_len: int, dispatch: str
) -> None:
    grid = grid_of((1280, 640), rows=query_len)
    assert partitioner(grid, sms(4, device)).dispatch == dispatch
