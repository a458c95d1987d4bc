"""Predictions beside measurements, and their errors by group: what all witnesses share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import leansim
from leansim.specs import catalog

BANDS_US = (0.0, 20.0, 50.0, 150.0, np.inf)


@dataclass(frozen=True)
class Part:
    """A part of RESULTS.md: a title, sentences, and tables under their captions."""

    title: str
    sentences: tuple[str, ...]
    tables: tuple[tuple[str, pd.DataFrame], ...]


@dataclass(frozen=True)
class Call:
    """What all rows of a witness have in common: the fields of a point that are not its batch."""

    device: str
    num_q_heads: int
    num_kv_heads: int
    cache: str
    dtype: str

    def point(
        self,
        kernel: str,
        context_lens: Sequence[int],
        told: int | None = None,
        prefix_len: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> leansim.Point:
        """One batch of it; `told` is the context that the kernel's host code was told of.

        All requests share their first `prefix_len` tokens. `overrides` are numbers of the kernel that
        the call has otherwise.
        """
        return leansim.point(
            device=self.device, kernel=kernel,
            context_lens=tuple(context_lens), max_context_len=told, prefix_len=prefix_len,
            num_q_heads=self.num_q_heads, num_kv_heads=self.num_kv_heads, head_dim=128, page_tokens=16,
            q_dtype=self.dtype, kv_dtype=self.dtype, cache=self.cache, launch="stream",
            overrides=dict(overrides or {}),
        )  # type: ignore[arg-type]  # fmt: skip


def predicted(points: Sequence[leansim.Point], harness: str = "") -> pd.DataFrame:
    """Simulated microseconds of each point's kernels, splits and CTAs.

    The witnesses add up durations of kernels: of a split call the gap between the attention kernel and
    the one that combines is not in them, and is taken from the prediction. `harness` adds what a
    measured table has besides. Raises what stood in the way of a point.
    """
    rows = []
    for point, found in zip(points, leansim.predict(points, harness=harness), strict=True):
        if isinstance(found, Exception):
            raise found
        gap_s = catalog.device(point.device).kernel_gap_s["stream"] if found.num_splits > 1 else 0.0
        rows.append(
            {
                "simulated_us": (found.latency_s - gap_s) * 1e6,
                "splits": found.num_splits,
                "ctas": found.num_ctas,
                "dram_bytes": found.dram_bytes,
            }
        )
    return pd.DataFrame(rows)


def band_of(measured_us: pd.Series) -> pd.Series:
    """The band of latency that each row is in, as text."""
    names = [_band(low, high) for low, high in pairwise(BANDS_US)]
    return pd.cut(measured_us, list(BANDS_US), labels=names, right=False)


def _band(low: float, high: float) -> str:
    if low == 0.0:
        return f"< {high:g} us"
    return f">= {low:g} us" if np.isinf(high) else f"{low:g}-{high:g} us"


def errors(rows: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Errors of `simulated_us` against `measured_us`, over all rows or by a column's values."""
    groups = [("all", rows)] if by is None else rows.groupby(by, observed=True)
    found = [{by or "rows of": name, **_figures(group)} for name, group in groups]
    return pd.DataFrame(found)


def _figures(rows: pd.DataFrame) -> dict[str, Any]:
    error = rows["simulated_us"] / rows["measured_us"] - 1.0
    return {
        "rows": len(rows),
        "bias": error.mean(),
        "mean": error.abs().mean(),
        "median": error.abs().median(),
        "within_10": (error.abs() <= 0.1).mean(),
    }


def shown(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as text: shares in percent, the rest to three digits."""
    percent = {"bias": "+.1%", "mean": ".1%", "median": ".1%", "within_10": ".0%"}
    return [
        {name: _cell(value, percent.get(name)) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _cell(value: Any, form: str | None) -> str:
    if isinstance(value, str):
        return value
    if form is not None:
        return format(value, form)
    whole = isinstance(value, int | np.integer)
    return f"{value:,}" if whole else f"{value:.3g}"


def said(figures: pd.DataFrame) -> str:
    """The only row of an error table in words."""
    (row,) = figures.to_dict("records")
    side = "too slow" if row["bias"] > 0 else "too fast"
    return (
        f"Over {row['rows']:,} rows the mean error is {row['mean']:.1%}; on average the model is "
        f"{abs(row['bias']):.1%} {side}, and {row['within_10']:.0%} of the rows are within 10%."
    )


def read(folder: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """One file of the data. Raises `SystemExit` naming what is missing."""
    path = folder / name
    if not path.exists():
        raise SystemExit(f"found no {name} in the data folder; README.md says where it is from")
    table = pd.read_csv(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise SystemExit(f"{name}: found no column {', '.join(missing)}")
    return table
