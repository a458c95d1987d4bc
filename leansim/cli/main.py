"""The command line: each verb parses, calls its Python twin, and prints.

Mistakes print without a traceback and exit with 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy  # noqa: F401 - here, as loading it takes 20 ms longer where imports are deeper
import typer
from typer.main import get_command_name
from typer.models import CommandInfo

import leansim
from leansim import __version__
from leansim.cli import experiment, measure, silicon, steps, study
from leansim.cli.options import (
    Baseline,
    EngineName,
    File,
    Form,
    Jobs,
    Out,
    Plots,
    Settings,
    Strict,
    check_form,
    engine_of,
    grid_of,
    mistake,
    tell_refused,
    with_point_flags,
    writable_file,
    writable_folder,
)
from leansim.errors import LeansimError, StoreError
from leansim.files.terminal import never_fail, say, tell, tell_written
from leansim.files.writing import write_whole
from leansim.sweeps.allocator import keep_memory

if TYPE_CHECKING:
    from leansim.sweeps.sweep import Sweep

app = typer.Typer(
    name="leansim",
    help="What an attention-decode schedule does on a GPU, simulated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
@with_point_flags
def run(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    baseline: Baseline = None,
    engine: EngineName = "auto",
    flags: list[str] = [],  # noqa: B006 - filled by the decorator
) -> None:
    """Simulate one workload under several kernels and print one table."""
    extra = [f"baseline={baseline}"] if baseline else []
    grid = grid_of(file, [*extra, *(settings or [])], flags, form)
    done = leansim.run(grid, engine=engine_of(engine))
    say(done.written(form))
    if out is not None:
        from leansim.report.run import write_run

        tell_written(write_run(done, out), out)


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
    from leansim.sweeps.progress import Progress

    if out is None:
        raise mistake("--out", "nothing", "wanted a folder: -o DIR")
    if jobs is not None and scheduler is not None:
        wanted = "wanted one of the two: the scheduler's workers are as many as they are"
        raise mistake("--jobs", "--scheduler too", wanted)
    grid = grid_of(file, settings, flags)
    try:
        with Progress(grid.name) as progress:
            done = leansim.sweep(
                grid,
                out,
                jobs=jobs,
                resume=resume,
                progress=progress,
                scheduler=scheduler,
                shard=shard,
                engine=engine_of(engine),
            )
    except KeyboardInterrupt:
        tell(f"interrupted; what is finished is kept in {out}, the same command goes on")
        raise typer.Exit(130) from None
    _tell_sweep(done, plots and shard is None)


def _tell_sweep(done: Sweep, plots: bool) -> None:
    """Print what became of a sweep's points, draw it, and exit with 1 if some failed."""
    say("\n".join(done.notes()))
    if plots:
        try:
            for path in leansim.plot(done.folder):
                say(f"  drew {path}")
        except StoreError as error:
            say(f"  no figures: {error}")
    if done.failed:
        raise typer.Exit(1)


@app.command()
def merge(
    out: Annotated[
        Path, typer.Argument(help="folder for the whole sweep's results", callback=writable_folder)
    ],
    folders: Annotated[
        list[Path] | None, typer.Argument(help="the shards' folders; by default those in OUT")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="write what there is though points are missing")
    ] = False,
    plots: Plots = True,
) -> None:
    """Join the shards of a sweep, made with `sweep --shard i/n`, into one folder of results."""
    _tell_sweep(leansim.merge(out, folders or (), partial), plots)


