"""Holds the model against public measurements that no constant was fitted to.

    python experiments/witnesses/run.py --data FOLDER [-o FOLDER]

The folder of data has the files that README.md names; they are other people's and stay outside.
Writes RESULTS.md, summaries (CSV) and figures, here or into another folder. Some 54,000 predictions:
about a minute.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import relay
import two_lengths
import vidur
from comparing import Part, errors, shown
from figures import raggedness_figure, steps_figure

from leansim.answers import render
from leansim.checkout.scripts import parser_of
from leansim.files.writing import write_whole
from leansim.report.sheet import save

HERE = Path(__file__).resolve().parent
HEAD = (
    "# Results\n\nWritten by `run.py`; do not edit. Errors are simulated over measured, less one: "
    "above zero the model is too slow.\n`mean` and `median` are of their size. No constant was fitted "
    "to these rows."
)


def main() -> None:
    """Read, predict, write."""
    parser = parser_of(__doc__, HERE)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the measurements")
    given = parser.parse_args()
    witnesses(given.data, given.out)


def witnesses(data: Path, out: Path) -> None:
    """Everything, from a folder of measurements into a folder."""
    on_a100, a100 = vidur.part(data)
    on_cards = {card.title: two_lengths.part(data, card) for card in two_lengths.CARDS}
    on_a40, a40 = relay.part(data)
    ragged = {title: rows for title, (_, rows) in on_cards.items()}
    parts = [on_a100, *(part for part, _ in on_cards.values()), on_a40]
    write_whole(out / "RESULTS.md", "\n\n".join([HEAD, *map(written, parts)]) + "\n")
    write_whole(out / "summary.csv", _csv(summary(parts)))
    write_whole(out / "cliffs.csv", _csv(vidur.cliffs(a100)))
    write_whole(out / "a40.csv", _csv(errors(a40, "n")))
    save(steps_figure(a100), out / "steps.png")
    save(raggedness_figure(ragged), out / "raggedness.png")


def written(part: Part) -> str:
    """A part as Markdown."""
    tables = (
        f"### {caption}\n\n{render(shown(table), 'md')}" for caption, table in part.tables if len(table)
    )
    return "\n\n".join([f"## {part.title}", "\n".join(part.sentences), *tables])


def summary(parts: list[Part]) -> pd.DataFrame:
    """Every error table, one under the other: its part, its caption, the group, and the errors."""
    columns = ["rows", "bias", "mean", "within_10"]
    tables = [
        table[columns].assign(witness=part.title, table=caption, group=table.iloc[:, 0].astype(str))
        for part in parts
        for caption, table in part.tables
        if set(columns) <= set(table)
    ]
    return pd.concat(tables)[["witness", "table", "group", *columns]]


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.4f", lineterminator="\n")


if __name__ == "__main__":
    main()
