"""Golden: FlashAttention-3's and FlashAttention-4's split counts, against schedules leansim builds.

Tiles of FlashAttention-3 are those of the kernel files, none is taken from a row: `fa3` for calls of
one length, `fa3_varlen` for lengths of their own, and where the pages are gathered without TMA
`sglang_fa3` less the instances of one warpgroup, which the library does not have.
FlashAttention-4's rows hold no tile and no length; their KV tiles are given as whole tiles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from golden import Facts, Row, assert_agree, numbers, read
from kernels import tiled

from leansim.partitioners import registry as partitioners
from leansim.partitioners.flash_attention_3 import (
    FlashAttention3,
    FlashAttention3Varlen,
    kv_tiles_per_sm,
    packs_gqa,
)
from leansim.partitioners.flash_attention_4 import FlashAttention4
from leansim.partitioners.flash_attention_4 import num_splits_heuristic as fa4_num_splits
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload
from leansim.testing import check_partitioner

DEVICES = {80: "a100_sxm_80gb", 89: "l40s", 90: "h100_sxm"}


@cache
def device_of(arch: int, num_sms: int) -> Device:
    return catalog.device(DEVICES[arch]).model_copy(update={"num_sms": num_sms})


# -- golden ----------------------------------------------------------------------------------------


@cache
def fa3_kernel(paged: bool, varlen: bool) -> Kernel:
    if not paged:
        return catalog.kernel("fa3_varlen" if varlen else "fa3")
    assert varlen, "serving has lengths of its own"
    kernel = catalog.kernel("sglang_fa3")
    library = tuple(tile for tile in kernel.tiles if tile.only.max_rows is None)
    return kernel.model_copy(update={"tiles": library})


def test_fa3_splits_as_its_host_code_does() -> None:
    """Tile, packing and the host's count: of the call, or the bound of the counts of each request."""

    def facts(row: Row) -> Facts:
        dtype = {1: "fp8", 2: "bfloat16"}[row["dtype_bytes"]]
        workload = Workload(
            context_lens=(row["seqlen_k"],) * row["batch"],
            num_q_heads=row["heads_q"],
            num_kv_heads=row["heads_kv"],
            head_dim=row["head_dim"],
            query_len=row["seqlen_q"],
            q_dtype=dtype,
            kv_dtype=dtype,
        )
        kernel = fa3_kernel(bool(row["paged_nonTMA"]), bool(row["varlen_sched"]))
        device = device_of(row["arch"], row["num_SMs"])
        grid = tiled(workload, kernel, device)
        schedule = partitioners.make(kernel.partitioner.name)(grid, device)
        varlen = bool(row["varlen_sched"])
        assert schedule.num_splits is not None
        assert grid.heads == row["heads_kv"], "heads are packed, or there is one for each KV head"
        return {
            "num_splits": schedule.num_splits,
            "pack_gqa": packs_gqa(
                query_len=workload.query_len,
                group_size=workload.group_size,
                tile_rows=grid.tile_rows,
                arch=device.arch,
                num_splits=schedule.num_splits,
                varlen=varlen,
                paged=bool(row["paged_nonTMA"]),
            ),
            "kBlockM": grid.tile_rows,
            "kBlockN": grid.tile_tokens,
            "num_m_blocks": grid.row_blocks,
            "num_n_blocks": grid.call_kv_tiles,
            "total_mblocks": (1 if varlen else grid.batch_size) * grid.heads * grid.row_blocks,
        }

    assert_agree(numbers("fa3_num_splits", 2378), facts)


def varlen_grid(row: Row, lens: tuple[int, ...]) -> tuple[TileGrid, Device]:
    """The grid of the kernel file that has the row's tile: contiguous KV, or else paged."""
    device = device_of(90, row["num_SMs"])
    workload = Workload(
        context_lens=lens,
        num_q_heads=row["heads_q"],
        num_kv_heads=row["heads_kv"],
        head_dim=row["head_dim"],
        max_context_len=row["max_seqlen_k"],
    )
    grids = [tiled(workload, fa3_kernel(paged, varlen=True), device) for paged in (False, True)]
    fitting = [grid for grid in grids if grid.tile_tokens == row["kBlockN"]]
    assert fitting, "a tile of one of the kernel files"
    return fitting[0], device


def test_fa3_splits_each_request_as_its_scheduling_kernel_does() -> None:
    """The bound is the host's own; work items are the persistent CTAs' queue, empty ones included."""
    rows = read("fa3_varlen_dynamic_splits")
    assert len(rows) == 259, "a truncated file would agree too easily"
    lens = {int(row["case"]): tuple(map(int, row.pop("kv_lens").split())) for row in rows}
    splits = {int(row["case"]): list(map(int, row.pop("num_splits_dynamic").split())) for row in rows}
    assert len(lens) == len(rows), "cases are distinct"

    def facts(row: Row) -> Facts:
        grid, device = varlen_grid(row, lens[row["case"]])
        schedule = FlashAttention3Varlen()(grid, device)
        assert schedule.num_splits is not None
        assert schedule.partials is not None
        partials = np.maximum(schedule.partials, 1).reshape(grid.batch_size, -1)
        assert np.ptp(partials, axis=1).max() == 0, "all heads of a request alike"
        assert partials[:, 0].tolist() == splits[row["case"]], row
        tiles = -(-grid.context_lens // grid.tile_tokens)
        work = grid.row_blocks * int(tiles.sum())
        return {
            "batch": grid.batch_size,
            "kBlockM": grid.tile_rows,
            "kBlockN": grid.tile_tokens,
            "num_splits_static": schedule.num_splits,
            "sum_m_times_n_blocks": work,
            "blocks_per_sm": kv_tiles_per_sm(work, grid.heads, grid.num_sms),
            "total_work_tiles": schedule.num_ctas,
        }

    assert_agree([{key: int(text) for key, text in row.items()} for row in rows], facts)


def test_fa4_splits_as_its_host_code_does() -> None:
    """Each unsplit CTA is a request with one head; 0 in the file is an unsplit call."""
    kernel, b200 = catalog.kernel("fa4"), catalog.device("b200_sxm")

    def facts(row: Row) -> Facts:
        device = b200.model_copy(update={"num_sms": row["num_SMs"]})
        workload = Workload.uniform(
            row["total_mblocks"],
            128 * row["num_n_blocks"],
            num_q_heads=8,
            num_kv_heads=1,
            head_dim=128,
        )
        grid = tiled(workload, kernel, device)
        schedule = FlashAttention4()(grid, device)
        splits = fa4_num_splits(
            row["total_mblocks"], row["num_n_blocks"], row["num_SMs"], row["max_splits"]
        )
        assert schedule.num_splits == max(1, splits)
        return {
            "num_splits": splits,
            "total_mblocks": grid.num_output_tiles,
            "num_n_blocks": grid.call_kv_tiles,
        }

    assert_agree(numbers("fa4_num_splits", 339), facts)


# -- conformance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitioner", "kernel", "device"),
    [
        (FlashAttention3(num_splits=7), "fa3", "h100_sxm"),
        (FlashAttention3Varlen(num_splits=32, sort=False), "sglang_fa3", "a100_sxm_80gb"),
        (FlashAttention4(num_splits=5), "fa4", "b200_sxm"),
    ],
    ids=repr,
)
@pytest.mark.thorough
def test_options_conform_on_their_own_kernels(partitioner: Any, kernel: str, device: str) -> None:
    check_partitioner(partitioner, kernel, (device,))
