"""Where a free constant stands: the file of a kernel, device or table, and the keys in it.

A constant is a time, a rate or a share. What decides a schedule or what fits on an SM is refused: a fit
keeps its schedules, and a kernel's resources are facts.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from leansim.errors import UnknownNameError
from leansim.files.strict_yaml import Document, read
from leansim.specs import catalog
from leansim.specs.base import SourcedSpec, sourced_anew
from leansim.specs.catalog import Kind
from leansim.specs.device import Device
from leansim.specs.harness import HarnessTerm, MeasuredTable
from leansim.specs.kernel import Kernel
from leansim.specs.mechanisms import MECHANISMS
from leansim.timing.loops.registry import loops

_UNSAID = object()
_CLASSES: dict[str, type[SourcedSpec]] = {"kernel": Kernel, "device": Device, "table": MeasuredTable}


@dataclass(frozen=True)
class Target:
    """A constant's place: `kind` and `name` of the file that holds it, and the keys in it."""

    kind: str
    name: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.kind, self.name, *self.keys))

    @property
    def source_key(self) -> str:
        """The key of its source: positions in lists are no part of it."""
        return ".".join(key for key in self.keys if not key.isdigit())


def target_of(text: str) -> Target:
    """Find a constant's place: the file that says it, a kernel's or table's own or its nearest base's.

    A device's is its own, whatever file it is based on. Raises `UnknownNameError` for what does not
    exist, is no constant, or decides schedules.
    """
    kind, _, rest = text.partition(".")
    name, *keys = rest.split(".")
    if kind not in _CLASSES:
        raise UnknownNameError("kind of constant", kind, _CLASSES)
    spec = _load(kind, name)
    if not keys:
        raise UnknownNameError(f"constant of {name}", "", type(spec).model_fields)
    if kind == "table":
        _check_term(spec, keys)
        return Target(kind, defining_table(name, keys[1], keys[2]), tuple(keys))
    _check_constant(spec, keys, text)
    home = defining(name, keys) or name if kind == "kernel" else name
    return Target(kind, home, tuple(keys))


def with_bases(kernel: str) -> list[str]:
    """A kernel and the kernels it is based on, nearest first."""
    names = [kernel]
    while (base := _file("kernel", names[-1]).get("base")) is not None:
        names.append(str(base))
    return names


def defining(kernel: str, keys: Sequence[str]) -> str | None:
    """Of a kernel and those it is based on, the nearest whose file says what a number is, or None.

    A file lays some groups of numbers over its base's; others it has whole or not at all, as a combine
    kernel, of which it may say that there is none.
    """
    depth = 2 if keys[0] in Kernel.groups() else 1
    for name in with_bases(kernel):
        said: Any = _file("kernel", name)
        for key in keys[:depth]:
            said = said.get(key, _UNSAID) if isinstance(said, dict) else _UNSAID
        if said is not _UNSAID:
            return name
    return None


def defining_table(table: str, term: str, field: str) -> str:
    """The table whose file says a number of a harness term, or else the nearest that has the term."""
    named: list[str] = []
    waiting = [table]
    while waiting:
        data = _file("table", name := waiting.pop(0))
        own = next((item for item in data.get("harness", ()) if item["name"] == term), None)
        if own is not None:
            named.append(name)
            if field in own:
                return name
        bases = [item["base"] for item in (own or {}, data) if "base" in item]
        waiting = [*map(str, bases), *waiting]
    return named[0]


def _file(kind: Kind, name: str) -> dict[str, Any]:
    """What a kernel's or table's own file says."""
    path = catalog.spec_path(kind, name)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, _modified: int) -> dict[str, Any]:
    data: dict[str, Any] = read(path).data
    return data


def applies(target: Target, kernel: str, device: str) -> bool:
    """Whether a constant of a kernel or device changes what a kernel takes on a device."""
    if target.kind == "device":
        return target.name == device
    if target.kind != "kernel" or target.name not in with_bases(kernel):
        return False
    archs = {catalog.device(name).arch for name in catalog.names("device")}
    other_arch = target.keys[-1] in archs - {catalog.device(device).arch}
    return not other_arch and defining(kernel, target.keys) in (target.name, None)


def in_harness(target: Target, table: str) -> bool:
    """Whether a constant is a number of a table's harness, in its own file or in one it is based on."""
    if target.kind != "table" or table not in catalog.names("table"):
        return False
    _, term, field = target.keys
    known = {item.name for item in catalog.table(table).harness}
    return term in known and defining_table(table, term, field) == target.name


def changed(spec: Any, changes: Mapping[Target, float]) -> Any:
    """A kernel, device or table with constants replaced. Raises `ConfigError` for impossible values."""
    data = spec.model_dump(mode="python", exclude_unset=True)
    for target, value in changes.items():
        place, key = _place(data, target)
        place[key] = value
        holder = data
        if target.kind == "table":
            holder = next(term for term in data["harness"] if term["name"] == target.keys[1])
        field = target.keys[2] if target.kind == "table" else target.source_key
        holder["sources"] = sourced_anew(holder.get("sources", {}), field, "fitted: this calibration")
    return catalog.validate(type(spec), Document(f"{spec.name} under calibration", data, {}))


