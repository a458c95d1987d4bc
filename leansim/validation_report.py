"""Writes what a validation found: printed tables, RESULTS.md, error tables and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from leansim.fitting import Fit
from leansim.tables import render
from leansim.validation import (
    REGIMES,
    comparison_sample,
    error_table,
    errors_of,
    ranking,
    refusals,
    worst_rows,
)


def printed(table: pd.DataFrame, worst: int, form: str = "table") -> str:
    """Everything that `leansim validate` says."""
    parts = [section(text, rows, form) for text, rows in sections(table, worst)]
    return "\n\n".join([*parts, *refusals(table)])


def section(title: str, rows: list[dict[str, Any]], form: str) -> str:
    """A titled table."""
    head = f"## {title}" if form == "md" else title
    return f"{head}\n\n{render(rows, form)}"


def sections(table: pd.DataFrame, worst: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Titles and rows of each part: errors, worst rows, ranking, the sample beside other tools."""
    errors = error_table(table)
    heads = errors[errors["regime"] == "all"]
    found = [("Error of predicted latency", [_row(row, "table", "kernel") for row in _records(heads)])]
    for (name, kernel), mine in errors[errors["regime"] != "all"].groupby(["table", "kernel"]):
        rows = [
            {"regime": REGIMES[row["regime"]], "value": row["value"], **_figures(row)}
            for row in _records(mine)
        ]
        found.append((f"{name}, {kernel}, by regime", rows))
    ranked = ranking(table)
    if len(ranked):
        rows = [
            {**row, "right": _percent(row["right"]), "always_split": _percent(row["always_split"])}
            for row in _records(ranked)
        ]
        found.append(("Split or unsplit: which is faster, pairs more than 10% apart", rows))
    if len(like := comparison_sample(table)):
        bands = {
            f"{band}": _mean(like[like["band"] == band]) for band in ("< 30 us", "30-300 us", "> 300 us")
        }
        row = {"tool": "leansim", **_figures({**errors_of(like["error"])}), **bands}
        found.append((f"{len(like)} test rows like those other tools were compared on", [row]))
    if worst:
        rows = [
            {
                **row,
                "measured_us": f"{row['measured_us']:.1f}",
                "predicted_us": f"{row['predicted_us']:.1f}",
                "error": f"{row['error']:+.0%}",
            }
            for row in _records(worst_rows(table, worst))
        ]
        found.append(("Worst rows", rows))
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _row(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {**{name: row[name] for name in names}, **_figures(row)}


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rows": row["rows"],
        "bias": f"{row['bias']:+.1%}",
        **{name: _percent(row[name]) for name in ("mean", "median", "p90")},
        "within 10%": f"{row['within_10']:.0%}",
    }


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _mean(table: pd.DataFrame) -> str:
    return _percent(table["error"].abs().mean()) if len(table) else "-"


def fitted(fit: Fit) -> str:
    """What a calibration found: each constant, and errors over the fitted rows before and after."""
    constants = [
        {
            "constant": str(constant.target),
            "before": constant.before,
            "after": constant.after,
            "standard_error": constant.spread,
            "bounds": "{:g} - {:g}".format(*constant.bounds),
            "note": "at a bound" if constant.at_bound else "",
        }
        for constant in fit.constants
    ]
    errors = []
    for table, at in fit.rows.reset_index(drop=True).groupby("table").groups.items():
        for name, values in (("before", fit.before), ("after", fit.after)):
            series = pd.Series(values[at.to_numpy()])
            errors.append({"table": table, "": name, **_figures(errors_of(series))})
    return f"{render(constants, 'table')}\n\n{render(errors, 'table')}"
