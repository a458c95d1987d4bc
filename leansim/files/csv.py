"""Reads a CSV as text, with the line of each row; says what is wrong with one that is none."""

from __future__ import annotations

import csv
from pathlib import Path

from leansim.errors import ConfigError, Problem

# The cells of one row of a CSV, by column, as they stand.
CsvRow = dict[str, str]


def read_csv(source: str) -> tuple[list[str], list[tuple[int, CsvRow]]]:
    """Columns of a CSV, and line and cells of each row. Raises `ConfigError`."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name
        with Path(source).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            records = [(reader.line_num, record) for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(source, [Problem("file", str(error), "wanted a readable CSV")]) from None
    if not columns or not records:
        raise ConfigError(source, [Problem("file", "no rows", "wanted a header and points", 1, 1)])
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(source, [Problem("header", f"{twice[0]!r} twice", "wanted it once", 1, 1)])
    for line, record in records:
        if None in record or None in record.values():
            found = "more cells than columns" if None in record else "fewer cells than columns"
            raise ConfigError(source, [Problem("row", found, "wanted a cell per column", line, 1)])
    return columns, [(line, {k.strip(): v for k, v in record.items()}) for line, record in records]
