"""Options that several verbs share, flags for every field of a point, and the grid that they mean."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leansim.engine.execute import Engine, check_engine
from leansim.errors import ConfigError, Problem
from leansim.files.strict_yaml import Document
from leansim.files.terminal import tell
from leansim.files.writing import check_file, check_folder
from leansim.points.point import POINT_KEYS, Point

if TYPE_CHECKING:
    from leansim.points.grid import PointGrid

FORMS = ("table", "json", "csv", "md")
_MOST_TOLD = 20
Verb = Callable[..., None]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override any field; device.* and kernel.* change their numbers",
    ),
]
Form = Annotated[str, typer.Option("--format", help="table, json, csv or md")]


def writable_folder(out: Path | None) -> Path | None:
    """Check a folder for artifacts before the work whose results it is to hold."""
    if out is not None:
        check_folder(out)
    return out


def writable_file(out: Path | None) -> Path | None:
    """The same of a file."""
    if out is not None:
        check_file(out)
    return out


Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="folder for artifacts", callback=writable_folder)
]
File = Annotated[
    str | None,
    typer.Argument(
        help="a YAML file, or the name of a shipped one; the flags below override it, or stand for one"
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="numba (compiled), simpy (the reference) or auto")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="worker processes; one per core by default"),
]
Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="draw the figures")]
Strict = Annotated[
    bool, typer.Option("--strict", help="write nothing where a row of the file makes no sense")
]
Baseline = Annotated[str | None, typer.Option(help="kernel that speedups are measured against")]


def mistake(place: str, found: str, wanted: str) -> ConfigError:
    """Return the error of an option: where it stands, what was found, what was wanted."""
    return ConfigError("command line", [Problem(place, found, wanted)])


def tell_refused(refused: Sequence[str]) -> None:
    """Say which rows were refused and why, and exit with 1, if any were."""
    if not refused:
        return
    for sentence in refused[:_MOST_TOLD]:
        tell(f"refused: {sentence}")
    if len(refused) > _MOST_TOLD:
        tell(f"and {len(refused) - _MOST_TOLD:,} more rows")
    raise typer.Exit(1)


def with_point_flags(verb: Verb) -> Verb:
    """Give a verb one flag per field of a point, passed on as `flags: list["key=value"]`."""
    signature = inspect.signature(verb, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "flags"]
    flags = _flags()
    keys = {name: key for key, name in POINT_KEYS.items()}

    @functools.wraps(verb)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        given = {p.name: kwargs.pop(p.name) for p in flags}
        settings = [f"{keys[name]}={value}" for name, value in given.items() if value is not None]
        verb(*args, flags=settings, **kwargs)

    parameters = [*own, *flags]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


@functools.cache
def _flags() -> list[inspect.Parameter]:
    """A flag per field of a point, the same for all verbs."""
    return [_flag(key, name) for key, name in POINT_KEYS.items() if name != "overrides"]


def _flag(key: str, name: str) -> inspect.Parameter:
    option = typer.Option(
        f"--{key.replace('_', '-')}",
        help=Point.model_fields[name].description,
        rich_help_panel="Point (a comma makes several)",
    )
    annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def grid_of(
    file: str | None, settings: Sequence[str] | None, flags: Sequence[str], form: str = "table"
) -> PointGrid:
    """Read the grid of a file, of flags, or of both; complain of an unknown format first."""
    from leansim.points.grid import build, load

    check_form(form)
    everything = [*flags, *(settings or [])]
    if file is not None:
        return load(file, everything)
    return build(Document("command line", {"name": "command line"}, {}), everything)


def engine_of(name: str) -> Engine:
    """An engine by name. Raises `UnknownNameError` for one that is not there."""
    check_engine(name)
    return name  # type: ignore[return-value]


def check_form(form: str) -> None:
    """Raise `ConfigError` for a format that nothing is printed in."""
    if form not in FORMS:
        raise mistake("--format", repr(form), "wanted table, json, csv or md")
