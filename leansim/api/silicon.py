"""The verbs that hold predictions against measurements, and fit them: validate, calibrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim.answers import Shown
from leansim.api.given import Names, Progress, names_of
from leansim.errors import ConfigError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from leansim.silicon.calibration import Calibration
    from leansim.silicon.fit import Fit
    from leansim.silicon.rows import Split


@dataclass(frozen=True, eq=False)
class Validation(Shown):
    """Measured rows and their predictions, in seconds; `error` is predicted over measured, less one."""

    table: pd.DataFrame

    @property
    def errors(self) -> pd.DataFrame:
        """Errors per table and kernel: over all rows, and by each regime of several values."""
        from leansim.silicon.validate import error_table

        return error_table(self.table)

    def worst(self, most: int = 15) -> pd.DataFrame:
        """The rows that the model is furthest from, by ratio."""
        from leansim.silicon.validate import worst_rows

        return worst_rows(self.table, most)

    def rows(self) -> list[dict[str, Any]]:
        """Errors per table and kernel, over all rows."""
        every = self.errors
        return [
            {
                "table": row["table"],
                "kernel": row["kernel"],
                "rows": row["rows"],
                **{name: f"{row[name]:.1%}" for name in ("bias", "mean", "median", "p90", "within_10")},
            }
            for row in every[every["regime"] == "all"].to_dict("records")
        ]

    def notes(self) -> list[str]:
        """Rows left out of the tables, and rows without a prediction."""
        from leansim.silicon.validate import refusals

        return list(refusals(self.table))


def validate(
    tables: Names = (),
    sample: int | None = None,
    split: Split | None = None,
    points: str | Path | None = None,
    device: str | None = None,
    data: Path | None = None,
    jobs: int | None = None,
    progress: Progress = lambda _done, _total: None,
    settings: Sequence[str] = (),
    strict: bool = False,
) -> Validation:
    """Hold predictions against measured latencies: of `tables` (none: all), or of your own `points`.

    `sample` rows of each table are taken by hash. `split` is `test` (never fitted), `fit` or `all`: of
    tables `test` by default, of points `all`. `data` is a folder of <table>.csv instead of the
    installed tables; `device` is where FlashInfer's benchmark ran, whose CSV does not say. `jobs`
    processes, `progress` as in `sweep`. `settings` are `key=value` texts laid over every point. A row
    that makes no sense has the reason in a column `refused`, or, with `strict`, is a `ConfigError`.
    Raises that too where all are, `UnknownNameError`, and `StoreError` for missing tables.
    """
    from leansim.silicon import validate as validation
    from leansim.silicon.published import table_rows

    names = names_of(tables)
    if points is None:
        rows = table_rows(names, split or "test", sample, data, strict)
        return Validation(validation.validate(rows, jobs, progress, settings))
    if names or sample or data:
        problem = Problem("points", "tables, a sample or data too", "wanted one of the two")
        raise ConfigError("validate", [problem])
    chosen = split or "all"
    return Validation(
        validation.validate_points(points, device, jobs, progress, chosen, settings, strict)
    )


def calibrate(
    config: str | Path | Calibration,
    data: Path | None = None,
    jobs: int | None = None,
    progress: Callable[[int, float], None] = lambda _evaluations, _error: None,
) -> Fit:
    """Fit the free constants of a file of configs/calibrations to measurements; write nothing.

    `leansim.silicon.fit.write` puts a fit into the files. `data` as in `validate`; `progress` is told
    evaluations of the model and mean relative error. Raises `ConfigError` for a calibration that makes
    no sense, `StoreError` for missing tables or SciPy.
    """
    from leansim.silicon import fit
    from leansim.silicon.calibration import read_calibration

    chosen = read_calibration(config) if isinstance(config, str | Path) else config
    return fit.calibrate(chosen, data, jobs, progress)
