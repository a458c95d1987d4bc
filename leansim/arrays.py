"""Types of the arrays that travel through leansim: NumPy, of any shape. And how to work one out once."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")

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


if TYPE_CHECKING or sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property[_T]):  # noqa: N801 - as the one it stands for
        """As in Python 3.12: without a lock, which took a twentieth of the time of a prediction."""

        def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
            """Work the attribute out, and have it stand in the instance's dictionary from then on."""
            if instance is None:
                return self
            value = instance.__dict__[self.attrname] = self.func(instance)
            return value
