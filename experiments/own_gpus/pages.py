"""Puts what was found into words and tables: RESULTS.md. Numbers in sentences are made from rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from comparisons import LEAN, SETTING
from measured import FITTED_ON, in_order
from timelines import PERCENTILES

from leansim.answers import render

COMMAND = "python experiments/own_gpus/report.py"
_SHARES = ("mean", "median", "p90")


@dataclass(frozen=True)
class Found:
    """All that a report says: rows, and tables of them."""

    rows: pd.DataFrame
    kernels: pd.DataFrame
    settings: pd.DataFrame
    regimes: pd.DataFrame
    worst: pd.DataFrame
    speedups: pd.DataFrame
    bands: pd.DataFrame
    winners: pd.DataFrame
    interpolated: pd.DataFrame
    # Why nothing was interpolated, or nothing.
    not_interpolated: str
    timelines: pd.DataFrame


def results(found: Found) -> str:
    """RESULTS.md."""
    parts = [
        "# Our own cards, measured and simulated\n",
        *_introduction(found.rows),
        "## Errors\n",
        *_errors(found),
        "## Errors by regime\n",
        *_regimes(found.regimes),
        "## The worst rows\n",
        f"{_md(_worst_rows(found.worst))}\n",
        "## Speedup of LeanAttention\n",
        *_speedups(found.bands),
        "## Picking the winner\n",
        *_winners(found.winners),
        "## Beside interpolation\n",
        *_interpolation(found),
        *_timelines(found.timelines),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _introduction(rows: pd.DataFrame) -> Iterator[str]:
    yield f"Written by `{COMMAND}`; do not edit.\n"
    yield (
        "An error is simulated over measured, less one; bias is its mean, the rest is of its size. "
        "Times are of the kernels of one call in a CUDA graph and of the gap to the next call, with "
        "nothing else in them, and are simulated without a harness.\n"
    )
    for card, mine in rows.groupby("card"):
        fit = int(mine["fit"].sum())
        yield (
            f"- {card} (`{_said(mine['device'])}`): {len(mine):,} rows of {mine['shape'].nunique()} "
            f"batches; {fit or 'none'} of the rows may be fitted to. {_machine(mine)}"
        )
    yield (
        f"\nConstants may be fitted to half of the rows of `{FITTED_ON}` (`fit`), which a hash of "
        "batch, pages and state of the cache names, the same under all kernels. All other rows test, "
        "and so does every row of another card. Both are shown apart.\n"
    )


def _machine(rows: pd.DataFrame) -> str:
    """What the files say of machine and libraries."""
    names = {"gpu": "", "driver": "driver ", "cuda": "CUDA ", "torch": "torch ", "triton": "Triton "}
    parts = [f"{word}{_said(rows[name])}" for name, word in names.items() if _said(rows[name])]
    libraries = [name for name in _said(rows["library"]).split(", ") if name and name not in parts]
    return ", ".join([*parts, *libraries]) + "."


def _said(values: pd.Series[Any]) -> str:
    """Each value that is said, once."""
    return ", ".join(sorted({str(value) for value in values.dropna() if str(value)}))


def _errors(found: Found) -> Iterator[str]:
    for card, mine in found.rows[~found.rows["fit"]].groupby("card"):
        sizes = mine["error"].abs()
        yield (
            f"- {card}, {len(mine):,} test rows: mean error {sizes.mean():.1%}, "
            f"bias {mine['error'].mean():+.1%}, {(sizes <= 0.1).mean():.0%} within 10%."
        )
    yield "\nAll files of a card together:\n"
    yield f"{_md(_apart(found.kernels, ['card', 'kernel']))}\n"
    for card, mine in found.settings.groupby("card"):
        yield f"{card}, by file, kind of batch, and how it was called:\n"
        yield f"{_md(_apart(mine, SETTING[1:]))}\n"
    yield "![simulated and measured times](times.png)\n"


def _apart(errors: pd.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A row per group: figures of its test rows, then rows, bias and mean of the fit rows."""
    rows = []
    for values, mine in errors.groupby(list(keys), sort=False):
        by = {row["rows_are"]: row for row in mine.to_dict("records")}
        test, fit = by.get("test"), by.get("fit")
        cells: dict[str, Any] = dict(zip(keys, map(_ticked, keys, values), strict=True))
        cells |= _figures(test) if test else dict.fromkeys(_figures(fit or {}), "")
        cells |= {
            "fit rows": fit["rows"] if fit else "",
            "fit bias": f"{fit['bias']:+.1%}" if fit else "",
            "fit mean": f"{fit['mean']:.1%}" if fit else "",
        }
        rows.append(cells)
    return rows


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """Cells of a row of errors; empty ones for an empty row."""
    if not row:
        return dict.fromkeys(("rows", "bias", *_SHARES, "within 10%"), "")
    shares = {name: f"{row[name]:.1%}" for name in _SHARES}
    return {
        "rows": row["rows"],
        "bias": f"{row['bias']:+.1%}",
        **shares,
        "within 10%": f"{row['within_10']:.0%}",
    }


