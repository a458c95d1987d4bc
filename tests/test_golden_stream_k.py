"""Golden: CUTLASS's stream-K and MLA splits, and AITER's paged LeanAttention, against their host code.

Every row of each file, and every column that the host code puts out.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from golden import Facts, Row, assert_agree, device_with, numbers
from kernels import tiled

from leansim.errors import PartitionerError
from leansim.partitioners.cutlass_mla import CutlassMla, set_split_kv
from leansim.partitioners.cutlass_stream_k import CutlassStreamK, best_sk_ctas, block_plan
from leansim.partitioners.lean_aiter import LeanAiter
from leansim.partitioners.lean_aiter_paged import LeanAiterPaged, paged_deal
from leansim.partitioners.registry import Partitioner
from leansim.schedule.schedule import changes
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.workload import Workload
from leansim.testing import check_partitioner


def grid_of(lengths: tuple[int, ...], num_sms: int, ctas_per_sm: int = 1) -> TileGrid:
    """One output tile per request, `lengths` KV tiles long."""
    workload = Workload(tuple(128 * n for n in lengths), 1, 1, 128)
    return TileGrid(workload, 64, 128, num_sms, ctas_per_sm)


# -- CUTLASS stream-K ------------------------------------------------------------------------------


def test_stream_k_takes_the_tiles_and_ctas_that_cutlass_takes() -> None:
    def facts(row: Row) -> Facts:
        plan = block_plan(
            row["output_tiles"], row["iters_per_tile"], row["avail_sms"], row["sm_occupancy"]
        )
        return {"dp_tiles": plan.dp_tiles, "sk_tiles": plan.sk_tiles, "sk_blocks": plan.sk_ctas}

    assert_agree(numbers("cutlass_streamk_blocks", 969), facts)


def test_stream_k_schedules_are_those_of_the_plan() -> None:
    """Stream-K CTAs come first, in waves padded with empty ones; each CTA after them does one tile."""

    def facts(row: Row) -> Facts:
        lengths = (row["iters_per_tile"],) * row["output_tiles"]
        grid = grid_of(lengths, row["avail_sms"], row["sm_occupancy"])
        schedule = CutlassStreamK()(grid, device_with(row["avail_sms"]))
        sk_ctas = schedule.num_ctas - row["dp_tiles"]
        assert sk_ctas % row["avail_sms"] == 0
        by_sk, whole = schedule.cta < sk_ctas, schedule.stop - schedule.start == grid.call_kv_tiles
        return {
            "dp_tiles": int(np.count_nonzero(~by_sk & whole)),
            "sk_tiles": len(np.unique(schedule.output_tile[by_sk])),
            "sk_blocks": len(np.unique(schedule.cta[by_sk])),
        }

    assert_agree(numbers("cutlass_streamk_blocks", 969), facts)


def test_stream_k_by_hand() -> None:
    """3 tiles of 9 KV tiles on 2 SMs, one CTA each: one full wave and one tile over.

    Whole tiles take 2 waves, 18. The full wave and the rest together are 27 KV tiles for 2 CTAs: 14
    at most, 4 saved. 2 % 3 != 0, so 1 + 1 = 2 peers: fix-up 2 + 0.02*2*14 + 2*2 = 6.56, which loses.
    With 30 KV tiles a tile it is 60 - 45 - int(2 + 1.8 + 4) = 8, which wins. CTA 1 has the last 15
    of tile 1 and all of tile 2, and walks backwards; CTA 0 has the rest, tile 1's share first.
    """
    assert best_sk_ctas(3, 9, 2, 1, least=2) == (2, 18 - 14 - 6)
    assert best_sk_ctas(3, 30, 2, 1, least=2) == (2, 8)
    schedule = CutlassStreamK()(grid_of((30,) * 3, num_sms=2), device_with(2))
    assert [tuple(segment)[1:] for segment in schedule.segments()] == [
        (0, 1, 0, 15),
        (0, 0, 0, 30),
        (1, 2, 0, 30),
        (1, 1, 15, 30),
    ]
    assert schedule.combine == "last"
    assert schedule.merges.tolist() == [False, False, False, True], "the CTA with the last KV tiles"


def test_stream_k_pads_its_waves_and_stays_inside_tiles_where_it_can() -> None:
    """One tile of 16: 4 CTAs of 4 on 108 SMs, 104 empty ones, as the golden row says."""
    schedule = CutlassStreamK()(grid_of((16,), num_sms=108), device_with(108))
    assert (schedule.num_ctas, schedule.num_empty_ctas) == (108, 104)
    assert [segment.stop - segment.start for segment in schedule.segments()] == [4] * 4


def test_stream_k_shares_the_actual_lengths_of_a_ragged_batch() -> None:
    """The plan is that of equal lengths; the runs of the CTAs are equal all the same."""
    lengths = (900, 30, 77, 500, 1)
    schedule = CutlassStreamK()(grid_of(lengths, num_sms=4), device_with(4))
    plan = block_plan(5, 900, 4, 1)
    assert (plan.dp_tiles, plan.sk_tiles, plan.sk_ctas) == (0, 5, 4)
    assert np.ptp(schedule.tiles_of_cta[: plan.sk_ctas]) <= 1


@pytest.mark.parametrize("lengths", [(600, 40, 3, 1), (300,) * 7, (64,) * 9, (1,) * 5])
def test_stream_k_only_waits_for_earlier_ctas(lengths: tuple[int, ...]) -> None:
    """So it ends on any number of slots: an empty or waiting CTA never blocks another."""
    for num_sms, ctas_per_sm in itertools.product((3, 4, 108), (1, 2)):
        schedule = CutlassStreamK()(grid_of(lengths, num_sms, ctas_per_sm), device_with(num_sms))
        last = schedule.by_tile[np.append(changes(schedule.output_tile[schedule.by_tile])[1:], True)]
        merges = schedule.merges[last] == (schedule.segments_of_tile > 1)
        assert merges.all(), "the last segment of the context has the highest CTA"


# -- CUTLASS MLA -----------------------------------------------------------------------------------


def test_mla_splits_as_cutlass_does() -> None:
    def facts(row: Row) -> Facts:
        workload = Workload.uniform(
            row["batch"], row["K"], num_q_heads=128, num_kv_heads=1, head_dim=128
        )
        grid = TileGrid(workload, 128, 128, row["num_SMs"], 1)
        partitioner = CutlassMla(fused_reduction=bool(row["is_fused_reduction"]))
        schedule = partitioner(grid, device_with(row["num_SMs"]))
        assert schedule.num_splits is not None
        assert schedule.num_ctas == schedule.num_splits * row["batch"]
        return {"split_kv": schedule.num_splits}

    assert_agree(numbers("cutlass_mla_split_kv", 670), facts)


def test_mla_splits_follow_each_request_and_the_count_the_call() -> None:
    """2 requests on 8 SMs: 4 splits. 8 tiles are 2 each; 5 are 2, 2, 1 and one empty; 1 is alone."""
    assert set_split_kv(2, 8 * 128, 8) == 4
    grid = TileGrid(Workload((1024, 640, 128), 1, 1, 128), 64, 128, 12, 1)
    schedule = CutlassMla()(grid, device_with(12))
    lengths = {tile: [] for tile in range(3)}
    for segment in schedule.segments():
        lengths[segment.output_tile].append(segment.stop - segment.start)
    assert lengths == {0: [2, 2, 2, 2], 1: [2, 2, 1], 2: [1]}
    assert schedule.partials is not None
    assert schedule.partials.tolist() == [4, 3, 1], "a request with one split goes through a partial too"


@pytest.mark.parametrize("shape", [{"window": 512}, {"query_len": 2}])
def test_mla_takes_one_token_and_no_window(shape: dict[str, int]) -> None:
    grid = TileGrid(Workload((1024,), 1, 1, 128, **shape), 64, 128, 12, 1)
    with pytest.raises(PartitionerError, match="one new token"):
        CutlassMla()(grid, device_with(12))


# -- AITER -----------------------------------------------------------------------------------------


def test_paged_lean_attention_deals_as_aiter_does() -> None:
    """One request of the batch's total length: the total is all that the host code knows."""

    def facts(row: Row) -> Facts:
        workload = Workload(
            (row["total_seqlen_k"],),
            row["num_heads"],
            row["num_heads_k"],
            row["head_size"],
            query_len=row["max_seqlen_q"],
        )
        grid = TileGrid(workload, row["BLOCK_M"], row["BLOCK_N"], row["num_SMs"], 1)
        schedule = LeanAiterPaged()(grid, device_with(row["num_SMs"]))
        assert schedule.num_splits is not None
        most = int(schedule.tiles_of_cta.max())
        return {
            "num_m_blocks": grid.row_blocks,
            "high_load_tbs": int((schedule.tiles_of_cta == most).sum()),
            "max_tiles_per_tb": most,
            "tiles_per_head": int(grid.num_kv_tiles[grid.head == 0].sum()),
            "grid": schedule.num_ctas,
            "num_splits": schedule.num_splits,
            "even_split": int(most * schedule.num_ctas == grid.total_kv_tiles),
        }

    assert_agree(numbers("lean_aiter_paged_splits", 319), facts)


