"""Holds the model against every measured table, and writes down how far off it is.

    python experiments/silicon/run.py [--sample N] [-o FOLDER]

Wants the extra `silicon`. Predicts every row that no constant was fitted to (some 270,000, about ten
minutes on two cores), or N rows of each table, and writes RESULTS.md, error tables and figures
here, and the summaries in docs/accuracy.md and the README; or all of it into FOLDER.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from leansim.answers import render
from leansim.checkout.scripts import parser_of, write_part
from leansim.report.validation_report import sections, write_validation
from leansim.silicon.published import table_rows
from leansim.silicon.validate import kind_table, validate
from leansim.sweeps.progress import Progress

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ACCURACY, README = ROOT / "docs" / "accuracy.md", ROOT / "README.md"
# Parts of RESULTS.md that docs/accuracy.md repeats.
SUMMARY = ("Error of predicted latency", "Is split or unsplit faster", "Beside other tools")


def main() -> None:
    """Validate, write, summarise."""
    parser = parser_of(__doc__, HERE)
    parser.add_argument("--sample", type=int, help="rows of each table, all by default")
    given = parser.parse_args()
    sample, out = given.sample, given.out
    with Progress("silicon") as progress:
        table = validate(table_rows((), "test", sample), progress=progress)
    what = "python experiments/silicon/run.py" + (f" --sample {sample}" if sample else "")
    for path in write_validation(table, out, 50, what, predictions=False):
        print(f"wrote {path.name}")
    parts = [
        f"### {title}\n\n{render(rows, 'md')}\n" + (f"\n{note}\n" if note else "")
        for title, rows, note in sections(table, 0)
        if title.startswith(SUMMARY)
    ]
    text = f"Written by `{what}`; do not edit.\n\n" + "\n".join(parts)
    write_part(ACCURACY, "errors", text, out, HERE)
    write_part(README, "accuracy", plain_rows(kind_table(table)), out, HERE)


def plain_rows(kinds: pd.DataFrame) -> str:
    """The README's table: mean error and share within 10% of the rows most people run."""
    rows = [
        {
            "measured": row.table,
            "kernel": f"`{row.kernel}`",
            "rows": f"{row.rows:,}",
            "mean error": f"{row.mean:.1%}",
            "within 10%": f"{row.within_10:.0%}",
        }
        for row in kinds[kinds["kind"] == "plain"].itertuples()
    ]
    return render(rows, "md")


if __name__ == "__main__":
    main()
