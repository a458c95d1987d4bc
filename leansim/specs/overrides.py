"""Devices and kernels with numbers changed, by the path of each in its file.

`num_sms`, `start.overhead_s`, `compute.mma_efficiency.sm_90`, `loops.pipelined.stages`,
`tiles.tile_tokens`, `tiles.3.threads`. What is changed in a kernel is so in every instance of it: a
mechanism's number lies over what a tile says, one of `tiles` without a position is that of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from leansim.errors import UnknownNameError
from leansim.files.strict_yaml import Document
from leansim.specs.base import SourcedSpec, numbers, sourced_anew
from leansim.specs.catalog import validate
from leansim.specs.kernel import Kernel, Tile
from leansim.specs.mechanisms import MECHANISMS

_Spec = TypeVar("_Spec", bound=SourcedSpec)
_OPTIONS = "partitioner.options"
_SOURCE = "assumed: overridden for this run"


def overridden(spec: _Spec, changes: Mapping[str, Any]) -> _Spec:
    """Return a device or kernel with numbers replaced; their source becomes the override.

    Raises `UnknownNameError` for a number that does not exist, `ConfigError` for one that cannot be.
    """
    if not changes:
        return spec
    data = spec.model_dump(mode="python", exclude_unset=True)
    kind = type(spec).__name__.lower()
    for path, text in changes.items():
        way, value = path.split("."), _number_of(text)
        known = sorted(type(spec).model_fields.keys() - SourcedSpec.unsourced())
        if way[0] not in known:
            hint = f"options of its partitioner are kernel.{_OPTIONS}.*" if kind == "kernel" else ""
            raise UnknownNameError(f"{kind} number", way[0], known, hint)
        if way[0] == "partitioner" and way[1:2] not in ([], ["name"], ["options"]):
            hint = f"an option is kernel.{_OPTIONS}.{way[-1]}"
            raise UnknownNameError(f"part of a {kind}'s partitioner", way[1], ("name", "options"), hint)
        if isinstance(spec, Kernel):
            places = _put_in_kernel(data, spec, way, value)
        else:
            _put(data, way, value, kind)
            places = {path}
        for place in places if way[0] not in type(spec).unsourced() else ():
            data["sources"] = sourced_anew(data["sources"], place, _SOURCE)
        if not numbers(value):
            data["sources"] = _of_numbers(data)
    return validate(type(spec), Document(f"{kind} override", data, {}))


def _number_of(text: Any) -> Any:
    """A number that was given as text; other values pass through."""
    with contextlib.suppress(ValueError):
        return float(text) if isinstance(text, str) else text
    return text


def _of_numbers(data: Mapping[str, Any]) -> dict[str, str]:
    """The sources that still have numbers: a choice, or nothing, may have taken the place of some."""
    paths = [path for path, _ in numbers(data)]
    known = {".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}
    return {key: text for key, text in data["sources"].items() if key in known}


def _put(data: MutableMapping[str, Any], way: Sequence[str], value: Any, kind: str) -> None:
    """Set a value; mappings on the way are made where the file says nothing yet."""
    *before, last = way
    for depth, part in enumerate(before):
        inner = data.get(part, {})
        if not isinstance(inner, dict):
            name = ".".join(way[: depth + 1])
            raise UnknownNameError(f"part of {kind} number {name!r}", way[depth + 1], [])
        data[part] = dict(inner)
        data = data[part]
    data[last] = value


def _put_in_kernel(data: dict[str, Any], kernel: Kernel, way: list[str], value: Any) -> set[str]:
    """Set a value wherever an instance may have it from; the paths of its sources."""
    if way[0] == "tiles" and len(way) > 1:
        return _put_in_some_tiles(data, way[1:], value)
    places = _put_over_tiles(data, kernel, way, value)
    if places and not _describes(kernel, way[:-1]):
        return places
    if way[0] == "loops" and len(way) > 2 and way[1] not in kernel.loops:
        known = dict.fromkeys([*kernel.loops, *(kernel.loop(tile)[0] for tile in kernel.tiles)])
        raise UnknownNameError("tile loop of the kernel", way[1], known)
    _put(data, way, value, "kernel")
    return {*places, ".".join(way)}


def _describes(kernel: Kernel, way: Sequence[str]) -> bool:
    """Whether the kernel itself has what a number is of, such as a query read in parts."""
    part: Any = kernel
    for name in way:
        part = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
    return part is not None


def _put_in_some_tiles(data: dict[str, Any], way: list[str], value: Any) -> set[str]:
    """Set a number of one tile, by position, or of all."""
    tiles = [dict(tile) for tile in data["tiles"]]
    chosen = tiles
    if way[0].isdigit():
        if int(way[0]) >= len(tiles):
            raise UnknownNameError("tile of the kernel", way[0], map(str, range(len(tiles))))
        chosen, way = [tiles[int(way[0])]], way[1:]
    known = sorted(Tile.model_fields)
    if not way or way[0] not in known:
        raise UnknownNameError("number of a tile", ".".join(way), known)
    for tile in chosen:
        _put(tile, way, value, "kernel")
    data["tiles"] = tuple(tiles)
    return {".".join(["tiles", *way])}


def _put_over_tiles(data: dict[str, Any], kernel: Kernel, way: list[str], value: Any) -> set[str]:
    """Lay a mechanism's number over what tiles say of it."""
    places: set[str] = set()
    tiles = [dict(tile) for tile in data["tiles"]]
    of_loop = way[0] == "loops" and len(way) > 2
    if not of_loop and (way[0] not in MECHANISMS or len(way) < 2):
        return places
    mine = ["loop", *way[2:]] if of_loop else way
    only_here = of_loop and way[1] not in kernel.loops
    for tile, spec in zip(tiles, kernel.tiles, strict=True):
        if of_loop and kernel.loop(spec)[0] != way[1]:
            continue
        if only_here or mine[1] in getattr(spec, mine[0]):
            _put(tile, mine, value, "kernel")
            places.add(".".join(["tiles", *mine]))
    data["tiles"] = tuple(tiles)
    return places
