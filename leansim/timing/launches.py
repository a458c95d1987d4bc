"""Launches whose CTAs have no numbers yet, and the program made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.longest import check_countable
from leansim.engine.program import PS_PER_S, Launch, Phase, Program, picoseconds
from leansim.specs.device import Device

KV, ON_CHIP, ROWS, FIRST, AT_ONCE, LAST, STORE = 0, 1, 2, 3, 4, 5, -1
NONE = -1
# Columns of phases and what each holds where nothing is put: as narrow as they can be, there are many.
_COLUMNS: dict[str, tuple[type[np.signedinteger[Any]], int]] = {
    "kind": (np.int8, 0),
    "latency_ps": (np.int64, 0),
    "bytes": (np.int64, 0),
    "flow": (np.int8, STORE),
    "wait_counter": (np.int32, NONE),
    "wait_target": (np.int32, 0),
    "signal_counter": (np.int32, NONE),
}
Columns = Mapping[str, IntArray]


@dataclass(frozen=True, eq=False)
class Unfilled:
    """A launch whose CTAs have no numbers yet: the borders of their phases, and what fills those."""

    name: str
    ctas_per_sm: int
    gap_ps: int
    border: IntArray
    fill: Callable[[Columns], None]


def program_of(planned: Sequence[Unfilled], device: Device, **numbers: Any) -> Program:
    """Fill the phases of launches that run one after the other, and check their times."""
    begun = accumulate((len(one.border) - 1 for one in planned), initial=0)
    launches = [
        Launch(one.name, first, last, one.ctas_per_sm, one.gap_ps if first else 0)
        for one, (first, last) in zip(planned, pairwise(begun), strict=True)
    ]
    offsets = [*accumulate((int(one.border[-1]) for one in planned), initial=0)]
    columns: dict[str, Any] = _blank(offsets[-1])
    for one, (first, last) in zip(planned, pairwise(offsets), strict=True):
        one.fill({name: column[first:last] for name, column in columns.items()})
    border = planned[0].border
    if len(planned) > 1:
        later = zip(planned[1:], offsets[1:], strict=False)
        border = np.concatenate([border, *(one.border[1:] + offset for one, offset in later)])
    program = Program(
        launches=tuple(launches),
        phase_of_cta=border,
        **columns,
        dispatch_interval_ps=picoseconds(device.cta_dispatch_interval_s),
        dram_bytes_per_ps=device.achievable_dram_bytes_per_s / PS_PER_S,
        l2_bytes_per_ps=device.l2_bandwidth_bytes_per_s / PS_PER_S,
        dram_saturation_exponent=device.dram_saturation_exponent,
        **numbers,
    )
    return check_countable(program)


def _blank(size: int) -> dict[str, IntArray]:
    """Columns for phases that do nothing yet."""
    return {
        name: np.full(size, blank, dtype) if blank else np.zeros(size, dtype)
        for name, (dtype, blank) in _COLUMNS.items()
    }


def waiting(name: str, seconds: float, device: Device) -> Program:
    """A launch of which no SM has work, but that the next waits for: one CTA, and one phase."""

    def fill(columns: Columns) -> None:
        columns["kind"][:] = Phase.TRAVEL
        columns["latency_ps"][:] = picoseconds(seconds)

    planned = Unfilled(name, 1, 0, np.array([0, 1]), fill)
    return program_of([planned], device, num_sms=device.num_sms, launch_ps=0, flows=())
