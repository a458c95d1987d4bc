"""Finds the cheapest of a list of whole numbers: all of them if they are few, else coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

EXHAUSTIVE = 64  # values up to which every one is tried
_NEAR = 16  # how far from the guess steps are fine: a sixteenth of it to sixteen times
_FINE, _COARSE = 1.05, 1.25  # ratios between neighbouring steps
_BASINS = 3  # low places that are looked into
_CLOSE = 6  # values between two known ones that are all tried

Cost = Callable[[int, float], float]


def cheapest(values: Sequence[int], cost: Cost, guess: int, exhaustive: int = EXHAUSTIVE) -> int:
    """The value of least cost, the smallest of equals; `values` rise.

    `cost(value, below)` may answer infinity for any value that does not cost less than `below`. Up to
    `exhaustive` values, all are tried. Of more, first those at steps of a fixed ratio, finest about the
    guess; then what lies between the three cheapest and their neighbours, again and again until the
    cheapest has both its neighbours tried. So the answer is exact where costs between two steps are no
    lower than beside the three lowest. The guess is tried before all others, so that it rules most out.
    """
    known: dict[int, float] = {}

    def look(indices: Sequence[int]) -> None:
        for i in indices:
            if i not in known:
                below = min(known.values(), default=math.inf)
                known[i] = cost(values[i], below)

    start = min(range(len(values)), key=lambda i: abs(math.log(values[i] / guess)))
    first = range(len(values)) if len(values) <= exhaustive else geometric(values, guess)
    look(sorted({start, *first}, key=lambda i: abs(i - start)))
    while fresh := _closer(known) if len(values) > exhaustive else []:
        look(fresh)
    return values[min(known, key=lambda i: (known[i], i))]


def geometric(values: Sequence[int], guess: int) -> list[int]:
    """Indices of values about a ratio apart, both ends among them; a small one near the guess."""
    chosen = [0]
    for i in range(1, len(values)):
        near = guess / _NEAR <= values[i] <= guess * _NEAR
        if values[i] >= (_FINE if near else _COARSE) * values[chosen[-1]] or i == len(values) - 1:
            chosen.append(i)
    return chosen


def _closer(known: dict[int, float]) -> list[int]:
    """Untried indices on both sides of the cheapest: all if they are few, else those half-way."""
    tried = sorted(known)
    fresh: list[int] = []
    for best in sorted(known, key=lambda i: (known[i], i))[:_BASINS]:
        place = tried.index(best)
        for low, high in ((place - 1, place), (place, place + 1)):
            if low < 0 or high >= len(tried):
                continue
            between = range(tried[low] + 1, tried[high])
            every = between if len(between) <= _CLOSE else [(tried[low] + tried[high]) // 2]
            fresh += [i for i in every if i not in fresh]
    return fresh
