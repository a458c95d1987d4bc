"""Writes what a certification found: a page, errors of all rows, a figure, files with the numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from leansim import __version__
from leansim.answers import marked_down, printable, render, spreadsheet
from leansim.files.artifacts import write_artifacts
from leansim.files.writing import Content
from leansim.report.error_figures import scatter
from leansim.report.sheet import png
from leansim.silicon.certify import Certification, files
from leansim.silicon.validate import error_table, refusals, worst_rows
from leansim.specs import catalog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REGIMES = ("band", "split", "l2", "head_dim")
_MACHINE = ("gpu", "driver", "cuda", "torch", "triton", "library", "leansim")
_WORST = 10
# What a setting is, by columns of the rows: nothing is known of others.
_SETTING = ("cache", "launch", "kv_dtype", "head_dim")


def write_certification(
    found: Certification, folder: Path, command: str = "leansim certify"
) -> list[Path]:
    """Write report.md, errors.csv, a figure, kernels/, devices/ and manifest.json; return the paths.

    `command` is what the report says it was written by.
    """
    made: dict[str, Content] = {
        "report.md": page(found, command),
        "errors.csv": spreadsheet(_errors(found.table)).to_csv(index=False, float_format="%.6g"),
        "before_after.png": png(partial(before_after, found)),
        **files(found),
    }
    stated = {"command": command, "model_version": __version__, "passed": found.passed}
    return write_artifacts(folder, made, stated)


def page(found: Certification, command: str) -> str:
    """report.md."""
    lines = [
        f"# {marked_down(catalog.device(found.device).description or found.device)}: "
        f"{'certified' if found.passed else 'not certified'}",
        "",
        f"Written by `{printable(command)}` with leansim {__version__}.",
        "An error is predicted over measured, less one; bias is its mean, the rest is of its size. "
        "`before`: with the numbers of the catalogue. Errors are of rows that nothing was fitted to.",
        "",
        *(f"- {name}: {printable(said)}" for name, said in _machine(found.table).items()),
        *(f"- {printable(note)}" for note in found.notes()),
        "",
        render(found.rows(), "md"),
        "",
    ]
    for title, rows in (
        ("By regime", regimes(found)),
        ("What was timed", covered(found.table)),
        ("Numbers", numbers(found)),
        ("Worst rows", _worst(found)),
    ):
        lines += [f"## {title}", "", *([_NOTES[title], ""] if title in _NOTES else [])]
        lines += [render(rows, "md") if rows else "None.", ""]
    if told := list(refusals(found.table)):
        lines += ["## Rows refused", "", *(f"- {printable(sentence)}" for sentence in told), ""]
    lines += [
        "![predicted against measured, before and after](before_after.png)",
        "",
        "`LEANSIM_CONFIGS` set to this folder has every verb use the numbers above.",
    ]
    return "\n".join(lines) + "\n"


_NOTES = {
    "What was timed": "Beyond these ranges and settings, predictions of this card are extrapolated: "
    "`not timed` names what the kernel takes and no row has.",
    "Numbers": "What was fitted or read off micro-measurements; one standard error is that of the fit.",
}


def regimes(found: Certification) -> list[dict[str, Any]]:
    """Errors of the tested rows by regime, of all files together."""
    test = found.tested
    if test.empty:
        return []
    errors = error_table(test.assign(table=found.device), _REGIMES)
    return [
        {
            "kernel": row["kernel"],
            "regime": row["regime"],
            "value": row["value"],
            "rows": row["rows"],
            "bias": f"{row['bias']:+.1%}",
            "mean": f"{row['mean']:.1%}",
            "p90": f"{row['p90']:.1%}",
            "within 10%": f"{row['within_10']:.0%}",
        }
        for row in errors[errors["regime"] != "all"].to_dict("records")
    ]


def covered(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What rows there are of each kernel, and what it takes that none of them has."""
    done = table[table["refused"] == ""]
    rows = []
    for kernel, mine in done.groupby("kernel"):
        groups = mine["num_q_heads"] // mine["num_kv_heads"]
        settings = {name: _listed(mine[name]) for name in _SETTING}
        rows.append(
            {
                "kernel": kernel,
                **settings,
                "batch": f"{mine['batch_size'].min()}-{mine['batch_size'].max()}",
                "longest context": f"{mine['context_len'].min():,}-{mine['context_len'].max():,}",
                "group": _listed(groups),
                "not timed": "; ".join(_not_timed(str(kernel), mine)),
            }
        )
    return rows


def _not_timed(kernel: str, mine: pd.DataFrame) -> list[str]:
    spec = catalog.kernel(kernel.partition("+")[0])
    arch = catalog.device(str(mine["device"].iloc[0])).arch
    takes: dict[str, set[Any]] = {
        "head dim": {tile.head_dim for tile in spec.tiles if arch in tile.registers_per_thread},
        "KV": set(spec.kv_dtypes),
        "cache": {"cold", "warm"},
        "launch": {"graph", "stream"},
    }
    has = {"head dim": "head_dim", "KV": "kv_dtype", "cache": "cache", "launch": "launch"}
    missing = {name: sorted(known - set(mine[has[name]])) for name, known in takes.items()}
    said = [f"{name} {', '.join(map(str, some))}" for name, some in missing.items() if some]
    return said + ([] if (mine["window"] > 0).any() else ["windows"])


def numbers(found: Certification) -> list[dict[str, Any]]:
    """Changed numbers, before and after."""
    fitted = [
        {
            "number": str(one.target),
            "before": one.before,
            "after": one.after,
            "standard error": one.spread,
            "from": "at a bound" if one.at_bound else "fitted",
        }
        for one in found.constants
    ]
    read = [
        {"number": str(target), "after": value, "from": source}
        for target, (value, source) in found.card.items()
    ]
    return fitted + read


def before_after(found: Certification) -> Figure:
    """Predicted over measured on the tested rows: a panel with the numbers of before, one of after."""
    test = found.tested
    before = test.assign(predicted_s=test["before_s"], table="before")
    return scatter(pd.concat([before, test.assign(table="after")], ignore_index=True))


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    first = ["table", "device", "kernel", "fitted", "measured_s", "before_s", "predicted_s"]
    last = ["error_before", "error", "refused"]
    skipped = {"point", "source", "kernel_source", "fit"}
    middle = [name for name in table.columns if name not in {*first, *last, *skipped}]
    return table[[*first, *last, *middle]]


def _machine(table: pd.DataFrame) -> dict[str, str]:
    """Card, driver and versions, as far as rows say them."""
    said = {name: _listed(table[name]) for name in _MACHINE if name in table}
    return {name: text for name, text in said.items() if text}


def _listed(values: pd.Series[Any]) -> str:
    found = {str(value) if not _is_number(value) else value for value in values.dropna()}
    return ", ".join(str(value) for value in sorted(found, key=_order) if str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or hasattr(value, "dtype")


def _order(value: Any) -> tuple[int, Any]:
    return (1, value) if isinstance(value, str) else (0, value)


def _worst(found: Certification) -> list[dict[str, Any]]:
    test = found.tested
    if test.empty:
        return []
    return [
        {
            **{str(key): value for key, value in row.items()},
            "measured_us": f"{row['measured_us']:.1f}",
            "predicted_us": f"{row['predicted_us']:.1f}",
            "error": f"{row['error']:+.0%}",
        }
        for row in worst_rows(test, _WORST).to_dict("records")
    ]
