"""When the CTAs of a call end, measured and simulated: `CARD/cta_ends.csv`.

A copy of leansim's Triton kernel wrote the time at both ends of each CTA.
Times are from the first CTA's first instruction, us: percentiles of CTAs, and the last of all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import leansim
from leansim.engine.program import Phase
from leansim.files.csv import read_csv
from leansim.points.point import point_from_row

PERCENTILES = {"p10_us": 10, "p50_us": 50, "p90_us": 90, "last_us": 100}
# Columns of a file that describe no point.
_MEASURED = ("calls", "ctas", *PERCENTILES)
_SHAPE = ("num_q_heads", "num_kv_heads", "head_dim", "batch_size", "context_len", "trace")


def ends_us(row: dict[str, str], source: str) -> np.ndarray:
    """When each CTA of a row's attention kernel ends in the simulator, us, `[CTAs]`."""
    point = {name: value for name, value in row.items() if name not in _MEASURED}
    result = leansim.simulate(point_from_row(point, source)).result
    program, launch = result.program, result.program.attention
    ctas = slice(launch.first_cta, launch.last_cta)
    launched = program.phase_of_cta[ctas]
    assert (program.kind[launched] == Phase.LAUNCH).all()
    ends: np.ndarray = (result.cta_end[ctas] - result.end[launched].min()) / 1e6
    return ends


def timelines(folder: Path) -> pd.DataFrame:
    """A row for each call of all cards: the percentiles that were measured, and those simulated."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/cta_ends.csv")):
        for line, row in read_csv(str(path))[1]:
            ends = ends_us(row, f"{path}:{line}")
            shape = {name: row[name] for name in ("kernel", *_SHAPE)}
            found: dict[str, Any] = {"card": path.parent.name, **shape, "ctas": int(row["ctas"])}
            for name, percent in PERCENTILES.items():
                found[name] = float(row[name])
                found[f"simulated_{name}"] = float(np.percentile(ends, percent))
            rows.append(found)
    return pd.DataFrame(rows)
