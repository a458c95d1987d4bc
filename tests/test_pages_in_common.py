"""Plain kernels whose requests have the pages of a prefix in common: what comes from DRAM."""

from __future__ import annotations

from typing import Any

import pytest
from toy import grid_of, toy

import leansim
from leansim.errors import WorkloadError
from leansim.points.point import Point, point
from leansim.points.simulate import simulate
from leansim.specs.prefixes import Prefix, SharedPages
from leansim.timing.memory import read_share


def asked(**fields: Any) -> Point:
    return point(device="h100_sxm", num_q_heads=32, num_kv_heads=8, head_dim=128, **fields)


def test_pages_in_common_come_from_dram_once_a_wave() -> None:
    """Of 4 requests of 128 tokens that share 100, 512 - 3 * 100 are brought, in two waves 512 - 2 * 100.

    Where L2 keeps what the first wave has read, the second brings nothing again.
    """
    common = SharedPages((Prefix(0, 100, (0, 1, 2, 3)),))
    grid = grid_of((128,) * 4, 1, reads=common)
    large, small = toy(l2_bytes=2**30), toy(l2_bytes=1)
    assert read_share(grid, small) == 212 / 512
    assert read_share(grid.with_slots(2, 1), small) == 312 / 512
    assert read_share(grid.with_slots(2, 1), large) == 212 / 512
    assert grid.workload.distinct_kv_bytes * 512 == grid.workload.kv_bytes * 212
    assert read_share(grid_of((128,) * 4, 1), small) == 1.0


PLAIN = (
    "fa2",
    "vllm_fa3",
    "flash_decoding",
    "flashinfer_decode",
    "sglang_triton",
    "vllm_paged_v2",
    "lean",
)


@pytest.mark.parametrize("kernel", PLAIN)
def test_pages_in_common_spare_dram_and_no_schedule_beats_its_bound(kernel: str) -> None:
    fields = {"kernel": kernel, "context_len": 9000, "batch_size": 24}
    alone = simulate(asked(**fields))
    shared = simulate(asked(**fields, prefix_len=8000))
    assert shared.metrics.dram_bytes < alone.metrics.dram_bytes
    assert shared.metrics.kv_bytes == alone.metrics.kv_bytes
    assert shared.metrics.latency_s <= alone.metrics.latency_s
    assert shared.metrics.roofline_s < shared.metrics.latency_s
    assert shared.grounds.extrapolated
    found = leansim.oracle(asked(**fields, prefix_len=8000), rules=["fa2"])[0]
    assert found.bound.latency_s <= found.best.latency_s


def test_pages_in_common_must_be_a_tree_of_prefixes() -> None:
    with pytest.raises(WorkloadError, match="is of request 5, wanted 0 to 3"):
        grid_of((128,) * 4, 1, reads=SharedPages((Prefix(0, 100, (0, 5)),)))
