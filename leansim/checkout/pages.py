"""What the results of an experiment are written as: parts of a page, with sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from leansim.answers import Row, render

Rows = list[Row]
HEAD = "Written by `run.py`; do not edit. README.md says what is asked, and what is not modelled."


@dataclass(frozen=True)
class Part:
    """A part of a page: a title, sentences, and tables of text under their captions."""

    title: str
    sentences: tuple[str, ...]
    tables: tuple[tuple[str, Rows], ...]

    @property
    def written(self) -> str:
        """The part as Markdown."""
        tables = (f"### {caption}\n\n{render(rows, 'md')}" for caption, rows in self.tables if rows)
        return "\n\n".join([f"## {self.title}", "\n".join(self.sentences), *tables])


def page(parts: Iterable[Part], title: str = "Results") -> str:
    """Parts under a title, and what wrote them."""
    return "\n\n".join([f"# {title}\n\n{HEAD}", *(part.written for part in parts)]) + "\n"


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
