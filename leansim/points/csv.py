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
from leansim.points.settings import setting_of

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
# A column of points, beside their fields: whose harness their latencies are to contain.
HARNESS = "harness"
# The column of results that says why a row has none.
REFUSED = "refused"
_NEEDED = ("device", "kernel")
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class CsvPoints:
    """Rows of a CSV as they stand, and the line of each; `rows` are their cells that mean something."""

    source: str
    columns: tuple[str, ...]
    lines: tuple[int, ...]
    records: tuple[CsvRow, ...]
    rows: tuple[CsvRow, ...]

    def settled(
        self, outcomes: Iterable[_Found | LeansimError], strict: bool = False
    ) -> list[_Found | LeansimError]:
        """What was found out about each row, or the error that stood in the way.

        Raises `ConfigError` with the lines of rows that have one: where all have, or `strict`ly any.
        """
        found = list(outcomes)
        wrong = [(one, line) for one, line in self._lined(found) if isinstance(one, LeansimError)]
        if wrong and (strict or len(wrong) == len(found)):
            lined = (_at_line(error, line, self.source) for error, line in wrong)
            problems = [problem for some in lined for problem in some]
            raise ConfigError(self.source, problems[:_MOST_PROBLEMS])
        return found

    def checked(self, outcomes: Iterable[_Found | LeansimError]) -> list[_Found]:
        """The same, where no row may have an error."""
        return [one for one in self.settled(outcomes, strict=True) if not isinstance(one, LeansimError)]

    def joined(
        self,
        outcomes: Iterable[Mapping[str, Any] | LeansimError],
        added: Sequence[str],
        strict: bool = False,
    ) -> list[Row]:
        """Put outcomes beside the rows, in `added` columns, and why a row has none in `refused`.

        Raises `ConfigError` as `settled`.
        """
        columns = dict.fromkeys([*self.columns, *added, REFUSED])
        rows = []
        for record, found in zip(self.records, self.settled(outcomes, strict), strict=True):
            if isinstance(found, LeansimError):
                cells: Row = {**dict.fromkeys(added), REFUSED: reason(found)}
            else:
                cells = {**found, REFUSED: ""}
            row = {**record, **cells}
            rows.append({column: row.get(column) for column in columns})
        return rows

    def refusals(self, found: Iterable[object]) -> list[str]:
        """A sentence for each row that has an error: its line, and why."""
        lined = self._lined(found)
        return [
            f"{self.source}:{line}: {reason(one)}" for one, line in lined if isinstance(one, Exception)
        ]

    def _lined(self, found: Iterable[_Found]) -> Iterator[tuple[_Found, int]]:
        return zip(found, self.lines, strict=True)


def read_points(file: str | Path, also: Sequence[str] = (), settings: Sequence[str] = ()) -> CsvPoints:
    """Read a CSV of points (columns: see `Point`, and partitioner options, and those in `also`).

    A `setting` is a column of one value for all rows, over that of the file. Raises `ConfigError` for a
    file or setting that cannot be read as such. Columns that mean nothing here are
    carried along, and named on standard error; so are those that an earlier plan or prediction added.
    """
    return csv_points(str(file), *read_csv(str(file)), also, settings)


def csv_points(
    source: str,
    columns: Sequence[str],
    numbered: Sequence[tuple[int, CsvRow]],
    also: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> CsvPoints:
    """The points of a CSV that has been read; see `read_points`. Raises `ConfigError`."""
    laid = _laid(settings, also)
    columns = list(dict.fromkeys([*columns, *laid]))
    found = [name for name in _results(columns) if name not in laid]
    foreign = found + check_columns([name for name in columns if name not in (*also, *found)], source)
    if told := [name for name in foreign if name != REFUSED]:
        tell(f"note: carried along unread: {', '.join(told)}")
    lines, records = zip(*numbered, strict=True)
    if laid:
        records = tuple({**record, **laid} for record in records)
    rows = records
    if foreign:
        rows = tuple({key: row[key] for key in row if key not in foreign} for row in records)
    return CsvPoints(source, tuple(columns), lines, records, rows)


def _laid(settings: Sequence[str], also: Sequence[str]) -> dict[str, str]:
    """The columns that settings are. Raises `ConfigError` for what no point has."""
    laid = dict(map(setting_of, settings))
    try:
        unknown = check_columns([*(name for name in laid if name not in also), *_NEEDED], "")
    except ConfigError as error:
        problems = [Problem("--set", problem.found, problem.wanted) for problem in error.problems]
        raise ConfigError("command line", problems) from None
    if unknown:
        wanted = "wanted a column of points, device.<number> or kernel.<number>"
        raise ConfigError("command line", [Problem("--set", repr(unknown[0]), wanted)])
    return laid


def _results(columns: Sequence[str]) -> list[str]:
    """Columns that say what came of the points, in a file that holds results.

    Some are named like options of partitioners; with either of those that no option is named like, they
    are results.
    """
    written = {"num_splits", "num_ctas"} <= set(columns) and {"num_waves", "makespan_us"} & set(columns)
    return [name for name in columns if name == REFUSED or (written and name in PLAN_COLUMNS)]


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


def reason(error: Exception) -> str:
    """What is wrong with a row, in one line."""
    if isinstance(error, ConfigError):
        return "; ".join(f"{p.where}: found {p.found}; {p.wanted}" for p in error.problems)
    return " ".join(str(error).split())


def _at_line(error: LeansimError, line: int, source: str) -> list[Problem]:
    """What is wrong with a row; of another file, where that is wrong."""
    if isinstance(error, ConfigError) and error.source == source:
        return [Problem(p.where, p.found, p.wanted, line, 1) for p in error.problems]
    told = "; ".join(str(error).splitlines())
    return [Problem("row", "a point that makes no sense", told, line, 1)]
