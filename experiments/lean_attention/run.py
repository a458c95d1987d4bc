"""LeanAttention's evaluation, simulated: what its paper claims of attention, and when it pays.

    python experiments/lean_attention/run.py [-o FOLDER]

Writes RESULTS.md, figures and expected.csv, the pins, here or into another folder.
Two minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import busy
import end_to_end
import figures
import over_context
import published
import ragged
import tensor_parallel
import when_it_pays
from calls import Call, Times, pins, times_of
from parts import Part

from leansim.answers import render
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.files.writing import write_whole
from leansim.report.sheet import save

HERE = Path(__file__).resolve().parent
HEAD = (
    "# Results\n\nWritten by `run.py`; do not edit. README.md says what is asked, and what is not "
    "modelled. No constant was\nfitted to anything that is compared here."
)
DRAWN = {
    over_context.FIGURE: figures.possible_gain,
    busy.FIGURE: figures.busy_maps,
    ragged.FIGURE: figures.ragged_gains,
    tensor_parallel.FIGURE: figures.eight_gpus,
    when_it_pays.FIGURE: figures.when_it_pays_map,
}


def main() -> None:
    """Simulate, write, draw."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    times = times_of(calls())
    write_whole(out / "expected.csv", render(pins(times), "csv") + "\n")
    write_whole(out / "RESULTS.md", results(times))
    for name, drawn in DRAWN.items():
        save(drawn(times), out / name)


def claims() -> dict[str, Any]:
    """What others published."""
    found: dict[str, Any] = read(HERE / "claims.yaml").data
    return found


def calls() -> list[Call]:
    """Every call that RESULTS.md and the figures rest on."""
    said = claims()
    return [
        *over_context.calls(),
        *busy.calls(),
        *ragged.calls(said["sglang"]),
        *tensor_parallel.calls(),
        *published.calls(said),
        *when_it_pays.calls(),
        *end_to_end.calls(),
    ]


def parts(times: Times) -> list[Part]:
    """Every part, in the order of the page."""
    said = claims()
    return [
        when_it_pays.part(times),
        over_context.part(times),
        busy.part(times),
        ragged.part(times, said["sglang"]),
        tensor_parallel.part(times),
        published.part(times, said),
        end_to_end.part(times),
    ]


def results(times: Times) -> str:
    """RESULTS.md."""
    return "\n\n".join([HEAD, *(part.written for part in parts(times))]) + "\n"


if __name__ == "__main__":
    main()
