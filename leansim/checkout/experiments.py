"""Finds the experiments of a checkout and reads what their files say: question, time, and needs."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from leansim.answers import Listed, Row
from leansim.errors import ConfigError, Problem, UnknownNameError, suggestion
from leansim.files.extras import pip_install
from leansim.files.strict_yaml import Document, read
from leansim.specs.base import Positive, Spec
from leansim.specs.catalog import validate

FILE = "experiment.yaml"
_FOLDER = "experiments"
_LONGEST = 255  # bytes of a file's name, in every file system that we know
_NAME = re.compile(r"([\w.-]+).*")  # of a package, with which a requirement begins


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text:
        raise ValueError("wanted one line")
    return text


def _path(text: str) -> str:
    if not 0 < len(os.fsencode(text)) <= _LONGEST:
        raise ValueError(f"wanted a path of at most {_LONGEST} bytes")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
DataPath = Annotated[str, AfterValidator(_path)]


class Description(Spec):
    """`experiment.yaml`: what a reader of a list wants to know of an experiment."""

    title: Line = Field(description="the question that it answers")
    minutes: Positive = Field(
        description="CPU time of all its processes, rounded up: two cores need less"
    )
    needs: tuple[str, ...] = Field((), description="extras of leansim that it wants")
    data: dict[DataPath, Line] = Field(
        default_factory=dict, description="files of outside measurements, and where each is found"
    )
    after: tuple[str, ...] = Field((), description="experiments whose results it reads")
    command: tuple[str, ...] = Field(("run.py",), min_length=1, description="script and its arguments")


@dataclass(frozen=True)
class Experiment:
    """An experiment: its folder, and what the file there says."""

    folder: Path
    says: Description

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.folder.parent.parent

    @property
    def wants(self) -> str:
        """Everything from outside that it needs, or nothing."""
        files = len(self.says.data)
        counted = [f"data ({files} file{'s' if files > 1 else ''})"] if files else []
        return ", ".join([*self.says.needs, *counted])

    def missing(self, data: Path | None) -> list[Problem]:
        """What it needs that is not there: an extra, a folder of data, files in that."""
        return [*self._missing_extras(), *self._missing_data(data)]

    def _missing_extras(self) -> Iterator[Problem]:
        known = extras(self.root)
        for need in self.says.needs:
            if absent := [package for package in known[need] if not _is_installed(package)]:
                wanted = f"wanted the extra {need}: {pip_install(need)}"
                yield Problem("needs", f"no {', '.join(absent)}", wanted)

    def _missing_data(self, data: Path | None) -> Iterator[Problem]:
        wanted = self.says.data.items()
        absent = [
            (name, whence) for name, whence in wanted if data is None or not (data / name).exists()
        ]
        if absent:
            files = "; ".join(f"{name} ({whence})" for name, whence in absent)
            yield Problem("--data", str(data or "nothing"), f"wanted a folder with {files}")


@dataclass(frozen=True, eq=False)
class Experiments(Listed[Experiment]):
    """The experiments of a checkout, and folders beside them that are `counts`, made once by hand."""

    counts: tuple[str, ...] = ()

    def named(self, name: str) -> Experiment:
        """One by name. Raises `UnknownNameError` with the nearest."""
        by_name = {one.name: one for one in self}
        if name not in by_name:
            raise UnknownNameError("experiment", name, by_name)
        return by_name[name]

    def rows(self) -> list[Row]:
        """A row each: what it takes, what it needs, and the question."""
        return [
            {
                "experiment": one.name,
                "minutes": one.says.minutes,
                "needs": one.wants or None,
                "question": one.says.title,
            }
            for one in self
        ]

    def records(self) -> list[Row]:
        """All that the files say; lists are joined by spaces."""
        return [
            {
                "experiment": one.name,
                **{key: _joined(value) for key, value in one.says.model_dump().items()},
            }
            for one in self
        ]

    def notes(self) -> list[str]:
        """What all of them take, and what is no experiment."""
        total = sum(one.says.minutes for one in self)
        taken = f"All take {total:.0f} minutes of CPU time; `leansim experiment run NAME` runs one"
        by_hand = f"Counts made once, by hand, as their README.md says: {', '.join(self.counts)}"
        return [taken, *([by_hand] if self.counts else [])]


def experiments(folder: str | Path | None = None) -> Experiments:
    """List the experiments of a folder: by default that of the checkout.

    A folder with an `experiment.yaml` is one. Raises `ConfigError` where there is no checkout, or for a
    file that makes no sense.
    """
    place = experiments_folder() if folder is None else Path(folder).resolve()
    folders = sorted(path.parent for path in place.glob("*/README.md"))
    described = sorted(path.parent for path in place.glob(f"*/{FILE}"))
    names = [path.name for path in described]
    counts = tuple(path.name for path in folders if path not in described)
    return Experiments(tuple(_read(path, names) for path in described), counts)


def experiments_folder() -> Path:
    """The `experiments` of a checkout: beside the package, or around the working directory."""
    for place in (package_root(), Path.cwd(), *Path.cwd().parents):
        if any((place / _FOLDER).glob(f"*/{FILE}")):
            return place / _FOLDER
    wanted = "wanted a checkout of leansim: what is installed has no experiments"
    found = "none beside the package, nor in the working directory or above it"
    raise ConfigError("experiments", [Problem("folder", found, wanted)])


def package_root() -> Path:
    """The folder that this package stands in: the checkout, where it is one."""
    return Path(__file__).resolve().parents[2]


def extras(root: Path) -> dict[str, list[str]]:
    """Packages of each extra, by `pyproject.toml` of a checkout."""
    file = root / "pyproject.toml"
    about = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found: dict[str, list[str]] = about.get("project", {}).get("optional-dependencies", {})
    return {extra: [_NAME.sub(r"\1", one) for one in wanted] for extra, wanted in found.items()}


def _read(folder: Path, names: Sequence[str]) -> Experiment:
    document = read(folder / FILE)
    says = validate(Description, document)
    if found := list(_problems(folder, says, document, names)):
        raise ConfigError(document.source, found)
    return Experiment(folder, says)


def _problems(
    folder: Path, says: Description, document: Document, names: Sequence[str]
) -> Iterator[Problem]:
    """Names that nothing answers to."""
    scripts = [path.name for path in sorted(folder.glob("*.py"))]
    known: dict[str, tuple[tuple[str, ...], str, Sequence[str]]] = {
        "needs": (says.needs, "an extra of pyproject.toml", [*extras(folder.parent.parent)]),
        "after": (says.after, "another experiment", [name for name in names if name != folder.name]),
        "command": (says.command[:1], "a script of this folder", scripts),
    }
    for key, (found, what, wanted) in known.items():
        for at, name in enumerate(found):
            if name not in wanted:
                wish = f"wanted {what}{suggestion(name, wanted)}"
                yield document.problem((key, at), repr(name), wish)


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _joined(value: object) -> object:
    return " ".join(value) if isinstance(value, tuple | list | dict) else value
