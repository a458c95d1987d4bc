"""The command line: each verb parses, calls its Python twin, and prints.

Mistakes print without a traceback and exit with 2.
"""

from __future__ import annotations

import csv
import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from leansim import __version__
from leansim.errors import ConfigError, LeansimError, Problem
from leansim.points import (
    PLAN_COLUMNS,
    POINT_KEYS,
    Point,
    check_columns,
    plan_row,
    point_from_row,
    resolve,
)
from leansim.strict_yaml import Document

app = typer.Typer(
    name="leansim",
    help="What an attention-decode schedule does on a GPU, simulated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override any field; device.* and kernel.* change their numbers",
    ),
]
Form = Annotated[str, typer.Option("--format", help="table, json, csv or md")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="folder for artifacts")]
File = Annotated[
    str | None, typer.Argument(help="a YAML file; the flags below override it, or stand for one")
]


def with_point_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb one flag per field of a point, passed on as `flags: list["key=value"]`."""
    signature = inspect.signature(verb, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "flags"]
    flags = []
    for key, name in POINT_KEYS.items():
        if name in ("overrides",):
            continue
        option = typer.Option(
            f"--{key.replace('_', '-')}",
            help=Point.model_fields[name].description,
            rich_help_panel="Point (a comma makes several)",
        )
        annotation = Annotated[str | None, option]
        flags.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
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


def _grid(file: str | None, settings: list[str] | None, flags: list[str]) -> Any:
    """Read the grid of a file, of flags, or of both."""
    from leansim import config  # noqa: PLC0415 - keeps `leansim --help` fast

    everything = [*flags, *(settings or [])]
    if file is not None:
        return config.load(file, everything)
    return config.build(Document("command line", {"name": "command line"}, {}), everything)


@app.command()
@with_point_flags
def run(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    baseline: Annotated[
        str | None, typer.Option(help="kernel that speedups are measured against")
    ] = None,
    flags: list[str] = [],  # noqa: B006 - filled by the decorator
) -> None:
    """Simulate one workload under several kernels and print one table."""
    from leansim import api, tables  # noqa: PLC0415

    _check_form(form)
    extra = [f"baseline={baseline}"] if baseline else []
    done = api.run(_grid(file, [*extra, *(settings or [])], flags))
    rows = tables.run_rows(done) if form in ("table", "md") else [s.row for s in done.simulations]
    first = done.simulations[0].resolved.workload
    if form in ("table", "md"):
        print(f"{done.config.name}: {first.describe()}\n")
    print(tables.render(rows, form))
    if form in ("table", "md"):
        print("\n" + "\n".join(tables.run_notes(done)))
    if out is not None:
        from leansim.report import write_run  # noqa: PLC0415

        written = write_run(done, out)
        print(
            f"\nwrote {len(written)} files under {out}/: "
            + ", ".join(str(p.relative_to(out)) for p in written),
            file=sys.stderr,
        )


@app.command()
@with_point_flags
def sweep(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="worker processes; one per core by default"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="keep finished points, or simulate them again")
    ] = True,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="draw the figures")] = True,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Simulate a grid of points over all cores; results, figures and manifest go to a folder."""
    from leansim import sweeps  # noqa: PLC0415

    if out is None:
        raise ConfigError("command line", [Problem("--out", "nothing", "wanted a folder: -o DIR")])
    grid = _grid(file, settings, flags)
    try:
        with _Progress(grid.name) as progress:
            done = sweeps.sweep(grid, out, jobs=jobs, resume=resume, progress=progress)
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is kept in {out}, the same command goes on", file=sys.stderr
        )
        raise typer.Exit(130) from None
    print(
        f"{len(done.table)} points in {out}: {done.simulated} simulated, "
        f"{done.reused} already there, {done.refused} refused"
    )
    for reason, count in done.table["error"].dropna().value_counts().items():
        print(f"  {count} refused: {reason}")
    if plots:
        from leansim.plots import plot as draw  # noqa: PLC0415

        for path in draw(out):
            print(f"  drew {path}")


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, 0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.speed:.1f} points/s"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task(self.name, total=total)
            self.bar.update(self.task, completed=done)
        elif done == total or done * 10 // total > self.shown:
            self.shown = done * 10 // total
            print(f"{self.name}: {done}/{total} points", file=sys.stderr)


