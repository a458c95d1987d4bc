"""What predicting many points came to, as a sequence of outcomes and as one table.

Predictions are in seconds; rows of tables and files are in microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leansim.answers import Listed
from leansim.errors import LeansimError
from leansim.points.csv import REFUSED, reason
from leansim.specs.evidence import COLUMNS
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
    *COLUMNS,
)


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the cells of a row, `PREDICTION_COLUMNS`."""
    p = prediction
    cells = (
        round(p.latency_s * 1e6, 6), round(p.makespan_s * 1e6, 6), p.bound, p.num_splits, p.num_ctas,
        round(p.sm_busy_fraction, 6), round(p.dram_bytes), round(p.harness_s * 1e6, 6),
        p.evidence, p.extrapolated, round(p.expected_error, 4),
    )  # fmt: skip
    return dict(zip(PREDICTION_COLUMNS, cells, strict=True))


@dataclass(frozen=True, eq=False)
class Predictions(Listed[Outcome]):
    """A prediction per point, in order, or the error that stood in its way.

    `described` are the points as they were given, each a mapping of its fields. `refused` says of rows
    of a file why they have no prediction, with their lines.
    """

    described: tuple[Mapping[str, Any], ...]
    refused: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The records."""
        return self.records()

    def records(self) -> list[dict[str, Any]]:
        """The fields of each point, then its prediction in microseconds, or why it is `refused`."""
        return [
            {**fields, **_cells(found)}
            for fields, found in zip(self.described, self.answers, strict=True)
        ]

    def notes(self) -> list[str]:
        """How many points no measurement covers, and on what the times rest."""
        known = [found for found in self.answers if not isinstance(found, LeansimError)]
        outside = sum(found.extrapolated for found in known)
        where = "outside what was timed of their kernel on their device (extrapolated)"
        notes = [f"{outside} of {len(known)} points lie {where}"] if outside else []
        return notes + ([_rest(known)] if known else [])


def _rest(known: Sequence[Prediction]) -> str:
    """How many points have which evidence, and their mean expected error."""
    errors: dict[str, list[float]] = {}
    for found in known:
        errors.setdefault(found.evidence, []).append(found.expected_error)
    parts = [
        f"{len(mine)} {evidence} (expected error {sum(mine) / len(mine):.0%})"
        for evidence, mine in errors.items()
    ]
    return f"Times rest on: {', '.join(parts)}"


def _cells(found: Outcome) -> dict[str, Any]:
    if isinstance(found, LeansimError):
        return {**dict.fromkeys(PREDICTION_COLUMNS), REFUSED: reason(found)}
    return {**prediction_row(found), REFUSED: ""}
