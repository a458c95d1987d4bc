"""The verbs that study split choices: oracle, splits, explain, regret, buckets, invariance."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leansim.cli.options import File, Form, Jobs, Out, Settings, Verb, grid_of, mistake, with_point_flags

if TYPE_CHECKING:
    from leansim.points.grid import GridConfig
    from leansim.points.point import Point

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
    from leansim.study.oracle import oracle as find

    grid = grid_of(file, settings, flags, form)
    records, notes = [], []
    sections: dict[str, Any] = {}
    for point in grid.points():
        found = find(point, _names(rules), max_splits, budget)
        sections[_title(point, found.resolved.workload)] = found.rows()
        records += found.records()
        notes += found.notes()
    _tell(form, records, sections, notes)
    _write(out, grid, records, sections, notes)


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
    from leansim.study.splits import split_curve

    grid = grid_of(file, settings, flags, form)
    curves = [split_curve(point, _names(rules), _numbers(counts)) for point in grid.points()]
    sections, records = {}, []
    for curve in curves:
        title = _title(curve.resolved.point, curve.resolved.workload)
        sections[title] = [row for row in curve.rows() if row["mark"] or row["picked_by"]]
        sections[f"{title}: split rules"] = curve.pick_rows()
        records += curve.records()
    notes = [curve.note() for curve in curves]
    _tell(form, records, sections, notes)
    if out is not None:
        from leansim.report.study_figures import splits_figure

        figures = {"splits": splits_figure(curves, grid.name)}
        _write(out, grid, records, sections, notes, figures)


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
    from leansim.report.text import render
    from leansim.study.explain import explain as tell

    grid = grid_of(file, settings, flags, form)
    found = [tell(point, _names(rules), budget) for point in grid.points()]
    records = [one.record() for one in found]
    if form in ("table", "md"):
        print("\n\n".join(one.text for one in found))
    else:
        print(render(records, form))
    _write(out, grid, records, {}, [one.text for one in found])


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
    from leansim.report import study_report
    from leansim.study.regret import regret as study
    from leansim.sweeps.progress import Progress

    grid = grid_of(file, settings, flags, form)
    with Progress(grid.name) as progress:
        found = study(grid, jobs=jobs, budget=budget, progress=progress)
    records = found.records()
    refused = found.table["error"].dropna().value_counts()
    notes = [f"{count} without a result: {reason}" for reason, count in refused.items()]
    notes.append("regret: latency over the best found on the same kernel; over_fastest: on any of these")
    _tell(form, records, study_report.regret_sections(found, worst), notes)
    if out is not None:
        from leansim.report.study_figures import regret_figures

        sections = study_report.regret_sections(found)
        _write(out, grid, records, sections, notes, regret_figures(found))


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
    from leansim.study import buckets as study
    from leansim.sweeps.progress import Progress

    grid = grid_of(file, settings, flags, form)
    sections, records, notes = {}, [], []
    for point in grid.points():
        with Progress(point.policy) as progress:
            given = _numbers(counts) or study.COUNTS
            found = study.buckets(point, _numbers(sizes), batches, given, jobs, progress)
        label = f"{point.device} {point.policy}, {point.trace}"
        sections[label] = [bucket.row() for bucket in found]
        point_fields = {"device": point.device, "policy": point.policy, "trace": point.trace}
        records += [{**point_fields, **record} for bucket in found for record in bucket.records()]
        told = f"{found[0].max_context_len:,}"
        notes.append(f"{label}: captured for {told} tokens; regrets are over the best frozen count")
    _tell(form, records, sections, notes)
    _write(out, grid, records, sections, notes)


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
    from leansim.study.invariance import invariance as study

    grid = grid_of(file, settings, flags, form)
    sections, records, notes = {}, [], []
    for point in grid.points():
        found = study(point, _names(rules), seeds)
        sections[f"{point.device} {point.policy}"] = found.rows()
        records += found.records()
        notes.append(found.note())
    _tell(form, records, sections, notes)
    _write(out, grid, records, sections, notes)


VERBS: tuple[Verb, ...] = (oracle, splits, explain, regret, buckets, invariance)


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


def _title(point: Point, workload: Any) -> str:
    return f"{point.device} {point.policy}, {workload.describe()}"


def _tell(
    form: str,
    records: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    notes: Sequence[str],
) -> None:
    """Print tables with titles and notes for people, or the records alone for programs."""
    from leansim.report.text import render

    if form in ("json", "csv"):
        print(render(records, form))
        return
    for title, rows in sections.items():
        if rows:
            print(f"{title}\n\n{render(rows, form)}\n")
    print("\n".join(notes))


def _write(
    out: Path | None,
    grid: GridConfig,
    records: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    notes: Sequence[str],
    figures: Mapping[str, Any] | None = None,
) -> None:
    if out is None:
        return
    from leansim.report.study_report import write_study

    written = write_study(out, grid, records, sections, notes)
    if figures:
        from leansim.report.study_figures import save_all

        written += save_all(figures, out)
    names = ", ".join(str(path.relative_to(out)) for path in written)
    print(f"\nwrote {len(written)} files under {out}/: {names}", file=sys.stderr)
