"""The verbs that hold the model against measurements: validate and calibrate."""

from __future__ import annotations

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


def register(app: typer.Typer) -> None:
    """Add these verbs to an app."""
    app.command()(validate)
