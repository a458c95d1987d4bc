"""Holds our own measurements against the simulator: RESULTS.md, its tables as CSVs, and two figures.

    python experiments/own_gpus/report.py [FOLDER] [-o FOLDER]

Needs no GPU, and scikit-learn only for the comparison with interpolation. The first
folder, this one by default, has a folder of CSVs per card; what is written goes there, or elsewhere.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import comparisons
import figures
import interpolation
import pandas as pd
from measured import files_of, simulated
from pages import Found, results
from timelines import timelines

from leansim.checkout.scripts import parser_of
from leansim.errors import LeansimError
from leansim.files.writing import Content, write_together
from leansim.sweeps.progress import Progress

FOLDER = Path(__file__).resolve().parent
# Tables of `Found` that are also written as CSVs, and what these are called.
_CSVS = {
    "kernels": "errors",
    "settings": "errors_by_file",
    "regimes": "errors_by_regime",
    "worst": "worst",
    "speedups": "speedups",
    "bands": "speedups_by_band",
    "winners": "winners",
    "interpolated": "interpolation",
    "timelines": "timelines",
}


def found_in(rows: pd.DataFrame, folder: Path) -> Found:
    """All that a report says of rows that were measured and simulated, and of a folder's timelines."""
    pairs = comparisons.speedups(rows)
    interpolated, why_not = _interpolated(rows)
    return Found(
        rows=rows,
        kernels=comparisons.errors(rows, ["card", "kernel"]),
        settings=comparisons.errors(rows, comparisons.SETTING),
        regimes=comparisons.regime_errors(rows),
        worst=comparisons.worst(rows),
        speedups=pairs,
        bands=comparisons.speedup_table(pairs),
        winners=comparisons.winners(rows),
        interpolated=interpolated,
        not_interpolated=why_not,
        timelines=timelines(folder),
    )


def _interpolated(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Errors of interpolation, and why there are none."""
    if not interpolation.installed():
        return (
            pd.DataFrame(),
            "Not compared: scikit-learn is not installed (`pip install scikit-learn`).",
        )
    found = interpolation.interpolated(rows)
    return found, "Not compared: too few rows to learn from." if found.empty else ""


def written(found: Found, folder: Path) -> dict[Path, Content]:
    """What goes into which file."""
    files: dict[Path, Content] = {
        folder / f"{name}.csv": getattr(found, table).to_csv(index=False, float_format="%.5g")
        for table, name in _CSVS.items()
        if not getattr(found, table).empty
    }
    drawn = {"times": figures.times(found.rows)}
    if not found.speedups.empty:
        drawn["speedups"] = figures.speedups(found.speedups)
    for name, figure in drawn.items():
        files[folder / f"{name}.png"] = partial(figure.savefig, dpi=110, format="png")
    return {**files, folder / "RESULTS.md": results(found)}


def main() -> int:
    """Write the report of a folder."""
    parser = parser_of(__doc__, FOLDER)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="has a folder per card")
    parser.set_defaults(out=None)
    given = parser.parse_args()
    folder, out = given.folder, given.out or given.folder
    try:
        with Progress("own_gpus") as progress:
            rows = simulated(files_of(folder), progress)
    except LeansimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files = written(found_in(rows, folder), out)
    write_together(files)
    for name in _CSVS.values():  # none of an earlier report stays beside this one
        if (path := out / f"{name}.csv") not in files:
            path.unlink(missing_ok=True)
    print(f"wrote {', '.join(path.name for path in files)} under {out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
