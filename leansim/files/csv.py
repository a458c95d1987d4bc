"""Reads a CSV as text, with the line of each row; says what is wrong with one that is none."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from leansim.errors import ConfigError, Problem
from leansim.files.text import opened, unprintable

# What a process can hold beside what becomes of it.
MOST_BYTES, MOST_ROWS, MOST_CELLS = 256 * 2**20, 2**20, 2**24

# The cells of one row of a CSV, by column, as they stand.
CsvRow = dict[str, str]


def read_csv(source: str) -> tuple[list[str], list[tuple[int, CsvRow]]]:
    """Columns of a CSV, and line and cells of each row. Raises `ConfigError`."""
    try:
        with opened(Path(source), "wanted a readable CSV", MOST_BYTES) as handle:
            reader = csv.DictReader(_plain(handle, source), skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            most = min(MOST_ROWS, MOST_CELLS // max(1, len(columns)))
            records = [(reader.line_num, record) for record in itertools.islice(reader, most + 1)]
    except csv.Error as error:
        raise ConfigError(source, [Problem("file", str(error), "wanted a readable CSV")]) from None
    if len(records) > most:
        found, wanted = f"more than {most:,} rows", f"wanted at most {most:,}: cut it into parts"
        raise ConfigError(source, [Problem("file", found, wanted, records[-1][0], 1)])
    if not columns or not records:
        raise ConfigError(source, [Problem("file", "no rows", "wanted a header and points", 1, 1)])
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(source, [Problem("header", f"{twice[0]!r} twice", "wanted it once", 1, 1)])
    for line, record in records:
        if None in record or None in record.values():
            found = "more cells than columns" if None in record else "fewer cells than columns"
            raise ConfigError(source, [Problem("row", found, "wanted a cell per column", line, 1)])
    return columns, [(line, {k.strip(): v for k, v in record.items()}) for line, record in records]


def _plain(lines: Iterable[str], source: str) -> Iterator[str]:
    """The lines of a file, as long as nothing in them is no text."""
    for number, line in enumerate(lines, start=1):
        if found := unprintable(line):
            raise ConfigError(source, [Problem("row", found, "wanted plain text", number, 1)])
        yield line
