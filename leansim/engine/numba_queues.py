"""Compiled queues over plain arrays: of slots by when they are due, of transfers by when they end.

What `jit` compiles may not allocate, and so needs no reference counts (`_nrt=False`): counting them for
every array at every call took a third of the engine's time. Arrays are passed word by word, so all is
inlined. Whatever is an index is counted without sign, `NONE` being none: the compiled code then need not
ask at every place whether it counts from the end, which took a quarter. A plain 1 added to such a number
would make a float of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Index: TypeAlias = Any  # np.uint64
NONE: Index = np.uint64(2**64 - 1)
ZERO: Index = np.uint64(0)
ONE: Index = np.uint64(1)
_TWO: Index = np.uint64(2)
_CHILDREN: Index = np.uint64(4)


def jit(function: Function) -> Function:
    """Compile a function of numbers, arrays and named tuples of them."""
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    compiled: Any = numba.njit(**options)(function)
    return compiled  # type: ignore[no-any-return] # called like the function


class Queues(NamedTuple):
    """Slots in queues by a key, the least first. A slot is in one queue at a time.

    A queue is a heap with four children a node, and has `width` entries from `queue * width` on, of
    which `size` are in use. Slots that follow one another with the same key are one entry, a chain
    linked both ways by `after` and `before`: those that move in step cost little more than one. `place`
    is where in its heap the entry of the first of a chain is; `last` of a queue is the slot that joined
    it last, if it is still there.
    """

    key: Any  # per entry
    first: Any
    size: Any  # per queue
    last: Any
    key_of: Any  # per slot
    place: Any
    after: Any
    before: Any
    width: Any


@jit
def make_empty(queues: Queues) -> None:
    """Begin with nothing in any queue."""
    for queue in range(len(queues.size)):
        queues.size[queue] = ZERO
        queues.last[queue] = NONE


@jit
def _put(entry: Index, place: Index, key: Any, slot: Index, queues: Queues) -> None:
    queues.key[entry] = key
    queues.first[entry] = slot
    queues.place[slot] = place


@jit
def _rise(root: Index, place: Index, key: Any, slot: Index, queues: Queues) -> None:
    """Put an entry at a free place of the heap, or above it."""
    while place > ZERO:
        parent = (place - ONE) // _CHILDREN
        above = queues.key[root + parent]
        if above <= key:
            break
        _put(root + place, place, above, queues.first[root + parent], queues)
        place = parent
    _put(root + place, place, key, slot, queues)


@jit
def _sink(root: Index, place: Index, size: Index, key: Any, slot: Index, queues: Queues) -> None:
    """Put an entry at a free place of the heap, or below it."""
    while True:
        child = _CHILDREN * place + ONE
        if child >= size:
            break
        least, at = queues.key[root + child], child
        end = min(child + _CHILDREN, size)
        child += ONE
        while child < end:
            if queues.key[root + child] < least:
                least, at = queues.key[root + child], child
            child += ONE
        if least >= key:
            break
        _put(root + place, place, least, queues.first[root + at], queues)
        place = at
    _put(root + place, place, key, slot, queues)


@jit
def _drop(queue: Index, place: Index, queues: Queues) -> None:
    """Drop the entry at a place of a heap; the last one of the heap goes where it fits."""
    size = queues.size[queue] - ONE
    queues.size[queue] = size
    if place == size:
        return
    root = queue * queues.width
    key, slot = queues.key[root + size], queues.first[root + size]
    if place > ZERO and queues.key[root + (place - ONE) // _CHILDREN] > key:
        _rise(root, place, key, slot, queues)
    else:
        _sink(root, place, size, key, slot, queues)


@jit
def add(queue: Index, slot: Index, key: Any, queues: Queues) -> None:
    """Have a slot join a queue."""
    ahead = queues.last[queue]
    queues.key_of[slot] = key
    queues.after[slot] = NONE
    queues.last[queue] = slot
    if ahead != NONE and queues.key_of[ahead] == key:
        queues.after[ahead] = slot
        queues.before[slot] = ahead
        return
    queues.before[slot] = NONE
    size = queues.size[queue]
    queues.size[queue] = size + ONE
    _rise(queue * queues.width, size, key, slot, queues)


@jit
def remove(queue: Index, slot: Index, queues: Queues) -> None:
    """Have a slot leave its queue."""
    ahead, behind = queues.before[slot], queues.after[slot]
    if behind != NONE:
        queues.before[behind] = ahead
    elif queues.last[queue] == slot:
        queues.last[queue] = ahead
    if ahead != NONE:
        queues.after[ahead] = behind
    elif behind == NONE:
        _drop(queue, queues.place[slot], queues)
    else:
        place = queues.place[slot]
        queues.place[behind] = place
        queues.first[queue * queues.width + place] = behind


@jit
def take_first(queue: Index, queues: Queues, taken: Any, num_taken: Index) -> Index:
    """Take the slots with the least key out of a queue, at least one of them.

    They are appended to `taken`, which holds `num_taken`; returns how many it holds then.
    """
    slot = queues.first[queue * queues.width]
    while slot != NONE:
        if queues.last[queue] == slot:
            queues.last[queue] = NONE
        taken[num_taken] = slot
        num_taken += ONE
        slot = queues.after[slot]
    _drop(queue, ZERO, queues)
    return num_taken


@jit
def sort(values: Any, count: Index) -> None:
    """Sort the first `count` values in place (Shell's sort: they are mostly in order)."""
    gap = count // _TWO
    while gap > ZERO:
        at = gap
        while at < count:
            value = values[at]
            to = at
            while to >= gap and values[to - gap] > value:
                values[to] = values[to - gap]
                to -= gap
            values[to] = value
            at += ONE
        gap //= _TWO
