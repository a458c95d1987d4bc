"""Sparse decode: what was reported beside what is simulated, and when choosing KV is worth it.

    python experiments/sparse_decode/run.py [-o FOLDER]

Writes RESULTS.md, figures and expected.csv, the pins, here or into another folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import budgets
import ragged
import reported
from figures import break_even_figure, budget_figure
from parts import Part

from leansim.checkout.scripts import parser_of
from leansim.files.writing import write_whole
from leansim.report.sheet import save

HERE = Path(__file__).resolve().parent
HEAD = (
    "# Results\n\nWritten by `run.py`; do not edit. Of what is reported here one time of each of two "
    "tiles is fitted\n(the staircase says which), and nothing else. README.md says what is not modelled."
)


def main() -> None:
    """Run every part, write the results and the pins."""
    out = parser_of(__doc__, HERE).parse_args().out
    found, worth = budgets.curves(), budgets.break_even()
    parts = [*others(), budgets.part(found, worth)]
    write_whole(out / "RESULTS.md", "\n\n".join([HEAD, *(part.written() for part in parts)]) + "\n")
    write_whole(out / "expected.csv", pinned(parts))
    save(budget_figure(found), out / "budgets.png")
    save(break_even_figure(worth), out / "break_even.png")


def others() -> list[Part]:
    """All parts but the budgets."""
    return [
        reported.staircase(),
        reported.one_cta(),
        reported.straggler(),
        reported.told_length(),
        budgets.patterns(),
        budgets.bounded(),
        ragged.part(),
    ]


def pinned(parts: Sequence[Part]) -> str:
    """The pins as CSV: part, case, and its latency in whole nanoseconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "case", "latency_ns"])
    writer.writerows([part.title, case, time] for part in parts for case, time in part.pins.items())
    return text.getvalue()


if __name__ == "__main__":
    main()
