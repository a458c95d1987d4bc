"""The verbs that hold the model against measurements: validate and calibrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="worker processes; one per core by default"),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="folder of <table>.csv samples, instead of the installed tables"),
]


def validate(
    tables: Annotated[
        list[str] | None, typer.Argument(help="measured tables in configs/tables; all by default")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="rows of each table, chosen by hash; all by default")
    ] = None,
    split: Annotated[str, typer.Option(help="rows to use: test (never fitted), fit or all")] = "test",
    data: Data = None,
    worst: Annotated[int, typer.Option(min=0, help="how many of the worst rows to print")] = 15,
    jobs: Jobs = None,
) -> None:
    """Hold predictions against measured latencies: errors by regime, the worst rows, the ranking."""
    from leansim import validation, validation_report  # noqa: PLC0415 - keeps `leansim --help` fast
    from leansim.progress import Progress  # noqa: PLC0415

    rows = validation.table_rows(tables or (), split, sample, data)  # type: ignore[arg-type]
    with Progress("validate") as progress:
        table = validation.validate(rows, jobs, progress)
    print(validation_report.printed(table, worst))


def calibrate(
    config: Annotated[str, typer.Argument(help="a file of configs/calibrations")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what was fitted and write nothing")
    ] = False,
    data: Data = None,
    jobs: Jobs = None,
) -> None:
    """Fit the free constants of kernels, devices and harnesses to measurements, and write them."""
    from leansim import fitting, validation_report  # noqa: PLC0415
    from leansim.calibration import read_calibration  # noqa: PLC0415

    told = -1

    def progress(evaluations: int, error: float) -> None:
        nonlocal told
        if evaluations != told:
            print(f"calibrate: {evaluations} evaluations, mean error {error:.2%}", file=sys.stderr)
            told = evaluations

    fit = fitting.calibrate(read_calibration(config), data, jobs, progress)
    print(validation_report.fitted(fit))
    if dry_run:
        print("\nnothing written: --dry-run")
        return
    for path in fitting.write(fit):
        print(f"wrote {path}")


def register(app: typer.Typer) -> None:
    """Add these verbs to an app."""
    app.command()(validate)
    app.command()(calibrate)
