"""Regenerates this experiment: RESULTS.md, figures and the pins in expected.csv.

    python experiments/schedulers_on_traces/run.py [-o FOLDER]

The folder `out` there keeps the full tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leansim.answers import render
from leansim.checkout.scripts import parser_of
from leansim.files.writing import write_whole
from leansim.points.grid import load
from leansim.report.sheet import save
from leansim.report.study_figures import regret_figure
from leansim.study.regret import RegretMap, regret
from leansim.sweeps.compare import finished
from leansim.sweeps.progress import Progress
from leansim.sweeps.sweep import sweep

HERE = Path(__file__).resolve().parent
LEAN = "fa2+lean_attention(lengths=actual)"
CELL = ("device", "trace", "batch_size", "model", "seed")
FIGURES = {"regret_lean": LEAN, "regret_flash_decoding": "fa2+flash_decoding(sms_factor=2)"}


def short(policy: str) -> str:
    """A schedule's name without the kernel they all share."""
    return policy.removeprefix("fa2+")


def geomean(values: Any) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(np.asarray(values, dtype=float)).mean()))


def where_lean_loses(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells where another schedule, or a split count found by search, beats LeanAttention by 0.5%."""
    done = finished(table)
    lean = done[(done["policy"] == LEAN) & (done["regret"] > 1.005)]
    return [
        {
            **{name: row[name] for name in CELL},
            "slower by": f"{row['regret'] - 1:.1%}",
            "latency_us": f"{row['latency_s'] * 1e6:.1f}",
            "faster": f"{short(row['oracle_policy'])}: {row['oracle_splits']}",
            "why": row["reason"],
        }
        for row in lean.sort_values("regret", ascending=False, kind="stable").to_dict("records")
    ]


def schedules(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per device and schedule: mean latency over Lean's, regret, SM busy fraction."""
    done = finished(table)
    lean_s = done[done["policy"] == LEAN].set_index(list(CELL))["latency_s"]
    rows = []
    for (device, policy), group in done.groupby(["device", "policy"], sort=False):
        over = group["latency_s"].to_numpy() / lean_s.loc[list(map(tuple, group[list(CELL)].to_numpy()))]
        rows.append(
            {
                "device": device,
                "schedule": short(str(policy)),
                "cells": len(group),
                "mean regret": f"{geomean(group['regret']):.3f}",
                "worst": f"{group['regret'].max():.2f}",
                "SM busy": f"{group['sm_busy_fraction'].mean():.0%}",
                "time over Lean's": f"{geomean(over):.3f}",
                "faster than Lean in": f"{(over < 0.995).mean():.0%}",
            }
        )
    return sorted(rows, key=lambda row: (row["device"], float(row["mean regret"])))


def by_batch(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean regret of each schedule by trace and batch size, both devices and all models together."""
    done = finished(table)
    means = done.assign(log=np.log(done["regret"].astype(float)))
    means = means.groupby(["policy", "trace", "batch_size"], sort=False)["log"].mean()
    rows = []
    for policy in dict.fromkeys(done["policy"]):
        row = {"schedule": short(policy)}
        for trace in dict.fromkeys(done["trace"]):
            for batch in sorted(done["batch_size"].unique()):
                value = means.get((policy, trace, batch))
                row[f"{trace} {batch:.0f}"] = "-" if value is None else f"{np.exp(value):.2f}"
        rows.append(row)
    return rows


def kernels(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The kernels as they ship: time over the fastest of the cell, and how often each is fastest."""
    done = finished(table)
    best = done.groupby(list(CELL))["latency_s"].transform("min")
    done = done.assign(over=done["latency_s"] / best)
    return sorted(
        (
            {
                "device": device,
                "kernel": policy,
                "cells": len(group),
                "time over the fastest": f"{geomean(group['over']):.3f}",
                "worst": f"{group['over'].max():.2f}",
                "fastest in": f"{(group['over'] == 1.0).mean():.0%}",
                "SM busy": f"{group['sm_busy_fraction'].mean():.0%}",
            }
            for (device, policy), group in done.groupby(["device", "policy"], sort=False)
        ),
        key=lambda row: (row["device"], float(row["time over the fastest"])),
    )


def refused(table: pd.DataFrame) -> list[str]:
    """What some schedules or kernels do not take."""
    counts = table.loc[table["error"].notna(), ["policy", "error"]].value_counts()
    reasons: dict[str, list[tuple[str, int]]] = {}
    for (policy, error), count in counts.items():
        why = str(error).partition(": found")[0].partition(" on '")[0]
        reasons.setdefault(why, []).append((short(str(policy)), int(count)))
    return [
        f"- {', '.join(sorted({name for name, _ in who}))} ({sum(count for _, count in who)}): {why}"
        for why, who in reasons.items()
    ]


def lean_summary(table: pd.DataFrame) -> str:
    """In how many cells Lean loses, and its best and worst ones."""
    lean = finished(table)
    lean = lean[lean["policy"] == LEAN]
    lost = lean[lean["regret"] > 1.005]
    return (
        f"LeanAttention's schedule loses more than 0.5% in {len(lost)} of {len(lean)} cells, at most "
        f"{lean['regret'].max() - 1:.1%}; its mean regret is {geomean(lean['regret']):.3f}. A cell is "
        "one batch of one model on one GPU; all schedules run on FlashAttention-2's kernel, and the "
        "oracle is the fastest of them and of the split counts that search finds."
    )


def figures(found: RegretMap, out: Path) -> None:
    """Heat maps of regret over batch size and model, of Lean and FlashDecoding."""
    table = finished(found.table).assign(kv_heads=found.table["model"].map(KV_HEADS))
    drawn = {
        name: regret_figure(table, policy, ("kv_heads", "batch_size"), "batches of serving traces")
        for name, policy in FIGURES.items()
    }
    for name, figure in drawn.items():
        save(figure, out / f"{name}.png")


KV_HEADS = {"llama_3_8b": 8, "llama_3_70b": 1, "qwen_2_5_7b": 4}


def main() -> None:
    """Search every cell, sweep the kernels, summarise, pin."""
    out = parser_of(__doc__, HERE).parse_args().out
    full = out / "out"
    with Progress("schedules") as progress:
        found = regret(load(HERE / "sweep.yaml"), budget=100, progress=progress)
    write_whole(full / "schedules.csv", found.table.to_csv(index=False))
    with Progress("kernels") as progress:
        shipped = sweep(load(HERE / "kernels.yaml"), full / "kernels", progress=progress).table
    figures(found, out / "figures")
    pinned = finished(found.table)
    pinned = pinned[(pinned["seed"] == 0) & (pinned["batch_size"] == 32)]
    pins = pinned[[*CELL, "policy"]].assign(latency_ns=(pinned["latency_s"] * 1e9).round(3))
    write_whole(out / "expected.csv", pins.to_csv(index=False))
    sections = [
        "# Results\n\nWritten by `run.py`; do not edit.",
        "## Where LeanAttention loses\n\n" + lean_summary(found.table),
        render(where_lean_loses(found.table)[:20], "md")
        if where_lean_loses(found.table)
        else "Nowhere.",
        "## Every schedule, on one kernel\n\n" + render(schedules(found.table), "md"),
        "### Mean regret by trace and batch size\n\n" + render(by_batch(found.table), "md"),
        "## The kernels as they ship\n\n" + render(kernels(shipped), "md"),
        "## Refused\n\nSchedules and kernels that do not take some of the batches, with how many:\n\n"
        + "\n".join([*refused(found.table), *refused(shipped)]),
    ]
    write_whole(out / "RESULTS.md", "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
