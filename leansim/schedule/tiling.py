"""Cuts a workload into output tiles and KV tiles as a kernel on a device would.

The result, a `TileGrid`, is all a partitioner sees. Nothing is timed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import PairingError, suggestion
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.kernel import PLAIN, Kernel, Only, TileVariant, Traits
from leansim.specs.occupancy import Occupancy, occupancy
from leansim.specs.workload import Workload

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Output tiles and their KV tiles.

    Output tile `t` is (request, head, row block), row block fastest, request slowest. `heads` are
    KV heads when the group's query heads are packed into the rows of a tile, else query heads. A
    KV tile is `tile_tokens` long; the first and last of an output tile may be partly masked.
    Where tiles are `shifted`, the first begins with the first token that a window leaves visible.
    `ctas_per_sm` is how many CTAs of the kernel fit on an SM of the device, `num_sms` its SMs;
    `traits` are those of the compiled instance.
    """

    workload: Workload
    tile_rows: int
    tile_tokens: int
    num_sms: int
    ctas_per_sm: int
    packed: bool = True
    tile_order: Literal["backward", "forward"] = "backward"
    num_xcds: int = 1
    traits: Traits = PLAIN
    shifted: bool = False

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
        """Heads the grid counts."""
        return self.workload.num_kv_heads if self.packed else self.workload.num_q_heads

    @cached_property
    def rows_per_head(self) -> int:
        """Query rows of one request and one counted head."""
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
        return self._of_tiles(self.rows_of_block)

    def _of_tiles(self, of_block: IntArray) -> IntArray:
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
        return self._of_tiles(self.kv_span[1])

    @cached_property
    def kv_begin(self) -> IntArray:
        """First token that any row of the output tile attends to."""
        return self._of_tiles(self.kv_span[0])

    @cached_property
    def tiling_begin(self) -> IntArray:
        """Token that the KV tiles of each output tile count from."""
        return self.kv_begin if self.shifted else np.zeros_like(self.kv_begin)

    @cached_property
    def first_kv_tile(self) -> IntArray:
        """Index of the first KV tile of each output tile from `tiling_begin`; segments count from it."""
        return self._of_tiles(self._tiles_seen[0])

    @cached_property
    def num_kv_tiles(self) -> IntArray:
        """KV tiles of each output tile."""
        return self._of_tiles(self._tiles_seen[1])

    @cached_property
    def total_tokens(self) -> int:
        """KV tokens that all output tiles attend to."""
        begin, end = self.kv_span
        return int((end - begin).sum()) * self.heads

    @cached_property
    def total_kv_tiles(self) -> int:
        """KV tiles of all output tiles."""
        return int(self._tiles_seen[1].sum()) * self.heads

    @cached_property
    def loaded_share(self) -> float:
        """Share of the tokens of all KV tiles that are loaded, the rest being masked."""
        return self.loaded_tokens / (self.total_kv_tiles * self.tile_tokens)

    @cached_property
    def loaded_tokens(self) -> int:
        """KV tokens that all output tiles load: what they attend to, or the pages that it lies on."""
        if not self.traits.whole_pages:
            return self.total_tokens
        unit = min(self.workload.page_tokens, self.tile_tokens)
        begin, end = self.kv_span
        return int((-(-end // unit) - begin // unit).sum()) * unit * self.heads

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


def tile_grid(workload: Workload, kernel: Kernel, device: Device) -> TileGrid:
    """Tile a workload. Raises `PairingError` where the kernel cannot run it on the device."""
    variant, fit = variant_and_occupancy(workload, kernel, device)
    if fit.ctas_per_sm == 0:
        need = smem_bytes(kernel, variant, workload)
        registers = per_arch(variant.registers_per_thread, kernel, device)
        raise PairingError(
            f"kernel {kernel.name!r} does not fit on {device.name!r} at head_dim "
            f"{workload.head_dim} for lack of {fit.limiter}: a CTA needs {need:,} B shared memory and "
            f"{variant.threads} threads of {registers} registers; an SM gives a CTA at most "
            f"{device.smem_bytes_per_cta_max:,} B, and holds {device.max_threads_per_sm:,} threads and "
            f"{device.registers_per_sm:,} registers"
        )
    return TileGrid(
        workload=workload,
        tile_rows=variant.tile_rows,
        tile_tokens=variant.tile_tokens,
        num_sms=device.num_sms,
        ctas_per_sm=fit.ctas_per_sm,
        packed=is_packed(kernel, workload),
        tile_order=kernel.tile_order,
        num_xcds=device.num_xcds,
        traits=variant,
        shifted=kernel.window_tiles == "shifted",
    )


def variant_and_occupancy(
    workload: Workload, kernel: Kernel, device: Device
) -> tuple[TileVariant, Occupancy]:
    """Pick the compiled variant for the workload's head dim and compute its CTAs per SM.

    Raises `PairingError` for a head dim, dtype, cache or architecture the kernel is not built for.
    """
    if workload.latent_kv != kernel.latent_kv:
        reads, found = "K and V of their own", "has a latent KV cache (MLA)"
        if kernel.latent_kv:
            reads, found = "a latent KV cache (MLA)", "has K and V of their own: wanted latent_kv"
        raise PairingError(f"kernel {kernel.name!r} reads {reads}; the workload {found}")
    for name, dtype, allowed in (
        ("q_dtype", workload.q_dtype, kernel.q_dtypes),
        ("kv_dtype", workload.kv_dtype, kernel.kv_dtypes),
    ):
        if dtype not in allowed:
            raise PairingError(
                f"kernel {kernel.name!r} does not take {name} {dtype}; it takes {', '.join(allowed)}"
            )
    width = max(workload.head_dim, workload.value_dim)
    usable = [tile for tile in kernel.tiles if _is_meant_for(tile.only, workload, kernel, device)]
    if not usable:
        raise PairingError(
            f"kernel {kernel.name!r} has no instance for this call on {device.name!r}: "
            f"{workload.group_size} query heads per KV head, {workload.query_len} new tokens, "
            f"{workload.kv_dtype} KV, {'a' if workload.window else 'no'} sliding window"
        )
    fitting = [tile for tile in usable if tile.head_dim >= width]
    if not fitting:
        largest = max(tile.head_dim for tile in usable)
        raise PairingError(
            f"kernel {kernel.name!r} has no tile for head_dim {width}; its largest is {largest}"
        )
    variant = min(fitting, key=lambda tile: tile.head_dim)  # the first in the file of the narrowest
    registers = per_arch(variant.registers_per_thread, kernel, device)
    smem = smem_bytes(kernel, variant, workload)
    return variant, occupancy(device, variant.threads, registers, smem)


def _is_meant_for(only: Only, workload: Workload, kernel: Kernel, device: Device) -> bool:
    """Whether the kernel's host code would take an instance for this call."""
    group = workload.group_size if is_packed(kernel, workload) else 1
    return (
        (only.archs is None or device.arch in only.archs)
        and (only.kv_dtypes is None or workload.kv_dtype in only.kv_dtypes)
        and (only.window is None or only.window == is_local(workload))
        and (only.max_query_len is None or workload.query_len <= only.max_query_len)
        and (only.max_rows is None or workload.query_len * group <= only.max_rows)
        and (only.max_context_len is None or workload.call_context_len <= only.max_context_len)
        and (only.groups is None or workload.group_size in only.groups)
    )


def is_local(workload: Workload) -> bool:
    """Whether a sliding window hides anything of the longest context of the call.

    FlashAttention drops a window that does not (flash-attention hopper/flash_api.cpp, mha_fwd).
    """
    return workload.window is not None and workload.window < workload.call_context_len


def per_arch(table: Mapping[str, _T], kernel: Kernel, device: Device) -> _T:
    """Look up a kernel's per-architecture number; `PairingError` where the kernel is not built."""
    if device.arch not in table:
        hint = suggestion(device.arch, table)
        raise PairingError(
            f"kernel {kernel.name!r} is not built for {device.name!r} ({device.arch}); "
            f"it is built for {', '.join(table)}{hint}"
        )
    return table[device.arch]


def smem_bytes(kernel: Kernel, variant: TileVariant, workload: Workload) -> int:
    """Shared memory of one CTA: the Q tile and `kv_stages` K and V tiles (FA2 kernel_traits.h).

    Of a latent cache there are K tiles alone. A variant that says what it takes is believed.
    """
    if variant.smem_bytes is not None:
        return variant.smem_bytes
    q = variant.tile_rows * variant.head_dim * DTYPE_BYTES[workload.q_dtype]
    tiles = (variant.kv_stages or kernel.kv_stages) * (1 if kernel.latent_kv else 2)
    kv = variant.tile_tokens * variant.head_dim * DTYPE_BYTES[workload.kv_dtype]
    return q + tiles * kv


def is_packed(kernel: Kernel, workload: Workload) -> bool:
    """Whether the query heads of a group share a tile, so KV is read once (FA2's head swap)."""
    if kernel.pack_gqa == "always":
        return True
    if kernel.pack_gqa == "never":
        return workload.group_size == 1
    plain = workload.query_len == 1 and workload.window is None and workload.head_dim % 8 == 0
    return plain or workload.group_size == 1
