"""Adds up, compiled, what the slots of a launch did: `Result.spent` of the fast engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.numba_queues import ONE, jit
from leansim.engine.program import Launch, Phase
from leansim.engine.result import Result


@jit
def _add_up(
    first: int, stop: int, border: Any, kind: Any, cta_begin: Any, reached: Any, end: Any, spent: Any
) -> None:
    waited = 0
    for cta in range(np.uint64(first), np.uint64(stop)):
        begin = cta_begin[cta]
        for at in range(np.uint64(border[cta]), np.uint64(border[cta + ONE])):
            if len(reached):  # programs without counters have no waits
                waited += reached[at] - begin
                begin = reached[at]
            spent[np.uint64(kind[at])] += end[at] - begin
            begin = end[at]
    spent[len(spent) - 1] = waited


def slot_time(result: Result, launch: Launch) -> IntArray:
    """Slot time of a launch by kind of phase, and last what was waited for others, ps, `[kinds + 1]`."""
    program = result.program
    spent = np.zeros(len(Phase) + 1, np.int64)
    _add_up(
        launch.first_cta, launch.last_cta, program.phase_of_cta, program.kind, result.cta_begin,
        result.reached, result.end, spent,
    )  # fmt: skip
    return spent
