"""Golden: FlashInfer's four plans and FlashMLA's metadata, against the schedules leansim builds."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden import assert_agree, device_with
from golden_lists import Row, agree, busy_ctas, spread, table, tokens_of_cta, workload_of

from leansim.partitioners.flash_mla import FlashMla, decoding_metadata, num_sm_parts
from leansim.partitioners.flashinfer_batch import FlashinferBatch, batch_plan, kv_limit, task_of
from leansim.partitioners.flashinfer_decode import FlashinferDecode, decode_plan
from leansim.partitioners.flashinfer_mla import FlashinferMla, mla_plan
from leansim.partitioners.flashinfer_tc_decode import (
    CTAS_PER_SM,
    FlashinferTcDecode,
    query_tile_rows,
    tc_decode_plan,
)
from leansim.schedule.tiling import TileGrid
from leansim.specs.workload import Workload

Facts = dict[str, Any]
DEVICE = device_with(108)  # partitioners read the grid's SMs


# -- decode on CUDA cores --------------------------------------------------------------------------


def test_decode_splits_as_flashinfer_does() -> None:
    """Counted off the segments: tiles of 8 tokens lose no split, the shortest of which has 128.

    Where the split is a whole number of tiles, its borders are the segments' borders.
    """

    def facts(row: Row) -> Facts:
        workload, graph = workload_of(row, page_tokens=row["page_size"]), bool(row["cuda_graph"])
        grid = TileGrid(workload, workload.group_size, 8, row["num_SMs"], row["blocks_per_sm"])
        schedule = FlashinferDecode(cuda_graph=graph)(grid, DEVICE)
        plan = decode_plan(grid.context_lens, row["page_size"], grid.heads, grid.slots, graph)
        if plan.split_tokens % 8 == 0:
            assert not np.any(schedule.start * 8 % plan.split_tokens), row["case"]
        return {
            "max_grid_size": grid.slots,
            "gdy": grid.heads,
            "split_kv": int(schedule.combine == "kernel"),
            "kv_chunk_size_tokens": plan.split_tokens,
            "new_batch_size": schedule.num_segments // grid.heads,
            "padded_batch_size": plan.padded_batch,
            "grid_ctas": schedule.num_ctas,
            "valid_ctas": busy_ctas(schedule),
            "chunks_per_req": schedule.splits_of_request.tolist(),
        }

    agree(table("flashinfer_decode_plan", 1436), facts)


# -- decode on tensor cores ------------------------------------------------------------------------


def window_of(row: Row) -> int | None:
    """FlashInfer counts the tokens to the left of a query, leansim the query's own as well."""
    return None if row["window_left"] < 0 else row["window_left"] + 1


def test_tensor_core_decode_plans_as_flashinfer_does() -> None:
    def facts(row: Row) -> Facts:
        rows = row["qo_len"] * row["heads_q"] // row["heads_kv"]
        tile_rows = query_tile_rows(rows, row["head_dim"])
        capacity = CTAS_PER_SM * row["num_SMs"] // row["heads_kv"]
        plan = tc_decode_plan(
            np.array(row["kv_lens"]),
            row["page_size"],
            rows,
            tile_rows,
            capacity,
            window=window_of(row),
            cuda_graph=bool(row["cuda_graph"]),
            uniform=row["qo_len"] > 1,
        )
        return {
            "max_batch_size_if_split": capacity,
            "cta_tile_q": tile_rows,
            "split_kv": int(plan.merged),
            "kv_chunk_size_tokens": plan.split_tokens,
            "new_batch_size": plan.new_batch,
            "padded_batch_size": plan.padded_batch,
            "grid_ctas": plan.padded_batch * row["heads_kv"],
            "valid_ctas": plan.new_batch * row["heads_kv"],
        }

    agree(table("flashinfer_tc_decode_plan", 1209), facts)


