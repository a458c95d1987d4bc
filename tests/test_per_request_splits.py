"""Cuts to choose counts and sizes for: what they cut, in which order, and who merges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import tiled

from leansim.errors import PartitionerError
from leansim.numerics.invariance import batch_invariance
from leansim.partitioners.fixed_split_size import FixedSplitSize
from leansim.partitioners.flash_decoding import FlashDecoding
from leansim.partitioners.flashinfer_tc_decode import FlashinferTcDecode
from leansim.partitioners.per_request_splits import PerRequestSplits, filled_segments
from leansim.partitioners.registry import make
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload
from leansim.testing import check_partitioner

TOKENS = 128  # a KV tile of fa2 at head dim 128


@pytest.fixture(scope="module")
def device() -> Device:
    return catalog.device("h100_sxm")


@pytest.fixture(scope="module")
def fa2() -> Kernel:
    return catalog.kernel("fa2")


def grid_of(kernel: Kernel, device: Device, tiles: tuple[int, ...], **shape: Any) -> TileGrid:
    heads = {"num_q_heads": 2, "num_kv_heads": 1, "head_dim": 128, **shape}
    grid = tiled(Workload(tuple(n * TOKENS for n in tiles), **heads), kernel, device)
    assert grid.tile_tokens == TOKENS
    return grid


def runs(schedule: Schedule) -> list[tuple[int, int, int]]:
    return [(s.output_tile, s.start, s.stop) for s in schedule.segments()]


def test_requests_are_cut_into_their_own_numbers(fa2: Kernel, device: Device) -> None:
    grid = grid_of(fa2, device, (5, 2, 8))
    schedule = PerRequestSplits((2, 1, 3))(grid, device)
    first, third = [(0, 0, 3), (0, 3, 5)], [(2, 0, 3), (2, 3, 6), (2, 6, 8)]
    assert runs(schedule) == [*first, (1, 0, 2), *third]
    assert schedule.combine == "kernel"
    assert schedule.partials is not None
    assert schedule.partials.tolist() == [2, 0, 3], "the unsplit request writes its output at once"
    longest_first = PerRequestSplits((2, 1, 3), "longest_first")(grid, device)
    assert runs(longest_first) == [*first, *third, (1, 0, 2)], "runs of 3, 3 and 2; equals keep order"


def test_nothing_is_launched_for_an_empty_run(fa2: Kernel, device: Device) -> None:
    schedule = PerRequestSplits(7)(grid_of(fa2, device, (10, 3)), device)
    assert schedule.num_empty_ctas == 0
    assert schedule.splits_of_request.tolist() == [5, 3], "10 tiles in runs of 2, 3 in runs of 1"
    tiles, splits = np.array([10, 10, 1]), np.array([7, 10, 9])
    assert filled_segments(tiles, splits).tolist() == [5, 10, 1]


def test_equal_lengths_are_cut_as_flash_decoding_cuts_them(fa2: Kernel, device: Device) -> None:
    grid = grid_of(fa2, device, (10,) * 3, num_q_heads=8, num_kv_heads=4)
    for splits in (1, 2, 5, 10):
        mine, theirs = (cut(grid, device) for cut in (PerRequestSplits(splits), FlashDecoding(splits)))
        assert sorted(runs(mine)) == sorted(runs(theirs))
        if splits > 1:
            assert runs(mine) == runs(theirs), "in the same order"


def test_a_count_for_each_request_or_one_for_all(fa2: Kernel, device: Device) -> None:
    with pytest.raises(PartitionerError, match="found 2 counts for a batch of 3"):
        PerRequestSplits((1, 2))(grid_of(fa2, device, (4, 4, 4)), device)
    assert make("per_request_splits", {"num_splits": [1, 2]}) == PerRequestSplits((1, 2))
    with pytest.raises(PartitionerError, match="num_splits"):
        make("per_request_splits", {"num_splits": 0})


def test_the_last_to_arrive_merges_where_there_is_no_second_kernel(device: Device) -> None:
    grid = grid_of(catalog.kernel("lean"), device, (5, 2))
    assert PerRequestSplits(2, combine="last")(grid, device).combine == "last"
    assert PerRequestSplits(1, combine="last")(grid, device).combine == "none"


def test_a_fixed_size_cuts_at_its_multiples(fa2: Kernel, device: Device) -> None:
    grid = grid_of(fa2, device, (5, 2, 1))
    schedule = FixedSplitSize(2 * TOKENS)(grid, device)
    assert runs(schedule) == [(0, 0, 2), (0, 2, 4), (0, 4, 5), (1, 0, 2), (2, 0, 1)]
    rounded_up = FixedSplitSize(TOKENS + 1)(grid, device)
    assert runs(rounded_up) == runs(schedule)
    flashinfer = FlashinferTcDecode(fixed_split_size=2 * TOKENS)(grid, device)
    assert sorted(runs(flashinfer)) == sorted(runs(schedule))
    assert FixedSplitSize(5 * TOKENS)(grid, device).combine == "none"


def test_a_fixed_size_is_batch_invariant_and_a_fixed_count_too(fa2: Kernel, device: Device) -> None:
    workload = Workload((700, 5000, 90), 8, 2, 128)
    for cut in (FixedSplitSize(512), PerRequestSplits(3)):
        assert batch_invariance(cut, fa2, device, workload).invariant
    assert not batch_invariance(FlashDecoding(), fa2, device, workload).invariant


@pytest.mark.parametrize(
    ("partitioner", "kernel"),
    [
        (PerRequestSplits(5, "longest_first"), "fa2"),
        (PerRequestSplits(3, combine="last"), "lean"),
        (FixedSplitSize(300), "fa2"),
    ],
    ids=repr,
)
def test_options_conform(partitioner: Any, kernel: str) -> None:
    check_partitioner(partitioner, kernel, ("h100_sxm",))
