"""Finds and loads what is named: devices, nodes, kernels, models, tables, timers, runs, sweeps.

Looks in `$LEANSIM_CONFIGS` (folders separated as in PATH), then in the shipped configs. A name
that is a path to a YAML file loads that file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from leansim.errors import ConfigError, Problem, UnknownNameError, listing, suggestion
from leansim.files.bases import based_on, laid_over
from leansim.files.strict_yaml import Document, KeyPath, read
from leansim.files.text import exists, is_file, nearest_file
from leansim.specs.base import SourcedSpec
from leansim.specs.device import Device
from leansim.specs.harness import MeasuredTable
from leansim.specs.kernel import Kernel
from leansim.specs.model import Model
from leansim.specs.node import Node
from leansim.specs.timer import Timer
from leansim.specs.units import of_other_units

Kind = Literal["device", "kernel", "model", "node", "table", "timer"]
_Spec = TypeVar("_Spec", bound=BaseModel)
_Sourced = TypeVar("_Sourced", bound=SourcedSpec)


def search_path() -> str:
    """What `$LEANSIM_CONFIGS` says: what was found by name holds as long as this does."""
    return os.environ.get("LEANSIM_CONFIGS", "")


def config_folders() -> list[Path]:
    """Folders that hold `devices/`, `kernels/`, ..., `tables/` and `timers/`, nearest first."""
    folders = [Path(part) for part in search_path().split(os.pathsep) if part]
    return [*folders, _shipped_configs()]


@cache
def _shipped_configs() -> Path:
    here = Path(__file__).resolve().parent.parent
    shipped = here / "configs"  # in a wheel; in a checkout the folder stands beside the package
    return shipped if shipped.is_dir() else here.parent / "configs"


def names(kind: Kind) -> list[str]:
    """Names of every device, kernel, model, node, measured table or timer that can be loaded."""
    return sorted({path.stem for path in _files(kind)})


def device(name: str) -> Device:
    """Load a device by name or path. Raises `UnknownNameError` or `ConfigError`."""
    return _load(Device, "device", name)


def kernel(name: str) -> Kernel:
    """Load a kernel by name or path. Raises `UnknownNameError` or `ConfigError`."""
    return _load(Kernel, "kernel", name)


def model(name: str) -> Model:
    """Load a model shape by name or path. Raises `UnknownNameError` or `ConfigError`."""
    return _load(Model, "model", name)


def node(name: str) -> Node:
    """Load a node of several GPUs by name or path. Raises `UnknownNameError` or `ConfigError`."""
    return _load(Node, "node", name)


def table(name: str) -> MeasuredTable:
    """Load the description of a measured table by name or path. Raises as `device`."""
    return _load(MeasuredTable, "table", name)


def harness(name: str) -> MeasuredTable | Timer:
    """Load a timer, or the description of a measured table, by name. Raises as `device`."""
    if name in names("timer"):
        return _load(Timer, "timer", name)
    try:
        return table(name)
    except UnknownNameError:
        known = [*names("table"), *names("timer")]
        raise UnknownNameError(
            "harness", name, known, hint("timer", name) or hint("table", name)
        ) from None


def spec_path(kind: Kind, name: str) -> Path:
    """The file that a name, or a path to a YAML file, is loaded from. Raises `UnknownNameError`."""
    if name.endswith((".yaml", ".yml")) and is_file(given := Path(name)):
        return given
    for folder in config_folders():
        if is_file(path := folder / f"{kind}s" / f"{name}.yaml"):
            return path
    raise UnknownNameError(kind, name, names(kind), hint(kind, name))


def find_config(path: str, *kinds: str) -> Path:
    """Resolve a file to work by: as given, else among the shipped ones (`configs/runs/x.yaml`).

    A bare name is that of a shipped file of one of `kinds`, the first that has it: `runs`, `sweeps`,
    `calibrations`. Raises `ConfigError`, with the nearest file there is.
    """
    given = Path(path)
    if exists(given):
        return given
    named = len(given.parts) == 1 and not given.suffix
    parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
    places = [Path(kind, f"{path}.yaml") for kind in kinds] if named else [Path(*parts)]
    for place in places:
        for folder in config_folders():
            if is_file(candidate := folder / place):
                return candidate
    found = [p for f in config_folders() for kind in kinds for p in f.glob(f"{kind}/*.yaml")]
    known = [p.stem if named else f"configs/{p.parent.name}/{p.name}" for p in found]
    hint = nearest_file(given) or suggestion(path, known, cutoff=0.7)
    wanted = f"wanted a YAML file{hint}" + (f"; known: {listing(sorted(known))}" if named else "")
    raise ConfigError(path, [Problem("file", "nothing", wanted)])


def hint(kind: Kind, name: str) -> str:
    """Where a file of that name is that is not looked at, or nothing."""
    for here in (Path.cwd(), *Path.cwd().parents):
        path = here / "configs" / f"{kind}s" / f"{name}.yaml"
        if name.isidentifier() and is_file(path):
            return f"{path} is not among them: give its path, or set LEANSIM_CONFIGS={here / 'configs'}"
    return ""


def _files(kind: Kind) -> Iterator[Path]:
    for folder in config_folders():
        yield from sorted(folder.glob(f"{kind}s/*.yaml"))


def _load(cls: type[_Sourced], kind: Kind, name: str) -> _Sourced:
    if name.endswith((".yaml", ".yml")):
        return _read_spec(cls, kind, Path(name), ())
    for path in _candidates(kind, name, search_path()):
        try:
            modified = _modified(kind, path)
        except (OSError, ValueError):  # not there, or no name that a file could have
            continue
        spec: _Sourced = _read_shipped(cls, kind, path, modified)
        return spec
    raise UnknownNameError(kind, name, names(kind), hint(kind, name))


# A sweep asks for each of its points whether a file has changed. Its path is text there, as that of
# Python's takes as long to look at as the file.
@cache
def _candidates(kind: Kind, name: str, _configs: str) -> tuple[str, ...]:
    """Where a name may stand, first choice first."""
    folders = config_folders() if os.sep not in name else []
    return tuple(str(folder / f"{kind}s" / f"{name}.yaml") for folder in folders)


@cache
def _read_shipped(cls: type[_Sourced], kind: Kind, path: str, _modified: tuple[int, ...]) -> _Sourced:
    return _read_spec(cls, kind, Path(path), ())


def _modified(kind: Kind, path: str) -> tuple[int, ...]:
    """When a file and those it is based on were last written. Raises `OSError` if it is not there."""
    waiting: list[tuple[str, ...]] = [(path,)]
    times = []
    while waiting:
        behind = waiting.pop()
        times.append(os.stat(behind[-1]).st_mtime_ns)  # noqa: PTH116
        waiting += [(*behind, base) for base in _base_paths(kind, behind, times[-1])]
    return tuple(times)


@cache
def _base_paths(kind: Kind, behind: tuple[str, ...], _modified: int) -> tuple[str, ...]:
    """The files that the last of `behind` names as a `base`, of all of it or of an item, if there."""
    paths = [Path(path) for path in behind]
    known = _bases(kind, paths)
    named = dict.fromkeys(name for _, name in based_on(read(paths[-1]).data))
    return tuple(str(known[name]) for name in named if name in known)


def _bases(kind: Kind, behind: Sequence[Path]) -> dict[str, Path]:
    """Files that the last of `behind` may be based on, by name: those beside it come first."""
    paths = {path.stem: path for path in reversed(list(_files(kind)))}
    paths |= {path.stem: path for path in behind[-1].parent.glob("*.yaml") if path not in behind}
    return {name: path for name, path in paths.items() if path not in behind}


def _read_spec(cls: type[_Sourced], kind: Kind, path: Path, behind: Sequence[Path]) -> _Sourced:
    document = _with_bases(read(path), kind, (*behind, path), cls.groups())
    return validate(cls, document)


def _with_bases(
    document: Document, kind: Kind, behind: Sequence[Path], groups: frozenset[str]
) -> Document:
    """Lay what a file says over what the files say that it, or an item of it, is based on."""
    bases: dict[KeyPath, Any] = {}
    paths = _bases(kind, behind)
    for place, name in based_on(document.data):
        if name not in paths:
            wanted = f"wanted the name of another {kind}{suggestion(name, paths)}"
            raise ConfigError(document.source, [document.problem(place, repr(name), wanted)])
        base = _with_bases(read(paths[name]), kind, (*behind, paths[name]), groups)
        _check_mapping(base)
        if base.problems:
            raise ConfigError(base.source, base.problems)
        bases[place] = base.data
    return laid_over(document, bases, groups)


def validate(cls: type[_Spec], document: Document) -> _Spec:
    """Validate parsed YAML against a class. Raises `ConfigError` with all problems and places."""
    _check_mapping(document)
    found_problems = list(document.problems)
    try:
        spec = cls.model_validate(document.data)
    except ValidationError as error:
        already = {(problem.line, problem.column) for problem in found_problems}
        later = problems(cls, document, error)
        found_problems += [p for p in later if (p.line, p.column) not in already]
    else:
        if isinstance(spec, SourcedSpec):
            found_problems += [
                document.problem(path, _shown(value), wanted)
                for path, value, wanted in dict.fromkeys(of_other_units(spec))
            ]
    if found_problems:
        raise ConfigError(document.source, found_problems)
    return spec


def _check_mapping(document: Document) -> None:
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        raise ConfigError(document.source, [document.problem((), found, "wanted a mapping of keys")])


def problems(cls: type[BaseModel], document: Document, error: ValidationError) -> list[Problem]:
    """Translate pydantic's complaints into places, findings and wishes."""
    items = [(_in_data(item, document.data), item) for item in error.errors(include_url=False)]
    found: list[Problem] = []
    wished: dict[tuple[KeyPath, str], str] = {}
    for path, item in items:
        if any(_answers(item["type"], path, other["type"], way) for way, other in items):
            continue
        if item["type"] == "extra_forbidden":
            keys = sorted(_keys_at(cls, path[:-1]))
            wanted = f"wanted a known key{suggestion(str(path[-1]), keys)}"
            if keys:
                wanted += f"; keys here: {', '.join(keys)}"
            found.append(document.problem(path, "an unknown key", wanted))
        elif item["type"] == "missing":
            found.append(document.problem(path, "nothing", "wanted this key"))
        else:
            wish = item["msg"].removeprefix("Value error, ")
            wish = wish.replace("Input should be", "wanted").replace("Input", "the value")
            if item["type"] == "literal_error":
                known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
                wish += suggestion(str(item["input"]), known)
            place = (path, _shown(item["input"]))
            before = f"{wished[place]} or " if place in wished else ""
            wished[place] = before + (wish.removeprefix("wanted ") if before else wish)
    found += [document.problem(path, value, wish) for (path, value), wish in wished.items()]
    return found