@app.command()
@with_point_flags
def plan(
    file: Annotated[str | None, typer.Argument(help="a YAML file or a CSV of points")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the planned points")] = None,
    settings: Settings = None,
    form: Form = "table",
    segments: Annotated[bool, typer.Option("--segments", help="list every segment")] = False,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Make schedules without simulating: grid, waves, splits per request, segments."""
    from leansim import tables  # noqa: PLC0415

    _check_form(form)
    if file is not None and file.endswith(".csv"):
        _plan_csv(file, out, form if out is None else "csv")
        return
    resolved = [resolve(point) for point in _grid(file, settings, flags).points()]
    rows = [row for item in resolved for row in (_segment_rows(item) if segments else _plan_rows(item))]
    text = tables.render(rows, form)
    if out is None:
        print(text)
    else:
        _write_whole(out, text + "\n")


def _plan_rows(item: Any) -> list[dict[str, Any]]:
    schedule, point = item.schedule, item.point
    per_request = schedule.splits_of_request.tolist()
    few = len(set(per_request)) == 1
    return [
        {
            "device": point.device,
            "kernel": point.policy,
            "partitioner": repr(item.partitioner),
            "tile": f"{schedule.grid.tile_rows}x{schedule.grid.tile_tokens}",
            "output_tiles": schedule.grid.num_output_tiles,
            "kv_tiles": schedule.grid.total_kv_tiles,
            "slots": schedule.grid.slots,
            **plan_row(item),
            "wave_efficiency": round(schedule.wave_efficiency, 4),
            "empty_ctas": schedule.num_empty_ctas,
            "segments": schedule.num_segments,
            "tiles_per_cta": f"{schedule.tiles_of_cta.min()}-{schedule.tiles_of_cta.max()}",
            "combine": schedule.combine,
            "splits_of_request": str(per_request[0]) if few else " ".join(map(str, per_request)),
        }
    ]


def _segment_rows(item: Any) -> list[dict[str, Any]]:
    return [
        {"device": item.point.device, "kernel": item.point.policy, **segment._asdict()}
        for segment in item.schedule.segments()
    ]


def _plan_csv(file: str, out: Path | None, form: str) -> None:
    """Plan every row of a CSV; nothing is written unless every row makes sense."""
    from leansim import tables  # noqa: PLC0415

    rows, problems = [], []
    columns, records = _read_csv(file)
    foreign = check_columns(columns, file)
    if foreign:
        print(f"note: carried along unread: {', '.join(foreign)}", file=sys.stderr)
    for line, record in enumerate(records, start=2):
        known = {key: value for key, value in record.items() if key not in foreign}
        try:
            rows.append({**record, **plan_row(resolve(point_from_row(known, file)))})
        except ConfigError as error:
            problems += [Problem(p.where, p.found, p.wanted, line, 1) for p in error.problems]
        except LeansimError as error:
            problems.append(Problem("row", "a point that cannot be planned", str(error), line, 1))
    if problems:
        raise ConfigError(file, problems[:50])
    text = tables.render([{k: row.get(k) for k in [*columns, *PLAN_COLUMNS]} for row in rows], form)
    if out is None:
        print(text)
    else:
        _write_whole(out, text + "\n")
        print(f"planned {len(rows)} points into {out}", file=sys.stderr)


def _read_csv(file: str) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with Path(file).open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(file, [Problem("file", str(error), "wanted a readable CSV")]) from None
    if not reader.fieldnames or not records:
        raise ConfigError(file, [Problem("file", "no rows", "wanted a header and points", 1, 1)])
    for line, record in enumerate(records, start=2):
        if None in record or None in record.values():
            found = "more cells than columns" if None in record else "fewer cells than columns"
            raise ConfigError(file, [Problem("row", found, "wanted a cell per column", line, 1)])
    return [name.strip() for name in reader.fieldnames], [
        {k.strip(): v for k, v in record.items()} for record in records
    ]


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    part.replace(path)


@app.command()
@with_point_flags
def verify(
    file: File = None,
    settings: Settings = None,
    form: Form = "table",
    input_seed: Annotated[int, typer.Option("--input-seed", help="seed of the random inputs")] = 0,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Replay schedules in NumPy against reference attention; exits with 1 if one is not exact."""
    from leansim import api, tables  # noqa: PLC0415

    _check_form(form)
    rows, notes, passed = [], [], True
    for point in _grid(file, settings, flags).points():
        verification, invariance = api.verify(point, seed=input_seed)
        passed &= verification.passed
        label = {"device": point.device, "kernel": point.policy}
        rows += [{**label, **row} for row in verification.rows()]
        notes += _verify_notes(point, verification, invariance)
    print(tables.render(rows, form))
    if form in ("table", "md"):
        print("\n" + "\n".join(notes))
    if not passed:
        raise typer.Exit(1)


def _verify_notes(point: Point, verification: Any, invariance: Any) -> list[str]:
    cover = "exact" if verification.cover.exact else verification.cover.problem
    batch = "batch-invariant" if invariance.invariant else "not batch-invariant"
    if invariance.counterexample:
        batch += f": {invariance.counterexample}"
    return [
        f"{point.device} {point.policy}: cover {cover}; replayed {verification.replayed_tiles:,} of "
        f"{verification.cover.output_tiles:,} output tiles "
        f"({verification.replayed_patterns} of {verification.patterns} ways of cutting); {batch}"
    ]


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="a folder written by `leansim sweep`")],
    baseline: Annotated[
        str | None, typer.Option(help="kernel that speedups are measured against")
    ] = None,
) -> None:
    """Draw the figures of stored results again, without simulating."""
    from leansim.plots import plot as draw  # noqa: PLC0415

    for path in draw(folder, baseline):
        print(path)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="devices, kernels, partitioners, models or traces")],
) -> None:
    """List what there is."""
    from leansim import api  # noqa: PLC0415

    for name in api.list(what):  # type: ignore[arg-type]
        about = "" if what == "traces" else _about(api.show(name))
        print(f"{name:24s} {about}".rstrip())


