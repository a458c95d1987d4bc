"""What may be compared with what in a table of results: the same points, finished by all kernels.

A point is everything that was asked for but the kernel and its partitioner. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.points.point import Point

if TYPE_CHECKING:
    import pandas as pd

# A kernel less than this faster than another is not faster: a tie.
TIE = 0.005
_FIRST_AXES = ("context_len", "batch_size", "context_scale")
_TOKENS = {
    "context_len",
    "mean_context_len",
    "max_context_len",
    "window",
    "query_len",
    "page_tokens",
}


def point_columns() -> set[str]:
    """Columns of results that describe the point rather than the outcome."""
    return set(_ordered_columns())


def _ordered_columns() -> list[str]:
    # How many splits there are is what came of a point, and what was asked for is in the policy.
    asked = [name for name in Point.model_fields if name != "num_splits"]
    return [Point.model_fields[name].alias or name for name in asked]


def varying(results: pd.DataFrame) -> list[str]:
    """Columns in which the points differ, kernel and partitioner aside."""
    columns = [c for c in _ordered_columns() if c in results and c not in ("kernel", "partitioner")]
    return [column for column in columns if results[column].nunique(dropna=False) > 1]


def _ids(results: pd.DataFrame, columns: Sequence[str]) -> pd.Series[int]:
    import pandas as pd

    if not columns:
        return pd.Series(0, index=results.index)
    return results.groupby(list(columns), dropna=False, sort=False).ngroup()


def with_speedup(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Add `speedup`: the baseline's latency over the row's, at the same point but for the kernel.

    Rows without it, and at points where the baseline has no result, are left out.
    """
    results = finished(results)
    ids = _ids(results, varying(results))
    base = results.assign(point=ids)[results["policy"] == baseline].drop_duplicates("point")
    base_s = ids.map(base.set_index("point")["latency_s"])
    joined = results.assign(baseline_s=base_s, speedup=base_s / results["latency_s"])
    return joined.dropna(subset="speedup")


def has_speedup(results: pd.DataFrame, baseline: str) -> bool:
    """Whether any other kernel has a result at a point where the baseline has one."""
    return bool((with_speedup(results, baseline)["policy"] != baseline).any())


