"""The verbs that study split choices: oracle, splits, explain, regret, buckets, invariance, tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import leansim
from leansim.cli.options import (
    File,
    Form,
    Jobs,
    Out,
    Settings,
    Verb,
    grid_of,
    mistake,
    with_point_flags,
)
from leansim.files.terminal import say, tell_written

if TYPE_CHECKING:
    from leansim.answers import Tabled
    from leansim.points.grid import PointGrid

Rules = Annotated[
    str | None,
    typer.Option(help="split rules to run beside, by partitioner or kernel (a comma makes several)"),
]
Budget = Annotated[int, typer.Option(min=1, help="simulations of the search over ragged batches")]


def oracle(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    rules: Rules = None,
    max_splits: Annotated[
        int | None, typer.Option("--max-splits", min=1, help="most splits to try")
    ] = None,
    budget: Budget = 200,
    flags: list[str] = [],  # noqa: B006 - filled by the decorator
) -> None:
    """Find the best split counts by search, and what each split rule loses against them."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.oracle(grid, _names(rules), max_splits, budget)
    say(found.written(form))
    _write(out, grid, found)


def splits(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    rules: Rules = None,
    counts: Annotated[
        str | None, typer.Option(help="counts to simulate (a comma makes several)")
    ] = None,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Latency against the number of splits, its knee, and what each split rule picks."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.splits(grid, _names(rules), _numbers(counts))
    say(found.written(form))
    if out is not None:
        from leansim.report.study_figures import splits_figure

        _write(out, grid, found, {"splits": splits_figure(found, grid.name)})


def explain(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Annotated[str, typer.Option("--format", help="table (text), json, csv or md")] = "table",
    rules: Rules = None,
    budget: Budget = 200,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Say in words where the time goes and what would help."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.explain(grid, _names(rules), budget)
    people = form in ("table", "md")
    say("\n\n".join(found.notes()) if people else found.written(form))
    _write(out, grid, found)


def regret(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    jobs: Jobs = None,
    budget: Budget = 200,
    worst: Annotated[int, typer.Option(min=0, help="how many of the worst cells to print")] = 10,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """What each kernel's own split choice loses against the best, over the grid of a sweep file."""
    from leansim.sweeps.progress import Progress

    grid = grid_of(file, settings, flags, form)
    with Progress(grid.name) as progress:
        found = leansim.regret(grid, jobs=jobs, budget=budget, progress=progress)
    say(replace(found, most_shown=worst).written(form))
    if out is not None:
        from leansim.report.study_figures import regret_figures

        _write(out, grid, found, regret_figures(found))


def buckets(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    sizes: Annotated[
        str, typer.Option("--buckets", help="batch sizes that graphs are captured for")
    ] = "1,2,4,8,16,32,64,128,256",
    batches: Annotated[int, typer.Option(min=1, help="batches drawn for each bucket")] = 20,
    counts: Annotated[str | None, typer.Option(help="split counts to choose from")] = None,
    jobs: Jobs = None,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Which split count to freeze into each captured CUDA graph, over the batches of a trace."""
    from leansim.study.buckets import COUNTS
    from leansim.sweeps.progress import Progress

    grid = grid_of(file, settings, flags, form)
    choices = _numbers(counts) or COUNTS
    with Progress(grid.name) as progress:
        found = leansim.buckets(grid, _numbers(sizes), batches, choices, jobs, progress)
    say(found.written(form))
    _write(out, grid, found)


def invariance(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    rules: Rules = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds of nine batches each")] = 4,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Which split rules are batch-invariant, and what invariance costs."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.invariance(grid, _names(rules), seeds)
    say(found.written(form))
    _write(out, grid, found)


def tune(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    options: Annotated[
        str | None, typer.Option(help="options of the partitioner to tune (a comma makes several)")
    ] = None,
    surrogate: Annotated[str, typer.Option(help="gp (the extra `tune`) or random")] = "gp",
    memory: Annotated[
        int, typer.Option(min=0, help="best settings that the search is confined to; 0: to none")
    ] = 5,
    budget: Annotated[int, typer.Option(min=1, help="simulations")] = 60,
    search_seed: Annotated[int, typer.Option("--search-seed", min=0, help="of what is drawn")] = 0,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Search the options of the kernel's partitioner, such as its CTAs, for the least latency."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.tune(grid, _names(options), surrogate, memory, budget, search_seed)  # type: ignore[arg-type]
    say(found.written(form))
    _write(out, grid, found)


VERBS: tuple[Verb, ...] = (oracle, splits, explain, regret, buckets, invariance, tune)


def register(app: typer.Typer) -> None:
    """Add these verbs to an app, each with a flag for every field of a point."""
    for verb in VERBS:
        app.command()(with_point_flags(verb))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in _names(text))
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise mistake("a list", repr(text), "wanted whole numbers from 1, such as 1,2,4")
    return numbers


def _write(
    out: Path | None, grid: PointGrid, found: Tabled, figures: Mapping[str, Any] | None = None
) -> None:
    if out is None:
        return
    from leansim.report.study_report import write_study

    tell_written(write_study(out, grid, found, figures), out)
