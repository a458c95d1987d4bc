"""Holds the measured points against the simulator: RESULTS.md, errors.csv, speedups.csv and a figure.

Needs no GPU. Only shapes that no constant may be fitted to are counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from leansim.errors import LeansimError
from leansim.files.csv import read_csv
from leansim.files.writing import Content, write_together
from leansim.gpu.campaign import COLUMNS, KERNELS
from leansim.silicon.validate import errors_of, validate_points

FOLDER = Path(__file__).resolve().parent
FA2, FLASH_DECODING, LEAN = KERNELS
SHAPE = [name for name in COLUMNS if name != "kernel"]
REGIMES = ("batch", "band", "split", "group", "head_dim")
WANTED_ERROR, WANTED_SHARE, APART = 0.08, 0.85, 0.10


def compared(file: Path) -> pd.DataFrame:
    """Measured and simulated times of the test shapes, a row per point."""
    table = validate_points(file)
    points = pd.DataFrame([row for _, row in read_csv(str(file))[1]])
    shapes, ragged = points[SHAPE].agg("|".join, axis=1), points["trace"].ne("")
    table = table.assign(shape=shapes, batch=ragged.map({True: "ragged", False: "uniform"}))
    return table[~table["fit"].astype(bool)]


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """Signed and absolute errors per kernel, over all and by regime."""
    rows = []
    for kernel, mine in table.groupby("kernel"):
        rows.append({"kernel": kernel, "regime": "all", "value": "", **errors_of(mine["error"])})
        for regime in REGIMES:
            for value, part in mine.groupby(regime):
                rows.append(
                    {"kernel": kernel, "regime": regime, "value": str(value), **errors_of(part["error"])}
                )
    return pd.DataFrame(rows)


def speedups(table: pd.DataFrame) -> pd.DataFrame:
    """Lean's speedup over the others, measured and simulated, of each shape that all three ran."""
    times = {
        name: table.pivot_table(index="shape", columns="kernel", values=f"{name}_s")
        for name in ("measured", "predicted")
    }
    about = table.drop_duplicates("shape").set_index("shape")
    parts = []
    for over in (FLASH_DECODING, FA2):
        both = {
            name: time[over] / time[LEAN] for name, time in times.items() if {over, LEAN} <= set(time)
        }
        if len(both) == len(times):
            parts.append(pd.DataFrame(both).dropna().assign(over=over))
    if not parts:
        return pd.DataFrame(
            columns=["over", "measured", "predicted", "context_len", "num_kv_heads", "batch"]
        )
    joined = pd.concat(parts)
    return joined.join(about[["context_len", "num_kv_heads", "num_q_heads", "batch_size", "batch"]])


def close_share(rows: pd.DataFrame) -> float:
    """Share of shapes whose simulated speedup is within 10% of the measured."""
    return float(((rows["predicted"] / rows["measured"] - 1.0).abs() <= APART).mean())


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Measured against simulated speedup: a row per baseline, a column per way to look at it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ways = (("context_len", "longest context, tokens"), ("num_kv_heads", "KV heads"), ("batch", "batch"))
    figure, axes = plt.subplots(2, len(ways), figsize=(12, 7), sharey="row", layout="constrained")
    for line, over in zip(axes, (FLASH_DECODING, FA2), strict=True):
        mine = rows[rows["over"] == over]
        for axis, (column, label) in zip(line, ways, strict=True):
            x = mine[column]
            axis.plot(x, mine["measured"], "o", ms=4, alpha=0.6, label="measured")
            axis.plot(x, mine["predicted"], "x", ms=4, alpha=0.8, label="simulated")
            axis.axhline(1.0, color="grey", lw=0.8)
            axis.set_xlabel(label)
            if column != "batch":
                axis.set_xscale("log", base=2)
        line[0].set_ylabel(f"speedup of {LEAN}\nover {over}")
    axes[0][0].legend()
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def text(table: pd.DataFrame, error_rows: pd.DataFrame, speedup_rows: pd.DataFrame, gpu: str) -> str:
    """RESULTS.md."""
    shapes = table["shape"].nunique()
    lines = [
        "# Measured and simulated",
        "",
        f"{len(table):,} measurements of {shapes:,} shapes on {gpu}; the fit fifth of shapes is left",
        "out. An error is simulated over measured, less one. Written by `experiments/h200/report.py`.",
        "",
        "| kernel | regime | value | rows | bias | mean | median | p90 | within 10% |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in error_rows.to_dict("records"):
        numbers = " | ".join(
            f"{row[name]:.1%}" for name in ("bias", "mean", "median", "p90", "within_10")
        )
        lines.append(
            f"| `{row['kernel']}` | {row['regime']} | {row['value']} | {row['rows']} | {numbers} |"
        )
    mean = table["error"].abs().mean()
    lines += ["", f"Mean error over all: {mean:.1%} (wanted: at most {WANTED_ERROR:.0%}).", ""]
    for over, mine in speedup_rows.groupby("over"):
        wanted = f" (wanted: {WANTED_SHARE:.0%})" if over == FLASH_DECODING else ""
        lines.append(
            f"- Speedup of `{LEAN}` over `{over}`, median: measured {mine['measured'].median():.2f}x, "
            f"simulated {mine['predicted'].median():.2f}x; within 10% of each other on "
            f"{close_share(mine):.0%} of {len(mine)} shapes{wanted}."
        )
    return "\n".join([*lines, "", "![speedup, measured and simulated](speedup.png)", ""])


def main() -> int:
    """Write the report of a folder's points.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where points.csv is")
    folder = parser.parse_args().folder
    file = folder / "points.csv"
    if not file.is_file():
        print(
            f"error: {file}: found no measurements; wanted run.py to have run on a GPU", file=sys.stderr
        )
        return 2
    try:
        table = compared(file)
    except LeansimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    gpus = sorted({row["gpu"] for _, row in read_csv(str(file))[1]})
    error_rows, speedup_rows = errors(table), speedups(table)
    files: dict[Path, Content] = {
        folder / "errors.csv": error_rows.to_csv(index=False, float_format="%.5f"),
        folder / "speedups.csv": speedup_rows.to_csv(float_format="%.5f"),
        folder / "speedup.png": lambda path: draw(speedup_rows, path),
        folder / "RESULTS.md": text(table, error_rows, speedup_rows, ", ".join(gpus)),
    }
    write_together(files)
    print(f"wrote RESULTS.md, errors.csv, speedups.csv and speedup.png under {folder}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