def value_at(target: Target) -> float | None:
    """What a file says now, None where it says nothing."""
    data = _load(target.kind, target.name).model_dump(mode="python")
    place, key = _place(data, target)
    value: float | None = place.get(key)
    return value


def _place(data: dict[str, Any], target: Target) -> tuple[dict[str, Any], str]:
    """The mapping that holds a target's number in a dumped spec, and its key there."""
    *way, key = target.keys
    if target.kind == "table":
        _, term, _ = target.keys
        return next(item for item in data["harness"] if item["name"] == term), key
    for part in way:
        if isinstance(data, list):
            data[int(part)] = dict(data[int(part)])
            data = data[int(part)]
            continue
        inner = data.get(part)
        data[part] = list(inner) if isinstance(inner, list | tuple) else dict(inner or {})
        data = data[part]
    return data, key


def _load(kind: str, name: str) -> SourcedSpec:
    loaders: dict[str, Any] = {
        "kernel": catalog.kernel, "device": catalog.device, "table": catalog.table,
    }  # fmt: skip
    spec: SourcedSpec = loaders[kind](name)
    return spec


def _check_term(table: Any, keys: Sequence[str]) -> None:
    terms = {term.name: term for term in table.harness}
    if len(keys) != 3 or keys[0] != "harness":
        raise UnknownNameError("constant of a table", ".".join(keys), ["harness.<term>.<field>"])
    if keys[1] not in terms:
        raise UnknownNameError("harness term", keys[1], terms)
    known = set(HarnessTerm.model_fields) - HarnessTerm.unsourced()
    if keys[2] not in known:
        raise UnknownNameError("number of a harness term", keys[2], known)


_NO_TIME = "time constant (others decide schedules, or what fits on an SM)"


def _check_constant(spec: SourcedSpec, keys: Sequence[str], text: str) -> None:
    """Refuse whole numbers and structure: they say what runs where, not how long it takes."""
    if isinstance(spec, Kernel) and keys[0] == "tiles":
        _check_tile_constant(spec, keys[1:], text)
    elif isinstance(spec, Kernel) and keys[0] == "loops":
        known = {name: dict(numbers) for name, numbers in spec.loops.items()}
        if len(keys) < 3 or keys[1] not in known:
            raise UnknownNameError(_NO_TIME, text, (f"loops.{name}.<number>" for name in known))
        _check_loop_constant(keys[1], known[keys[1]], keys[2:], text)
    else:
        _check_field(type(spec), spec, keys, text)


def _check_tile_constant(kernel: Kernel, keys: Sequence[str], text: str) -> None:
    """A number that one tile says of a mechanism: `tiles.3.start.overhead_s.sm_90`."""
    positions = [str(i) for i in range(len(kernel.tiles))]
    if len(keys) < 3 or keys[0] not in positions or keys[1] not in (*MECHANISMS, "loop"):
        raise UnknownNameError(_NO_TIME, text, [f"tiles.<position>.{name}" for name in MECHANISMS])
    tile = kernel.tiles[int(keys[0])]
    if keys[1] == "loop":
        name, numbers = kernel.loop(tile)
        _check_loop_constant(name, dict(numbers), keys[2:], text)
    else:
        _check_field(MECHANISMS[keys[1]], getattr(tile, keys[1]), keys[2:], text)


def _check_loop_constant(loop: str, said: Mapping[str, Any], keys: Sequence[str], text: str) -> None:
    """A number of a tile loop that is a time, a rate or a count of clocks."""
    fields = {field.name: field for field in dataclasses.fields(loops()[loop])}  # type: ignore[arg-type]
    if keys[0] not in fields:
        raise UnknownNameError(f"number of the tile loop {loop!r}", keys[0], fields)
    _check_depth(str(fields[keys[0]].type) == "float", said.get(keys[0]), keys, text, fields)


def _check_field(cls: type[BaseModel], said: Any, keys: Sequence[str], text: str) -> None:
    """A number of a record, or of one inside it."""
    field = cls.model_fields.get(keys[0])
    if field is None:
        raise UnknownNameError(f"{cls.__name__.lower()} number", keys[0], _constants(cls))
    now = said.get(keys[0]) if isinstance(said, Mapping) else getattr(said, keys[0], None)
    kinds = _plain(field.annotation)
    inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if inner is not None and len(keys) > 1:
        _check_field(inner, now, keys[1:], text)
        return
    _check_depth(float in kinds, now, keys, text, _constants(cls))


def _check_depth(is_time: bool, now: Any, keys: Sequence[str], text: str, known: Iterable[str]) -> None:
    """One number: where there is one for each architecture, that of one of them."""
    wanted = {2} if isinstance(now, Mapping) else {1} if now else {1, 2}
    if not is_time or len(keys) not in wanted:
        raise UnknownNameError(_NO_TIME, text, known)


def _constants(cls: type[BaseModel]) -> Iterator[str]:
    """Names of the fields that may be fitted, as far as they are plain."""
    for name, field in cls.model_fields.items():
        if float in _plain(field.annotation):
            yield name


def _plain(annotation: Any) -> list[type]:
    """The types that a value may be of, without limits and None, those of a mapping's values too."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for arg in typing.get_args(annotation) for kind in _plain(arg)]
    if origin is dict:
        return _plain(typing.get_args(annotation)[1])
    return [annotation] if isinstance(annotation, type) and annotation is not type(None) else []
