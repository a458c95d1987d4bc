"""A whole decode step: published times and power beside simulated ones, and what a schedule changes.

    python experiments/decode_step/run.py [-o FOLDER]

Writes RESULTS.md, expected.csv (the pins) and a figure, here or into another folder, in some seconds.
`gemms.py` fits what the matrices rest on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attention_share
import compiled
import generation
import sizing
from steps import Asked, Found, found, pins

from leansim.answers import render
from leansim.checkout.pages import page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.files.writing import write_whole
from leansim.report.sheet import save
from leansim.report.step_figures import share_figures
from leansim.steps.step import Steps

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Simulate, write, draw."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    steps = found(calls())
    write_whole(out / "expected.csv", render(pins(steps), "csv") + "\n")
    write_whole(out / "RESULTS.md", results(steps))
    drawn = [steps[one] for one in attention_share.calls() if one.kernel == "flash_decoding"]
    for name, figure in share_figures(Steps(tuple(drawn))).items():
        save(figure, out / f"{name}.png")


def published() -> dict[str, Any]:
    """What others published."""
    data: dict[str, Any] = read(HERE / "published.yaml").data
    return data


def calls() -> list[Asked]:
    """Every step that RESULTS.md and the figure rest on."""
    said = published()
    return [
        *generation.calls(said["generation"], said["power"]),
        *sizing.calls(said["static"], said["served"]),
        *compiled.calls([*said["gpt_fast"], *said["bifurcated"]]),
        *attention_share.calls(),
    ]


def results(steps: Found) -> str:
    """RESULTS.md."""
    said = published()
    beside = {"gpt-fast": said["gpt_fast"], "bifurcated": said["bifurcated"]}
    parts = (
        compiled.part(steps, beside),
        generation.part(steps, said["generation"], said["power"]),
        sizing.part(steps, said["static"], said["served"]),
        attention_share.part(steps),
    )
    return page(parts)


if __name__ == "__main__":
    main()
