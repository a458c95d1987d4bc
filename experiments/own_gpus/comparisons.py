"""What simulated times are worth: errors, speedups between schedules, and which schedule is best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from measured import BATCH, in_order

from leansim.silicon.validate import errors_of

LEAN, OVER = "triton_lean", ("triton_fa2", "triton_flash_decoding")
CAMPAIGN, PARTITIONERS = "triton_campaign", "triton_partitioners"
# What sets rows apart that are measured alike.
SETTING = ["card", "file", "kernel", "batch", "cache", "page_tokens"]
# Columns of a regime, and how the tables call them.
REGIMES = {
    "bytes_band": "KV of the batch",
    "splits_band": "splits",
    "group": "query heads per KV head",
    "head_dim": "head dim",
    "tiles_band": "requests x KV heads",
}
APART = 0.10
_CLOSE = 0.02
# Measured times closer than this do not say which schedule is faster.
_UNEQUAL = 0.05


def errors(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Errors of each group, a row of its test rows and one of those that constants were fitted to."""
    parts = (
        {**_head(keys, values), "rows_are": "fit" if fit else "test", **errors_of(mine["error"])}
        for (*values, fit), mine in rows.groupby([*keys, "fit"], sort=True)
    )
    return pd.DataFrame(parts)


def regime_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of each card and kernel by regime; ragged batches have output tiles of their own bands."""
    found = []
    for regime, name in REGIMES.items():
        kinds = ["batch"] if regime == "tiles_band" else []
        for values, mine in rows.groupby(["card", "kernel", *kinds], sort=True):
            label = f"{values[-1]}: {name}" if kinds else name
            head = {"card": values[0], "kernel": values[1], "regime": label}
            for value in in_order(mine[regime]):
                part = errors(mine[mine[regime] == value], [])
                found += [{**head, "value": str(value), **one} for one in part.to_dict("records")]
    return pd.DataFrame(found)


def worst(rows: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """Rows whose simulated and measured times are furthest apart, by ratio."""
    far = np.log(rows["predicted_s"] / rows["measured_s"]).abs().sort_values(ascending=False)
    columns = [
        "card", "file", "kernel", "cache", "batch", "batch_size", "num_q_heads", "num_kv_heads",
        "head_dim", "mean_context_len", "context_len", "most_splits", "num_ctas",
    ]  # fmt: skip
    found = rows.loc[far.index[:most]]
    return found[columns].assign(
        mean_context_len=found["mean_context_len"].round().astype(int),
        rows_are=np.where(found["fit"], "fit", "test"),
        measured_us=found["measured_s"] * 1e6,
        simulated_us=found["predicted_s"] * 1e6,
        error=found["error"],
    )


def speedups(rows: pd.DataFrame) -> pd.DataFrame:
    """Speedup of Lean over each other schedule of the campaign, measured and simulated, per batch."""
    campaign = rows[rows["file"] == CAMPAIGN]
    times = {
        name: campaign.pivot_table(index=BATCH, columns="kernel", values=f"{column}_s")
        for name, column in (("measured", "measured"), ("simulated", "predicted"))
    }
    about = campaign.drop_duplicates(BATCH).set_index(BATCH)[["batch", "tiles", "tiles_band", "fit"]]
    parts = [
        pd.DataFrame({name: time[over] / time[LEAN] for name, time in times.items()}).assign(over=over)
        for over in OVER
        if {over, LEAN} <= set(times["measured"])
    ]
    if not parts:
        return pd.DataFrame(columns=[*BATCH, "measured", "simulated", "over", *about.columns, "error"])
    found = pd.concat(parts).dropna().join(about).reset_index()
    return found.assign(error=found["simulated"] / found["measured"] - 1.0)


def speedup_table(found: pd.DataFrame) -> pd.DataFrame:
    """Speedups per card, baseline and band: geometric means of all shapes, errors of test shapes."""
    return pd.DataFrame(
        {"card": card, "over": over, "batch": batch, "tiles": tiles, **_speedup_figures(mine)}
        for (card, over), both in found.groupby(["card", "over"], sort=True)
        for batch, tiles, mine in _bands_of(both)
    )


def _bands_of(found: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """All shapes, then uniform and ragged ones, and each band of these."""
    yield "all", "all", found
    for batch, mine in sorted(found.groupby("batch"), reverse=True):
        yield str(batch), "all", mine
        for tiles in in_order(mine["tiles_band"]):
            yield str(batch), str(tiles), mine[mine["tiles_band"] == tiles]


def _speedup_figures(mine: pd.DataFrame) -> dict[str, Any]:
    tested = mine.loc[~mine["fit"], "error"]
    apart = mine[np.log(mine["measured"]).abs() > np.log1p(_UNEQUAL)]
    return {
        "shapes": len(mine),
        "measured": _geometric_mean(mine["measured"]),
        "least": mine["measured"].min(),
        "most": mine["measured"].max(),
        "simulated": _geometric_mean(mine["simulated"]),
        "test_shapes": len(tested),
        "bias": tested.mean(),
        "mean_error": tested.abs().mean(),
        "within_10": (tested.abs() <= APART).mean() if len(tested) else np.nan,
        "same_side": ((apart["measured"] > 1) == (apart["simulated"] > 1)).mean(),
    }


def _geometric_mean(values: pd.Series[Any]) -> float:
    return float(np.exp(np.log(values).mean()))


def winners(rows: pd.DataFrame) -> pd.DataFrame:
    """Per card, file and kind of batch: how good the schedule is that is predicted to be fastest.

    `right`: it is the fastest. `close`: it takes at most 2% longer. `cost`: its mean time over the
    fastest's, less one. `fixed` is the one schedule that costs least if it is taken for every batch.
    """
    found = []
    for file in (CAMPAIGN, PARTITIONERS):
        for (card, batch), mine in rows[rows["file"] == file].groupby(["card", "batch"], sort=True):
            if picked := _picked(mine):
                found.append({"card": card, "file": file, "batch": batch, **picked})
    return pd.DataFrame(found)


def _picked(rows: pd.DataFrame) -> dict[str, Any]:
    """How good the predicted winners of some batches are; nothing without two schedules on a batch."""
    measured, said = (
        rows.pivot_table(index=BATCH, columns="kernel", values=f"{name}_s").dropna()
        for name in ("measured", "predicted")
    )
    if measured.empty or measured.shape[1] < 2:
        return {}
    over_best = measured.div(measured.min(axis=1), axis=0)
    picks = said.to_numpy().argmin(axis=1)
    costs = over_best.to_numpy()[np.arange(len(picks)), picks] - 1.0
    fixed = over_best.mean().idxmin()
    return {
        "batches": len(measured),
        "schedules": measured.shape[1],
        "right": (costs == 0).mean(),
        "close": (costs <= _CLOSE).mean(),
        "cost": costs.mean(),
        "worst": costs.max(),
        "fixed": fixed,
        "fixed_right": (over_best[fixed] == 1).mean(),
        "fixed_cost": over_best[fixed].mean() - 1.0,
        "mean_of_all": over_best.to_numpy().mean() - 1.0,
    }


def _head(keys: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(keys, values, strict=True))
