"""What predicting many points came to, as a sequence of outcomes and as one table.

Predictions are in seconds; rows of tables and files are in microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leansim.answers import Listed
from leansim.errors import LeansimError
from leansim.sweeps.predict import Outcome, Prediction

# What a prediction adds to a row of points.
PREDICTION_COLUMNS = (
    "latency_us",
    "makespan_us",
    "bound",
    "num_splits",
    "num_ctas",
    "sm_busy_fraction",
    "dram_bytes",
    "harness_us",
    "extrapolated",
)


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the cells of a row, `PREDICTION_COLUMNS`."""
    cells = {
        **vars(prediction),
        "latency_us": round(prediction.latency_s * 1e6, 6),
        "makespan_us": round(prediction.makespan_s * 1e6, 6),
        "sm_busy_fraction": round(prediction.sm_busy_fraction, 6),
        "dram_bytes": round(prediction.dram_bytes),
        "harness_us": round(prediction.harness_s * 1e6, 6),
    }
    return {name: cells[name] for name in PREDICTION_COLUMNS}


@dataclass(frozen=True, eq=False)
class Predictions(Listed[Outcome]):
    """A prediction per point, in order, or the error that stood in its way.

    `described` are the points as they were given, each a mapping of its fields.
    """

    described: tuple[Mapping[str, Any], ...]

    def rows(self) -> list[dict[str, Any]]:
        """The records."""
        return self.records()

    def records(self) -> list[dict[str, Any]]:
        """The fields of each point, then its prediction, times in microseconds; or an `error`."""
        return [
            {**fields, **_cells(found)}
            for fields, found in zip(self.described, self.answers, strict=True)
        ]

    def notes(self) -> list[str]:
        """How many points lie outside what was held against silicon."""
        known = [found for found in self.answers if not isinstance(found, LeansimError)]
        outside = sum(found.extrapolated for found in known)
        where = "outside what was held against silicon for their kernel and device (extrapolated)"
        return [f"{outside} of {len(known)} points lie {where}"] if outside else []


def _cells(found: Outcome) -> dict[str, Any]:
    return {"error": str(found)} if isinstance(found, LeansimError) else prediction_row(found)
