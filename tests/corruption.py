"""Schedules that no constructor would let pass, for the tests that must notice them."""

from __future__ import annotations

import copy
from typing import Any

from leansim.schedule.schedule import Schedule


def altered(schedule: Schedule, **columns: Any) -> Schedule:
    """A copy whose constructor did not see the change."""
    twin = copy.copy(schedule)
    vars(twin).update(columns)
    for cached in ("by_tile", "is_host", "merges", "is_partial"):
        vars(twin).pop(cached, None)
    return twin
