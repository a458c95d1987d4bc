"""Compiled heaps over plain arrays: a binary heap of moments, and pairing heaps of transfers.

What `jit` compiles may not allocate, and so needs no reference counts (`_nrt=False`): counting them for
every array at every call took a third of the engine's time. Arrays are passed word by word, so all is
inlined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile a function of numbers, arrays and named tuples of them."""
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    compiled: Any = numba.njit(**options)(function)
    return compiled  # type: ignore[no-any-return] # called like the function


@jit
def push(times: Any, slots: Any, size: int, time: int, slot: int) -> int:
    """Add a slot due at a time to a binary heap of `size` entries; returns the new size."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if times[parent] <= time:
            break
        times[at], slots[at] = times[parent], slots[parent]
        at = parent
    times[at], slots[at] = time, slot
    return size + 1


@jit
def pop(times: Any, slots: Any, size: int) -> int:
    """Drop the first entry of a binary heap of `size` entries; returns the new size."""
    size -= 1
    time, slot = times[size], slots[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and times[child + 1] < times[child]:
            child += 1
        if times[child] >= time:
            break
        times[at], slots[at] = times[child], slots[child]
        at = child
    times[at], slots[at] = time, slot
    return size


class Nodes(NamedTuple):
    """Nodes of pairing heaps, one for each slot: what it is sorted by, and its links, -1 for none.

    `before` is the node to the left, or the parent of a leftmost node.
    """

    target: Any
    child: Any
    after: Any
    before: Any


@jit
def meld(a: int, b: int, nodes: Nodes) -> int:
    """Join two pairing heaps, -1 for an empty one; returns the root, the node with the least target."""
    if a < 0:
        return b
    if b < 0:
        return a
    if nodes.target[b] < nodes.target[a]:
        a, b = b, a
    first = nodes.child[a]
    nodes.after[b] = first
    if first >= 0:
        nodes.before[first] = b
    nodes.before[b] = a
    nodes.child[a] = b
    return a


@jit
def meld_list(at: int, nodes: Nodes) -> int:
    """Meld heaps in a list linked by `after`: in pairs left to right, then all right to left."""
    after = nodes.after
    paired = -1
    while at >= 0:
        first, second = at, after[at]
        at = after[second] if second >= 0 else -1
        after[first] = -1
        if second >= 0:
            after[second] = -1
            first = meld(first, second, nodes)
        after[first] = paired
        paired = first
    root = -1
    while paired >= 0:
        rest = after[paired]
        after[paired] = -1
        root = meld(root, paired, nodes)
        paired = rest
    if root >= 0:
        nodes.before[root] = after[root] = -1
    return root


@jit
def remove(node: int, root: int, nodes: Nodes) -> int:
    """Take a node out of the heap with this root; returns the new root."""
    child, after, before = nodes.child, nodes.after, nodes.before
    below = child[node]
    child[node] = -1
    orphan = meld_list(below, nodes)
    if node == root:
        return orphan
    left = before[node]
    if child[left] == node:
        child[left] = after[node]
    else:
        after[left] = after[node]
    if after[node] >= 0:
        before[after[node]] = left
    after[node] = before[node] = -1
    return meld(root, orphan, nodes)


@jit
def take_reached(
    root: int, served: float, residue: float, nodes: Nodes, taken: Any, num_taken: int
) -> tuple[int, int]:
    """Take every node out of a heap whose target is no more than `residue` above what is `served`.

    They are appended to `taken`, which holds `num_taken`; returns the new root and how many it holds.
    """
    child, after = nodes.child, nodes.after
    todo, left = root, -1
    after[todo] = -1
    while todo >= 0:  # a list, linked by `after`, of heaps still to look into
        node = todo
        todo = after[node]
        if nodes.target[node] - served > residue:
            after[node] = left
            left = node
            continue
        after[node] = nodes.before[node] = -1
        below = child[node]
        child[node] = -1
        while below >= 0:
            following = after[below]
            after[below] = todo
            todo = below
            below = following
        taken[num_taken] = node
        num_taken += 1
    return meld_list(left, nodes), num_taken


@jit
def sort(values: Any, count: int) -> None:
    """Sort the first `count` values in place (Shell's sort: they are mostly in order)."""
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            value = values[i]
            j = i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 2
