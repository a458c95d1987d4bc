"""CUTLASS's hybrid stream-K: whole output tiles where waves are full, equal shares where one is not.

Built for GEMM, so it knows one length for all output tiles: here, the KV tiles of the longest.
Ignores that CUTLASS's peers add up in one workspace, and its separate reduction CTAs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.partitioners.stream_k import Deal, cut, merged_in_launch
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

MIN_TILES_PER_CTA = 2
NEVER = -1  # a saving below zero: stream-K is not worth it


@dataclass(frozen=True)
class BlockPlan:
    """How many output tiles are done whole, how many by stream-K, and by how many CTAs."""

    dp_tiles: int
    sk_tiles: int
    sk_ctas: int


def best_sk_ctas(tiles: int, length: int, num_sms: int, most_per_sm: int, least: int) -> tuple[int, int]:
    """CTAs that save most over doing `tiles` output tiles of `length` KV tiles whole, and the saving.

    Tries `least` to `most_per_sm` CTAs per SM, at least two KV tiles each. The unit is the time of a
    KV tile. A count costs its waves times its longest share, and for the fix-up 2 per wave, 2 per peer
    of an output tile and, unless all borders of output tiles are borders of CTAs, 2% of the work per
    peer. The larger of two equal counts is taken; with nothing to try the saving is negative.
    Single precision, cut to a whole number, as in the source (CUTLASS, threadblock_swizzle_streamk.h,
    ThreadblockSwizzleStreamK::get_sk_blocks).
    """
    single = np.float32
    total = tiles * length
    most = min(num_sms * most_per_sm, total // MIN_TILES_PER_CTA)
    if tiles == 0 or most < least:
        return 0, NEVER
    ctas = np.arange(least, most + 1)
    waves = -(-ctas // num_sms)
    work = -(-total // ctas) * waves
    aligned = ctas % tiles == 0
    peers = np.where(aligned, ctas // tiles, -(-ctas // tiles) + 1)
    skew = np.where(aligned, single(0), single(0.02) * peers.astype(single) * work.astype(single))
    fix_up = single(2) * waves.astype(single) + skew + single(2) * peers.astype(single)
    saving = length * -(-tiles // num_sms) - work - fix_up.astype(np.int64)
    best = int(np.flatnonzero(saving == saving.max())[-1])
    return int(ctas[best]), int(saving[best])


def block_plan(tiles: int, length: int, num_sms: int, ctas_per_sm: int) -> BlockPlan:
    """Share `tiles` output tiles of `length` KV tiles between whole tiles and stream-K.

    Full waves of whole tiles need no stream-K. Otherwise the last, partial wave is dealt by
    stream-K where that still fits beside the full ones, else the last full wave together with it.
    Nothing is dealt where it saves no time. Source: CUTLASS, threadblock_swizzle_streamk.h,
    ThreadblockSwizzleStreamK::get_blocks.
    """
    waves, rest = divmod(tiles, num_sms)
    if rest == 0:
        return BlockPlan(tiles, 0, 0)
    some = min(num_sms, rest + 1)  # a partial wave need not use every SM
    together = rest + num_sms
    if waves < ctas_per_sm:
        tries = [(rest, ctas_per_sm - waves, some)]
    else:
        tries = [(together, ctas_per_sm - (waves - 1) % ctas_per_sm, num_sms)]
        if ctas_per_sm > 1 and waves % ctas_per_sm == ctas_per_sm - 1:
            tries.insert(0, (rest, 1, some))
    for sk_tiles, most_per_sm, least in tries:
        ctas, saving = best_sk_ctas(sk_tiles, length, num_sms, most_per_sm, least)
        if saving > NEVER:
            return BlockPlan(tiles - sk_tiles, sk_tiles, ctas)
    return BlockPlan(tiles, 0, 0)


def equal_segments(lengths: IntArray, ctas: int) -> tuple[IntArray, ...]:
    """Cut each output tile into segments for CTAs of its own, as many for each; the first are longer.

    `ctas` serve all `len(lengths)` output tiles. Returns (cta, output_tile, start, stop); a CTA gets
    nothing where its tile has fewer KV tiles than CTAs.
    """
    cta = np.arange(ctas)
    tile, turn = np.divmod(cta, ctas // len(lengths))
    least, longer = np.divmod(lengths[tile], ctas // len(lengths))
    start = turn * least + np.minimum(turn, longer)
    stop = start + least + (turn < longer)
    real = start < stop
    return cta[real], tile[real], start[real], stop[real]


def stream_k_segments(lengths: IntArray, ctas: int) -> tuple[IntArray, ...]:
    """Deal output tiles 0, 1, ... of these lengths to `ctas` CTAs: (cta, output_tile, start, stop).

    CTAs that are a multiple of the tiles each stay inside one tile. Otherwise they take equal shares
    of the line of all KV tiles and walk their output tiles backwards, so that what others wait for
    comes first. Source: CUTLASS, gemm_universal_streamk.h and ThreadblockSwizzleStreamK (no golden
    vector holds the borders, the walk or the order of the CTAs).
    """
    if ctas > len(lengths) and ctas % len(lengths) == 0:
        return equal_segments(lengths, ctas)
    total = int(lengths.sum())
    dealt = cut(Deal(total, min(ctas, total)).borders, lengths, np.arange(len(lengths)))
    backwards = np.lexsort((-dealt[1], dealt[0]))
    return tuple(column[backwards] for column in dealt)


@dataclass(frozen=True)
class CutlassStreamK:
    """Stream-K CTAs first, then one CTA for each of the other output tiles.

    The first output tiles are those of stream-K. An output tile is finished by the CTA with its
    last KV tiles, which has the highest index of those that share it: it waits for the others, so
    CTAs only ever wait for CTAs placed before them. Empty CTAs fill the last wave of stream-K.

    In a ragged batch the numbers of tiles and CTAs are decided as if all output tiles were as long
    as the longest; the stream-K CTAs then share the tiles' actual lengths.
    """

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Deal the stream-K tiles, then the others whole."""
        lengths, tiles = grid.num_kv_tiles, grid.num_output_tiles
        plan = block_plan(tiles, int(lengths.max()), grid.num_sms, grid.ctas_per_sm)
        whole = np.arange(plan.sk_tiles, tiles)
        first_dp_cta = -(-plan.sk_ctas // grid.num_sms) * grid.num_sms
        columns: tuple[IntArray, ...] = (
            first_dp_cta + np.arange(plan.dp_tiles),
            whole,
            np.zeros(plan.dp_tiles, dtype=np.int64),
            lengths[whole],
        )
        if plan.sk_tiles:
            dealt = stream_k_segments(lengths[: plan.sk_tiles], plan.sk_ctas)
            columns = tuple(map(np.concatenate, zip(dealt, columns, strict=True)))
        return merged_in_launch(grid, columns, first_dp_cta + plan.dp_tiles, merger="last")
