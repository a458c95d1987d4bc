"""Whole numbers as a partitioner gives them: 64-bit integers, or a `ScheduleError` that names them."""

from __future__ import annotations

from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import ScheduleError, suggestion

_MOST = 2**63 - 1


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a number as an `int`, at least `least`. Raises `ScheduleError` for anything else."""
    if type(value) is int and least <= value <= _MOST:
        return value
    numeric = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (numeric and least <= value <= _MOST and value == int(value)):
        raise ScheduleError(f"{name} is {value!r}, wanted a whole number of at least {least}")
    return int(value)


def whole_numbers(name: str, values: Any) -> IntArray:
    """Return a read-only copy of one number per place. Raises `ScheduleError` for anything else."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        array = values.copy()
    else:
        array = _converted(name, values)
    if array.ndim != 1:
        raise ScheduleError(f"{name} has {array.ndim} dimensions, wanted 1: a number per place")
    array.flags.writeable = False
    return array


def _converted(name: str, values: Any) -> IntArray:
    try:
        given = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        raise ScheduleError(f"{name} is no array, wanted whole numbers") from None
    if given.dtype.kind not in "iuf":
        raise ScheduleError(f"{name} is of {given.dtype}, wanted whole numbers")
    with np.errstate(invalid="ignore"):  # what does not fit in 64 bits comes out as another number
        array = given.astype(np.int64)
    if (wrong := np.not_equal(array, given)).any():
        raise ScheduleError(f"{name} holds {given[wrong].flat[0]}, wanted whole numbers of 64 bits")
    return array


def one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise `ScheduleError` for a name that is not one of `known`."""
    if not (isinstance(value, str) and value in known):
        hint = suggestion(value, known) if isinstance(value, str) else ""
        raise ScheduleError(f"{name} is {value!r}, wanted one of {', '.join(known)}{hint}")
