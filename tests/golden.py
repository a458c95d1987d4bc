"""Golden vectors: reading them, and comparing schedules with them row by row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from leansim.specs import catalog
from leansim.specs.device import Device

FOLDER = Path(__file__).parent / "data" / "golden"
SHOWN = 5
Row = dict[str, int]
Facts = dict[str, int]


def read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(name: str, rows: int) -> list[Row]:
    found = [{key: int(text) for key, text in row.items()} for row in read(name)]
    assert len(found) == rows, "a truncated file would agree too easily"
    return found


def assert_agree(rows: Sequence[Row], facts: Callable[[Row], Facts]) -> None:
    """Every fact of every row equals the column of its name; some that do not are shown."""
    wrong = []
    for i, row in enumerate(rows):
        got = facts(row)
        differ = {key: (row[key], value) for key, value in got.items() if row[key] != value}
        if differ:
            wrong.append(f"row {i + 1}: {row}: (golden, leansim) {differ}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(rows)} rows disagree", *wrong[:SHOWN]])


@cache
def device_with(num_sms: int) -> Device:
    return catalog.device("a100_sxm_80gb").model_copy(update={"num_sms": num_sms})
