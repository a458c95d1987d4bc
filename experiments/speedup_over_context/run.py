"""Regenerates this experiment: results, figures, RESULTS.md and the pins in expected.csv.

    python experiments/speedup_over_context/run.py [-o FOLDER]

The folder `out` there keeps the full results; a second run only simulates what is new.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from leansim.answers import render
from leansim.checkout.scripts import parser_of
from leansim.files.writing import write_whole
from leansim.points.grid import load
from leansim.report.plots import line_figure, plot
from leansim.report.sheet import save
from leansim.sweeps.summary import speedup_summary
from leansim.sweeps.sweep import sweep

HERE = Path(__file__).resolve().parent
FIGURES = (
    "speedup_over_fa2",
    "speedup_context_len",
    "latency_context_len",
    "busy_context_len",
    "winner_map",
)
POINT = ("device", "policy", "batch_size", "context_len", "num_q_heads", "head_dim")

# What the paper's abstracts claim (arXiv:2405.10480, v1 and v2): (mean, largest).
PAPER = {"fa2": "2.6 / 8.33 (at 512k)", "flash_decoding": "1.73 / 2.18 (at 256k)"}
PAPER["flash_decoding_2_5_6"] = PAPER["flash_decoding"]


def comparison(table: pd.DataFrame) -> list[dict[str, object]]:
    """LeanAttention's speedups beside the paper's, over everything and over what fits in memory."""
    parts = {
        "all": table,
        "KV fits in DRAM": table[table["kv_fits_dram"]],
        "at most 8 output tiles": table[table["batch_size"] * table["num_q_heads"] <= 8],
        "256k and longer": table[table["context_len"] >= 256 * 1024],
    }
    rows = []
    for name, part in parts.items():
        summary = speedup_summary(part)
        lean = summary[(summary["kernel"] == "lean") & summary["baseline"].isin(PAPER)]
        rows += [
            {
                "over": row.baseline,
                "grid": name,
                "points": row.points,
                "mean": f"{row.mean:.2f}",
                "geomean": f"{row.geomean:.2f}",
                "largest": f"{row.max:.2f}",
                "smallest": f"{row.min:.2f}",
                "slower": f"{row.lost:.1%}",
                "paper: mean / largest": PAPER[row.baseline],
            }
            for row in lean.itertuples()
        ]
    return rows


def main() -> None:
    """Sweep, draw, summarise, pin."""
    out = parser_of(__doc__, HERE).parse_args().out
    full = out / "out"
    table = sweep(load(HERE / "sweep.yaml"), full).table
    plot(full)
    figure = line_figure(table, "context_len", "speedup", "speedup_over_context", "fa2")
    save(figure, full / "speedup_over_fa2.png")
    (out / "figures").mkdir(exist_ok=True)
    for name in FIGURES:
        shutil.copy(full / f"{name}.png", out / "figures")
    pins = table[list(POINT)].assign(latency_ns=(table["latency_s"] * 1e9).round(3))
    write_whole(out / "expected.csv", pins.to_csv(index=False))
    grouped = speedup_summary(table, ("device", "head_dim"))
    lean = grouped[grouped["kernel"] == "lean"].drop(columns="kernel")
    sections = [
        "# Results\n\nWritten by `run.py`; do not edit.",
        "## LeanAttention beside the paper\n\n" + render(comparison(table), "md"),
        "## LeanAttention by device and head dim\n\n" + render(lean.round(3).to_dict("records"), "md"),
    ]
    write_whole(out / "RESULTS.md", "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
