"""Cuts a workload into output tiles and KV tiles as an instance of a kernel does.

The result, a `TileGrid`, is all a partitioner sees. Nothing is timed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from leansim.arrays import BoolArray, FloatArray, IntArray
from leansim.errors import OutOfRangeError
from leansim.lazy import cached_property
from leansim.schedule.whole import one_of, whole_number
from leansim.schedule.work import Level, Work
from leansim.specs.device import Device
from leansim.specs.instance import Instance
from leansim.specs.workload import Workload

# Some gigabytes of a schedule and its program.
MOST_OUTPUT_TILES, MOST_SLOTS = 2**22, 2**20
_Scalar = TypeVar("_Scalar", bound=np.generic)
TileOrder = Literal["backward", "forward"]
_ORDERS: tuple[str, ...] = get_args(TileOrder)


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Output tiles and their KV tiles.

    Output tile `t` is (request, head, row block), row block fastest, request slowest. `heads` are
    KV heads when the group's query heads are packed into the rows of a tile, else query heads. A
    KV tile is `tile_tokens` long; the first and last of an output tile may be partly masked.
    Where tiles are `shifted`, the first begins with the first token that a window leaves visible.
    `ctas_per_sm` is how many CTAs of the `kernel` fit on an SM of the device, `num_sms` its SMs. A CTA
    takes `step_tokens` of KV at a time (0: what a partitioner says). Where `whole_pages` are loaded,
    what lies beyond the end of a context is traffic too.
    Where contexts are not dense the `workload` is the call that a kernel sees, each of whose requests is
    an item of the `work` to be done, with rows of its own. Raises `ScheduleError` for numbers that
    nothing can be cut into.
    """

    workload: Workload
    tile_rows: int
    tile_tokens: int
    num_sms: int
    ctas_per_sm: int
    packed: bool = True
    tile_order: TileOrder = "backward"
    num_xcds: int = 1
    shifted: bool = False
    whole_pages: bool = False
    step_tokens: int = 0
    kernel: str = ""
    work: Work | None = None

    def __post_init__(self) -> None:
        for name in ("tile_rows", "tile_tokens", "num_sms", "ctas_per_sm", "num_xcds"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        object.__setattr__(self, "step_tokens", whole_number("step_tokens", self.step_tokens, 0))
        one_of("tile_order", self.tile_order, _ORDERS)

    @property
    def asked(self) -> Workload:
        """The workload as it was asked for."""
        return self.workload if self.work is None else self.work.whole

    @property
    def context_lens(self) -> IntArray:
        """KV tokens of each request, `[batch]`."""
        return self.workload.lens

    @property
    def batch_size(self) -> int:
        """Requests."""
        return self.workload.batch_size

    @property
    def slots(self) -> int:
        """Places where a CTA can run at one time."""
        return self.num_sms * self.ctas_per_sm

    @property
    def heads(self) -> int:
        """Heads that have output tiles of their own."""
        return self.workload.num_kv_heads if self.packed else self.workload.num_q_heads

    @cached_property
    def rows_per_head(self) -> int:
        """Query rows of one request and one counted head, at most."""
        if self.work is not None:
            return int(self.work.rows.max())
        group = self.workload.group_size if self.packed else 1
        return self.workload.query_len * group

    @cached_property
    def row_blocks(self) -> int:
        """Row blocks of one request and one counted head."""
        return math.ceil(self.rows_per_head / self.tile_rows)

    @cached_property
    def num_output_tiles(self) -> int:
        """All output tiles."""
        return self.batch_size * self.heads * self.row_blocks

    @property
    def call_kv_tiles(self) -> int:
        """KV tiles of one output tile at the longest context the call is told about."""
        return math.ceil(self.workload.call_context_len / self.tile_tokens)

    @cached_property
    def request(self) -> IntArray:
        """Request of each output tile."""
        return np.repeat(np.arange(self.batch_size), self.heads * self.row_blocks)

    @cached_property
    def head(self) -> IntArray:
        """Counted head of each output tile."""
        return np.tile(np.repeat(np.arange(self.heads), self.row_blocks), self.batch_size)

    @cached_property
    def row_block(self) -> IntArray:
        """Row block of each output tile."""
        return np.tile(np.arange(self.row_blocks), self.batch_size * self.heads)

    @cached_property
    def rows_of_block(self) -> IntArray:
        """Valid query rows of each row block of a head."""
        left: IntArray = self.rows_per_head - np.arange(self.row_blocks) * self.tile_rows
        return np.minimum(left, self.tile_rows)

    @cached_property
    def rows(self) -> IntArray:
        """Valid query rows of each output tile."""
        if self.work is not None:
            return self.of_tiles(self.work.rows[:, None])
        return self.of_tiles(self.rows_of_block)

    @cached_property
    def is_shared(self) -> BoolArray | None:
        """Which output tiles have rows that others serve as well; None where none has."""
        if self.work is None or not self.work.is_shared.any():
            return None
        return self.of_tiles(self.work.is_shared[:, None])

    @property
    def level(self) -> Level:
        """Which part of the workload the output tiles are of."""
        return "all" if self.work is None else self.work.level

    @property
    def is_part(self) -> bool:
        """Whether other output tiles of the workload are in another launch."""
        return self.level != "all"

    def states_of_rows(self, states: IntArray) -> IntArray:
        """Partials that merge to each row of the output, where output tiles leave `states` each."""
        if self.work is None:
            return np.repeat(states, self.rows)
        return self.work.states_of_rows(states.reshape(self.batch_size, self.heads))

    def of_tiles(self, of_block: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Spread what row blocks have, `[row blocks]` or `[batch, row blocks]`, over the heads."""
        shape = (self.batch_size, self.heads, self.row_blocks)
        by_request = of_block[:, None] if of_block.ndim > 1 else of_block
        return np.broadcast_to(by_request, shape).reshape(-1)

    def query_index(self, row: IntArray) -> IntArray:
        """New token (0 .. query_len-1) that a row of a head belongs to; packed rows are token-major."""
        return row // self.workload.group_size if self.packed else row

    @cached_property
    def kv_span(self) -> tuple[IntArray, IntArray]:
        """First token that any row of a row block attends to, and the one after the last.

        `[batch, row blocks]` each; causal among the new tokens, and the same for every head.
        """
        lens, load = self.context_lens[:, None], self.workload
        first = last = np.zeros(self.row_blocks, dtype=np.int64)
        if load.query_len > 1:
            block = np.arange(self.row_blocks) * self.tile_rows
            first, last = self.query_index(block), self.query_index(block + self.rows_of_block - 1)
        end: IntArray = lens - (load.query_len - 1 - last)
        if load.window is None:
            return np.zeros_like(end), end
        return np.maximum(0, lens - load.query_len + first - load.window + 1), end

    @cached_property
    def _tiles_seen(self) -> tuple[IntArray, IntArray]:
        """The KV tile with the first of those tokens, and how many tiles hold them."""
        begin, end = self.kv_span
        origin = begin if self.shifted else np.zeros_like(begin)
        first: IntArray = (begin - origin) // self.tile_tokens
        return first, -(-(end - origin) // self.tile_tokens) - first

    @cached_property
    def kv_end(self) -> IntArray:
        """Token after the last that any row of the output tile attends to (causal among new)."""
        return self.of_tiles(self.kv_span[1])

    @cached_property
    def kv_begin(self) -> IntArray:
        """First token that any row of the output tile attends to."""
        return self.of_tiles(self.kv_span[0])

    @cached_property
    def tiling_begin(self) -> IntArray:
        """Token that the KV tiles of each output tile count from."""
        return self.kv_begin if self.shifted else np.zeros_like(self.kv_begin)

    @cached_property
    def first_kv_tile(self) -> IntArray:
        """Index of the first KV tile of each output tile from `tiling_begin`; segments count from it."""
        return self.of_tiles(self._tiles_seen[0])

    @cached_property
    def num_kv_tiles(self) -> IntArray:
        """KV tiles of each output tile."""
        return self.of_tiles(self._tiles_seen[1])

    @cached_property
    def total_tokens(self) -> int:
        """KV tokens that all output tiles attend to."""
        begin, end = self.kv_span
        return int((end - begin).sum()) * self.heads

    @cached_property
    def total_kv_tiles(self) -> int:
        """KV tiles of all output tiles."""
        return int(self._tiles_seen[1].sum()) * self.heads

    @property
    def is_full(self) -> bool:
        """Whether no token of any KV tile is masked."""
        return self.total_tokens == self.total_kv_tiles * self.tile_tokens

    @cached_property
    def num_edge_tiles(self) -> int:
        """KV tiles with masked scores: the last of each output tile, of a window the first as well."""
        edges = np.minimum(self._tiles_seen[1], 2 if self.workload.is_local else 1)
        return int(edges.sum()) * self.heads

    @cached_property
    def loaded_tokens(self) -> int:
        """KV tokens that all output tiles load: what they attend to, or the pages that it lies on."""
        if not self.whole_pages:
            return self.total_tokens
        return int(self._loaded_of_block.sum()) * self.heads

    @cached_property
    def _loaded_of_block(self) -> IntArray:
        """KV tokens that each output tile of a head loads, `[batch, row blocks]`."""
        begin, end = self._loaded_span
        loaded: IntArray = end - begin
        return loaded

    @cached_property
    def _loaded_span(self) -> tuple[IntArray, IntArray]:
        """`kv_span`, or the pages that it lies on where they are loaded whole."""
        begin, end = self.kv_span
        if not self.whole_pages:
            return begin, end
        unit = min(self.workload.page_tokens, self.tile_tokens)
        return begin // unit * unit, -(-end // unit) * unit

    @cached_property
    def loaded_of_first(self) -> FloatArray:
        """Share of the first KV tile of each output tile that is loaded, `[batch, row blocks]`."""
        return self._loaded_of(self._tiles_seen[0])

    @cached_property
    def loaded_of_last(self) -> FloatArray:
        """The same of the last; all of the tiles between them is."""
        first, count = self._tiles_seen
        return self._loaded_of(first + count - 1)

    def _loaded_of(self, kv_tile: IntArray) -> FloatArray:
        (begin, end), origin = self._loaded_span, self.kv_span[0] if self.shifted else 0
        low = origin + kv_tile * self.tile_tokens
        loaded = np.minimum(end, low + self.tile_tokens) - np.maximum(begin, low)
        return loaded / self.tile_tokens

    def tokens(self, output_tile: IntArray, start: IntArray, stop: IntArray) -> IntArray:
        """KV tokens loaded by segments `[start, stop)` of output tiles (no masked tail or head)."""
        first, begin = self.first_kv_tile[output_tile], self.tiling_begin[output_tile]
        low = np.maximum(begin + (first + start) * self.tile_tokens, self.kv_begin[output_tile])
        high = np.minimum(begin + (first + stop) * self.tile_tokens, self.kv_end[output_tile])
        loaded: IntArray = high - low
        return loaded

    def with_slots(self, num_sms: int, ctas_per_sm: int) -> TileGrid:
        """Return the same tiles on another number of slots (what-if and worked examples)."""
        return replace(self, num_sms=num_sms, ctas_per_sm=ctas_per_sm)


def tile_grid(workload: Workload, instance: Instance, device: Device, level: Level = "all") -> TileGrid:
    """Tile a call as an instance of a kernel does on a device; of shared prefixes maybe a `level`.

    Raises `OutOfRangeError` for more output tiles or slots than a process could hold.
    """
    shape, work = instance.shape, None
    if not workload.is_dense:
        work = Work.of(workload, shape.tile_rows, shape.packed, level)
        workload = work.call
    grid = TileGrid(
        workload=workload,
        tile_rows=shape.tile_rows,
        tile_tokens=shape.tile_tokens,
        num_sms=device.num_sms,
        ctas_per_sm=shape.ctas_per_sm,
        packed=shape.packed,
        tile_order=shape.tile_order,
        num_xcds=device.num_xcds,
        shifted=shape.shifted,
        whole_pages=shape.whole_pages,
        step_tokens=shape.step_tokens,
        kernel=shape.kernel,
        work=work,
    )
    if grid.num_output_tiles > MOST_OUTPUT_TILES:
        found = f"found {grid.num_output_tiles:,} output tiles"
        raise OutOfRangeError(f"workload: {found}; wanted at most {MOST_OUTPUT_TILES:,}")
    if grid.slots > MOST_SLOTS:
        raise OutOfRangeError(f"device: found {grid.slots:,} slots; wanted at most {MOST_SLOTS:,}")
    return grid
