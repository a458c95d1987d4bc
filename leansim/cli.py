"""The command line: each verb parses, calls its Python twin, and prints.

Mistakes print without a traceback and exit with 2.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from leansim import __version__, cli_measure, cli_silicon, cli_study
from leansim.allocator import keep_memory
from leansim.engine import ENGINE_VARIABLE, check_engine
from leansim.errors import ConfigError, LeansimError, Problem, StoreError
from leansim.points import POINT_KEYS, Point, resolve
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


EngineName = Annotated[
    str, typer.Option("--engine", help="numba (compiled), simpy (the reference) or auto")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="worker processes; one per core by default"),
]
Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="draw the figures")]


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
    engine: EngineName = "auto",
    flags: list[str] = [],  # noqa: B006 - filled by the decorator
) -> None:
    """Simulate one workload under several kernels and print one table."""
    from leansim import api, tables  # noqa: PLC0415

    _check_form(form)
    extra = [f"baseline={baseline}"] if baseline else []
    grid = _grid(file, [*extra, *(settings or [])], flags)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # complain before simulating, not after
    done = api.run(grid, engine=engine)  # type: ignore[arg-type]
    rows = tables.run_rows(done) if form in ("table", "md") else tables.run_records(done)
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
    jobs: Jobs = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="keep finished points, or simulate them again")
    ] = True,
    plots: Plots = True,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Dask scheduler whose workers simulate"),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="simulate the I-th of N parts; see `merge`")
    ] = None,
    engine: EngineName = "auto",
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Simulate a grid of points over all cores; results, figures and manifest go to a folder."""
    from leansim import sweeps  # noqa: PLC0415
    from leansim.progress import Progress  # noqa: PLC0415

    if out is None:
        raise ConfigError("command line", [Problem("--out", "nothing", "wanted a folder: -o DIR")])
    if jobs is not None and scheduler is not None:
        wanted = "wanted one of the two: the scheduler's workers are as many as they are"
        raise ConfigError("command line", [Problem("--jobs", "--scheduler too", wanted)])
    grid = _grid(file, settings, flags)
    _use_engine(engine)
    try:
        with Progress(grid.name) as progress:
            done = sweeps.sweep(
                grid,
                out,
                jobs=jobs,
                resume=resume,
                progress=progress,
                scheduler=scheduler,
                shard=shard,
            )
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is kept in {out}, the same command goes on", file=sys.stderr
        )
        raise typer.Exit(130) from None
    _tell_sweep(done, plots and shard is None)


def _tell_sweep(done: Any, plots: bool) -> None:
    """Print what became of a sweep's points, draw it, and exit with 1 if some failed."""
    print(
        f"{len(done.table)} points in {done.folder}: {done.simulated} simulated, "
        f"{done.reused} already there, {done.refused} refused"
        + (f", {done.failed} failed: the same command tries them again" if done.failed else "")
    )
    for reason, count in done.table["error"].dropna().value_counts().items():
        print(f"  {count} without a result: {reason}")
    if plots:
        from leansim.plots import plot as draw  # noqa: PLC0415

        try:
            for path in draw(done.folder):
                print(f"  drew {path}")
        except StoreError as error:
            print(f"  no figures: {error}")
    if done.failed:
        raise typer.Exit(1)


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="folder for the whole sweep's results")],
    folders: Annotated[
        list[Path] | None, typer.Argument(help="the shards' folders; by default those in OUT")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="write what there is though points are missing")
    ] = False,
    plots: Plots = True,
) -> None:
    """Join the shards of a sweep, made with `sweep --shard i/n`, into one folder of results."""
    from leansim.merging import merge as join  # noqa: PLC0415

    _tell_sweep(join(out, folders or (), partial), plots)


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
    from leansim import planning, tables  # noqa: PLC0415

    _check_form(form)
    if file is not None and file.lower().endswith(".csv"):
        if flags or settings or segments:
            found = ", ".join([*flags, *(settings or []), *(["--segments"] if segments else [])])
            wanted = "wanted each point's fields in its row"
            raise ConfigError("command line", [Problem(file, found, wanted)])
        planning.plan_csv(file, out, "csv" if out is not None and form == "table" else form)
        return
    resolved = [resolve(point) for point in _grid(file, settings, flags).points()]
    described = planning.segment_rows if segments else planning.planned_rows
    rows = [row for item in resolved for row in described(item)]
    text = tables.render(rows, form)
    if out is None:
        print(text)
    else:
        planning.write_whole(out, text + "\n")


@app.command()
def predict(
    file: Annotated[str, typer.Argument(help="a CSV of points; columns as for `plan`")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the predictions")] = None,
    form: Form = "csv",
    jobs: Jobs = None,
    engine: EngineName = "auto",
) -> None:
    """Predict the latency of every point of a CSV."""
    from leansim import planning  # noqa: PLC0415

    _check_form(form)
    _use_engine(engine)
    planning.predict_csv(file, out, form, jobs)


def _use_engine(engine: str) -> None:
    """Choose the engine for this process and the workers it starts."""
    check_engine(engine)
    os.environ[ENGINE_VARIABLE] = engine


@app.command()
@with_point_flags
def verify(
    file: File = None,
    settings: Settings = None,
    form: Form = "table",
    input_seed: Annotated[
        int, typer.Option("--input-seed", min=0, help="seed of the random inputs")
    ] = 0,
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
        notes.append(tables.verify_note(point, verification, invariance))
    print(tables.render(rows, form))
    if form in ("table", "md"):
        print("\n" + "\n".join(notes))
    if not passed:
        raise typer.Exit(1)


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
    from leansim import showing  # noqa: PLC0415

    print(showing.listed(what))  # type: ignore[arg-type]


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a device, kernel, model or partitioner, or a YAML file")],
) -> None:
    """Print every number of a thing with its source."""
    from leansim import showing  # noqa: PLC0415

    print(showing.described(name))


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the schema")] = None,
) -> None:
    """Print the JSON Schema of run and sweep files, for editors."""
    from leansim import api, planning  # noqa: PLC0415

    text = json.dumps(api.schema(), indent=2)
    if out is None:
        print(text)
    else:
        planning.write_whole(out, text + "\n")


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


cli_silicon.register(app)
cli_measure.register(app)
cli_study.register(app, with_point_flags)


def main() -> None:
    """Entry point: run the app; print what a user got wrong, without a traceback, and exit with 2."""
    keep_memory()
    try:
        app()
    except LeansimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that is a file, a full disk, a missing permission
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