def test_tensor_core_schedules_are_the_plans() -> None:
    """CTA, merge and split counts; a mask or window may leave a CTA that was planned no KV.

    Left out are the 13 rows with a context shorter than the new tokens it is to hold.
    """
    every = table("flashinfer_tc_decode_plan", 1209)
    rows = [row for row in every if min(row["kv_lens"]) >= row["qo_len"]]
    assert len(rows) == 1196

    def facts(row: Row) -> Facts:
        call = {"query_len": row["qo_len"], "page_tokens": row["page_size"], "window": window_of(row)}
        workload = workload_of(row, head_dim=row["head_dim"], **call)
        tile_rows = query_tile_rows(row["qo_len"] * workload.group_size, row["head_dim"])
        grid = TileGrid(workload, tile_rows, 16, row["num_SMs"], CTAS_PER_SM)
        schedule = FlashinferTcDecode(cuda_graph=bool(row["cuda_graph"]))(grid, DEVICE)
        assert schedule.partials is not None
        found = {
            "split_kv": int(schedule.combine == "kernel"),
            "grid_ctas": schedule.num_ctas,
        }
        if found["split_kv"]:
            found["new_batch_size"] = int(schedule.partials[grid.head == 0].sum())
        if row["qo_len"] == 1 and row["window_left"] < 0:
            found["valid_ctas"] = busy_ctas(schedule)
        assert busy_ctas(schedule) <= row["valid_ctas"]
        return found

    assert_agree(rows, facts)


# -- BatchAttention --------------------------------------------------------------------------------


def test_batch_attention_plans_as_flashinfer_does() -> None:
    def facts(row: Row) -> Facts:
        group = row["heads_q"] // row["heads_kv"]
        shape = (row["qo_len"], row["heads_kv"], group, row["head_dim"], row["num_SMs"])
        plan = batch_plan(np.array(row["kv_lens"]), *shape, causal=bool(row["causal"]))
        task, total = task_of(row["qo_len"] * group), int(plan.lengths.sum())
        limits = [kv_limit(total, row["heads_kv"], plan.num_ctas, tile) for tile in (128, 16)]
        assert plan.limit == limits[task]
        works, fewest, tokens, least = spread(plan.dealt)
        return {
            "num_ctas": plan.num_ctas,
            "kv_chunk_task0": limits[0],
            "kv_chunk_task1": limits[1],
            "works_task0": 0 if task else len(plan.dealt),
            "works_task1": len(plan.dealt) if task else 0,
            "max_works_per_cta": works,
            "min_works_per_cta": fewest,
            "max_kv_tokens_per_cta": tokens,
            "min_kv_tokens_per_cta": least,
            "merge_rows": plan.merge_rows,
            "partial_rows": plan.partial_rows,
        }

    agree(table("flashinfer_holistic_plan", 369), facts)


def test_batch_attention_schedules_are_the_plans() -> None:
    """Splits are whole tiles of 64 or 128 tokens, so CTAs have the tokens that were planned.

    Left out are the 34 rows of several new tokens without a causal mask.
    """
    every = table("flashinfer_holistic_plan", 369)
    rows = [row for row in every if row["causal"] or row["qo_len"] == 1]
    assert len(rows) == 335

    def facts(row: Row) -> Facts:
        workload = workload_of(row, head_dim=row["head_dim"], query_len=row["qo_len"])
        task = task_of(row["qo_len"] * workload.group_size)
        grid = TileGrid(workload, (128, 16)[task], (64, 128)[task], row["num_SMs"], 2)
        schedule = FlashinferBatch()(grid, DEVICE)
        tokens = tokens_of_cta(schedule)
        merged = (schedule.segments_of_tile > 1) & (grid.head == 0)
        return {
            "num_ctas": schedule.num_ctas,
            f"works_task{task}": schedule.num_segments,
            "max_kv_tokens_per_cta": int(tokens.max()),
            "min_kv_tokens_per_cta": int(tokens.min()),
            "merge_rows": int(grid.rows[merged].sum()),
            "partial_rows": int((grid.rows * schedule.segments_of_tile)[merged].sum()),
        }

    assert_agree(rows, facts)


# -- MLA -------------------------------------------------------------------------------------------


def latent(row: Row, num_q_heads: int, query_len: int) -> Workload:
    lens = tuple(row["kv_lens"])
    return Workload(lens, num_q_heads, 1, 576, head_dim_v=512, query_len=query_len, latent_kv=True)


