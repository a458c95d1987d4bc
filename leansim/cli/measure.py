"""The verb that runs schedules on a GPU: measure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leansim.cli.options import mistake
from leansim.errors import LeansimError

if TYPE_CHECKING:
    from leansim.gpu.toolkit import Toolkit
    from leansim.points.csv import Row

# A paragraph is a line: the terminal wraps it. The backslash keeps rich from reading a style.
HELP = "\n\n".join(
    (
        "Measure schedules on this machine's NVIDIA GPU, with leansim's own Triton kernels.",
        "Once, on Linux with an NVIDIA driver:",
        r"    pip install 'leansim-attention\[gpu]'",
        "Then, in this order:",
        "    leansim measure micro -o micro.csv",
        "    leansim measure campaign -o points.csv --budget-s 540",
        "    leansim validate --points points.csv",
        "`micro` takes about a minute. `campaign` measures uniform and ragged batches under "
        "triton_fa2, triton_flash_decoding and triton_lean; the same command goes on where it stopped. "
        "A CSV of points of your own (columns as for `predict`; kernels triton_*, or one of them under "
        "any partitioner, as in triton_lean+lean_aiter) is measured row by row.",
        "Every output is checked against float64 attention. Clocks and settings stay as they are.",
        "Without a GPU, `leansim measure campaign --interpret -o rehearsal.csv` runs the kernels in "
        "Triton's interpreter on tiny shapes, checks them, and times nothing. docs/measuring.md says "
        "what the numbers mean and how to fit constants to them.",
    )
)
WORDS = ("campaign", "micro")


def measure(
    what: Annotated[str, typer.Argument(metavar="POINTS.csv|campaign|micro", help="what to measure")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV for the measurements")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="the GPU in configs/devices; recognised by default; not for a CSV of points"),
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", min=0, help="begin no point after so many seconds")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="keep the rows that OUT holds, or begin anew")
    ] = True,
    interpret: Annotated[
        bool, typer.Option("--interpret", help="rehearse on the CPU: check, and time nothing")
    ] = False,
    input_seed: Annotated[
        int | None, typer.Option("--input-seed", min=0, help="seed of the inputs; new ones by default")
    ] = None,
) -> None:
    """Measure points, a campaign of them, or the machine's own mechanisms (see `HELP`)."""
    if out is None:
        raise mistake("--out", "nothing", "wanted a file: -o OUT.csv")
    if what not in WORDS and not what.lower().endswith(".csv"):
        wanted = "wanted a CSV of points, campaign or micro"
        raise mistake("what to measure", repr(what), wanted)
    if what not in WORDS and device is not None:
        raise mistake("--device", repr(device), "wanted the device in each row of the points")
    rows = None if what in WORDS else _points(what)  # complain about points before looking for a GPU
    from leansim.gpu import toolkit

    tools = toolkit.cuda(interpret)
    if what == "micro":
        _micro(tools, _device(tools, device), out)
        return
    if rows is None:
        from leansim.gpu.campaign import campaign

        rows = campaign(_device(tools, device), rehearsal=interpret)
    _measure_rows(tools, what, rows, out, budget_s, resume, input_seed)


def _points(what: str) -> list[Row]:
    from leansim.silicon.own import read_measured

    return [dict(row) for row in read_measured(what).records]


def _device(tools: Toolkit, name: str | None) -> str:
    """The device named, or recognised; a rehearsal is as on an H200."""
    from leansim.gpu.machine import recognised
    from leansim.specs import catalog

    if name is not None:
        catalog.device(name)
        return name
    return "h200_sxm" if tools.interpreted else recognised(tools.torch)


def _micro(tools: Toolkit, device: str, out: Path) -> None:
    from leansim.gpu import micro
    from leansim.gpu.campaign import MeasuredFile
    from leansim.specs import catalog

    count = 0
    with MeasuredFile(out, micro.COLUMNS, fresh=True) as file:
        for row in micro.Micro(tools, catalog.device(device)).rows():
            file.add(row)
            count += 1
    print(f"{count} micro-measurements as on {device} in {out}: {_verb(tools)}")


def _measure_rows(
    tools: Toolkit,
    source: str,
    rows: list[Row],
    out: Path,
    budget_s: float | None,
    resume: bool,
    seed: int | None,
) -> None:
    from leansim.gpu.campaign import MeasuredFile, measured
    from leansim.gpu.measuring import Measurer
    from leansim.silicon.own import MEASUREMENT_COLUMNS
    from leansim.sweeps.progress import Progress

    measurer, complain = Measurer(tools, seed), _Complaints()
    columns = list(dict.fromkeys([*rows[0], *MEASUREMENT_COLUMNS]))
    done = 0
    try:
        with MeasuredFile(out, columns, not resume) as file, Progress("measure") as progress:
            measure_row: Callable[[Row], dict[str, Any]] = lambda row: measurer.measure(row, source)  # noqa: E731
            for done, total in measured(rows, measure_row, file, budget_s, complain):
                progress(done, total)
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is kept in {out}, the same command goes on", file=sys.stderr
        )
        raise typer.Exit(130) from None
    left = len(rows) - done - complain.count
    print(
        f"{done} of {len(rows)} points in {out}: {_verb(tools)}"
        + (f"; {left} left: the same command goes on" if left else "")
        + (f"; {complain.count} refused" if complain.count else "")
    )
    if complain.count:
        raise typer.Exit(1)


def _verb(tools: Toolkit) -> str:
    return "checked in the interpreter, not timed" if tools.interpreted else "measured and checked"


class _Complaints:
    """Prints why a point was not measured, each reason once, and counts the points."""

    def __init__(self) -> None:
        self.count, self.told = 0, set[str]()

    def __call__(self, row: Row, error: LeansimError) -> None:
        self.count += 1
        if str(error) not in self.told:
            self.told.add(str(error))
            named = ", ".join(f"{key}={value}" for key, value in row.items() if value)
            print(f"refused: {named}: {error}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add this verb to an app."""
    app.command(help=HELP)(measure)
