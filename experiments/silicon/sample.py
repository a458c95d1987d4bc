"""Rewrites the committed sample of the measured tables in tests/data/silicon.

    python experiments/silicon/sample.py

Wants the extra `silicon`. Rows are chosen by hash, so that running it again changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from leansim.silicon.tables import FILE_COLUMNS, measured_rows
from leansim.specs import catalog

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "tests" / "data" / "silicon"
# More of the two tables that constants are fitted to.
ROWS = dict.fromkeys(("a100_sxm_vllm", "h100_sxm_sglang"), 100)
FEWER_ROWS = 40


def main() -> None:
    """Write a CSV per table, with the columns and units of the original."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name in catalog.names("table"):
        rows = measured_rows(catalog.table(name), sample=ROWS.get(name, FEWER_ROWS))
        raw = rows.rename(
            columns={
                "num_q_heads": "num_heads",
                "num_kv_heads": "num_key_value_heads",
                "window": "window_size",
                "kv_dtype": "kv_cache_dtype",
            }
        ).assign(latency=rows["measured_s"] * 1e3)
        raw[list(FILE_COLUMNS)].to_csv(DATA / f"{name}.csv", index=False, float_format="%.7g")


if __name__ == "__main__":
    main()