def test_mla_plans_as_flashinfer_does() -> None:
    def facts(row: Row) -> Facts:
        lens, causal = np.array(row["kv_lens"]), bool(row["causal"])
        plan = mla_plan(lens, row["qo_len"], row["heads"], row["num_SMs"], causal=causal)
        works, fewest, tokens, least = spread(plan.dealt)
        return {
            "cluster_size": plan.cluster_size,
            "num_clusters": plan.num_clusters,
            "total_works": len(plan.dealt),
            "max_works_per_cluster": works,
            "min_works_per_cluster": fewest,
            "max_kv_tokens_per_cluster": tokens,
            "min_kv_tokens_per_cluster": least,
            "split_works": plan.split_works,
        }

    agree(table("flashinfer_mla_plan", 284), facts)


def test_mla_schedules_are_the_plans() -> None:
    """The first CTA of a cluster has rows in every work, so it does what the cluster was dealt.

    Left out are rows of several new tokens, unless a cluster's rows belong to one of them: of 128
    heads, with a causal mask.
    """
    every = table("flashinfer_mla_plan", 284)
    rows = [row for row in every if row["qo_len"] == 1 or (row["causal"] and row["heads"] == 128)]

    def facts(row: Row) -> Facts:
        size = 2 if row["qo_len"] * row["heads"] > 64 else 1
        grid = TileGrid(latent(row, row["heads"], row["qo_len"]), 64, 32, row["num_SMs"], 1)
        schedule = FlashinferMla()(grid, DEVICE)
        tokens = tokens_of_cta(schedule)[::size]
        return {
            "num_clusters": schedule.num_ctas // size,
            "total_works": int(np.count_nonzero(schedule.cta % size == 0)),
            "max_kv_tokens_per_cluster": int(tokens.max()),
            "min_kv_tokens_per_cluster": int(tokens.min()),
        }

    assert len(rows) == 234
    assert_agree(rows, facts)


# -- FlashMLA --------------------------------------------------------------------------------------


def test_flash_mla_cuts_as_its_metadata_kernel_does() -> None:
    """Where an idle part begins is undefined in the source, so only its end is compared."""

    def facts(row: Row) -> Facts:
        blocks = -(-np.array(row["kv_lens"]) // 64)
        parts = num_sm_parts(row["num_SMs"], 1, -(-row["s_q"] * row["heads_q"] // 64))
        plan = decoding_metadata(blocks, parts)
        busy = plan.begin_request < len(blocks)
        before = np.concatenate(([0], np.cumsum(blocks)))
        first, last = before[plan.begin_request], before[plan.end_request]
        counts = np.where(busy, last + plan.end_block - first - plan.begin_block, 0)
        return {
            "num_sm_parts": parts,
            "total_blocks_incl_overhead": plan.total_blocks,
            "payload": plan.payload,
            "nonempty_parts": int(np.count_nonzero(busy)),
            "total_splits": int(plan.num_splits.sum()),
            "split_reqs": int(np.count_nonzero(plan.num_splits > 1)),
            "max_blocks_per_part": int(counts.max()),
            "min_blocks_per_part": int(counts.min()),
            "num_splits_per_req": plan.num_splits.tolist(),
            "part_begin_req": plan.begin_request.tolist(),
            "part_begin_block": np.where(busy, plan.begin_block, row["part_begin_block"]).tolist(),
            "part_end_req": plan.end_request.tolist(),
            "part_end_block": plan.end_block.tolist(),
            "part_begin_split": np.where(busy, plan.begin_split, row["part_begin_split"]).tolist(),
        }

    agree(table("flashmla_metadata", 258), facts)


def test_flash_mla_schedules_are_its_metadata() -> None:
    """Of one new token; the CTAs of a part, one for each 64 rows, all do the part's blocks."""
    rows = [row for row in table("flashmla_metadata", 258) if row["s_q"] == 1]
    assert len(rows) == 193

    def facts(row: Row) -> Facts:
        grid = TileGrid(latent(row, row["heads_q"], 1), 64, 64, row["num_SMs"], 1)
        schedule = FlashMla()(grid, DEVICE)
        blocks = schedule.tiles_of_cta.reshape(-1, grid.row_blocks)
        assert np.ptp(blocks, axis=1).max() == 0
        return {
            "num_sm_parts": schedule.num_ctas // grid.row_blocks,
            "nonempty_parts": busy_ctas(schedule) // grid.row_blocks,
            "total_splits": schedule.num_segments // grid.row_blocks,
            "max_blocks_per_part": int(blocks.max()),
            "min_blocks_per_part": int(blocks.min()),
            "num_splits_per_req": schedule.splits_of_request.tolist(),
        }

    assert_agree(rows, facts)
