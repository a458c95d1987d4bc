"""FlashInfer's BatchAttention: one persistent launch, its work lists dealt by a heap on the host.

Each split goes to the CTA with the least work so far; all CTAs then meet at a barrier of the
launch and merge what was split. Ignores batches that mix few and many new tokens, and sliding windows,
which the plan does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners._least_loaded import DealtSplits, causal_end, deal
from leansim.partitioners._token_splits import split_span
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

TASK_TILE_ROWS = (128, 16)
MOST_WORKS = 65_536


def task_of(rows: int) -> int:
    """Which of the kernel's two tasks takes requests of `rows` packed query rows: 1 up to 16 rows."""
    return 0 if rows > TASK_TILE_ROWS[1] else 1


def kv_limit(total_tokens: int, kv_heads: int, num_ctas: int, tile_rows: int) -> int:
    """Longest split, tokens: an even share in steps of 256, at least 128; less for tall tiles."""
    share = max(1, -(-total_tokens * kv_heads // num_ctas))
    limit = 128 if share <= 128 else -(-share // 256) * 256
    return limit // min(kv_heads, 2) if tile_rows >= 64 else limit


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """What the host code decides: the longest split of each task, and who does which split.

    `limit` is the longest split in tokens, `lengths` `[batch * row_tiles]` the tokens that each query
    tile reads, `rows` `[batch * row_tiles]` its valid rows.
    """

    num_ctas: int
    row_tiles: int
    limit: int
    lengths: IntArray
    rows: IntArray
    dealt: DealtSplits

    @property
    def splits(self) -> IntArray:
        """Splits of each query tile and head."""
        return np.maximum(1, -(-self.lengths // self.limit))

    @property
    def merge_rows(self) -> int:
        """Packed rows to be merged, of one KV head."""
        return int(self.rows[self.splits > 1].sum())

    @property
    def partial_rows(self) -> int:
        """Rows of partials, of one KV head."""
        return int((self.rows * self.splits)[self.splits > 1].sum())


def batch_plan(
    context_lens: IntArray,
    query_len: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    num_sms: int,
    *,
    tile_rows: int | None = None,
    causal: bool = True,
) -> BatchPlan:
    """Plan a batch for two CTAs on every SM, one from head dim 256 on.

    `tile_rows` replaces the query tile of the task. Source: FlashInfer, include/flashinfer/
    attention/scheduler.cuh, TwoStageHolisticPlan. Raises `PartitionerError` for more works than its
    buffers hold.
    """
    num_ctas = num_sms if head_dim >= 256 else 2 * num_sms
    packed = query_len * group
    rows_of_tile = TASK_TILE_ROWS[task_of(packed)] if tile_rows is None else tile_rows
    ends = causal_end(context_lens, query_len, group, rows_of_tile, causal)
    lengths = ends.ravel()
    limit = kv_limit(int(lengths.sum()), kv_heads, num_ctas, rows_of_tile)
    row_tiles = ends.shape[1]
    rows = np.minimum(rows_of_tile, packed - rows_of_tile * np.arange(row_tiles, dtype=np.int64))
    works = int(np.maximum(1, -(-lengths // limit)).sum()) * kv_heads
    if works > MOST_WORKS:
        raise PartitionerError(f"flashinfer_batch holds at most {MOST_WORKS:,} works, found {works:,}")
    dealt = deal(lengths, limit, kv_heads, rows_of_tile, num_ctas)
    return BatchPlan(num_ctas, row_tiles, limit, lengths, np.tile(rows, len(context_lens)), dealt)


@dataclass(frozen=True)
class FlashinferBatch:
    """Splits of a common greatest length, each to the least loaded CTA; merged in the launch.

    The launch is cooperative: as many CTAs as the plan counts on must fit at once. Query tiles that
    are not split write their output at once. No sliding window.
    """

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Give each CTA its list of works, in the order they were dealt."""
        workload = grid.workload
        if workload.window is not None:
            raise PartitionerError("flashinfer_batch plans no sliding window")
        plan = batch_plan(
            grid.context_lens,
            workload.query_len,
            grid.heads,
            grid.rows_per_head // workload.query_len,
            workload.value_dim,
            grid.num_sms,
            tile_rows=grid.tile_rows,
        )
        dealt, order = plan.dealt, plan.dealt.by_worker
        request, row_tile = np.divmod(dealt.item[order], plan.row_tiles)
        tile = (request * grid.heads + dealt.head[order]) * grid.row_blocks + row_tile
        return work_lists(
            grid, dealt.worker[order], tile, dealt.number[order], plan.limit, plan.num_ctas
        )


def work_lists(
    grid: TileGrid, cta: IntArray, output_tile: IntArray, split: IntArray, limit: int, num_ctas: int
) -> Schedule:
    """Build the schedule of a cooperative launch from splits sorted by CTA.

    Splits of `limit` tokens move to the nearest KV-tile borders; one that holds none is left out.
    Raises `PartitionerError` where the CTAs do not all fit at once.
    """
    if num_ctas > grid.slots:
        raise PartitionerError(
            f"a cooperative launch of {num_ctas} CTAs needs as many slots, found {grid.slots}"
        )
    start, stop = split_span(grid, output_tile, split, limit)
    return Schedule.from_segments(grid, (cta, output_tile, start, stop), num_ctas, "kernel")