def _regimes(regimes: pd.DataFrame) -> Iterator[str]:
    """A table per card and regime: a row per kernel, a column per value."""
    yield "Test rows alone: mean error (bias, rows).\n"
    tested = regimes[regimes["rows_are"] == "test"]
    for (card, regime), mine in tested.groupby(["card", "regime"], sort=False):
        cells = {
            (row["kernel"], row["value"]): f"{row['mean']:.0%} ({row['bias']:+.0%}, {row['rows']})"
            for row in mine.to_dict("records")
        }
        values = sorted(mine["value"].unique(), key=_by_size(mine["value"]))
        rows = [
            {"kernel": f"`{kernel}`", **{value: cells.get((kernel, value), "") for value in values}}
            for kernel in sorted(mine["kernel"].unique())
        ]
        yield f"{card}, {regime}:\n\n{_md(rows)}\n"


def _by_size(values: pd.Series[Any]) -> Any:
    """How values are ordered: numbers by size, bands in their order."""
    given = list(values.unique())
    if all(str(value).isdigit() for value in given):
        return int
    return list(in_order(values)).index


def _worst_rows(worst: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "card": row["card"],
            "file": row["file"],
            "kernel": f"`{row['kernel']}`",
            "rows are": row["rows_are"],
            "batch": f"{row['batch_size']} {row['batch']}",
            "heads": f"{row['num_q_heads']}/{row['num_kv_heads']} x {row['head_dim']}",
            "mean context": f"{row['mean_context_len']:,}",
            "longest": f"{row['context_len']:,}",
            "splits": row["most_splits"],
            "CTAs": row["num_ctas"],
            "measured us": f"{row['measured_us']:.1f}",
            "simulated us": f"{row['simulated_us']:.1f}",
            "error": f"{row['error']:+.0%}",
        }
        for row in worst.to_dict("records")
    ]


def _speedups(bands: pd.DataFrame) -> Iterator[str]:
    if bands.empty:
        yield "No batch was measured under the schedules of the campaign.\n"
        return
    for row in bands[bands["batch"] == "all"].to_dict("records"):
        yield (
            f"- {row['card']}, `{LEAN}` over `{row['over']}`, geometric mean of {row['shapes']} shapes: "
            f"measured {row['measured']:.2f}, simulated {row['simulated']:.2f}."
        )
    yield (
        "\nMeans are geometric and of all shapes, as are the least and the most measured. `same side`: "
        "how often both or neither say that Lean is faster, where measured times are more than 5% "
        "apart. Errors are of test shapes: simulated speedup over measured, less one.\n"
    )
    for (card, over), mine in bands.groupby(["card", "over"], sort=False):
        rows = [_speedup_row(row) for row in mine.to_dict("records")]
        yield f"{card}, `{LEAN}` over `{over}`:\n\n{_md(rows)}\n"
    yield "![speedup of LeanAttention](speedups.png)\n"


def _speedup_row(row: dict[str, Any]) -> dict[str, Any]:
    tested = row["test_shapes"] > 0
    return {
        "batch": row["batch"],
        "requests x KV heads": row["tiles"],
        "shapes": row["shapes"],
        "measured": f"{row['measured']:.2f}",
        "simulated": f"{row['simulated']:.2f}",
        "least": f"{row['least']:.2f}",
        "most": f"{row['most']:.2f}",
        "same side": "" if math.isnan(row["same_side"]) else f"{row['same_side']:.0%}",
        "test shapes": row["test_shapes"],
        "bias": f"{row['bias']:+.1%}" if tested else "",
        "mean error": f"{row['mean_error']:.1%}" if tested else "",
        "within 10%": f"{row['within_10']:.0%}" if tested else "",
    }


