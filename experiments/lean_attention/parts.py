"""What a part of these results says beside its tables: paragraphs and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leansim.answers import Row, render
from leansim.checkout import pages
from leansim.checkout.pages import Rows, geometric_mean, tokens

__all__ = ["Part", "Rows", "figures_of", "geometric_mean", "tokens"]


@dataclass(frozen=True)
class Part(pages.Part):
    """A part whose sentences are a paragraph each, and that has figures: what one shows, its file."""

    figures: tuple[tuple[str, str], ...] = ()

    @property
    def written(self) -> str:
        """The part as Markdown."""
        tables = (f"### {caption}\n\n{render(rows, 'md')}" for caption, rows in self.tables if rows)
        figures = (f"![{what}]({file})" for what, file in self.figures)
        return "\n\n".join([f"## {self.title}", "\n\n".join(self.sentences), *figures, *tables])


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
