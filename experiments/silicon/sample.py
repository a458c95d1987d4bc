"""Rewrites the committed sample of the measured tables in tests/data/silicon.

    python experiments/silicon/sample.py

Wants the extra `silicon`. Rows are chosen by hash, so that running it again changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from leansim.files.writing import write_whole
from leansim.silicon.published import FILE_COLUMNS, RENAMED, measured_rows
from leansim.specs import catalog

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "tests" / "data" / "silicon"
# More of the tables that constants of kernels and devices are fitted to.
ROWS, FEWER_ROWS = 100, 40


def main() -> None:
    """Write a CSV per table, with the columns and units of the original."""
    original = {ours: theirs for theirs, ours in RENAMED.items()}
    for name in catalog.names("table"):
        table = catalog.table(name)
        fits = any(kernel.fits for kernel in table.kernels.values())
        rows = measured_rows(table, sample=ROWS if fits else FEWER_ROWS)
        raw = rows.rename(columns=original).assign(latency=rows["measured_s"] * 1e3)
        text = raw[list(FILE_COLUMNS)].to_csv(index=False, float_format="%.7g")
        write_whole(DATA / f"{name}.csv", text)


if __name__ == "__main__":
    main()
