"""By hand: what serving engines' decode kernels launch, and which CTA does which KV tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernels import tiled

from leansim.partitioners import registry as partitioners
from leansim.partitioners.sglang_triton import SglangTriton
from leansim.partitioners.split_launch import issue_order
from leansim.partitioners.trtllm_gen import num_ctas_per_kv
from leansim.partitioners.trtllm_xqa import (
    TrtllmXqa,
    cta_tile_tokens,
    multi_block_count,
    one_wave_count,
)
from leansim.partitioners.vllm_paged import takes_v1
from leansim.partitioners.vllm_unified import most_sequences_of_3d
from leansim.points.point import point_from_row, resolve
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.workload import Workload


def planned(
    kernel: str, workload: Workload, device: str = "h100_sxm", partitioner: Any = None
) -> Schedule:
    """The schedule of a kernel file, with its own partitioner unless another is given."""
    spec, where = catalog.kernel(kernel), catalog.device(device)
    chosen = partitioner or partitioners.make(spec.partitioner.name, spec.partitioner.options)
    return chosen(tiled(workload, spec, where), where)


def busy_ctas(schedule: Schedule) -> int:
    return schedule.num_ctas - schedule.num_empty_ctas


def grid_of(lens: tuple[int, ...], heads: tuple[int, int], tokens: int, **changes: Any) -> TileGrid:
    return TileGrid(
        workload=Workload(lens, *heads, 64, **changes),
        tile_rows=16,
        tile_tokens=tokens,
        num_sms=4,
        ctas_per_sm=1,
    )


def test_ctas_are_issued_as_the_launch_counts_them() -> None:
    """Two requests, two heads, two splits: tile 2*request + head, number 2*tile + split."""
    grid = grid_of((64, 64), (2, 2), 16)
    assert issue_order(grid, 2, ("split", "row_block", "head", "request")).tolist() == [*range(8)]
    by_request = issue_order(grid, 2, ("request", "row_block", "head", "split"))
    assert by_request.tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_xqa_deals_whole_cta_tiles_and_leaves_late_sub_sequences_idle() -> None:
    """1,000 tokens are 4 CTA tiles of 256 (8 KV tiles of 128): 3 sub-sequences take 2, 1 and 1 of them.

    A request of 300 tokens has 2 CTA tiles (3 KV tiles), so that its third sub-sequence is idle.
    """
    grid = grid_of((1000, 300), (8, 1), 128)
    schedule = TrtllmXqa(num_splits=3)(grid, catalog.device("a100_sxm_80gb"))
    assert [segment[1:] for segment in schedule.segments()] == [
        (0, 0, 0, 4),
        (1, 0, 4, 6),
        (2, 0, 6, 8),
        (3, 1, 0, 2),
        (4, 1, 2, 3),
    ]
    assert (schedule.num_ctas, schedule.num_empty_ctas, schedule.combine) == (6, 1, "last")


def test_xqa_cuts_a_window_at_cta_tiles_of_the_whole_context() -> None:
    """Tokens 500-999 of 1,000: CTA tiles 1, 2 and 3 of 256, the first with one of its two KV tiles."""
    grid = grid_of((1000,), (8, 1), 128, window=500)
    schedule = TrtllmXqa(num_splits=3)(grid, catalog.device("a100_sxm_80gb"))
    assert grid.first_kv_tile.tolist() == [3]
    assert schedule.stop.tolist() == [1, 3, 5]


def test_xqa_takes_smaller_cta_tiles_on_hopper_with_8_bit_kv() -> None:
    assert cta_tile_tokens("sm_90", "fp8") == 64
    assert cta_tile_tokens("sm_90", "bfloat16") == cta_tile_tokens("sm_80", "fp8") == 256


def test_xqa_counts_by_hand() -> None:
    """8,192 tokens: min(64, sqrt(512) = 22.6) rounds to 23. 64 tiles of 108 SMs' 864 CTAs leave 13."""
    assert multi_block_count(8192, work=8, batch_size=1, num_sms=108) == 23
    assert multi_block_count(8192, work=64, batch_size=8, num_sms=108) == 13
    assert multi_block_count(100, work=1, batch_size=1, num_sms=108) == 1
    assert multi_block_count(8192, work=1, batch_size=1, num_sms=108, tokens_per_block=512) == 11
    assert multi_block_count(2**20, work=1000, batch_size=1000, num_sms=10**6) == 6


