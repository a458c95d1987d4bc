"""How every kernel did against every other over a sweep: means, extremes, and where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.sweeps.compare import TIE, finished, leading, varying, with_speedup

if TYPE_CHECKING:
    import pandas as pd

_USUAL = ("device", "batch_size", "context_len", "context_scale", "num_q_heads", "head_dim", "trace")


def speedup_summary(results: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per (group, kernel, baseline): statistics of baseline latency over kernel latency.

    `results` is a sweep's results; `by` names columns to group by. A row is over the points that both
    kernels finished, `points` of them, with the same overrides. `mean` is arithmetic, as papers
    report it; `geomean` beside it does not reward large ratios. `lost` is the share of points
    where the kernel is more than 0.5% slower. `best_at` and `worst_at` name the extreme points.
    """
    import pandas as pd

    results = finished(results)
    policies = list(dict.fromkeys(results["policy"]))
    columns = dict.fromkeys((*_USUAL, *leading(results, varying(results))))
    told = [column for column in columns if column in results and column not in by]
    rows = []
    for baseline in policies:
        faster = with_speedup(results, baseline)
        faster = faster[faster["policy"] != baseline]
        for key, group in faster.groupby([*by, "policy"], sort=False, dropna=False):
            names = dict(zip((*by, "kernel"), key, strict=True))
            rows.append({**names, "baseline": baseline, **_statistics(group, told)})
    return pd.DataFrame(rows)


def _statistics(group: pd.DataFrame, told: list[str]) -> dict[str, Any]:
    speedup = group["speedup"].to_numpy(dtype=float)
    return {
        "points": len(speedup),
        "mean": speedup.mean(),
        "geomean": float(np.exp(np.log(speedup).mean())),
        "median": float(np.median(speedup)),
        "min": speedup.min(),
        "max": speedup.max(),
        "lost": float((speedup < 1 - TIE).mean()),
        "worst_at": _place(group.iloc[int(speedup.argmin())], told),
        "best_at": _place(group.iloc[int(speedup.argmax())], told),
    }


def _place(row: pd.Series[Any], told: list[str]) -> str:
    return " ".join(f"{name}={row[name]}" for name in told if _said(row[name], name))


def _said(value: Any, name: str) -> bool:
    missing = value is None or value != value  # noqa: PLR0124 - NaN is the value unequal to itself
    return not missing and not (name == "context_scale" and value == 1.0)
