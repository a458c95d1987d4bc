"""FlashInfer's and FlashMLA's schedules: splits on KV tiles, ties, options, kernel files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import device_with, read
from kernels import tiled

from leansim.errors import PairingError, PartitionerError
from leansim.partitioners._least_loaded import EXACT, least_loaded
from leansim.partitioners._token_splits import split_span
from leansim.partitioners.flash_mla import FlashMla
from leansim.partitioners.flashinfer_batch import FlashinferBatch, batch_plan
from leansim.partitioners.flashinfer_decode import FlashinferDecode
from leansim.partitioners.flashinfer_mla import FlashinferMla, mla_plan
from leansim.partitioners.flashinfer_tc_decode import FlashinferTcDecode
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.tile_choice import smem_bytes, tile_for, tile_occupancy
from leansim.specs.workload import Workload
from leansim.testing import check_partitioner

DEVICES = {80: "a100_sxm_80gb", 90: "h100_sxm"}


def spans(grid: TileGrid, splits: int, split_tokens: int) -> list[tuple[int, int]]:
    """Starts and stops of the first output tile's splits."""
    number = np.arange(splits)
    start, stop = split_span(grid, np.zeros(splits, dtype=np.int64), number, split_tokens)
    return list(zip(start.tolist(), stop.tolist(), strict=True))


def one_request(tokens: int, tile_tokens: int, **more: Any) -> TileGrid:
    return TileGrid(Workload((tokens,), 1, 1, 128, **more), 16, tile_tokens, 108, 2)


# -- splits on KV tiles ----------------------------------------------------------------------------


def test_split_borders_move_to_the_nearest_tile_border() -> None:
    """1,000 tokens are 8 tiles of 128. Splits of 336 end at 336 (2.6 tiles) and 672 (5.25)."""
    assert spans(one_request(1000, 128), 3, 336) == [(0, 3), (3, 5), (5, 8)]


def test_whole_tiles_stay_where_they_are() -> None:
    assert spans(one_request(1000, 128), 4, 256) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_a_short_last_split_keeps_a_tile() -> None:
    """1,904 tokens in splits of 947: the third holds 10, and all 15 tiles are nearer to the others."""
    assert spans(one_request(1904, 128), 3, 947) == [(0, 7), (7, 14), (14, 15)]


def test_splits_past_the_end_are_empty() -> None:
    """Two splits hold the 200 tokens; a third, planned for more, gets none."""
    assert spans(one_request(200, 128), 3, 128) == [(0, 1), (1, 2), (2, 2)]


def test_splits_shorter_than_tiles_share_them_out() -> None:
    """Four splits of 128 on two tiles of 256: two are left without."""
    found = spans(one_request(512, 256), 4, 128)
    assert [start for start, _ in found[1:]] == [stop for _, stop in found[:-1]]
    assert (found[0][0], found[-1][1]) == (0, 2)
    assert sum(start < stop for start, stop in found) == 2


def test_splits_count_from_the_first_visible_token() -> None:
    """A window of 512 on 1,000 tokens begins at 488, in the middle of tile 3; 5 tiles of 128 hold it.

    The second of two splits of 272 begins at 760, 376 tokens into tile 3: 2.9 tiles.
    """
    assert spans(one_request(1000, 128, window=512), 2, 272) == [(0, 3), (3, 5)]


# -- the least loaded worker -----------------------------------------------------------------------


def test_ties_between_workers_fall_as_in_the_source() -> None:
    """Worked by hand on [0 1 2 3], all free: a pop moves the last entry to the root and sinks it.

    0 leaves; 3 sinks, and of the equal children 1 and 2 the right one rises: [2 1 3], then 0 at the
    end. 2 leaves; 0 sinks below 3: [3 1 0], then 2. 3 leaves; 2 sinks below 1: [1 2 0], then 3. Once
    1 has left all are equal, and again the right child, 0, rises.
    """
    assert least_loaded([1, 1, 1, 1, 1], 4).tolist() == [0, 2, 3, 1, 0]


def test_loads_add_up_in_single_precision() -> None:
    """At 2^24 one more is lost, so worker 0 stays below worker 1, two above, for ever."""
    assert least_loaded([EXACT, EXACT - 1, 3, 1, 1, 1, 1], 2).tolist() == [0, 1, 1, 0, 0, 0, 0]


# -- options and refusals --------------------------------------------------------------------------


