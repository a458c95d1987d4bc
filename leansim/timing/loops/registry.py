"""Finds tile loops: frozen dataclasses that price a KV tile and say what the first one owes.

One is a module of this package, or an entry point of the group `leansim.loops` in another. Its fields
are its numbers in a kernel's file, its docstring says what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache, lru_cache

from leansim.errors import PairingError, UnknownNameError
from leansim.plugins import Plugins
from leansim.specs.instance import LoopNumbers
from leansim.timing.loops.tile import TileLoop

PLUGINS = Plugins("tile loop", "leansim.timing.loops", "leansim.loops", ("price", "fill_s"))


@cache
def loops() -> Mapping[str, type[TileLoop]]:
    """Every tile loop by name: those of this package, and those of entry points."""
    return PLUGINS.found()


def find(name: str) -> type[TileLoop]:
    """The loop of a name; the others are loaded only if need be. Raises `UnknownNameError`."""
    found = PLUGINS.own(name) or loops().get(name)
    if found is None:
        raise UnknownNameError(PLUGINS.kind, name, loops(), PLUGINS.hint(name))
    return found


@lru_cache(maxsize=512)
def make(loop: LoopNumbers, kernel: str) -> TileLoop:
    """Make the loop of an instance.

    Raises `UnknownNameError` for a loop or a number that does not exist, `PairingError` where one is
    missing: the kernel has none for the architecture.
    """
    cls, numbers = find(loop.name), dict(loop.numbers)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in numbers:
        if name not in fields:
            raise UnknownNameError(f"number of the tile loop {loop.name!r}", name, fields)
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in numbers]:
        raise PairingError(
            f"kernel {kernel!r}: the tile loop {loop.name!r} has no {', '.join(missing)} for this device"
        )
    return cls(**numbers)
