"""A CSV of points in, a CSV of what was found out about each. All of a file's mistakes at once."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansim.errors import ConfigError, LeansimError, Problem
from leansim.points import Point, check_columns, point_from_row

Outcome = dict[str, Any] | LeansimError
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class PointTable:
    """Rows of a CSV as they stand, and the point each describes, or why it describes none."""

    source: str
    columns: tuple[str, ...]
    records: tuple[Mapping[str, str], ...]
    points: tuple[Point | LeansimError, ...]

    def joined(self, outcomes: Iterable[Outcome], added: Sequence[str]) -> list[dict[str, Any]]:
        """Put outcomes beside the rows, in `added` columns.

        Raises `ConfigError` with the line of every row whose outcome is an error.
        """
        rows, problems = [], []
        columns = list(dict.fromkeys([*self.columns, *added]))
        for line, (record, outcome) in enumerate(zip(self.records, outcomes, strict=True), start=2):
            if isinstance(outcome, LeansimError):
                problems += _at_line(outcome, line)
            else:
                row = {**record, **outcome}
                rows.append({column: row.get(column) for column in columns})
        if problems:
            raise ConfigError(self.source, problems[:_MOST_PROBLEMS])
        return rows


def read_points(file: str | Path) -> PointTable:
    """Read a CSV of points (columns: see `Point`, and partitioner options).

    Raises `ConfigError` for a file that cannot be read as such. Columns that mean nothing here are
    carried along, and named on standard error.
    """
    source = str(file)
    columns, records = _read_csv(source)
    foreign = check_columns(columns, source)
    if foreign:
        print(f"note: carried along unread: {', '.join(foreign)}", file=sys.stderr)
    points: list[Point | LeansimError] = []
    for record in records:
        known = {key: value for key, value in record.items() if key not in foreign}
        try:
            points.append(point_from_row(known, source))
        except LeansimError as error:
            points.append(error)
    return PointTable(source, tuple(columns), tuple(records), tuple(points))


def outcomes(
    describe: Callable[[Point], dict[str, Any]], points: Iterable[Point | LeansimError]
) -> Iterator[Outcome]:
    """Describe each point, or give the error that stood in the way."""
    for point in points:
        try:
            yield point if isinstance(point, LeansimError) else describe(point)
        except LeansimError as error:
            yield error


def _at_line(error: LeansimError, line: int) -> list[Problem]:
    if isinstance(error, ConfigError):
        return [Problem(p.where, p.found, p.wanted, line, 1) for p in error.problems]
    return [Problem("row", "a point that makes no sense", str(error), line, 1)]


def _read_csv(source: str) -> tuple[list[str], list[dict[str, str]]]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name
        with Path(source).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(source, [Problem("file", str(error), "wanted a readable CSV")]) from None
    if not reader.fieldnames or not records:
        raise ConfigError(source, [Problem("file", "no rows", "wanted a header and points", 1, 1)])
    columns = [name.strip() for name in reader.fieldnames]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(source, [Problem("header", f"{twice[0]!r} twice", "wanted it once", 1, 1)])
    for line, record in enumerate(records, start=2):
        if None in record or None in record.values():
            found = "more cells than columns" if None in record else "fewer cells than columns"
            raise ConfigError(source, [Problem("row", found, "wanted a cell per column", line, 1)])
    return columns, [{k.strip(): v for k, v in record.items()} for record in records]