def test_paged_lean_attention_refuses_what_aiter_divides_by_zero_on() -> None:
    """Fewer KV tiles than CTAs; exactly as many is an even deal, and one more gives some CTAs two."""
    with pytest.raises(PartitionerError, match="divides by zero"):
        paged_deal(tiles_per_head=107, heads=1, num_programs=108)
    assert paged_deal(108, 1, 108).num_splits(108) == 108
    assert paged_deal(109, 1, 108).max_tiles_per_cta == 2
    kernel, device = catalog.kernel("lean_aiter_paged"), catalog.device("mi300x")
    grid = tiled(Workload((64 * 152,), 4, 2, 64), kernel, device)
    assert LeanAiterPaged()(grid, device).num_ctas == 304
    with pytest.raises(PartitionerError, match=r"\(304\) than CTAs \(608\)"):
        LeanAiterPaged(ctas_per_sm=2)(grid, device)
    with pytest.raises(PartitionerError, match="need as many slots"):
        LeanAiterPaged(ctas_per_sm=99)(grid, device)


def test_remapped_lean_attention_keeps_an_output_tile_in_one_xcd() -> None:
    """8 XCDs of 38 CUs on MI300X: an eighth of the 32 heads and of the 304 CTAs each."""
    kernel, device = catalog.kernel("lean_aiter_xcd"), catalog.device("mi300x")
    assert kernel.partitioner.options["num_xcds"] == device.num_xcds
    partitioner = LeanAiter(**kernel.partitioner.options)
    grid = tiled(Workload((5000, 70_000, 333), 32, 8, 128), kernel, device)
    schedule = partitioner(grid, device)
    xcd_of_cta = schedule.cta // (device.num_sms // device.num_xcds)
    assert np.array_equal(xcd_of_cta, grid.head[schedule.output_tile] // (32 // device.num_xcds))
    assert schedule.segments_of_tile.max() > 1
    plain = LeanAiter()(grid, device)
    assert plain.num_ctas == schedule.num_ctas
    assert np.ptp(plain.tiles_of_cta) <= 1
    assert np.ptp(schedule.tiles_of_cta) <= 1


# -- conformance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitioner", "kernel", "device"),
    [
        (CutlassMla(num_splits=3), "fa2", "a100_sxm_80gb"),
        (CutlassMla(fused_reduction=True), "fa2", "h100_sxm"),
    ],
    ids=repr,
)
@pytest.mark.thorough
def test_options_conform_too(partitioner: Partitioner, kernel: str, device: str) -> None:
    """The contract tests take every partitioner as it is, and every kernel with its own."""
    check_partitioner(partitioner, kernel, (device,))
