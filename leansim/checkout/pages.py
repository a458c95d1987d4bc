"""What an experiment writes: RESULTS.md of several parts, and what is pinned of them as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leansim.answers import Row, render
from leansim.files.writing import write_whole

Rows = list[Row]
HEAD = (
    "# Results\n\nWritten by `run.py`; do not edit. README.md says what is asked, and what is not "
    "modelled."
)


@dataclass(frozen=True)
class Part:
    """A part of a page: a title, sentences, tables under their captions, and numbers to be pinned.

    What is pinned goes by the name of a case; the unit is in that name, or the experiment's to say.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[tuple[str, Sequence[Row]], ...] = ()
    pins: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """The part as Markdown."""
        tables = (f"### {caption}\n\n{render(rows, 'md')}" for caption, rows in self.tables if rows)
        return "\n\n".join([f"## {self.title}", "\n".join(self.sentences), *tables])


def page(parts: Sequence[Part], head: str = HEAD) -> str:
    """RESULTS.md: a head, and every part."""
    return "\n\n".join([head, *(part.written for part in parts)]) + "\n"


def geometric_mean(ratios: Iterable[float]) -> float:
    """Mean of ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def tokens(number: int) -> str:
    """A token count as files write it."""
    for size, unit in ((1024 * 1024, "M"), (1024, "k")):
        if number % size == 0:
            return f"{number // size}{unit}"
    return f"{number:,}"


def pins_of(parts: Sequence[Part]) -> dict[tuple[str, str], str]:
    """What is pinned, by part and case: whole numbers as they are, others to six digits."""
    return {
        (part.title, case): str(value) if isinstance(value, int) else f"{value:.6g}"
        for part in parts
        for case, value in part.pins.items()
    }


def write_page(folder: Path, parts: Sequence[Part], head: str = HEAD) -> None:
    """Write RESULTS.md and expected.csv (part, case, value) into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "case", "value"])
    writer.writerows([*place, value] for place, value in pins_of(parts).items())
    write_whole(folder / "RESULTS.md", page(parts, head))
    write_whole(folder / "expected.csv", text.getvalue())


def read_pins(folder: Path) -> dict[tuple[str, str], str]:
    """What expected.csv of a folder pins, by part and case."""
    rows = csv.DictReader((folder / "expected.csv").read_text(encoding="utf-8").splitlines())
    return {(row["part"], row["case"]): row["value"] for row in rows}
