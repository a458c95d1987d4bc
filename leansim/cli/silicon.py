"""The verbs that hold the model against measurements: validate, calibrate and certify."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import leansim
from leansim.cli.options import Jobs, Settings, Strict, writable_folder
from leansim.files.terminal import say, tell, tell_written
from leansim.files.writing import check_file

Data = Annotated[
    Path | None,
    typer.Option("--data", help="folder of <table>.csv samples, instead of the installed tables"),
]
_TOLD_EVERY_S = 5.0


def validate(
    tables: Annotated[
        list[str] | None, typer.Argument(help="measured tables in configs/tables; all by default")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="rows of each table, chosen by hash; all by default")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="rows to use: test (never fitted), fit or all; of --points all by default"),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(help="a CSV of your own: points with measured_us, or FlashInfer's benchmark"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="with --points: where FlashInfer's benchmark ran")
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="folder for predictions, tables and figures", callback=writable_folder
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="how many of the worst rows to print")] = 15,
    jobs: Jobs = None,
    settings: Settings = None,
    strict: Strict = False,
) -> None:
    """Hold predictions against measured latencies: errors by regime, the worst rows, the ranking."""
    from leansim.report import validation_report
    from leansim.sweeps.progress import Progress

    with Progress("validate") as progress:
        table = leansim.validate(
            tables or (),
            sample,
            split,  # type: ignore[arg-type]
            points,
            device,
            data,
            jobs,
            progress,
            settings or (),
            strict,
        ).table
    say(validation_report.printed(table, worst))
    if out is not None:
        flags = [f"--sample {sample}"] if sample else []
        flags += [f"--points {points.name}"] if points else []
        flags += [f"--split {split or 'test'}"] if split or not points else []
        command = " ".join(["leansim validate", *(tables or ()), *flags])
        written = validation_report.write_validation(table, out, worst, command)
        tell_written(written, out)
    if table.attrs["refused"] or (points is not None and any(table["refused"] != "")):
        raise typer.Exit(1)


def calibrate(
    config: Annotated[str, typer.Argument(help="a name in configs/calibrations, or a file")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what was fitted and write nothing")
    ] = False,
    data: Data = None,
    jobs: Jobs = None,
) -> None:
    """Fit the free constants of kernels, devices and harnesses to measurements, and write them."""
    from leansim.report import validation_report
    from leansim.silicon.calibration import read_calibration
    from leansim.silicon.fit import files_of, write

    calibration = read_calibration(config)
    for path in () if dry_run else files_of(calibration):
        check_file(path)
    told_s = time.monotonic()

    def progress(evaluations: int, error: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > _TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"calibrate: {evaluations} evaluations, mean error {error:.2%}")

    fit = leansim.calibrate(calibration, data, jobs, progress)
    say(validation_report.fitted(fit))
    if dry_run:
        say("\nnothing written: --dry-run")
        return
    for path in write(fit):
        say(f"wrote {path}")


def certify(
    points: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POINTS.csv]...", help="measured points, as `leansim measure` writes them"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="the card, in place of what rows say: a name, or a YAML file")
    ] = None,
    kernels: Annotated[str | None, typer.Option(help="kernels to certify; all by default")] = None,
    micro: Annotated[
        Path | None, typer.Option(help="what `leansim measure micro` wrote of the card")
    ] = None,
    within: Annotated[
        float, typer.Option(min=0.0, help="mean error that a kernel may have after the fit")
    ] = 0.10,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="folder for report, errors and numbers", callback=writable_folder
        ),
    ] = None,
    jobs: Jobs = None,
    strict: Strict = False,
) -> None:
    """Is the model right for this card and these kernels? Fit a fifth of measured rows, test the rest.

    Exits with 1 where a kernel's mean error on the rows that nothing was fitted to is above WITHIN.
    """
    from leansim.report.certificate import write_certification
    from leansim.sweeps.progress import Progress

    with Progress("certify") as progress:
        found = leansim.certify(points or (), device, kernels, micro, within, jobs, progress, strict)
    say(found.shown())
    if out is not None:
        names = [Path(name).name for name in points or ()]
        options = {"--device": device, "--kernels": kernels, "--micro": micro and micro.name}
        flags = [f"{flag} {value}" for flag, value in options.items() if value]
        command = " ".join(["leansim certify", *names, *flags])
        tell_written(write_certification(found, out, command), out)
    if not found.passed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these verbs to an app."""
    app.command()(validate)
    app.command()(calibrate)
    app.command()(certify)
