"""Which values a partitioner's options may have for a workload, as dimensions of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.errors import PartitionerError, unknown
from leansim.partitioners.registry import name_of, option_names
from leansim.points.point import Resolved
from leansim.schedule.tiling import TileGrid


@dataclass(frozen=True)
class Dimension:
    """An option and its values in order; numbers are searched in logarithms of their place."""

    name: str
    values: Sequence[Any]
    numeric: bool = True

    def place(self, at: IntArray) -> FloatArray:
        """Where values are, from 0 to 1."""
        last = len(self.values) - 1
        if not last:
            return np.zeros(at.shape)
        places: FloatArray = np.log1p(at) / math.log1p(last) if self.numeric else at / last
        return places

    def at(self, place: FloatArray) -> IntArray:
        """The values that are nearest to places."""
        last = len(self.values) - 1
        found = np.expm1(place * math.log1p(last)) if self.numeric else place * last
        return np.clip(np.rint(found), 0, last).astype(np.int64)


def dimensions(resolved: Resolved, options: Sequence[str] = ()) -> tuple[Dimension, ...]:
    """The options of a point's partitioner that are named, or all that are whole numbers.

    Raises `UnknownNameError` for a name, `PartitionerError` for an option that is neither whole number
    nor choice, and where there is none to tune.
    """
    cls = type(resolved.partitioner)
    names = option_names(cls)
    if wrong := [name for name in options if name not in names]:
        raise unknown(f"option of {name_of(cls)}", wrong, names)
    hints = get_type_hints(cls, include_extras=True)
    found = {name: _dimension(name, hints[name], resolved.grid) for name in options or names}
    if bare := [name for name in options if found[name] is None]:
        raise PartitionerError(f"{bare[0]}: found an option of other values; wanted numbers or choices")
    chosen = tuple(one for one in found.values() if one is not None and (options or one.numeric))
    if not chosen:
        raise PartitionerError(
            f"partitioner {name_of(cls)!r} has no option that is a whole number; wanted options to tune"
        )
    return chosen


def _dimension(name: str, hint: Any, grid: TileGrid) -> Dimension | None:
    """An option's values, None where they are neither whole numbers nor choices."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if _is_union(hint) else [hint]
    kind = kinds[0]
    if get_origin(kind) is Literal:
        return Dimension(name, get_args(kind), numeric=False)
    if kind is bool:
        return Dimension(name, (False, True), numeric=False)
    limits = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    if len(kinds) > 1 or (get_args(kind)[0] if limits else kind) is not int:
        return None
    least = max([1, *_bounds(limits, "ge")])
    return Dimension(name, _numbers(name, least, min([2**40, *_bounds(limits, "le")]), grid))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is not Annotated and NoneType in get_args(hint)


def _bounds(limits: Sequence[Any], which: str) -> list[int]:
    """What the annotations of an option say of its least or largest value."""
    parts = [part for limit in limits for part in getattr(limit, "metadata", [limit])]
    return [int(getattr(part, which)) for part in parts if hasattr(part, which)]


def _numbers(name: str, least: int, most: int, grid: TileGrid) -> range:
    """Numbers that differ in what they do: tokens in whole tiles, CTAs that fit, splits with a tile."""
    longest = max(int(grid.num_kv_tiles.max()), 1)
    if name.endswith("tokens"):
        step = grid.tile_tokens
        return range(step, max(step, min(most, longest * step)) + 1, step)
    if name == "ctas_per_sm":
        most = min(most, grid.ctas_per_sm)
    elif name == "num_ctas":
        most = min(most, 2 * grid.slots, grid.total_kv_tiles)
    else:
        most = min(most, longest)
    return range(least, max(least, most) + 1)
