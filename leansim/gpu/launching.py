"""Which instance of the kernels a grid takes: what Triton compiles them with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leansim.errors import PairingError
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.tile_choice import per_arch, tile_for

# Triton's matrix instructions take no narrower tile.
_LEAST = 16


@dataclass(frozen=True)
class Meta:
    """Compile-time arguments of a kernel by name, and how many warps and stages."""

    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    most_registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What Triton is told beside: multiply-adds are fused, in all of its versions."""
        warps, stages = self.num_warps, self.num_stages
        limit = {} if self.most_registers is None else {"maxnreg": self.most_registers}
        return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True, **limit}


def power_of_two(size: int, least: int = _LEAST) -> int:
    """The next power of two, at least `least`: the shapes that Triton has."""
    return max(least, 1 << (size - 1).bit_length())


def attention_meta(
    grid: TileGrid,
    kernel: Kernel,
    device: Device,
    in_launch: bool,
    interpreted: bool = False,
    page_tokens: int | None = None,
) -> Meta:
    """The attention kernel for a grid: its tile, shape and paging, in pages of the call or other ones.

    With its loop's stages of K and V tiles in shared memory, Triton overlaps one stage more. The
    assembler is held to the kernel file's registers, so that as many CTAs are resident as the schedule
    counts on.
    """
    load = grid.workload
    tile = tile_for(grid.asked, kernel, device)
    group = load.group_size
    constants = {
        "HEAD_DIM": load.head_dim,
        "VALUE_DIM": load.value_dim,
        "BLOCK_D": power_of_two(load.head_dim),
        "BLOCK_V": power_of_two(load.value_dim),
        "BLOCK_M": power_of_two(grid.tile_rows),
        "BLOCK_N": power_of_two(grid.tile_tokens),
        "TILE_TOKENS": grid.tile_tokens,
        "PAGE_TOKENS": page_tokens or load.page_tokens,
        "GROUP": group if grid.packed else 1,
        "HEADS_PER_KV": 1 if grid.packed else group,
        "WINDOWED": load.window is not None,
        "SHIFTED": grid.shifted,
        "BACKWARD": grid.tile_order == "backward",
        "IN_LAUNCH": in_launch,
        "WIDEN": interpreted,
    }
    registers = per_arch(tile.registers_per_thread, kernel, device)
    return Meta(constants, tile.threads // 32, kernel.stages(tile) + 1, registers)


def combine_meta(grid: TileGrid, kernel: Kernel) -> Meta:
    """The combine kernel for a grid: a warp for each query row.

    Raises `PairingError` for a kernel without one.
    """
    if kernel.combine is None:
        raise PairingError(f"kernel {kernel.name!r} has no combine kernel, and the schedule needs one")
    constants = {
        "VALUE_DIM": grid.workload.value_dim,
        "BLOCK_V": power_of_two(grid.workload.value_dim),
        "BLOCK_M": power_of_two(grid.tile_rows),
        "BLOCK_S": power_of_two(kernel.combine.splits_in_flight, least=1),
    }
    return Meta(constants, kernel.combine.threads // 32, 1)
