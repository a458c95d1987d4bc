"""The tidy table of results: a row per point, its fields first, what came of it, what it rests on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from leansim.points.point import POINT_KEYS, Point
from leansim.specs.evidence import COLUMNS, Grounds

if TYPE_CHECKING:
    import pandas as pd


def results_table(
    points: Sequence[Point],
    rows: Iterable[dict[str, Any] | None],
    grounds: Iterable[Grounds | None],
) -> pd.DataFrame:
    """One row per finished point (None: not finished): its fields, its record, what that rests on.

    A refused point has an `error` in its record, and rests on nothing.
    """
    import pandas as pd

    names = {name: key for key, name in POINT_KEYS.items()}
    records = []
    for point, row, found in zip(points, rows, grounds, strict=True):
        if row is None:
            continue
        given = point.model_dump(mode="json", exclude={"overrides", "partitioner", "num_splits"})
        lens = given.pop("context_lens")
        given["context_lens"] = None if lens is None else " ".join(map(str, lens))
        given["overrides"] = json.dumps(point.overrides) if point.overrides else None
        named = {names.get(k, k): v for k, v in given.items()}
        rests = dict.fromkeys(COLUMNS) if row.get("error") or found is None else found.columns()
        # Points that differ in name alone share a result, whichever of them was simulated.
        records.append({**named, **row, "policy": point.policy, **rests})
    table = pd.DataFrame.from_records(records)
    return table if "error" in table else table.assign(error=None)
