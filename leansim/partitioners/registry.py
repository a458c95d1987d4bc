"""Finds partitioners: callables `(grid, device) -> Schedule` that deal KV tiles to CTAs.

A partitioner is a frozen dataclass in a module of this package, or an entry point of the group
`leansim.partitioners` in another. Its fields are its options, its `repr` its label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from leansim.errors import (
    FaultError,
    LeansimError,
    PartitionerError,
    UnknownNameError,
    listing,
    suggestion,
)
from leansim.plugins import Plugins, described
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

PLUGINS = Plugins("partitioner", "leansim.partitioners", "leansim.partitioners", ("__call__",))


class Partitioner(Protocol):
    """Makes a schedule. Implementations are frozen dataclasses; nothing needs to be inherited.

    Two class variables may say more: `split_count_option`, the option that sets how many splits there
    are, where it is not `num_splits`; and `chooses`, False for one that is told what to cut and is no
    rule of its own. A method `split_count(grid)` may say how many splits there will be, so that no
    schedule need be made to know whether a call is split.
    """

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Deal the tiles of `grid` to CTAs."""
        ...  # pragma: no cover


def is_partitioner(value: object) -> bool:
    """Whether a value is a frozen dataclass whose instances are called with (grid, device)."""
    return PLUGINS.accepts(value)


@cache
def partitioners() -> Mapping[str, type[Any]]:
    """Every partitioner by name: those of this package, and those of entry points."""
    return PLUGINS.found()


@cache
def find(name: str) -> type[Any]:
    """The partitioner of a name; the others are loaded only if need be. Raises `UnknownNameError`."""
    found = PLUGINS.own(name) or partitioners().get(name)
    if found is None:
        raise UnknownNameError(PLUGINS.kind, name, partitioners(), hint_of(name))
    return found


def hint_of(name: str) -> str:
    """Why a partitioner is not found though there is a file for it, or nothing."""
    return PLUGINS.hint(name)


def make(name: str, options: Mapping[str, Any] | None = None) -> Partitioner:
    """Build a partitioner from its name and options.

    Raises `UnknownNameError`, or `PartitionerError` naming each unknown or badly typed option.
    """
    return _made(name, dict(options)) if options else _plain(name)


@cache
def _plain(name: str) -> Partitioner:
    """A partitioner without options, which cannot be changed: kept, as a sweep asks at each point."""
    return _made(name, {})


def _made(name: str, options: Mapping[str, Any]) -> Partitioner:
    cls = find(name)
    problems = [
        f"{key}: unknown option{suggestion(key, option_names(cls))}; it has "
        f"{listing(option_names(cls)) or 'no options'}"
        for key in options
        if key not in option_names(cls)
    ]
    checked = {key: value for key, value in options.items() if key in option_names(cls)}
    for key, value in list(checked.items()):
        if isinstance(value, bool) and key not in _switches(name):
            problems.append(f"{key}: found {value}; wanted a number, not true or false")
            del checked[key]
    values: Any = None
    try:
        values = _adapter(name).validate_python(checked)
    except ValidationError as error:
        problems += [
            f"{'.'.join(str(part) for part in item['loc']) or 'options'}: found {item['input']!r}; "
            f"{item['msg'].removeprefix('Value error, ').lower()}"
            for item in error.errors()
        ]
    except (LeansimError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise FaultError(f"partitioner {name!r} raised {described(error)}") from error
    if problems:
        raise PartitionerError(f"partitioner {name!r}: " + "; ".join(problems))
    assert values is not None
    return values  # type: ignore[no-any-return]


@cache
def _switches(name: str) -> frozenset[str]:
    """A partitioner's options that take true or false. Kept: a sweep asks for each of its points."""
    kinds = get_type_hints(find(name)).items()
    return frozenset(key for key, kind in kinds if bool in (kind, *get_args(kind)))


def name_of(cls: type[Any]) -> str:
    """The name that `make` knows a partitioner's class by, its entry point's in another package.

    Raises `UnknownNameError` for a class that is none of the partitioners.
    """
    known = partitioners()
    for name, other in known.items():
        if other is cls:
            return name
    raise UnknownNameError("partitioner", cls.__name__, known)


def option_names(cls: type[Any]) -> list[str]:
    """Names of a partitioner's options."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def split_count_option(cls: type[Any]) -> str | None:
    """The option that sets a partitioner's number of splits, or the most of them; None: it has none."""
    option = getattr(cls, "split_count_option", "num_splits")
    return option if option in option_names(cls) else None


def options_of(partitioner: Partitioner) -> dict[str, Any]:
    """A partitioner's options that are not as they are by default."""
    found = {}
    for field in dataclasses.fields(partitioner):  # type: ignore[arg-type]
        value = getattr(partitioner, field.name)
        if field.init and (field.default is dataclasses.MISSING or value != field.default):
            found[field.name] = value
    return found


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(find(name))  # slow to build: milliseconds