@app.command()
@with_point_flags
def plan(
    file: Annotated[str | None, typer.Argument(help="a YAML file or a CSV of points")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="file for the planned points", callback=writable_file),
    ] = None,
    settings: Settings = None,
    form: Form = "table",
    segments: Annotated[bool, typer.Option("--segments", help="list every segment")] = False,
    strict: Strict = False,
    flags: list[str] = [],  # noqa: B006
) -> None:
    """Make schedules without simulating: CTAs, waves, splits per request, segments."""
    from leansim.answers import render

    check_form(form)
    if file is not None and file.lower().endswith(".csv"):
        if segments:
            raise mistake(file, "--segments", "wanted a YAML file, or flags")
        plans = leansim.plan(file, [*flags, *(settings or [])], strict)
        _print_or_write(plans.written("csv" if out is not None and form == "table" else form), out)
        if out is not None:
            tell(f"planned {len(plans)} points into {out}")
        tell_refused(plans.refused)
        return
    plans = leansim.plan(grid_of(file, settings, flags))
    if segments:
        _print_or_write(render(plans.segments(), form), out)
    else:
        _print_or_write(plans.written(form), out)


@app.command()
def predict(
    file: Annotated[str, typer.Argument(help="a CSV of points; columns as for `plan`")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="file for the predictions", callback=writable_file),
    ] = None,
    settings: Settings = None,
    form: Form = "csv",
    jobs: Jobs = None,
    engine: EngineName = "auto",
    strict: Strict = False,
) -> None:
    """Predict the latency of every point of a CSV."""
    from leansim.answers import render

    check_form(form)
    chosen = engine_of(engine)
    found = leansim.predict(file, jobs, engine=chosen, settings=settings or (), strict=strict)
    for note in found.notes():
        tell(f"note: {note}")
    _print_or_write(render(found.records(), form), out)
    if out is not None:
        tell(f"predicted {len(found) - len(found.refused)} points into {out}")
    tell_refused(found.refused)


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
    found = leansim.verify(grid_of(file, settings, flags, form), input_seed=input_seed)
    say(found.written(form))
    if not all(one.passed for one in found):
        raise typer.Exit(1)


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="a folder written by `leansim sweep`")],
    baseline: Baseline = None,
) -> None:
    """Draw the figures of stored results again, without simulating."""
    for path in leansim.plot(folder, baseline):
        say(str(path))


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="devices, nodes, kernels, loops, partitioners, models, traces, timers or libraries"
        ),
    ],
) -> None:
    """List what there is."""
    if what == "libraries":
        from leansim.gpu.libraries.registry import told

        say(told())
        return
    from leansim.report.show import listed

    say(listed(what))  # type: ignore[arg-type]


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="a device, node, kernel, loop, model or partitioner, or a YAML file")
    ],
) -> None:
    """Print every number of a thing with its source."""
    from leansim.report.show import described

    say(described(name))


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file for the schema", callback=writable_file)
    ] = None,
) -> None:
    """Print the JSON Schema of run and sweep files, for editors."""
    _print_or_write(json.dumps(leansim.schema(), indent=2), out)


def _print_or_write(text: str, out: Path | None) -> None:
    if out is None:
        say(text)
    else:
        write_whole(out, text + "\n")


def _version(value: bool) -> None:
    if value:
        say(f"leansim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Simulate attention-decode schedules on GPUs."""


silicon.register(app)
measure.register(app)
study.register(app)
steps.register(app)
experiment.register(app)


def _asked_of(arguments: Sequence[str]) -> typer.Typer:
    """The app with the verb alone that is asked for, if one is: making the flags of all takes time."""
    verb = next(iter(arguments), "")
    commands = [one for one in app.registered_commands if verb == _name(one)]
    groups = [one for one in app.registered_groups if verb == one.name]
    if not (commands or groups):
        return app
    asked = copy(app)
    asked.registered_commands, asked.registered_groups = commands, groups
    return asked


def _name(command: CommandInfo) -> str:
    return command.name or get_command_name(command.callback.__name__)  # type: ignore[union-attr]


def main() -> None:
    """Entry point: run the app; print what a user got wrong, without a traceback, and exit with 2."""
    keep_memory()
    never_fail()
    try:
        _asked_of(sys.argv[1:])()
    except LeansimError as error:
        tell(f"error: {error}")
        sys.exit(2)
    except OSError as error:  # a folder that is a file, a full disk, a missing permission
        place = f"{error.filename}: " if error.filename else ""
        tell(f"error: {place}{error.strerror or error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
