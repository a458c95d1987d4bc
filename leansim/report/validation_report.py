"""Writes what a validation or a calibration found: printed tables, RESULTS.md, CSV and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leansim import __version__
from leansim.answers import marked_down, printable, render, spreadsheet
from leansim.files.artifacts import write_artifacts
from leansim.files.writing import Content
from leansim.report.error_figures import drawn
from leansim.silicon.fit import Fit
from leansim.silicon.other_tools import comparison_sample, errors_of_tools, sample
from leansim.silicon.published import installed_version
from leansim.silicon.validate import (
    BANDS,
    PLAIN_HEAD_DIMS,
    REGIMES,
    error_table,
    errors_of,
    kind_table,
    ranking,
    refusals,
    worst_rows,
)

Section = tuple[str, list[dict[str, Any]], str]
_BAND_NAMES = tuple(name for _, name in BANDS)


def printed(validated: pd.DataFrame, worst: int) -> str:
    """Everything that `leansim validate` says."""
    parts = [
        "\n\n".join(text for text in (title, render(rows, "table"), note) if text)
        for title, rows, note in sections(validated, worst)
    ]
    return "\n\n".join([*parts, *(["\n".join(refusals(validated))] if any(refusals(validated)) else [])])


def write_validation(
    validated: pd.DataFrame, folder: Path, worst: int, what: str, predictions: bool = True
) -> list[Path]:
    """Write predictions, error tables, figures and RESULTS.md into a folder; return the paths.

    `what` is the command that RESULTS.md says it was written by.
    """
    frames = {
        "kinds": kind_table(validated),
        "errors": error_table(validated),
        "worst": worst_rows(validated, max(worst, 50)),
        "ranking": ranking(validated),
        "comparison": comparison_sample(validated),
    }
    files: dict[str, Content] = {"predictions.parquet": validated.to_parquet} if predictions else {}
    for name, frame in frames.items():
        files[f"{name}.csv"] = spreadsheet(frame).to_csv(index=False, float_format="%.6g")
    figures = drawn(validated)
    files |= {**figures, "RESULTS.md": results(validated, worst, what, tuple(figures))}
    made = {"command": what, "model_version": __version__, "tables": installed_version()}
    return write_artifacts(folder, files, made)


def results(validated: pd.DataFrame, worst: int, what: str, figures: Sequence[str]) -> str:
    """RESULTS.md: what was compared, every table, and the figures by the names of their files."""
    lines = [
        "# Predictions against measured latencies",
        "",
        f"Written by `{printable(what)}` with leansim {__version__} from {installed_version()}.",
        "An error is predicted over measured, less one; bias is its mean, the rest is of its size.",
        "",
    ]
    for title, rows, note in sections(validated, worst):
        lines += [f"## {marked_down(title)}", "", render(rows, "md"), "", *([note, ""] if note else [])]
    if told := list(refusals(validated)):
        lines += ["## Rows left out", "", *(f"- {printable(sentence)}" for sentence in told), ""]
    lines += [f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def sections(validated: pd.DataFrame, worst: int) -> list[Section]:
    """Title, rows and a note of each part: errors, ranking, comparison with other tools, worst rows."""
    errors = error_table(validated)
    labels = ("table", "kernel", "kind")
    rows = [
        {
            **{name: row[name] for name in labels},
            **_figures(row),
            **{f"bias {band}": _signed(row[f"bias {band}"]) for band in _BAND_NAMES},
        }
        for row in _records(kind_table(validated))
    ]
    *few, last = map(str, PLAIN_HEAD_DIMS)
    note = f"`plain`: 16-bit KV, no window, head dim {', '.join(few)} or {last}."
    found: list[Section] = [("Error of predicted latency", rows, note)]
    for (name, kernel), mine in errors[errors["regime"] != "all"].groupby(["table", "kernel"]):
        rows = [
            {"regime": REGIMES[row["regime"]], "value": row["value"], **_figures(row)}
            for row in _records(mine)
        ]
        found.append((f"{name}, {kernel}, by regime", rows, ""))
    if len(ranked := ranking(validated)):
        shares = ("right", "always_split")
        rows = [{**row, **{name: _percent(row[name]) for name in shares}} for row in _records(ranked)]
        title = "Is split or unsplit faster? Pairs of rows whose times are more than 10% apart"
        found.append((title, rows, "`always_split`: how often the split schedule was faster."))
    found += _comparison(validated)
    if worst:
        rows = [
            {
                **row,
                "measured_us": f"{row['measured_us']:.1f}",
                "predicted_us": f"{row['predicted_us']:.1f}",
                "error": f"{row['error']:+.0%}",
            }
            for row in _records(worst_rows(validated, worst))
        ]
        found.append(("Worst rows", rows, ""))
    return found


def _comparison(validated: pd.DataFrame) -> list[Section]:
    """Rows like those that other tools were compared on, and those tools beside them."""
    like = comparison_sample(validated)
    if like.empty:
        return []
    found = errors_of(like["error"])
    sizes = like["error"].abs()
    bands = [sizes[like["band"] == name].mean() * 100 for name in _BAND_NAMES]
    shares = [found[name] * 100 for name in ("mean", "median", "p90", "within_10")]
    mine, theirs = [f"leansim ({len(like)} test rows)", *shares, *bands], errors_of_tools()
    columns = ("mean", "median", "p90", "within 10%", *_BAND_NAMES)
    values = [mine, *([tool["tool"], *(float(tool[name]) for name in columns)] for tool in theirs)]
    rows = [
        {"tool": name, **{column: f"{v:.1f}" for column, v in zip(columns, numbers, strict=True)}}
        for name, *numbers in values
    ]
    tables = ", ".join(sorted(like["table"].unique()))
    note = (
        f"Size of the error in percent, on rows of {tables}: {sample().description}, chosen by hash "
        "among rows that no constant was fitted to. The other tools were run on "
        f"{sample().rows} rows of the same tables and kinds, not on the same rows."
    )
    return [("Beside other tools", rows, note)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rows": row["rows"],
        "bias": _signed(row["bias"]),
        **{name: _percent(row[name]) for name in ("mean", "median", "p90")},
        "within 10%": f"{row['within_10']:.0%}",
    }


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1%}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def fitted(fit: Fit) -> str:
    """What a calibration found: each constant, and errors over the fitted rows before and after."""
    constants = [
        {
            "constant": str(constant.target),
            "before": constant.before,
            "after": constant.after,
            "standard_error": constant.spread,
            "bounds": "{:g} to {:g}".format(*constant.bounds),
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
