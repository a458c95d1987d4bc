"""Golden: each number the kernels' own host code computes, against the schedules leansim builds."""

from __future__ import annotations

import numpy as np
import pytest
from golden import Facts, Row, assert_agree, device_with, numbers, read
from kernels import tiled

from leansim.partitioners.flash_decoding import FlashDecoding, split_borders
from leansim.partitioners.lean_aiter import LeanAiter
from leansim.partitioners.lean_attention import LeanAttention, ort_deal
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.kernel import Kernel
from leansim.specs.occupancy import occupancy
from leansim.specs.tile_choice import smem_bytes
from leansim.specs.workload import Workload

DEVICES = {80: "a100_sxm_80gb", 90: "h100_sxm"}


def request_shape(row: Row) -> dict[str, int]:
    return {
        "num_q_heads": row["heads_q"],
        "num_kv_heads": row["heads_kv"],
        "head_dim": row["head_dim"],
    }


def tiles_of_splits(schedule: Schedule) -> int:
    """KV tiles of the longest segment."""
    return int((schedule.stop - schedule.start).max())


# -- FlashAttention-2 ------------------------------------------------------------------------------


def fa2_schedule(workload: Workload, num_sms: int, **options: int) -> Schedule:
    device = device_with(num_sms)
    grid = tiled(workload, catalog.kernel("flash_decoding"), device)
    return FlashDecoding(**options)(grid, device)


def test_fa2_splits_as_its_host_code_does() -> None:
    def facts(row: Row) -> Facts:
        workload = Workload.uniform(row["batch"], row["seqlen_k"], **request_shape(row))
        schedule = fa2_schedule(workload, row["num_SMs"])
        grid = schedule.grid
        assert schedule.num_splits is not None
        busy = schedule.num_ctas - schedule.num_empty_ctas
        found = {
            "num_splits": schedule.num_splits,
            "gqa_swapped": int(grid.heads != row["heads_q"]),
            "seqlen_q_eff": grid.rows_per_head,
            "block_n": grid.tile_tokens,
            "num_n_blocks": grid.call_kv_tiles,
            "batch_nheads_mblocks": grid.num_output_tiles,
            "n_blocks_per_split": tiles_of_splits(schedule),
            "nonempty_splits": busy // grid.num_output_tiles,
            "grid_ctas": schedule.num_ctas,
        }
        if row["num_splits_vllm_varlen"]:  # the varlen call splits only where the heads are swapped
            found["num_splits_vllm_varlen"] = schedule.num_splits
        return found

    assert_agree(numbers("fa2_num_splits", 2178), facts)


def test_fa2_cuts_the_longest_context_of_the_call_not_the_request() -> None:
    def facts(row: Row) -> Facts:
        workload = Workload(
            context_lens=(row["actual_seqlen_k"],) * row["batch"],
            max_context_len=row["max_seqlen_k"],
            **request_shape(row),
        )
        schedule = fa2_schedule(workload, row["num_SMs"])
        assert schedule.num_splits is not None
        assert np.ptp(schedule.segments_of_tile) == 0, "all requests are equally long"
        borders = split_borders(schedule.grid, schedule.num_splits)
        return {
            "num_splits": schedule.num_splits,
            "n_blocks_per_split": int(borders[1]),
            "active_splits": int(schedule.segments_of_tile[0]),
            "max_blocks_in_split": tiles_of_splits(schedule),
        }

    assert_agree(numbers("fa2_active_splits", 575), facts)


# -- LeanAttention ---------------------------------------------------------------------------------


def lean_ort(row: Row) -> tuple[Schedule, Kernel]:
    kernel, device = catalog.kernel("lean_ort"), device_with(row["num_SMs"])
    workload = Workload.uniform(row["batch"], row["seqlen_k"], **request_shape(row))
    grid = tiled(workload, kernel, device)
    return LeanAttention(lengths="longest", ctas_per_sm=2)(grid, device), kernel


