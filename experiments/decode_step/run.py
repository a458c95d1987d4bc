"""A whole decode step: published times and power beside simulated ones, and what a schedule changes.

    python experiments/decode_step/run.py [-o FOLDER]

Writes RESULTS.md, expected.csv (the pins) and a figure, here or into another folder, in half a minute.
`gemms.py` fits what the matrices rest on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # for parts of pages

import attention_share  # noqa: E402
import compiled  # noqa: E402
import generation  # noqa: E402
from steps import Asked, Found, found, pins  # noqa: E402

from leansim.answers import render  # noqa: E402
from leansim.files.strict_yaml import read  # noqa: E402
from leansim.files.writing import write_whole  # noqa: E402
from leansim.report.sheet import save  # noqa: E402
from leansim.report.step_figures import share_figures  # noqa: E402
from leansim.steps.step import Steps  # noqa: E402

HEAD = "Written by `run.py`; do not edit. README.md says what is asked, and what is not modelled."


def main() -> None:
    """Simulate, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=HERE, help="where to write; here by default")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
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
        attention_share.part(steps),
    )
    return "\n\n".join([f"# Results\n\n{HEAD}", *(part.written for part in parts)]) + "\n"


if __name__ == "__main__":
    main()
