"""Executes a schedule with the Triton kernels, and checks what comes out.

The object executed is the one that is simulated. Every run is checked against float64 attention on
fresh random inputs, outputs and partials poisoned first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from leansim.errors import GpuError, PairingError, ScheduleError
from leansim.gpu.gathering import paged
from leansim.gpu.inputs import Inputs
from leansim.gpu.launching import Meta, attention_meta, combine_meta
from leansim.gpu.toolkit import Toolkit
from leansim.gpu.worklist import one_at_a_time, work_list
from leansim.schedule.schedule import Schedule
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.occupancy import occupancy

# Largest ||out - reference|| / ||reference|| of a row. Rounding P and O to the format gives half of it
# (numerics.replay); one KV tile too few among N gives about N^-0.5, more for N up to tens of thousands.
TOLERANCE = {"bfloat16": 5e-3, "float16": 1e-3}
# Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds.
_INTERPRETED_TOLERANCE = {"bfloat16": 1e-2, "float16": 1e-3}
LOG2_E = 1.4426950408889634
# Looks at a flag before a waiting CTA gives up: seconds on a GPU; nobody else runs when interpreted.
_MOST_LOOKS, _MOST_LOOKS_INTERPRETED = 2**22, 2


@dataclass(frozen=True)
class Resources:
    """What a CTA of the compiled attention kernel takes, and how many an SM then holds."""

    registers: int
    spills: int
    smem_bytes: int
    ctas_per_sm: int


class Execution:
    """A schedule on a device, ready to be launched any number of times."""

    def __init__(
        self,
        tools: Toolkit,
        schedule: Schedule,
        kernel: Kernel,
        device: Device,
        inputs: Inputs,
    ) -> None:
        """Allocate and compile. Raises a `LeansimError` for what the kernels cannot run."""
        if inputs.workload.latent_kv:
            raise PairingError(
                "the Triton kernels read K and V of their own; the workload's are latent (MLA)"
            )
        self.tools, self.schedule, self.kernel, self.device = tools, schedule, kernel, device
        self.where = tools.where
        self.work = one_at_a_time(work_list(schedule)) if tools.interpreted else work_list(schedule)
        self.inputs, self.paged = inputs, paged(inputs, schedule.grid)
        self.attention = attention_meta(
            schedule.grid,
            kernel,
            device,
            self.work.in_launch,
            tools.interpreted,
            self.paged.page_tokens,
        )
        self.combine = combine_meta(schedule.grid, kernel) if len(self.work.merged_rows) else None
        self._allocate()
        self.resources = None if tools.interpreted else self._compile()

    def _allocate(self) -> None:
        torch, load, grid = self.tools.torch, self.schedule.grid.asked, self.schedule.grid
        block_m = self.attention.constants["BLOCK_M"]

        def made(*shape: int, dtype: Any) -> Any:
            return torch.zeros(shape, dtype=dtype, device=self.where)

        rows = load.num_query_rows
        slots = max(1, self.work.num_slots)
        self.out = made(rows, load.value_dim, dtype=getattr(torch, load.q_dtype))
        self.partial_o = made(slots, block_m, load.value_dim, dtype=torch.float32)
        self.partial_lse = made(slots, block_m, dtype=torch.float32)
        self.flags = made(grid.num_output_tiles, dtype=torch.int32)
        self.failed = made(1, dtype=torch.int32)
        self.lists = {name: self._on_device(getattr(self.work, name)) for name in _LISTS}

    def _on_device(self, array: Any) -> Any:
        return None if array is None else self.tools.torch.tensor(array, device=self.where)

    def poison(self) -> None:
        """NaN wherever the kernels are to write."""
        for tensor in (self.out, self.partial_o, self.partial_lse):
            tensor.fill_(float("nan"))

    def launch(self, buffer: int = 0) -> None:
        """Enqueue one call on a buffer's KV: the attention kernel and, where there is one, combine."""
        programs = (len(self.work.first),)
        kernels = self.tools.kernels
        kernels.attention[programs](*self._arguments(buffer), **_keywords(self.attention))
        if self.combine is not None:
            rows, states = self.lists["merged_rows"], self.lists["states"]
            kernels.combine[(len(rows),)](
                self.partial_o, self.partial_lse, self.out, rows, states, **_keywords(self.combine)
            )

    def _arguments(self, buffer: int) -> tuple[Any, ...]:
        given, load, pages = self.inputs, self.inputs.workload, self.paged
        looks = _MOST_LOOKS_INTERPRETED if self.tools.interpreted else _MOST_LOOKS
        return (
            given.q, pages.k, pages.v, self.out, pages.page_table[buffer],
            self.lists["first"], self.lists["last"], self.lists["segments"],
            self.partial_o, self.partial_lse, self.flags, self.failed,
            load.head_dim**-0.5 * LOG2_E, load.window or 0, load.query_len, load.num_q_heads,
            pages.page_table.shape[2], looks, *pages.k.stride()[:3], *pages.v.stride()[:3],
            self.lists["listed_rows"],
        )  # fmt: skip

    # -- before the first launch -------------------------------------------------------------------

    def _compile(self) -> Resources:
        """Compile without launching, and refuse a schedule whose CTAs could wait for ever."""
        made = self.tools.kernels.attention.warmup(
            *self._arguments(0), grid=(len(self.work.first),), **_keywords(self.attention)
        )
        made._init_handles()
        threads = self.attention.num_warps * 32
        resident = occupancy(self.device, threads, made.n_regs, made.metadata.shared)
        found = Resources(made.n_regs, made.n_spills, made.metadata.shared, resident.ctas_per_sm)
        check_residency(self.schedule, found.ctas_per_sm)
        return found

    # -- after a launch ----------------------------------------------------------------------------

    def check(self, buffer: int = 0) -> float:
        """Largest relative error of a row of the output just computed from a buffer's KV.

        Raises `GpuError` where CTAs waited in vain, or the output is not attention.
        """
        self.synchronize()
        if gave_up := int(self.failed.item()):
            self.failed.zero_()
            self.flags.zero_()
            raise GpuError(
                f"a CTA waited in vain for the peers of output tile {gave_up - 1}: the schedule's CTAs "
                "were not resident together; is the GPU shared with other processes?"
            )
        return checked(self.tools, self.inputs, self.out, buffer)

    def columns(self) -> dict[str, Any]:
        """What compiled, as columns of a measurement; nothing of it where kernels are interpreted."""
        if self.resources is None:
            return {}
        return {
            "registers": self.resources.registers,
            "spills": self.resources.spills,
            "smem_bytes": self.resources.smem_bytes,
            "resident_ctas_per_sm": self.resources.ctas_per_sm,
        }

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.tools.interpreted:
            self.tools.torch.cuda.synchronize()