def _winners(winners: pd.DataFrame) -> Iterator[str]:
    if winners.empty:
        yield "No batch was measured under several schedules.\n"
        return
    yield (
        "Of the schedules measured on a batch, the one that is simulated to be fastest: how often it is "
        "the fastest, how often it takes at most 2% longer than that, and its time over the fastest's, "
        "less one (`cost`, mean and worst). Beside it, the one schedule that costs least when "
        "it is taken for every batch, chosen with the measured times at hand, and the mean "
        "over all schedules. All rows count, fitted ones too.\n"
    )
    rows = [
        {
            "card": row["card"],
            "file": row["file"],
            "batch": row["batch"],
            "batches": row["batches"],
            "schedules": row["schedules"],
            "right": f"{row['right']:.0%}",
            "within 2%": f"{row['close']:.0%}",
            "cost": f"{row['cost']:.1%}",
            "worst": f"{row['worst']:.0%}",
            "best fixed schedule": f"`{row['fixed']}`",
            "is right": f"{row['fixed_right']:.0%}",
            "costs": f"{row['fixed_cost']:.1%}",
            "mean of all costs": f"{row['mean_of_all']:.0%}",
        }
        for row in winners.to_dict("records")
    ]
    yield f"{_md(rows)}\n"


def _interpolation(found: Found) -> Iterator[str]:
    if found.not_interpolated:
        yield f"{found.not_interpolated}\n"
        return
    yield (
        "A Gaussian process (an RBF with a length per feature) and gradient boosting learn logarithms "
        "of times from half of the batches, by a hash, per card, file, kernel and state of the cache. "
        "They are told requests, contexts, heads, bytes, and the planned splits, CTAs and tiles. "
        "Tested, together with the simulator, on the other half without its fit rows: mean error, share "
        "within 10%.\n"
    )
    keys = ["card", "file", "kernel", "cache"]
    rows = []
    for values, mine in found.interpolated.groupby(keys, sort=False):
        first = mine.iloc[0]
        cells: dict[str, Any] = dict(zip(keys, map(_ticked, keys, values), strict=True))
        cells |= {"learned": first["learned"], "tested": first["tested"]}
        for row in mine.to_dict("records"):
            cells[row["by"]] = f"{row['mean']:.1%}, {row['within_10']:.0%}"
        rows.append(cells)
    yield f"{_md(rows)}\n"
    for card, mine in found.interpolated.groupby("card"):
        means = [
            f"{by} {(part['mean'] * part['tested']).sum() / part['tested'].sum():.1%}"
            for by, part in mine.groupby("by", sort=False)
        ]
        yield f"- {card}, mean error over all that was tested: {', '.join(means)}."


def _timelines(timelines: pd.DataFrame) -> Iterator[str]:
    if timelines.empty:
        return
    yield (
        "\n## When CTAs end\n\nTime from the first CTA's first instruction to the ends of CTAs of the "
        "attention kernel: after 10, 50 and 90% of them, and the last; measured, and simulated in "
        "brackets. A copy of leansim's Triton kernel that notes the time in each CTA was measured, "
        "cold. On the GPU SMs go at different paces where DRAM is full; here they do not.\n"
    )
    rows = []
    for row in timelines.to_dict("records"):
        heads = f"{row['num_q_heads']}/{row['num_kv_heads']}"
        ends = {
            name.removesuffix("_us"): f"{row[name]:.1f} ({row[f'simulated_{name}']:.1f})"
            for name in PERCENTILES
        }
        rows.append(
            {
                "card": row["card"],
                "kernel": f"`{row['kernel']}`",
                "heads": heads,
                "head dim": row["head_dim"],
                "requests": row["batch_size"],
                "context": row["context_len"] or row["trace"],
                "CTAs": row["ctas"],
                **ends,
            }
        )
    yield f"{_md(rows)}\n"
    for card, mine in timelines.groupby("card"):
        apart = mine["simulated_last_us"] / mine["last_us"] - 1.0
        yield (
            f"- {card}: the last CTA of {len(mine)} calls ends {apart.abs().mean():.1%} apart in the "
            f"mean, {apart.mean():+.1%} with its sign, the median one "
            f"{(mine['simulated_p50_us'] / mine['p50_us'] - 1.0).abs().mean():.1%}."
        )


def _ticked(key: str, value: Any) -> Any:
    return f"`{value}`" if key == "kernel" else value


def _md(rows: list[dict[str, Any]]) -> str:
    return render(rows, "md")
