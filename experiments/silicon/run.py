"""Holds the model against every measured table, and writes down how far off it is.

    python experiments/silicon/run.py [--sample N]

Wants the extra `silicon`. Predicts every row that no constant was fitted to (some 270,000, about ten
minutes on two cores), or N rows of each table, and writes RESULTS.md, error tables and figures
here, and the summary in docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from leansim.progress import Progress
from leansim.tables import render
from leansim.validation import table_rows, validate
from leansim.validation_report import sections, write_validation

HERE = Path(__file__).resolve().parent
ACCURACY = HERE.parent.parent / "docs" / "accuracy.md"
# Parts of RESULTS.md that docs/accuracy.md repeats.
SUMMARY = ("Error of predicted latency", "Is split or unsplit faster", "Beside other tools")
_BLOCK = re.compile(r"(<!-- errors -->\n).*?(<!-- /errors -->)", re.DOTALL)


def main() -> None:
    """Validate, write, summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, help="rows of each table, all by default")
    sample = parser.parse_args().sample
    with Progress("silicon") as progress:
        table = validate(table_rows((), "test", sample), progress=progress)
    what = "python experiments/silicon/run.py" + (f" --sample {sample}" if sample else "")
    for path in write_validation(table, HERE, 50, what, predictions=False):
        print(f"wrote {path.name}")
    parts = [
        f"### {title}\n\n{render(rows, 'md')}\n" + (f"\n{note}\n" if note else "")
        for title, rows, note in sections(table, 0)
        if title.startswith(SUMMARY)
    ]
    text = f"Written by `{what}`; do not edit.\n\n" + "\n".join(parts)
    ACCURACY.write_text(_BLOCK.sub(lambda block: f"{block[1]}{text}{block[2]}", ACCURACY.read_text()))


if __name__ == "__main__":
    main()
