"""The verb about all of a decode step: step."""

from __future__ import annotations

from typing import Annotated

import typer

import leansim
from leansim.cli.options import File, Form, Out, Settings, Verb, grid_of, tell_refused, with_point_flags
from leansim.files.terminal import say, tell_written


def step(
    file: File = None,
    out: Out = None,
    settings: Settings = None,
    form: Form = "table",
    weight_dtype: Annotated[str, typer.Option(help="dtype of the weights")] = "bfloat16",
    flags: list[str] = [],  # noqa: B006 - filled by the decorator
) -> None:
    """A whole decode step of a model: attention, matrices, collectives, tokens/s, energy."""
    grid = grid_of(file, settings, flags, form)
    found = leansim.step(grid, weight_dtype)
    say(found.written(form))
    if out is not None:
        from leansim.report.step_figures import share_figures
        from leansim.report.study_report import write_study

        tell_written(write_study(out, grid, found, share_figures(found)), out)
    if form in ("json", "csv"):
        tell_refused(found.refused)
    elif found.refused:
        raise typer.Exit(1)


VERBS: tuple[Verb, ...] = (step,)


def register(app: typer.Typer) -> None:
    """Add the verb to an app, with a flag for every field of a point."""
    for verb in VERBS:
        app.command()(with_point_flags(verb))
