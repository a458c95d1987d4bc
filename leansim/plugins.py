"""Kinds of classes that are found, not registered: in a package of leansim's and at entry points.

A class counts by what it is, a frozen dataclass with certain methods. Ours are named after their class,
those of other packages as their entry point is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plugins:
    """Frozen dataclasses with `methods` of their own, in modules of `package` or at entry points.

    Those of other packages are entry points of `group`. `kind` is the word for one, in warnings.
    """

    kind: str
    package: str
    group: str
    methods: tuple[str, ...]

    def accepts(self, value: object, module: str | None = None) -> bool:
        """Whether a value is such a class, and, if that is asked, of this very module."""
        if not (isinstance(value, type) and dataclasses.is_dataclass(value)):
            return False
        if module is not None and value.__module__ != module:
            return False
        frozen = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return bool(frozen) and all(name in vars(value) for name in self.methods)

    def found(self) -> dict[str, type[Any]]:
        """Every such class by name, sorted.

        An entry point that cannot be loaded, is something else, or has a name that is taken is named in
        a warning and left out: another package's mistake breaks nothing that does not need it.
        """
        modules = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        found = dict(self._ours(module.name for module in modules))
        for entry in entry_points(group=self.group):
            if (complaint := self._taken(entry, found)) is not None:
                warnings.warn(complaint, stacklevel=2)
            elif (loaded := self._loaded(entry)) is not None:
                found[entry.name] = loaded
        return dict(sorted(found.items()))

    def own(self, name: str) -> type[Any] | None:
        """Our class of a name, if it stands in a module of that name: no other one is loaded."""
        there = name.isidentifier() and find_spec(f"{self.package}.{name}") is not None
        return dict(self._ours([name])).get(name) if there else None

    def hint(self, name: str) -> str:
        """Why a name is not found though there is a file for it, or nothing."""
        with contextlib.suppress(OSError, ValueError):  # of names that no file can have
            return self._hint(name)
        return ""

    def _hint(self, name: str) -> str:
        file = f"{name.removesuffix('.py').rpartition('/')[2]}.py"
        folder = Path(str(importlib.import_module(self.package).__file__)).parent
        place = Path(*self.package.split("."), file)
        mine = folder / file
        for here in (Path.cwd(), *Path.cwd().parents):
            if (here / place).is_file() and (here / place).resolve() != mine.resolve():
                top = folder.parents[self.package.count(".") - 1]
                return (
                    f"{here / place} is not of the package that runs, {top}: "
                    f"`pip install -e .` in {here} makes it so"
                )
        if mine.is_file():
            wanted = (
                f"a frozen dataclass with {' and '.join(self.methods)} whose name in snake case it is"
            )
            return f"{mine} is there: wanted {wanted}"
        if name.endswith(".py"):
            return f"wanted a name: {file} is found in {place.parent}, or by an entry point {self.group}"
        return ""

    def _ours(self, modules: Iterable[str]) -> Iterator[tuple[str, type[Any]]]:
        for name in modules:
            path = f"{self.package}.{name}"
            try:
                module = importlib.import_module(path)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                warnings.warn(f"{path} failed to load: {described(error)}", stacklevel=4)
                continue
            for value in vars(module).values():
                if self.accepts(value, module.__name__):
                    yield snake_case(value.__name__), value

    def _taken(self, entry: EntryPoint, found: dict[str, type[Any]]) -> str | None:
        if entry.name not in found:
            return None
        of = found[entry.name].__module__
        return f"{self.kind} {entry.name!r} ({entry.value}) is not used: {of} has one of that name"

    def _loaded(self, entry: EntryPoint) -> type[Any] | None:
        try:
            loaded = entry.load()
            accepted = self.accepts(loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit, which would end us without a word
            found = f"failed to load: {described(error)}"
            warnings.warn(f"{self.kind} {entry.name!r} ({entry.value}) {found}", stacklevel=3)
            return None
        if accepted:
            return loaded  # type: ignore[no-any-return]
        wanted = f"is not a frozen dataclass with {' and '.join(self.methods)}"
        warnings.warn(f"{self.kind} {entry.name!r} ({entry.value}) {wanted}", stacklevel=3)
        return None


def described(error: BaseException) -> str:
    """The kind of an error of foreign code, and what it says if it can."""
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{kind}: {text}" if text else kind


def snake_case(name: str) -> str:
    """`LeanAttention` -> `lean_attention`, `FlashAttention2` -> `flash_attention_2`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name)
    return spaced.lower()