def _about(thing: Any) -> str:
    text = (inspect.getdoc(thing) or "") if isinstance(thing, type) else thing.description
    return str(text).split("\n", maxsplit=1)[0]


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a device, kernel, model or partitioner")],
) -> None:
    """Print every number of a thing with its source."""
    from leansim import api, tables  # noqa: PLC0415

    thing = api.show(name)
    if isinstance(thing, type):
        print(f"{name}: {inspect.getdoc(thing)}\n")
        rows = [
            {"option": f.name, "default": repr(f.default), "type": str(f.type)} for f in fields(thing)
        ]
        print(tables.render(rows, "table") if rows else "no options")
        return
    print(f"{thing.name}: {thing.description}\n")
    values = thing.model_dump(mode="json", exclude={"name", "description", "sources"})
    rows = [
        {"number": key, "value": _shown(value), "source": thing.sources.get(key, "")}
        for key, value in values.items()
        if value is not None
    ]
    print(tables.render(rows, "table"))
    counts = ", ".join(f"{n} {label}" for label, n in thing.source_counts().items() if n)
    print(f"\n{counts}")


def _shown(value: Any) -> str:
    if isinstance(value, float) and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.4g}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the schema")] = None,
) -> None:
    """Print the JSON Schema of run and sweep files, for editors."""
    from leansim import api  # noqa: PLC0415

    text = json.dumps(api.schema(), indent=2)
    if out is None:
        print(text)
    else:
        _write_whole(out, text + "\n")


def _check_form(form: str) -> None:
    if form not in ("table", "json", "csv", "md"):
        problem = Problem("--format", repr(form), "wanted table, json, csv or md")
        raise ConfigError("command line", [problem])


def _version(value: bool) -> None:
    if value:
        print(f"leansim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Simulate attention-decode schedules on GPUs."""


def main() -> None:
    """Entry point: run the app; print what a user got wrong, without a traceback, and exit with 2."""
    try:
        app()
    except LeansimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