def _in_data(item: ErrorDetails, data: Any) -> KeyPath:
    """Where a complaint stands: its place without the names of the kinds that a value was tried as."""
    path: list[str | int] = []
    last = len(item["loc"]) - 1
    for position, part in enumerate(item["loc"]):
        here = isinstance(data, dict) and part in data
        absent = position == last and item["type"] in ("missing", "extra_forbidden")
        if here or absent or isinstance(part, int):
            path.append(part)
        if here or (isinstance(part, int) and isinstance(data, list | tuple) and part < len(data)):
            data = data[part]
    return tuple(path)


def _answers(kind: str, path: KeyPath, other: str, way: KeyPath) -> bool:
    """Whether another complaint makes one idle: it is about what a value says, not of what kind it is.

    A list is too short because its elements were refused; a number that is too large is no table.
    """
    deeper = len(way) > len(path) and way[: len(path)] == path
    if kind == "too_short":
        return deeper
    return kind.endswith("_type") and (deeper or (way == path and not other.endswith("_type")))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else "this" if isinstance(value, dict) else text[:57] + "..."


def _keys_at(cls: type[BaseModel], path: KeyPath) -> set[str]:
    """Keys a file may have at a key path, as far as plain nesting shows it."""
    current: Any = cls
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return set()
        current = field.annotation
    fields = getattr(current, "model_fields", {})
    return {field.alias or name for name, field in fields.items()}