_LISTS = ("first", "last", "segments", "merged_rows", "listed_rows", "states")


def _keywords(meta: Meta) -> dict[str, Any]:
    return {**meta.constants, **meta.options}


def check_residency(schedule: Schedule, ctas_per_sm: int) -> None:
    """Refuse a schedule that cannot finish with so many CTAs per SM. Raises `GpuError`.

    A `Schedule` has shown that it finishes on the slots of its grid; the compiled kernel may give
    fewer. CTAs are taken to be placed in order, as the hardware does.
    """
    if ctas_per_sm == 0:
        raise GpuError("the compiled attention kernel does not fit on an SM of this device")
    try:
        replace(schedule, grid=schedule.grid.with_slots(schedule.grid.num_sms, ctas_per_sm))
    except ScheduleError as error:
        raise GpuError(
            f"found room for {ctas_per_sm} CTAs of the compiled kernel on an SM; wanted the "
            f"{schedule.grid.ctas_per_sm} that the schedule rests on: {error}"
        ) from None


def checked(tools: Toolkit, inputs: Inputs, out: Any, buffer: int, rounding: float = 1.0) -> float:
    """Largest relative error of a row of an output `[rows, value_dim]`, against float64 attention.

    Raises `GpuError` where it is more than `rounding` times what rounding explains in leansim's kernels.
    """
    error = row_error(tools.torch, out, inputs.expected(buffer))
    tolerance = _INTERPRETED_TOLERANCE if tools.interpreted else TOLERANCE
    most = tolerance[inputs.workload.q_dtype] * rounding
    if not error <= most:
        found = "rows that were never written" if math.isnan(error) else f"a row {error:.2%} off"
        raise GpuError(f"the kernels' output is not attention: found {found}; wanted {most:.2%}")
    return error


def row_error(torch: Any, out: Any, expected: Any) -> float:
    """Largest ||out - expected|| / ||expected|| of a row; NaN where a row has one.

    Rows that attend to nothing, all zero, are left out: nobody need write them.
    """
    size = torch.linalg.vector_norm(expected, dim=1)
    difference = torch.linalg.vector_norm(out.double() - expected, dim=1)
    return float((difference / size)[size > 0].max())
