"""What the tests of `leansim.gpu` share: the interpreted kernels, random schedules, a NumPy kernel."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
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
from leansim.schedule.work import Work
from leansim.specs.kv_lists import (
    BlockDiagonal,
    Dilated,
    KvList,
    RandomBlocks,
    Shard,
    Strided,
    TopK,
    VerticalSlash,
    WindowSink,
)
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.query_blocks import QueryBlocks
from leansim.specs.workload import Workload

# Set where these tests must run: CI installs torch and triton for them, and a skip would hide it if it
# had failed.
REQUIRED = "LEANSIM_REQUIRE_GPU_TESTS"
AVAILABLE = all(importlib.util.find_spec(name) is not None for name in ("torch", "triton"))
needs_triton = pytest.mark.skipif(
    not AVAILABLE and not os.environ.get(REQUIRED), reason="needs torch and triton (extra gpu)"
)


class Profile:
    """`torch.profiler.profile` on a stand-in for a GPU: launches are kernels of `us`, one `every` us."""

    def __init__(self, cuda: Any, name: str, grid: int, us: float, every: float) -> None:
        args = {"grid": [grid, 1, 1], "block": [128, 1, 1]}
        self.cuda, self.every = cuda, every
        self.event = {"cat": "kernel", "name": name, "dur": us, "args": args}

    def __enter__(self) -> Profile:
        self.before = self.cuda.launches
        return self

    def __exit__(self, *_: object) -> None:
        self.count = self.cuda.launches - self.before

    def export_chrome_trace(self, path: str) -> None:
        events = [self.event | {"ts": self.every * i} for i in range(self.count)]
        Path(path).write_text(json.dumps({"traceEvents": events}))


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
    return _cut_and_dealt(draw, TileGrid(load, 16, 16, 64, 1, packed, order, shifted=shifted))


# Of the same tokens for all heads and of others for each, in pages, parts of pages and single tokens.
LISTS: tuple[KvList, ...] = (
    WindowSink(40, 3),
    BlockDiagonal(32),
    Dilated(20, 3),
    Strided(16, 2),
    RandomBlocks(0.5, 8),
    RandomBlocks(0.5, 8, pruned_heads=0.5),
    TopK(50, 16),
    TopK(40, 16, 9),
    VerticalSlash(12, 20),
    QueryBlocks(WindowSink(20, 3), 1),
    QueryBlocks(RandomBlocks(0.5, 8), 2),
    Shard(0, 3),
    Shard(4, 5, interleaved=False),  # nothing of a short context
)


@st.composite
def work_loads(draw: st.DrawFn) -> Workload:
    """Trees of prefixes, or lists, over a few short requests."""
    shape = {"head_dim": 16, "page_tokens": draw(st.sampled_from((1, 4, 7, 16)))}
    shape |= {key: value for key, value in draw(st.sampled_from(SHAPES)).items() if key != "window"}
    lens = draw(st.lists(st.integers(5, 130), min_size=1, max_size=5))
    if draw(st.booleans()):
        return Workload((90, *lens), **shape, reads=draw(st.sampled_from(LISTS)))
    prefixes: list[Prefix] = []
    members, begin = list(range(len(lens))), 0
    while len(members) > 1:
        most = min(lens[one] for one in members) - shape.get("query_len", 1)
        if most <= begin:
            break
        prefixes.append(Prefix(begin, draw(st.integers(begin + 1, most)), tuple(members)))
        begin = prefixes[-1].end
        members = sorted(draw(st.sets(st.sampled_from(members), max_size=len(members) - 1)))
    return Workload(tuple(lens), **shape, reads=Prefixes(tuple(prefixes)) if prefixes else TopK(60, 4))


@st.composite
def work_schedules(draw: st.DrawFn) -> Schedule:
    """Any valid schedule of the work tiles of a small call."""
    packed = draw(st.booleans())
    work = Work.of(draw(work_loads()), 16, packed)
    order: Any = draw(st.sampled_from(("forward", "backward")))
    return _cut_and_dealt(draw, TileGrid(work.call, 16, 16, 64, 1, packed, order, work=work))


def _cut_and_dealt(draw: st.DrawFn, grid: TileGrid) -> Schedule:
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
    load = work.schedule.grid.asked
    q, k, v = inputs
    q = q.reshape(-1, load.head_dim)
    out = np.full((len(q), load.value_dim), np.nan)
    slots: dict[int, tuple[Any, Any]] = {}
    for first, last in zip(work.first, work.last, strict=True):
        for row in work.segments[first:last]:
            segment = dict(zip(worklist.SEGMENT, row.tolist(), strict=False))
            own, last_token = _rows(work, segment)
            partial = _folded(work.schedule.grid, segment, last_token, q[own], k, v)
            if segment["slot"] >= 0:
                assert segment["slot"] not in slots, "a slot written twice"
                slots[segment["slot"]] = numerics.finish(partial)
                continue
            for peer in range(segment["first_slot"], segment["first_slot"] + segment["peers"]):
                assert peer in slots, "a wait for a partial that comes later"
                partial = numerics.merge(partial, numerics.from_normalised(*slots[peer]))
            if segment["state"] >= 0:
                assert segment["state"] not in slots, "a slot written twice"
                slots[segment["state"]] = numerics.finish(partial)
                continue
            assert np.isnan(out[own]).all(), "an output written twice"
            out[own] = numerics.finish(partial)[0]
    for first, count, row, out_row in work.merged_rows.tolist():
        if count:
            places = [(slot, row) for slot in range(first, first + count)]
            if work.states is not None:
                places = work.states[first : first + count].tolist()
            stored = [tuple(part[at : at + 1] for part in slots[slot]) for slot, at in places]
            assert np.isnan(out[out_row]).all(), "an output written twice"
            out[out_row] = numerics.merge_normalised(stored)[0][0]
    return out


def _rows(work: worklist.WorkList, segment: dict[str, int]) -> tuple[Any, Any]:
    """Where a segment's rows are in the output, and the last token that each sees, from its columns."""
    rows, grid = np.arange(segment["rows"]), work.schedule.grid
    if work.listed_rows is not None:
        return tuple(work.listed_rows[segment["first_row"] + rows].T)
    token = (segment["first_row"] + rows) // (grid.workload.group_size if grid.packed else 1)
    own = worklist.output_rows(grid, np.full(len(rows), segment["tile"]), rows)
    return own, segment["context"] - grid.workload.query_len + token


def _folded(
    grid: TileGrid, segment: dict[str, int], last_token: Any, q: Any, k: Any, v: Any
) -> numerics.Partial:
    """The partial of a segment's rows, from the columns of the segment alone."""
    kv_head = segment["head"] if grid.packed else segment["head"] // grid.workload.group_size
    request, kept = segment["request"], slice(None)
    if grid.work is not None:  # the row of the page table is a tile's own
        item = int(grid.request[request])
        request, kept = int(grid.work.source[item]), grid.work.kept(item, kv_head)
    keys, values = k[request][kept, kv_head], v[request][kept, kv_head]
    first = segment["origin"] + segment["first_tile"] * grid.tile_tokens
    key = np.arange(first, first + segment["tiles"] * grid.tile_tokens)
    key = key[(key >= segment["kv_begin"]) & (key < segment["kv_end"])]
    mask = key <= last_token[:, None]
    if grid.workload.window is not None:
        mask &= key > last_token[:, None] - grid.workload.window
    if not len(key):
        return numerics.empty(len(q), v[0].shape[-1])
    return numerics.tile_attention(q, keys[key], values[key], mask, "float64")
