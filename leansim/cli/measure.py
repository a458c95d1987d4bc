"""The verb that runs schedules on a GPU: measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import leansim
from leansim.cli.options import mistake, writable_file, writable_folder
from leansim.errors import LeansimError
from leansim.files.terminal import say, tell

if TYPE_CHECKING:
    from leansim.files.csv import CsvRow

# A paragraph is a line: the terminal wraps it. The backslash keeps rich from reading a style.
HELP = "\n\n".join(
    (
        "Measure schedules on this machine's NVIDIA GPU, with leansim's own Triton kernels.",
        "Once, in a checkout, on Linux with an NVIDIA driver:",
        r"    pip install '.\[gpu]'",
        "Then, in this order:",
        "    leansim measure micro -o micro.csv",
        "    leansim measure campaign -o points.csv --budget-s 540",
        "    leansim validate --points points.csv",
        "`card` begins a file for a GPU that configs/devices does not have, which --device then names. "
        "`micro` takes about a minute. `campaign` measures uniform and ragged batches under "
        "triton_fa2, triton_flash_decoding and triton_lean; the same command goes on where it stopped. "
        "A CSV of points of your own (columns as for `predict`; kernels triton_*, or one of them under "
        "any partitioner, as in triton_lean+lean_aiter) is measured row by row.",
        "Libraries that are installed are measured the same way:",
        "    leansim measure libraries -o FOLDER",
        "writes their times to FOLDER/libraries.csv, and with --kernels each kernel of a call to "
        "FOLDER/kernels.csv. It says which it found, and of the others why not; --only takes some.",
        "`pace` measures time per KV tile against CTAs on an SM (--only triton_fa2,vllm_flash_3) and "
        "says what it means for the kernel's file; `timers` what do_bench and its like add to a call.",
        "Every output is checked against float64 attention. Clocks and settings stay as they are.",
        "Without a GPU, `leansim measure campaign --interpret -o rehearsal.csv` runs the kernels in "
        "Triton's interpreter on tiny shapes, checks them, and times nothing. docs/measuring.md says "
        "what the numbers mean and how to fit constants to them.",
    )
)


def measure(
    what: Annotated[
        str,
        typer.Argument(
            metavar="POINTS.csv|campaign|libraries|micro|timers|pace|card", help="what to measure"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="a CSV; of libraries a folder, of card a YAML"),
    ] = None,
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
    only: Annotated[str | None, typer.Option(help="libraries, pace: some of them, with commas")] = None,
    batches: Annotated[
        str | None, typer.Option(help="libraries: a CSV of points whose batches are measured")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="libraries: so many shapes at most")] = None,
    cache: Annotated[
        str | None, typer.Option(help="libraries: cold (by default), warm, or cold,warm")
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="libraries: each kernel of a call apart, too")
    ] = False,
) -> None:
    """Measure points, a campaign of them, or the machine's own mechanisms (see `HELP`)."""
    if out is None:
        raise mistake("--out", "nothing", "wanted a file: -o OUT.csv")
    (writable_folder if what == "libraries" else writable_file)(out)
    from leansim.sweeps.progress import Progress

    try:
        with Progress("measure") as progress:
            done = leansim.measure(
                what,
                out,
                device,
                budget_s,
                resume,
                interpret,
                input_seed,
                progress,
                _Complaints(),
                only,
                batches,
                sample,
                cache,
                kernels,
            )
    except KeyboardInterrupt:
        tell(f"interrupted; what is finished is kept in {out}, the same command goes on")
        raise typer.Exit(130) from None
    say("\n".join(done.notes()))
    if done.refused:
        raise typer.Exit(1)


class _Complaints:
    """Prints why a point was not measured, each reason once."""

    def __init__(self) -> None:
        self.told = set[str]()

    def __call__(self, row: CsvRow, error: LeansimError) -> None:
        if str(error) not in self.told:
            self.told.add(str(error))
            named = ", ".join(f"{key}={value}" for key, value in row.items() if value)
            tell(f"refused: {named}: {error}")


def register(app: typer.Typer) -> None:
    """Add this verb to an app."""
    app.command(help=HELP)(measure)
