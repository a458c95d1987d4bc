"""Rings around what was fitted: the further out, the less of a time was chosen to meet a measurement."""

from __future__ import annotations

from collections.abc import Iterator

from sources import FITTED_CARD, Error, blind, joined, kinds, own, witnesses

from leansim.answers import Row

# Files of our own cards, by how their names begin, and what they hold.
_FILES = {
    "libraries": "production kernels alone",
    "more_libraries": "eleven production kernels alone, measured later",
    "triton_campaign": "leansim's own kernel alone, three schedules",
    "triton_partitioners": "the same kernel under other partitioners, ragged",
}
_FITTED = {"fit": "rows fitted to", "test": "rows not fitted to"}


def rings() -> list[Row]:
    """A row per ring, from the inside out."""
    return [
        {
            "what": what,
            "rows": f"{error.rows:,}",
            "mean error": f"{error.mean:.1%}",
            "within 10%": f"{error.within_10:.0%}",
        }
        for what, error in [*_tables(True), *_cards(), *_tables(False), *_witnesses(), *_blind()]
    ]


def _tables(fits: bool) -> Iterator[tuple[str, Error]]:
    tables = kinds()
    mine = tables[tables["fits"] == fits]
    what = "tables that constants were fitted to: rows not fitted to"
    if not fits:
        what = "other tables, which fitted their harness alone"
    yield what, joined(mine)


def _cards() -> Iterator[tuple[str, Error]]:
    rows = own()
    for name, what in _FILES.items():
        files = rows[rows["file"].str.startswith(name)]
        for (card, rows_are), mine in sorted(files.groupby(["card", "rows_are"]), key=_from_inside):
            part = _FITTED[rows_are] if card == FITTED_CARD else "which nothing was fitted to"
            told = f"{what}: {card.upper()}, {part}"
            yield told, joined(mine)


def _blind() -> Iterator[tuple[str, Error]]:
    rows = blind()
    for evidence, mine in rows.groupby("evidence"):
        yield f"production kernels on new shapes, blindly: said to be {evidence}", joined(mine)


def _from_inside(group: tuple[tuple[str, str], object]) -> tuple[bool, bool]:
    (card, rows_are), _ = group
    return card != FITTED_CARD, rows_are != "fit"


def _witnesses() -> Iterator[tuple[str, Error]]:
    for error in witnesses():
        yield f"{error.source}: `{error.kernel}`", error