def finished(results: pd.DataFrame) -> pd.DataFrame:
    """Rows that have numbers: those that no kernel or device refused."""
    if "latency_s" not in results:
        return results.iloc[:0].assign(latency_s=np.nan)
    return results[results["error"].isna()] if "error" in results else results


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows whose means can be compared: at each place, points that every kernel there finished.

    `places` are the columns beside `device` that a figure shows; `left_out` of `points` points on
    the devices shown are in no mean, and `unplaced` others have no value of a place (no window, say).
    """

    table: pd.DataFrame
    places: tuple[str, ...]
    left_out: int
    points: int
    unplaced: int

    def notes(self, mean: str) -> list[str]:
        """Say what the means are over, which fields go along, and how many points are left out."""
        notes = [_over(self.table, self.places, mean)]
        if along := _changing_with(self.table, self.places):
            notes.append(along)
        if self.left_out:
            notes.append(
                f"left out: {self.left_out} of {self.points} points not finished by all kernels"
            )
        if self.unplaced:
            notes.append(f"not shown: {self.unplaced} points without {' or '.join(self.places)}")
        return notes


def compare(results: pd.DataFrame, places: Sequence[str], baseline: str | None = None) -> Comparison:
    """Keep what can be compared at each device and place, with `speedup` where there is a baseline.

    A kernel without any result at a place does not count there. Fields that each kernel has a value
    of its own of, zipped with it, do not tell points apart; without a baseline, that is.
    """
    columns = varying(results)
    if baseline is None:
        per_kernel = results.groupby("policy")
        columns = [c for c in columns if c == "device" or per_kernel[c].nunique(dropna=False).max() > 1]
    ids = _ids(results, columns)
    asked = [place for place in places if place in _ordered_columns()]
    placed = results[asked].notna().all(axis=1)
    done = finished(results) if baseline is None else with_speedup(results, baseline)
    done = done.assign(point=ids.loc[done.index]).dropna(subset=list(places))
    by = ["device", *places]
    at_place = done.groupby(by)["policy"].transform("nunique")
    at_point = done.groupby([*by, "point"])["policy"].transform("nunique")
    shared = done[at_place == at_point]
    here = results["device"].isin(shared["device"])
    points, unplaced = ids[here & placed].nunique(), ids[here & ~placed].nunique()
    left_out = points - shared["point"].nunique()
    return Comparison(shared, tuple(places), left_out, points, unplaced)


def axes_of(results: pd.DataFrame) -> list[str]:
    """Numeric axes with two values or more for some kernel on some device, the usual ones first.

    Of axes that change together, the first; for `context_scale`, the mean length it comes to where
    that is one number.
    """
    results = finished(results)
    if results.empty:
        return []
    names = dict.fromkeys((*_FIRST_AXES, *_ordered_columns()))
    found: list[str] = []
    for name in names:
        if name == "seed" or name not in results or not _numeric(results[name].dropna()):
            continue
        if results.groupby(["device", "policy"])[name].nunique().max() < 2:
            continue
        found.append(name)
    return [x_column(results, name) for name in leading(results, found)]


def leading(results: pd.DataFrame, columns: Sequence[str]) -> dict[str, list[str]]:
    """Columns with those after them that change together with them, as zipped axes do."""
    found: dict[str, list[str]] = {}
    for column in columns:
        first = next((one for one in found if _one_to_one(results, column, one)), None)
        if first is None:
            found[column] = []
        else:
            found[first].append(column)
    return found


def x_column(results: pd.DataFrame, axis: str) -> str:
    """The column to draw an axis over: for `context_scale`, mean lengths if they are the same thing."""
    same = axis == "context_scale" and _one_to_one(finished(results), axis, "mean_context_len")
    return "mean_context_len" if same else axis


def _one_to_one(results: pd.DataFrame, one: str, other: str) -> bool:
    pairs = results[[one, other]].drop_duplicates()
    return len(pairs) == pairs[one].nunique(dropna=False) == pairs[other].nunique(dropna=False)


def _over(results: pd.DataFrame, places: Sequence[str], mean: str) -> str:
    """Name the fields that points at one place differ in, those that change together as one."""
    inside = results.groupby(["device", "policy", *places])
    hidden = [c for c in varying(results) if c not in ("device", *places)]
    hidden = [c for c in hidden if inside[c].nunique(dropna=False).max() > 1]
    if "mean_context_len" in places:
        hidden = [c for c in hidden if c != "context_scale"]
    told = leading(results, hidden)
    texts = [
        f"{span(results, column)}" + (f" (with {', '.join(others)})" if others else "")
        for column, others in told.items()
    ]
    return f"{mean} over {', '.join(texts)}" if texts else "one point each"


def _changing_with(results: pd.DataFrame, places: Sequence[str]) -> str | None:
    """Name the fields that are not averaged over and yet differ from place to place, or by kernel."""
    known = {"device", *places, *(("context_scale",) if "mean_context_len" in places else ())}
    along = []
    for column in varying(results):
        if column in known:
            continue
        if results.groupby(["device", *places])[column].nunique(dropna=False).max() == 1:
            with_it = next((place for place in places if _one_to_one(results, column, place)), None)
            if with_it is not None:
                along.append(f"{column} changes with {with_it}")
            elif results.groupby("device")[column].nunique(dropna=False).max() == 1:
                along.append(f"{column} differs by device")
        elif results.groupby("policy")[column].nunique(dropna=False).max() == 1:
            along.append(f"{column} differs by kernel")
    return "; ".join(along) or None


def span(results: pd.DataFrame, column: str) -> str:
    """Name a field and its values: from least to greatest, or what they are if they are few."""
    values = list(dict.fromkeys(results[column].dropna()))
    absent = " or none" if results[column].isna().any() else ""
    if _numeric(values):
        few = sorted(values) if len(values) == 1 else (min(values), max(values))
        return f"{column} {'-'.join(ticks(few, column))}{absent}"
    text = "/".join(map(str, values))
    return f"{column} {text if len(text) <= 40 else f'({len(values)} values)'}{absent}"


def _numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def ticks(values: Sequence[float], column: str = "") -> list[str]:
    """Write token counts as people do, 512, 8k, 1M, and other numbers plainly: 0.25, 10, 1,400."""
    binary = column in _TOKENS and all(v < 1024 or v % 1024 == 0 for v in values)
    return [_binary(value) if binary else _plain(value) for value in values]


def _binary(value: float) -> str:
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if value >= size and value % size == 0:
            return f"{value / size:.0f}{unit}"
    return _plain(value)


def _plain(value: float) -> str:
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
