"""The verbs of the experiments in a checkout: experiment list, experiment run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import leansim
from leansim.cli.options import Form, Out, check_form
from leansim.files.terminal import say, tell

verbs = typer.Typer(
    help="The experiments of a checkout: list them, run them again.", no_args_is_help=True
)


@verbs.command("list")
def list_(form: Form = "table") -> None:
    """List the experiments: what each asks, takes and needs."""
    check_form(form)
    say(leansim.experiments().written(form))


@verbs.command()
def run(
    name: Annotated[str, typer.Argument(help="an experiment, or all that have what they need here")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="arguments of its script")
    ] = None,
    out: Out = None,
    data: Annotated[Path | None, typer.Option(help="folder of the outside measurements")] = None,
) -> None:
    """Run an experiment again; results go to their place, or to -o. Exits with 1 if it fails."""
    try:
        done = leansim.experiment(name, out, data, arguments or (), say)
    except KeyboardInterrupt:
        tell("interrupted")
        raise typer.Exit(130) from None
    if len(done) != 1 or done.skipped:
        say(f"\n{done.shown()}")
    if done.failed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these verbs to an app."""
    app.add_typer(verbs, name="experiment")
