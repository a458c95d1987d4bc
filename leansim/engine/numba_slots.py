"""Where each slot stands in the fast engine, and when each is due. One CTA runs on a slot at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

from leansim.engine.numba_queues import ONE, ZERO, Index, Queues, add, jit, take_first


class Slots(NamedTuple):
    """Where each slot stands, and lists of slots in a row."""

    phase: Any
    last: Any
    stage: Any
    next_waiter: Any  # behind a slot that waits on a counter
    due: Queues  # one queue, by moment
    run: Any  # a stack of those whose next step is due now; their order is of no consequence
    idle: Any
    n: Any  # how much of the lists is in use


# Places in `n`.
RUN, IDLE = range(2)


@jit
def run_due(now: int, slots: Slots) -> None:
    """Have the slots run that are due now."""
    due, n = slots.due, slots.n
    while due.size[0] and due.key[0] == now:
        n[RUN] = take_first(ZERO, due, slots.run, n[RUN])


@jit
def due_at(time: int, slot: Index, slots: Slots) -> None:
    """Have a slot run at a time."""
    add(ZERO, slot, time, slots.due)


@jit
def run_now(slot: Index, slots: Slots) -> None:
    """Have a slot run."""
    slots.run[slots.n[RUN]] = slot
    slots.n[RUN] += ONE
