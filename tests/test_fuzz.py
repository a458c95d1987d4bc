"""Every find of `python -m tests.fuzz` stays found out, and a few new inputs are tried each time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fuzz.readers import READERS
from fuzz.running import FINDS, batch, tried

KEPT = sorted(path for path in FINDS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_is_taken_or_refused_by_name(path: Path, tmp_path: Path) -> None:
    tried(path.parent.name, path.read_bytes(), tmp_path)


@pytest.mark.parametrize("reader", sorted(READERS))
def test_a_second_of_hostile_inputs(reader: str, tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    batch(reader, 7, tmp_path, time.monotonic() + 1.0, set(), counts)
    assert sum(counts.values()) > 0
