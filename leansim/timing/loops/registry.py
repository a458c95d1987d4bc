"""Finds tile loops: in each module of this package the frozen dataclass that prices a tile.

A loop is named as its module; its fields are its numbers in a kernel's file.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

from leansim.errors import PairingError, UnknownNameError
from leansim.specs.instance import LoopNumbers
from leansim.timing.loops.tile import TileLoop


@cache
def loops() -> Mapping[str, type[TileLoop]]:
    """Every tile loop by name."""
    found: dict[str, type[TileLoop]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and _is_loop(value):
                found[info.name] = value
    return found


def _is_loop(value: type) -> bool:
    return dataclasses.is_dataclass(value) and "price" in vars(value)


@lru_cache(maxsize=512)
def make(loop: LoopNumbers, kernel: str) -> TileLoop:
    """Make the loop of an instance.

    Raises `UnknownNameError` for a loop or a number that does not exist, `PairingError` where one is
    missing: the kernel has none for the architecture.
    """
    known = loops()
    if loop.name not in known:
        raise UnknownNameError("tile loop", loop.name, known)
    cls, numbers = known[loop.name], dict(loop.numbers)
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
