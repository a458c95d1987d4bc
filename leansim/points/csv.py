"""A CSV of points in, a CSV of what was found out about each. All of a file's mistakes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from leansim.answers import Row
from leansim.errors import ConfigError, LeansimError, Problem, SetupError
from leansim.files.csv import CsvRow, read_csv
from leansim.files.terminal import tell
from leansim.points.point import PLAN_COLUMNS, check_columns

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
# A column of points, beside their fields: whose harness their latencies are to contain.
HARNESS = "harness"
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class CsvPoints:
    """Rows of a CSV as they stand, and the line of each; `rows` are their cells that mean something."""

    source: str
    columns: tuple[str, ...]
    lines: tuple[int, ...]
    records: tuple[CsvRow, ...]
    rows: tuple[CsvRow, ...]

    def checked(self, outcomes: Iterable[_Found | LeansimError]) -> list[_Found]:
        """What was found out about each row.

        Raises `ConfigError` with the line of every row whose outcome is an error.
        """
        found, problems = [], []
        for line, outcome in zip(self.lines, outcomes, strict=True):
            if isinstance(outcome, LeansimError):
                problems += _at_line(outcome, line, self.source)
            else:
                found.append(outcome)
        if problems:
            raise ConfigError(self.source, problems[:_MOST_PROBLEMS])
        return found

    def joined(
        self, outcomes: Iterable[Mapping[str, Any] | LeansimError], added: Sequence[str]
    ) -> list[Row]:
        """Put outcomes beside the rows, in `added` columns. Raises `ConfigError` as `checked`."""
        columns = dict.fromkeys([*self.columns, *added])
        rows = [
            {**record, **found}
            for record, found in zip(self.records, self.checked(outcomes), strict=True)
        ]
        return [{column: row.get(column) for column in columns} for row in rows]


def read_points(file: str | Path, also: Sequence[str] = ()) -> CsvPoints:
    """Read a CSV of points (columns: see `Point`, and partitioner options, and those in `also`).

    Raises `ConfigError` for a file that cannot be read as such. Columns that mean nothing here are
    carried along, and named on standard error; so are those that an earlier plan or prediction added.
    """
    return csv_points(str(file), *read_csv(str(file)), also)


def csv_points(
    source: str, columns: Sequence[str], numbered: Sequence[tuple[int, CsvRow]], also: Sequence[str] = ()
) -> CsvPoints:
    """The points of a CSV that has been read; see `read_points`. Raises `ConfigError`."""
    found = _results(columns)
    foreign = found + check_columns([name for name in columns if name not in (*also, *found)], source)
    if foreign:
        tell(f"note: carried along unread: {', '.join(foreign)}")
    lines, records = zip(*numbered, strict=True)
    rows = records
    if foreign:
        rows = tuple({key: row[key] for key in row if key not in foreign} for row in records)
    return CsvPoints(source, tuple(columns), lines, records, rows)


def _results(columns: Sequence[str]) -> list[str]:
    """Columns that say what came of the points, in a file that holds results.

    Some are named like options of partitioners; with either of those that no option is named like, they
    are results.
    """
    written = {"num_splits", "num_ctas"} <= set(columns) and {"num_waves", "makespan_us"} & set(columns)
    return [name for name in columns if written and name in PLAN_COLUMNS]


def outcomes(
    describe: Callable[[_Item], _Found], items: Iterable[_Item]
) -> Iterator[_Found | LeansimError]:
    """Describe each item, or give the error that stood in the way."""
    for item in items:
        try:
            yield describe(item)
        except SetupError:
            raise
        except LeansimError as error:
            yield error


def _at_line(error: LeansimError, line: int, source: str) -> list[Problem]:
    """What is wrong with a row; of another file, where that is wrong."""
    if isinstance(error, ConfigError) and error.source == source:
        return [Problem(p.where, p.found, p.wanted, line, 1) for p in error.problems]
    told = "; ".join(str(error).splitlines())
    return [Problem("row", "a point that makes no sense", told, line, 1)]