def test_lean_attention_deals_as_onnx_runtime_does() -> None:
    """Bytes: an LSE and `head_dim` outputs in float32 per split and row, a flag per tile."""

    def facts(row: Row) -> Facts:
        schedule, _ = lean_ort(row)
        grid, tiles = schedule.grid, schedule.tiles_of_cta
        assert schedule.num_splits is not None
        most = int(tiles.max())
        rows = schedule.num_splits * int(grid.rows.sum())
        return {
            "num_splits": schedule.num_splits,
            "lean_grid": schedule.num_ctas,
            "max_tiles_per_tb": most,
            "high_load_tbs": int((tiles == most).sum()),
            "tiles_per_head": grid.row_blocks * grid.call_kv_tiles,
            "lse_accum_bytes": 4 * rows,
            "out_accum_bytes": 4 * rows * grid.workload.head_dim,
            "sync_flag_bytes": 4 * grid.num_output_tiles,
        }

    assert_agree(numbers("lean_ort_splits", 909), facts)


def test_lean_attention_never_cuts_a_head_more_often_than_reserved() -> None:
    """The depth of the workspace is an upper bound of the segments of any output tile."""
    for row in numbers("lean_ort_splits", 909)[::7]:
        schedule, _ = lean_ort(row)
        assert schedule.num_splits is not None
        assert schedule.segments_of_tile.max() <= schedule.num_splits, row


def test_lean_attention_gives_the_values_of_onnx_runtimes_own_tests() -> None:
    """ONNX Runtime's gtests `GetNumSplitsHandlesZero*`, in its own units.

    One head of 384 tokens at head dim 128 is 3 tiles of 128. On 0 SMs, which the code takes as 1:
    T = 3 <= 4, so G = min((3+1)/2, ceil(32*3/3)) = 2 CTAs of at most ceil(3/2) = 2 tiles, of which
    3 - 1*2 = 1 has that many; T % G != 0, so 1 + (3+2-3)/(2-1) = 3 splits. No tokens at all: no
    tiles, and the grid is clamped to one CTA that does nothing (0 splits there means no workspace).
    """
    device = device_with(1)
    grid = tiled(Workload((384,), 1, 1, 128), catalog.kernel("lean_ort"), device)
    schedule = LeanAttention(lengths="longest", ctas_per_sm=2)(grid, device)
    assert (schedule.num_splits, schedule.num_ctas) == (3, 2)
    assert schedule.tiles_of_cta.tolist() == [2, 1]
    deal = ort_deal(total=3, tiles_per_head=3, heads=1, num_sms=1)
    assert (deal.num_ctas, deal.max_tiles_per_cta, deal.high_load_ctas) == (2, 2, 1)
    assert deal.num_splits(tiles_per_head=3) == 3

    nothing = ort_deal(total=0, tiles_per_head=0, heads=1, num_sms=2)
    assert (nothing.num_ctas, nothing.max_tiles_per_cta, nothing.high_load_ctas) == (1, 1, 0)
    assert nothing.num_splits(tiles_per_head=0) == 0


