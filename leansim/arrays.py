"""Types of the arrays that travel through leansim: NumPy, of any shape."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
# A number, or one for each of several.
Floats = float | FloatArray
Ints = int | IntArray


def at_least(values: Floats, low: float) -> Floats:
    """The larger of each value and `low`: of a number without NumPy, which takes ten times as long."""
    return np.maximum(values, low) if isinstance(values, np.ndarray) else max(values, low)


def at_most(values: Floats, high: float) -> Floats:
    """The smaller of each value and `high`, as `at_least`."""
    return np.minimum(values, high) if isinstance(values, np.ndarray) else min(values, high)


def where(truth: bool | BoolArray, values: Ints, others: Ints) -> Ints:
    """Of each value and the other the first where that is the truth; of one truth without NumPy."""
    if isinstance(truth, np.ndarray):
        return np.where(truth, values, others)
    return values if truth else others