def grid_for(kernel: str, device: str = "h100_sxm", **shape: Any) -> TileGrid:
    workload = Workload(**{"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, **shape})
    return tiled(workload, catalog.kernel(kernel), catalog.device(device))


def test_a_fixed_split_does_not_depend_on_the_batch() -> None:
    """2,048 tokens at a time, as SGLang decodes deterministically; a lone short request is whole."""
    for lens in ((9000,), (9000, 300, 2048)):
        grid = grid_for("flashinfer_tc_decode", context_lens=lens)
        schedule = FlashinferTcDecode(fixed_split_size=2048)(grid, device_with(132))
        first = schedule.output_tile == 0
        assert schedule.start[first].tolist() == [0, 16, 32, 48, 64]
        assert schedule.combine == "kernel"
    grid = grid_for("flashinfer_tc_decode", context_lens=(2048, 1))
    assert FlashinferTcDecode(fixed_split_size=2048)(grid, device_with(132)).combine == "none"


def test_a_disabled_split_cuts_nothing() -> None:
    grid = grid_for("flashinfer_tc_decode", context_lens=(100_000,))
    schedule = FlashinferTcDecode(disable_split_kv=True)(grid, device_with(132))
    assert (schedule.num_ctas, schedule.combine) == (8, "none")
    assert FlashinferTcDecode()(grid, device_with(132)).num_ctas > 8


def test_a_captured_grid_has_its_size_whatever_the_lengths() -> None:
    """H100 at group 4: 8 CTAs per SM, so 1,056 over 8 KV heads, or 264 of the tensor-core kernel."""
    for name, partitioner, ctas in (
        ("flashinfer_decode", FlashinferDecode(cuda_graph=True), 1056),
        ("flashinfer_tc_decode", FlashinferTcDecode(cuda_graph=True), 264),
    ):
        for lens in ((64,), (64, 20_000)):
            schedule = partitioner(grid_for(name, context_lens=lens), device_with(132))
            assert (schedule.num_ctas, schedule.combine) == (ctas, "kernel")
            assert schedule.partials is not None
            assert schedule.partials.min() == 1, "an unsplit request goes through a partial too"


def test_a_fixed_split_that_outgrows_a_captured_grid_is_refused() -> None:
    grid = grid_for("flashinfer_tc_decode", context_lens=(100_000,))
    with pytest.raises(PartitionerError, match="782 splits in a captured launch of 33"):
        FlashinferTcDecode(cuda_graph=True, fixed_split_size=128)(grid, device_with(132))


def test_what_a_plan_does_not_know_is_refused() -> None:
    device = device_with(132)
    grid = grid_for("fa2", context_lens=(4000,), window=128)
    for partitioner in (FlashinferDecode(), FlashinferBatch(), FlashMla()):
        with pytest.raises(PartitionerError, match="sliding window"):
            partitioner(grid, device)
    several = grid_for("fa2", context_lens=(4000,), query_len=2)
    with pytest.raises(PartitionerError, match="one new token"):
        FlashinferDecode()(several, device)
    with pytest.raises(PartitionerError, match="one KV head and no sliding window, found 8"):
        FlashinferMla()(grid_for("fa2", context_lens=(4000,)), device)
    with pytest.raises(PartitionerError, match="no sliding window"):
        FlashinferMla()(grid_for("fa2", context_lens=(4000,), num_kv_heads=1, window=128), device)


def test_a_cooperative_launch_must_fit() -> None:
    grid = grid_for("flashinfer_batch", context_lens=(4000,)).with_slots(132, 1)
    with pytest.raises(PartitionerError, match="264 CTAs needs as many slots, found 132"):
        FlashinferBatch()(grid, device_with(132))


def test_plans_that_overflow_their_buffers_are_refused() -> None:
    with pytest.raises(PartitionerError, match="at most 65,536 works, found 80,000"):
        batch_plan(np.ones(10_000, dtype=np.int64), 1, 8, 4, 128, 132)
    with pytest.raises(PartitionerError, match="at most 16,384 works, found 20,000"):
        mla_plan(np.ones(20_000, dtype=np.int64), 1, 16, 132)
    with pytest.raises(PartitionerError, match="needs two SMs"):
        mla_plan(np.array([100]), 1, 128, 1)


def test_a_group_that_is_not_compiled_is_refused_by_name() -> None:
    with pytest.raises(PairingError, match=r"no instance for this call .* 5 query heads per KV head"):
        grid_for("flashinfer_decode", context_lens=(100,), num_q_heads=40)


@pytest.mark.parametrize(
    ("partitioner", "kernel", "device"),
    [
        (FlashinferDecode(cuda_graph=True), "flashinfer_decode", "a100_sxm_80gb"),
        (FlashinferTcDecode(cuda_graph=True), "flashinfer_tc_decode", "h100_sxm"),
        (FlashinferTcDecode(fixed_split_size=500), "flashinfer_tc_decode", "a100_sxm_80gb"),
        (FlashinferTcDecode(disable_split_kv=True), "flashinfer_tc_decode", "h100_sxm"),
        (FlashinferTcDecode(), "flashinfer_decode", "h100_sxm"),
        (FlashinferMla(), "flash_mla", "h100_sxm"),
        (FlashMla(), "flashinfer_mla", "a100_sxm_80gb"),
    ],
    ids=repr,
)
@pytest.mark.thorough
def test_options_conform(partitioner: Any, kernel: str, device: str) -> None:
    check_partitioner(partitioner, kernel, (device,))


# -- kernel files ----------------------------------------------------------------------------------


def compiled(kernel: str) -> list[dict[str, int]]:
    rows = [row for row in read("kernel_resources") if row["kernel"] == kernel]
    return [{key: int(text) for key, text in row.items() if key != "kernel"} for row in rows]


# Of FlashInfer 0.6.12, by arch, head dim and group, where its compiler took other registers than before.
REGISTERS = {
    (90, 64, 1): 72, (90, 64, 4): 56,
    (90, 128, 1): 72, (90, 128, 4): 59, (90, 128, 8): 56,
}  # fmt: skip
TENSOR_CORE_REGISTERS = {(90, 64): 206, (90, 128): 182}


def test_the_decode_kernel_file_describes_every_compiled_instance() -> None:
    """Tile, threads, registers, shared memory and CTAs per SM of each head dim, group and arch.

    Of the instances that 0.6.12 has other registers for, 36,864 B of shared memory leave room for 6
    CTAs, and 59 registers, of which a warp has 64 as of 63 before, for 8. With 56 for 63 or 64 there is
    room for 65,536 / (128 * 56) = 9 CTAs.
    """
    rows = compiled("flashinfer_decode_cudacore_fp16")
    assert len(rows) == 36
    kernel = catalog.kernel("flashinfer_decode")
    assert len(kernel.tiles) == 18
    for row in rows:
        workload = Workload((4096,), 8 * row["gqa_group"], 8, row["head_dim"])
        device = catalog.device(DEVICES[row["arch"]])
        tile = tile_for(workload, kernel, device)
        fit = tile_occupancy(tile, workload, kernel, device)
        assert (tile.head_dim, tile.tile_rows) == (row["head_dim"], row["gqa_group"])
        assert (tile.tile_tokens, tile.threads) == (row["tile_n"], row["threads"])
        instance = (row["arch"], row["head_dim"], row["gqa_group"])
        assert tile.registers_per_thread[device.arch] == REGISTERS.get(instance, row["registers"])
        assert smem_bytes(kernel, tile, workload) == row["smem_bytes"]
        assert fit.ctas_per_sm == (9 if REGISTERS.get(instance) == 56 else row["ctas_per_sm"])


@pytest.mark.parametrize(("head_dim", "compiled_tokens"), [(64, 256), (128, 128), (256, 64)])
@pytest.mark.parametrize("arch", DEVICES)
def test_the_tensor_core_kernel_file_describes_the_compiled_ones(
    arch: int, head_dim: int, compiled_tokens: int
) -> None:
    """Of the 16-row variants the one that is selected; its tile counts as two at head dim 64."""
    (row,) = (
        row
        for row in compiled("flashinfer_tc_decode_tileq16")
        if (row["arch"], row["head_dim"], row["tile_n"]) == (arch, head_dim, compiled_tokens)
    )
    kernel, device = catalog.kernel("flashinfer_tc_decode"), catalog.device(DEVICES[arch])
    workload = Workload((4096,), 32, 8, head_dim)
    tile = tile_for(workload, kernel, device)
    fit = tile_occupancy(tile, workload, kernel, device)
    assert (tile.tile_rows, tile.threads) == (row["tile_m"], row["threads"])
    assert tile.tile_tokens == min(compiled_tokens, 128)
    registers = TENSOR_CORE_REGISTERS.get((arch, head_dim), row["registers"])
    assert tile.registers_per_thread[device.arch] == registers
    assert smem_bytes(kernel, tile, workload) == row["smem_bytes"]
    assert fit.ctas_per_sm == row["ctas_per_sm"] == 2


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("kernel", ["flashinfer_decode", "flashinfer_tc_decode"])
def test_the_merge_kernel_is_the_compiled_one(kernel: str, arch: int) -> None:
    """At head dim 128: 8 splits side by side, four stages of them in shared memory."""
    (row,) = (
        row
        for row in compiled("flashinfer_merge_states_fp16")
        if (row["arch"], row["head_dim"]) == (arch, 128)
    )
    combine = catalog.kernel(kernel).combine
    assert combine is not None
    assert combine.threads == row["threads"]
    assert combine.registers_per_thread == row["registers"]
    assert combine.smem_bytes == row["smem_bytes"]
    assert combine.splits_in_flight == 4 * row["tile_n"]


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("query_len", [1, 2, 5, 40])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_plans_count_on_ctas_that_fit(head_dim: int, query_len: int, arch: int) -> None:
    """Two per SM of the tensor-core kernels, one of BatchAttention at head dim 256."""
    device = DEVICES[arch]
    shape = {"context_lens": (4096,), "head_dim": head_dim, "query_len": query_len}
    assert grid_for("flashinfer_tc_decode", device, **shape).ctas_per_sm == 2
    assert grid_for("flashinfer_batch", device, **shape).ctas_per_sm == (1 if head_dim == 256 else 2)