def aiter_lengths(row: Row) -> tuple[int, ...]:
    """Contexts of the batch, all but the last a whole number of tiles.

    Their tiles so add up to those of the total, which is all that the host code knows.
    """
    batch, total, tile = row["batch_size"], row["total_seqlen_k"], row["BLOCK_N"]
    even = max(1, total // batch // tile) * tile
    return (*(even,) * (batch - 1), total - even * (batch - 1))


def test_lean_attention_deals_as_aiter_does() -> None:
    """With XCDs the host code's numbers are those of one XCD; its grid is that of all."""

    def facts(row: Row) -> Facts:
        xcds = row["NUM_XCDS"] if row["XCD_REMAP"] else 1
        workload = Workload(aiter_lengths(row), row["num_heads"], row["num_heads"], 64)
        grid = TileGrid(
            workload=workload,
            tile_rows=row["BLOCK_M"],
            tile_tokens=row["BLOCK_N"],
            num_sms=row["num_SMs"],
            ctas_per_sm=1,
            num_xcds=xcds,
        )
        schedule = LeanAiter(num_xcds=xcds)(grid, device_with(row["num_SMs"]))
        assert schedule.num_splits is not None
        tiles = schedule.tiles_of_cta[: schedule.num_ctas // xcds]
        most = int(tiles.max())
        return {
            "num_splits": schedule.num_splits,
            "grid": schedule.num_ctas,
            "max_tiles_per_tb": most,
            "high_load_tbs": int((tiles == most).sum()),
            "even_split": int(most * len(tiles) == tiles.sum()),
            "tiles_per_head": int(grid.num_kv_tiles[grid.head == 0].sum()),
            "num_m_blocks": grid.row_blocks,
        }

    assert_agree(numbers("lean_aiter_splits", 893), facts)


# -- compiled kernels ------------------------------------------------------------------------------


def test_occupancy_agrees_with_every_compiled_kernel() -> None:
    rows = read("kernel_resources")
    assert len(rows) == 230
    names = [row.pop("kernel") for row in rows]
    assert len(set(names)) > 10

    def facts(row: Row) -> Facts:
        device = catalog.device(DEVICES[row["arch"]])
        fit = occupancy(device, row["threads"], row["registers"], row["smem_bytes"])
        return {
            "ctas_by_registers": fit.by_registers,
            "ctas_by_smem": fit.by_smem,
            "ctas_by_threads": fit.by_threads,
            "ctas_per_sm": fit.ctas_per_sm,
        }

    assert_agree([{key: int(text) for key, text in row.items()} for row in rows], facts)


def compiled(kernel: str, arch: int, **match: int) -> list[dict[str, str]]:
    return [
        row
        for row in read("kernel_resources")
        if row["kernel"].startswith(kernel)
        and int(row["arch"]) == arch
        and all(int(row[key]) == value for key, value in match.items())
    ]


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("name", ["fa2", "flash_decoding", "lean"])
def test_kernel_files_describe_the_compiled_kernels(name: str, head_dim: int, arch: int) -> None:
    """Tile, threads and shared memory exactly; registers within what the variants compile to."""
    kernel, device = catalog.kernel(name), catalog.device(DEVICES[arch])
    workload = Workload((4096,), 8, 8, head_dim)
    mine = [tile for tile in kernel.tiles if tile.head_dim == head_dim and tile.only.split is None]
    (tile,) = (tile for tile in mine if not tile.only.window)
    assert {one.tile_tokens for one in mine} == {tile.tile_tokens}
    rows = compiled(
        "fa2_splitkv", arch, head_dim=head_dim, tile_m=tile.tile_rows, tile_n=tile.tile_tokens
    )
    assert rows, "the tile is one that was compiled"
    assert {int(row["threads"]) for row in rows} == {tile.threads}
    assert {int(row["smem_bytes"]) for row in rows} == {smem_bytes(kernel, tile, workload)}
    registers = [int(row["registers"]) for row in rows]
    assert min(registers) <= tile.registers_per_thread[device.arch] <= max(registers)
    fits = {int(row["ctas_per_sm"]) for row in rows}
    assert fits == {tiled(workload, kernel, device).ctas_per_sm}


@pytest.mark.parametrize("arch", DEVICES)
def test_the_combine_kernel_is_a_compiled_one(arch: int) -> None:
    """Its shared memory is that of a variant for 128 splits, its registers within theirs."""
    combine = catalog.kernel("flash_decoding").combine
    assert combine is not None
    rows = compiled("fa2_combine_maxsplits128", arch)
    assert combine.threads in {int(row["threads"]) for row in rows}
    mine = [row for row in rows if int(row["smem_bytes"]) == combine.smem_bytes]
    assert mine
    registers = [int(row["registers"]) for row in rows]
    assert min(registers) <= combine.registers_per_thread <= max(registers)
    for head_dim, rows_per_cta in ((64, 8), (96, 16), (128, 4), (192, 8), (256, 4)):
        (row,) = compiled("fa2_combine_maxsplits128", arch, head_dim=head_dim)
        assert combine.rows_for(head_dim) == rows_per_cta == int(row["tile_m"])
