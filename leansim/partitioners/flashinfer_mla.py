"""FlashInfer's MLA decode: one persistent launch over the latent cache, its work dealt by a heap.

All query heads of a request are rows of query tiles 64 tall; with more than 64 rows two CTAs form a
cluster that shares each split. Ignores requests with different numbers of new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners._least_loaded import DealtSplits, causal_end, deal
from leansim.partitioners.flashinfer_batch import work_lists
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

TILE_ROWS = 64
MOST_WORKS = 16_384
_SHORT_LIMITS = ((8, 32), (16, 64), (32, 128), (64, 192))


def kv_limit(total_tokens: int, num_clusters: int) -> int:
    """Longest split, tokens: an even share in steps of 256, finer below 64 (MLAPlan)."""
    share = max(1, -(-total_tokens // num_clusters))
    for most, limit in _SHORT_LIMITS:
        if share <= most:
            return limit
    return -(-share // 256) * 256


@dataclass(frozen=True, eq=False)
class MlaPlan:
    """What the host code decides: clusters, the longest split in tokens, who does which split.

    Items of `dealt` are query tiles of a whole cluster, `row_tiles` of them for each request.
    """

    cluster_size: int
    num_clusters: int
    row_tiles: int
    limit: int
    dealt: DealtSplits
    split_works: int


def mla_plan(
    context_lens: IntArray,
    query_len: int,
    num_heads: int,
    num_sms: int,
    *,
    tile_rows: int = TILE_ROWS,
    causal: bool = True,
) -> MlaPlan:
    """Plan a batch for one CTA on every SM; the query tiles of a request are dealt last one first.

    Source: FlashInfer, include/flashinfer/attention/scheduler.cuh, MLAPlan. Raises
    `PartitionerError` for more works than its buffers hold.
    """
    cluster_size = 2 if query_len * num_heads > TILE_ROWS else 1
    num_clusters = num_sms // cluster_size
    if not num_clusters:
        raise PartitionerError("flashinfer_mla pairs CTAs of more than 64 rows: it needs two SMs")
    cluster_rows = cluster_size * tile_rows
    ends = causal_end(context_lens, query_len, num_heads, cluster_rows, causal)
    lengths = ends[:, ::-1].ravel()
    limit = kv_limit(int(lengths.sum()), num_clusters)
    counts = np.maximum(1, -(-lengths // limit))
    if (works := int(counts.sum())) > MOST_WORKS:
        raise PartitionerError(f"flashinfer_mla holds at most {MOST_WORKS:,} works, found {works:,}")
    dealt = deal(lengths, limit, 1, cluster_rows, num_clusters)
    split = int(counts[counts > 1].sum())
    return MlaPlan(cluster_size, num_clusters, ends.shape[1], limit, dealt, split)


@dataclass(frozen=True)
class FlashinferMla:
    """Splits of a common greatest length, each to the least loaded cluster; merged in the launch.

    Both CTAs of a cluster read the split, for 64 rows each; the second is idle where no rows are left
    (in the kernel it still reads). One KV head and no sliding window; the launch is cooperative.
    """

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Give each CTA of a cluster its rows of the cluster's list of works."""
        workload = grid.workload
        if workload.window is not None or grid.heads != 1:
            raise PartitionerError(
                f"flashinfer_mla takes one KV head and no sliding window, found {grid.heads} KV heads"
                if grid.heads != 1
                else "flashinfer_mla plans no sliding window"
            )
        plan = mla_plan(
            grid.context_lens,
            workload.query_len,
            workload.num_q_heads,
            grid.num_sms,
            tile_rows=grid.tile_rows,
        )
        dealt, order = plan.dealt, plan.dealt.by_worker
        request, place = np.divmod(dealt.item[order], plan.row_tiles)
        rank = np.arange(plan.cluster_size)[:, None]
        row_block = (plan.row_tiles - 1 - place) * plan.cluster_size + rank
        cta = dealt.worker[order] * plan.cluster_size + rank
        split = np.broadcast_to(dealt.number[order], cta.shape)
        has_rows = row_block < grid.row_blocks
        tile = (request * grid.row_blocks + row_block)[has_rows]
        cta, split = cta[has_rows], split[has_rows]
        by_cta = np.argsort(cta, kind="stable")
        num_ctas = plan.num_clusters * plan.cluster_size
        return work_lists(grid, cta[by_cta], tile[by_cta], split[by_cta], plan.limit, num_ctas)
