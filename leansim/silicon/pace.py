"""What time per KV tile against CTAs on an SM says of an instance: its chain, its SM and its memory.

The same formulas as the model's: a tile takes `chain_s` alone, its CTAs queue for what keeps the SM busy
for `busy_s` (`timing.prices.queueing_s`), and no tile comes faster than memory brings its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leansim.arrays import FloatArray
from leansim.errors import StoreError
from leansim.timing.prices import queueing_s

_ROUNDS, _STEPS = 24, 9


@dataclass(frozen=True)
class PacePoint:
    """Time per KV tile of each of `ctas_per_sm` CTAs on each of `sms` SMs, s.

    With `from_dram` every CTA reads KV of its own; else all read the same, which L2 has.
    """

    ctas_per_sm: int
    sms: int
    tile_bytes: int
    from_dram: bool
    tile_s: float


@dataclass(frozen=True)
class Pace:
    """What points come to: see the module. `bytes_per_s` is None where no point reads DRAM.

    `error` is the mean relative error of the points under these three.
    """

    chain_s: float
    busy_s: float
    bytes_per_s: float | None
    error: float


def tile_s(point: PacePoint, chain_s: float, busy_s: float, bytes_per_s: float | None) -> float:
    """Time per tile of a point under given numbers, s."""
    waits = queueing_s(chain_s, (busy_s,), point.ctas_per_sm)
    found = chain_s + float(waits[-1])
    if point.from_dram and bytes_per_s is not None:
        found = max(found, point.ctas_per_sm * point.sms * point.tile_bytes / bytes_per_s)
    return found


def fit_pace(points: Sequence[PacePoint]) -> Pace:
    """The numbers under which the points' relative errors are least in squares.

    A number that no point tells apart is at its bound: `busy_s` 0 where no CTAs share an SM. Raises
    `StoreError` where no point has an SM to itself: nothing then says what a chain is.
    """
    if not any(point.ctas_per_sm == 1 for point in points):
        raise StoreError("pace: found no point of one CTA on an SM; wanted one to see its chain")
    reads = any(point.from_dram for point in points)
    alone = min(point.tile_s for point in points if point.ctas_per_sm == 1)
    fastest = max(p.ctas_per_sm * p.sms * p.tile_bytes / p.tile_s for p in points)
    numbers = np.array([alone, alone / 2.0, fastest])
    width = np.array([2.0, 4.0, 4.0])  # factors that a number may still change by
    for _ in range(_ROUNDS):
        for at in range(3 if reads else 2):
            factors = np.geomspace(1.0 / width[at], width[at], _STEPS)
            tried = np.repeat(numbers[None], _STEPS, axis=0)
            tried[:, at] *= factors
            tried[:, 1] = np.minimum(tried[:, 1], tried[:, 0])
            numbers = tried[int(np.argmin([_squares(points, one, reads) for one in tried]))]
        width = 1.0 + (width - 1.0) * 0.7
    if _squares(points, np.array([numbers[0], 0.0, numbers[2]]), reads) <= _squares(
        points, numbers, reads
    ):
        numbers[1] = 0.0
    errors = np.abs(_errors(points, numbers, reads))
    found = float(numbers[2]) if reads else None
    return Pace(float(numbers[0]), float(numbers[1]), found, float(errors.mean()))


def _errors(points: Sequence[PacePoint], numbers: FloatArray, reads: bool) -> FloatArray:
    chain, busy, memory = map(float, numbers)
    found = [tile_s(point, chain, busy, memory if reads else None) for point in points]
    errors: FloatArray = np.array(found) / np.array([point.tile_s for point in points]) - 1.0
    return errors


def _squares(points: Sequence[PacePoint], numbers: FloatArray, reads: bool) -> float:
    return float(np.square(_errors(points, numbers, reads)).sum())