def test_xqa_fills_one_wave_as_flashinfer_counts() -> None:
    """132 SMs over 24 tiles are 5.5, over 480 none; 1,000 tokens are 4 CTA tiles of 256.

    With 8-bit KV on Hopper 396 over 8 tiles are 49, a quarter 12.25; over 6 they are 66 and 16.5, up.
    """

    def count(tokens: int, work: int, *of: str) -> int:
        return one_wave_count(tokens, work, 132, *(of or ("sm_90", "bfloat16")))

    assert [count(42924, work) for work in (24, 66, 67, 132, 480)] == [5, 2, 1, 1, 1]
    assert [count(tokens, 1) for tokens in (1, 256, 257, 1000, 10**6)] == [1, 1, 2, 4, 132]
    assert [count(42924, work, "sm_90", "fp8") for work in (8, 6, 132, 10**6)] == [12, 17, 1, 1]
    assert count(257, 1, "sm_90", "fp8") == 5
    assert count(257, 1, "sm_80", "fp8") == 2


def test_xqa_counts_tokens_of_whole_pages_under_flashinfers_rule() -> None:
    """300 tokens are 3 pages of 128 and so 6 CTA tiles of 64, one more than they fill."""
    load = Workload((300,), 8, 1, 128, kv_dtype="fp8", page_tokens=128)
    schedule = planned("flashinfer_xqa", load)
    assert (schedule.num_splits, schedule.num_empty_ctas) == (6, 1)


def test_flashinfers_call_of_xqa_has_no_setup_kernel_and_takes_one_head_of_a_group() -> None:
    call = {"device": "h100_sxm", "batch_size": "24", "context_len": "8192", "num_q_heads": "8",
            "num_kv_heads": "8", "head_dim": "128"}  # fmt: skip
    theirs, ours = (
        resolve(point_from_row(call | {"kernel": name}, "by hand"))
        for name in ("trtllm_xqa", "flashinfer_xqa")
    )
    assert (theirs.instance.ctas.setup_kernels, ours.instance.ctas.setup_kernels) == (1, 0)
    assert (theirs.schedule.num_splits, ours.schedule.num_splits) == (5, 1)
    assert theirs.kernel.limits != ours.kernel.limits


def test_pytorch_leaves_ragged_multi_head_attention_in_one() -> None:
    """Of one length it is split, as is a group of heads that share a tile, of several lengths too."""
    splits = {
        (heads, lens): planned("torch_flash", Workload(lens, heads, 1, 128)).num_splits
        for heads in (1, 4)
        for lens in ((9000, 9000), (9000, 8999))
    }
    assert splits[1, (9000, 8999)] == 1
    assert splits[1, (9000, 9000)] == splits[4, (9000, 9000)] == splits[4, (9000, 8999)] > 1


def test_trtllm_gen_splits_until_one_wave_is_full() -> None:
    """148 SMs over 8 tiles are 18 splits; 4,096 tokens are worth 8 of 512."""
    counts = {
        length: num_ctas_per_kv(length, None, 8, 148, step=256, steps_per_cta=2)
        for length in (100, 4096, 65536)
    }
    assert counts == {100: 1, 4096: 8, 65536: 18}
    assert num_ctas_per_kv(65536, 1024, 8, 148, step=256, steps_per_cta=2) == 3
    assert num_ctas_per_kv(4096, 65536, 8, 148, step=256, steps_per_cta=1) == 16
    many = planned("trtllm_gen", Workload((4096,) * 32, 64, 8, 128), "b200_sxm")
    assert (many.num_splits, many.dispatch, many.combine) == (1, "queue", "none")
    few = planned("trtllm_gen", Workload((4096, 5000), 64, 8, 128), "b200_sxm")
    assert (few.num_splits, few.dispatch, few.combine) == (9, "grid", "last")
    assert np.all(few.start % 2 == 0), "cut at steps of 256 tokens, two KV tiles"


def test_vllm_takes_v1_for_short_contexts_that_are_one_partition_or_many() -> None:
    assert takes_v1(512, sequence_heads=1)
    assert not takes_v1(513, sequence_heads=512)
    assert takes_v1(8192, sequence_heads=513)
    assert not takes_v1(8193, sequence_heads=100_000)


