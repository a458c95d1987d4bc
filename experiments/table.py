"""Writes the table of docs/experiments.md from the files of the experiments.

python experiments/table.py
"""

from __future__ import annotations

from pathlib import Path

from leansim.answers import render
from leansim.checkout.experiments import Experiments, experiments
from leansim.files.writing import write_between

HERE = Path(__file__).resolve().parent


def table(every: Experiments) -> str:
    """A row for each experiment, with a link to its page."""
    rows = every.rows()
    for row in rows:
        row["experiment"] = f"[{row['experiment']}](../experiments/{row['experiment']}/README.md)"
    return render(rows, "md")


if __name__ == "__main__":
    write_between(HERE.parent / "docs" / "experiments.md", "experiments", table(experiments(HERE)))
