"""What a part of the results says: its title, sentences, tables and figures, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leansim.answers import Row, render

Rows = list[Row]


@dataclass(frozen=True)
class Part:
    """A part of a page: a title, sentences, tables of text under their captions, figures by file."""

    title: str
    sentences: tuple[str, ...]
    tables: tuple[tuple[str, Rows], ...]
    figures: tuple[tuple[str, str], ...] = ()  # what one shows, its file

    @property
    def written(self) -> str:
        """The part as Markdown."""
        tables = (f"### {caption}\n\n{render(rows, 'md')}" for caption, rows in self.tables if rows)
        figures = (f"![{what}]({file})" for what, file in self.figures)
        return "\n\n".join([f"## {self.title}", "\n\n".join(self.sentences), *figures, *tables])


def geometric_mean(ratios: Iterable[float]) -> float:
    """Mean of ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def figures_of(gains: Sequence[float]) -> Row:
    """What there is to say of some speedups: means, ends, and how many are slower."""
    return {
        "points": len(gains),
        "mean": f"{sum(gains) / len(gains):.2f}",
        "geomean": f"{geometric_mean(gains):.2f}",
        "largest": f"{max(gains):.2f}",
        "smallest": f"{min(gains):.2f}",
        "slower": f"{sum(gain < 1.0 for gain in gains) / len(gains):.0%}",
    }


def tokens(number: int) -> str:
    """A token count as files write it."""
    for size, unit in ((1024 * 1024, "M"), (1024, "k")):
        if number % size == 0:
            return f"{number // size}{unit}"
    return f"{number:,}"