def test_paged_attention_reads_each_query_heads_kv_for_itself() -> None:
    """1,100 tokens are 3 partitions for each of 8 query heads; 500 tokens are 1 of the 3 launched."""
    schedule = planned("vllm_paged_v2", Workload((1100, 500), 8, 2, 128))
    assert (schedule.num_ctas, schedule.num_empty_ctas, schedule.num_splits) == (48, 16, 3)
    assert np.array_equal(schedule.partials, [3] * 8 + [1] * 8)
    assert np.array_equal(schedule.output_tile[:16], np.arange(16)), "heads, then requests, first"
    whole = planned("vllm_paged_v1", Workload((1100, 500), 8, 2, 128))
    assert (whole.num_ctas, whole.combine) == (16, "none")


def test_unified_takes_the_3d_kernel_for_few_sequences() -> None:
    assert most_sequences_of_3d(8) == 16
    assert most_sequences_of_3d(3) == 40, "42 is nearest to 40 among the captured sizes"
    assert most_sequences_of_3d(3, ()) == 42
    few = planned("vllm_unified", Workload((1000,) * 16, 32, 8, 128))
    many = planned("vllm_unified", Workload((1000,) * 17, 32, 8, 128))
    assert (few.num_splits, few.combine) == (16, "kernel")
    assert (many.num_splits, many.combine) == (1, "none")


def test_unified_cuts_sixteen_segments_of_whole_tiles_and_launches_query_blocks_to_spare() -> None:
    """1,000 tokens: ceil(1000 / 256) = 4 tiles of 16 per segment, so 63 tiles fill 16 segments.

    100 tokens: one tile per segment, so 7 segments. A CTA holds 4 tokens of 4 heads: 2 // 4 + 2 = 2
    query blocks for 2 requests.
    """
    schedule = planned("vllm_unified", Workload((1000, 100), 32, 8, 128))
    assert np.array_equal(schedule.partials, [16] * 8 + [7] * 8)
    assert schedule.num_ctas == 2 * 8 * 16
    assert busy_ctas(schedule) == 8 * 16 + 8 * 7
    assert schedule.stop.max() == 63
    full_rows = planned("vllm_unified", Workload((1000,) * 4, 32, 2, 128))
    assert full_rows.num_ctas == 8 * 2 * 16, "with 16 heads per tile, 4 // 1 + 4 blocks for 4 requests"
    assert busy_ctas(full_rows) == 4 * 2 * 16


def test_unified_reads_back_the_segments_a_window_empties() -> None:
    """4,096 tokens in 16 segments of 256: the last 512 lie in two, or three where they straddle."""
    schedule = planned("vllm_unified", Workload((4096,), 8, 2, 128, window=512))
    assert np.array_equal(schedule.partials, [16, 16])
    assert schedule.segments_of_tile.tolist() == [2, 2]


def test_sglang_modes() -> None:
    """Static: 8 splits of 128 tokens for 1,000. Deterministic: one per 256, 5 launched for 1,200."""
    load = Workload((1000, 40), 8, 2, 128, max_context_len=1200)
    static = planned("sglang_triton", load, partitioner=SglangTriton(mode="static"))
    assert static.segments_of_tile.tolist() == [8, 8, 2, 2]
    assert static.num_ctas == 32
    fixed = planned("sglang_triton", load, partitioner=SglangTriton(mode="deterministic"))
    assert fixed.segments_of_tile.tolist() == [4, 4, 1, 1]
    assert (fixed.num_ctas, fixed.combine) == (20, "kernel")
    assert np.array_equal(fixed.partials, [4, 4, 1, 1]), "an unsplit request goes through a partial too"


def test_sglang_cuts_what_a_window_leaves() -> None:
    """Tokens 1,048 to 2,047 in splits of 128: 32 KV tiles, of which the first is half masked."""
    load = Workload((2048,), 8, 2, 128, window=1000)
    schedule = planned("sglang_triton", load, partitioner=SglangTriton(mode="static"))
    assert schedule.stop[schedule.output_tile == 0].tolist() == [*range(4, 32, 4), 32]


def test_flex_decoding_forgets_the_context() -> None:
    """132 SMs over 16 tiles: 8 * 2 = 16 splits, for 100 tokens as for 100,000; all are merged."""
    short = planned("flex_decoding", Workload((100, 50), 32, 8, 128))
    assert (short.num_splits, short.num_ctas, busy_ctas(short)) == (16, 256, 24)
    assert np.array_equal(short.partials, [16] * 16)
