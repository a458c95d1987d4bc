"""What the tests of `leansim.gpu` share: the interpreted kernels, random schedules, a NumPy kernel."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from leansim.errors import ScheduleError
from leansim.gpu import toolkit, worklist
from leansim.gpu.toolkit import Toolkit
from leansim.numerics import attention as numerics
from leansim.schedule.schedule import CombineKind, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.workload import Workload

# Set where these tests must run: CI installs torch and triton for them, and a skip would hide it if it
# had failed.
REQUIRED = "LEANSIM_REQUIRE_GPU_TESTS"
AVAILABLE = all(importlib.util.find_spec(name) is not None for name in ("torch", "triton"))
needs_triton = pytest.mark.skipif(
    not AVAILABLE and not os.environ.get(REQUIRED), reason="needs torch and triton (extra gpu)"
)


def interpreted() -> Toolkit:
    """The kernels in Triton's interpreter."""
    return toolkit.load(interpret=True)


SHAPES: tuple[dict[str, Any], ...] = (
    {"num_q_heads": 2, "num_kv_heads": 2},
    {"num_q_heads": 4, "num_kv_heads": 1},
    {"num_q_heads": 4, "num_kv_heads": 2, "query_len": 3},
    {"num_q_heads": 16, "num_kv_heads": 2, "window": 37},
    {"num_q_heads": 8, "num_kv_heads": 1, "query_len": 5, "window": 20},
    {"num_q_heads": 2, "num_kv_heads": 1, "head_dim_v": 24},
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any valid schedule of a small grid: any cut, any deal, any combine, any order in a CTA."""
    shape = {"head_dim": 16, "page_tokens": draw(st.sampled_from((4, 7, 16, 64)))}
    shape |= draw(st.sampled_from(SHAPES))
    lens = draw(st.lists(st.integers(5, 150), min_size=1, max_size=3))
    load = Workload(tuple(lens), **shape)
    packed = draw(st.booleans())
    order: Any = draw(st.sampled_from(("forward", "backward")))
    shifted = draw(st.booleans())
    grid = TileGrid(load, 16, 16, 64, 1, packed, order, shifted=shifted)
    tiles, starts, stops = [], [], []
    for tile, count in enumerate(grid.num_kv_tiles.tolist()):
        cuts = sorted(draw(st.sets(st.integers(1, count), max_size=3)) - {count})
        for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
            tiles.append(tile)
            starts.append(start)
            stops.append(stop)
    return _dealt(draw, grid, np.array(tiles), np.array(starts), np.array(stops))


def _dealt(draw: st.DrawFn, grid: TileGrid, *columns: Any) -> Schedule:
    n, num_ctas = len(columns[0]), draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    shuffled = random.permutation(n)
    cta = np.sort(random.integers(0, num_ctas, n))
    split = n > grid.num_output_tiles
    kinds: list[CombineKind] = ["kernel", "host", "last"] if split else ["none", "kernel"]
    combine = draw(st.sampled_from(kinds))
    counts = np.bincount(columns[0], minlength=grid.num_output_tiles)
    partials = None
    if combine == "kernel":
        extra = random.integers(0, 3, len(counts))
        partials = np.where((counts > 1) | (extra > 1), counts + extra, 0)
    try:
        return Schedule(
            grid, cta, *(column[shuffled] for column in columns), num_ctas=num_ctas, combine=combine,
            num_empty_ctas=num_ctas - len(set(cta.tolist())), partials=partials,
        )  # fmt: skip
    except ScheduleError as error:
        if "deadlock" not in str(error):
            raise
        return draw(st.nothing())


def numpy_kernels(work: worklist.WorkList, inputs: Any) -> Any:
    """What the kernels compute from a work list, in NumPy: programs one after another, in order.

    `inputs` are `q`, `k` and `v` as `numerics.replay` takes them. Returns the output
    `[rows, value_dim]`, NaN where nothing was written. A program that would wait for ever fails.
    """
    grid, load = work.schedule.grid, work.schedule.grid.workload
    q, k, v = inputs
    q = q.reshape(-1, load.head_dim)
    out = np.full((len(q), load.value_dim), np.nan)
    slots: dict[int, tuple[Any, Any]] = {}
    for first, last in zip(work.first, work.last, strict=True):
        for row in work.segments[first:last]:
            segment = dict(zip(worklist.SEGMENT, row.tolist(), strict=False))
            rows = np.arange(segment["rows"])
            own = worklist.output_rows(grid, np.full(len(rows), segment["tile"]), rows)
            partial = _folded(grid, segment, q[own], k[segment["request"]], v[segment["request"]])
            if segment["slot"] >= 0:
                assert segment["slot"] not in slots, "a slot written twice"
                slots[segment["slot"]] = numerics.finish(partial)
                continue
            for peer in range(segment["first_slot"], segment["first_slot"] + segment["peers"]):
                assert peer in slots, "a wait for a partial that comes later"
                partial = numerics.merge(partial, numerics.from_normalised(*slots[peer]))
            assert np.isnan(out[own]).all(), "an output written twice"
            out[own] = numerics.finish(partial)[0]
    for first, count, row, out_row in work.merged_rows.tolist():
        if count:
            stored = [
                (o[row : row + 1], lse[row : row + 1])
                for o, lse in map(slots.get, range(first, first + count))
            ]
            out[out_row] = numerics.merge_normalised(stored)[0][0]
    return out


def _folded(grid: TileGrid, segment: dict[str, int], q: Any, k: Any, v: Any) -> numerics.Partial:
    """The partial of a segment's rows, from the columns of the segment alone."""
    load = grid.workload
    group = load.group_size if grid.packed else 1
    kv_head = segment["head"] if grid.packed else segment["head"] // load.group_size
    token = (segment["first_row"] + np.arange(segment["rows"])) // group
    position = (segment["context"] - load.query_len + token)[:, None]
    first = segment["origin"] + segment["first_tile"] * grid.tile_tokens
    key = np.arange(first, first + segment["tiles"] * grid.tile_tokens)
    key = key[(key >= segment["kv_begin"]) & (key < segment["kv_end"])]
    mask = key <= position
    if load.window is not None:
        mask &= key > position - load.window
    if not len(key):
        return numerics.empty(len(q), v.shape[-1])
    return numerics.tile_attention(q, k[key, kv_head], v[key, kv_head], mask, "float64")
