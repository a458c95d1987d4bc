"""Which of its compiled instances a kernel's host code takes for a call, and what fits on an SM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from leansim.errors import PairingError
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel, Only, Tile
from leansim.specs.occupancy import Occupancy, occupancy
from leansim.specs.workload import Workload

_T = TypeVar("_T")


def tile_for(workload: Workload, kernel: Kernel, device: Device, split: bool = True) -> Tile:
    """Pick the compiled instance for a call: the first in the file of the narrowest that serve.

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
    usable = [
        tile
        for tile in kernel.tiles
        if tile.only.split in (None, split) and _is_meant_for(tile.only, workload, kernel, device)
    ]
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
    return min(fitting, key=lambda tile: tile.head_dim)


def tile_occupancy(tile: Tile, workload: Workload, kernel: Kernel, device: Device) -> Occupancy:
    """CTAs of a tile per SM. Raises `PairingError` where it is not built for the architecture."""
    registers = per_arch(tile.registers_per_thread, kernel, device)
    return occupancy(device, tile.threads, registers, smem_bytes(kernel, tile, workload))


def does_not_fit(
    tile: Tile, fit: Occupancy, workload: Workload, kernel: Kernel, device: Device
) -> PairingError:
    """Return the error of a tile that no SM of the device holds, saying what it lacks."""
    registers = per_arch(tile.registers_per_thread, kernel, device)
    return PairingError(
        f"kernel {kernel.name!r} does not fit on {device.name!r} at head_dim "
        f"{workload.head_dim} for lack of {fit.limiter}: a CTA needs "
        f"{smem_bytes(kernel, tile, workload):,} B shared memory and "
        f"{tile.threads} threads of {registers} registers; an SM gives a CTA at most "
        f"{device.smem_bytes_per_cta_max:,} B, and holds {device.max_threads_per_sm:,} threads and "
        f"{device.registers_per_sm:,} registers"
    )


def _is_meant_for(only: Only, workload: Workload, kernel: Kernel, device: Device) -> bool:
    """Whether the kernel's host code would take an instance for this call."""
    group = workload.group_size if is_packed(kernel, workload) else 1
    return (
        (only.archs is None or device.arch in only.archs)
        and (only.kv_dtypes is None or workload.kv_dtype in only.kv_dtypes)
        and (only.window is None or only.window == workload.is_local)
        and (only.max_query_len is None or workload.query_len <= only.max_query_len)
        and (only.max_rows is None or workload.query_len * group <= only.max_rows)
        and (only.max_context_len is None or workload.call_context_len <= only.max_context_len)
        and (only.groups is None or workload.group_size in only.groups)
    )


def per_arch(table: Mapping[str, _T], kernel: Kernel, device: Device) -> _T:
    """Look up a kernel's per-architecture number; `PairingError` where the kernel is not built."""
    if device.arch not in table:
        raise not_built(kernel, device, table)
    return table[device.arch]


def not_built(kernel: Kernel, device: Device, table: Mapping[str, Any]) -> PairingError:
    """Return the error of a number that a kernel has for other architectures only."""
    return PairingError(
        f"kernel {kernel.name!r} is not built for {device.name!r} ({device.arch}); "
        f"it is built for {', '.join(table)}"
    )


def smem_bytes(kernel: Kernel, tile: Tile, workload: Workload) -> int:
    """Shared memory of one CTA: the Q tile and the loop's stages of K and V (FA2 kernel_traits.h).

    Of a latent cache there are K tiles alone. A tile that says what it takes is believed.
    """
    if tile.smem_bytes is not None:
        return tile.smem_bytes
    q = tile.tile_rows * tile.head_dim * DTYPE_BYTES[workload.q_dtype]
    tiles = kernel.stages(tile) * (1 if kernel.latent_kv else 2)
    kv = tile.tile_tokens * tile.head_dim * DTYPE_BYTES[workload.kv_dtype]
    return q + tiles * kv


def is_packed(kernel: Kernel, workload: Workload) -> bool:
    """Whether the query heads of a group share a tile, so KV is read once (FA2's head swap)."""
    if kernel.pack_gqa == "always":
        return True
    if kernel.pack_gqa == "never":
        return workload.group_size == 1
    plain = workload.query_len == 1 and workload.window is None and workload.head_dim % 8 == 0
    return plain or workload.group_size == 1
