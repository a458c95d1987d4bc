"""The verb that predicts the latency of many points."""

from __future__ import annotations

from collections.abc import Sequence

from leansim.api.given import Points, is_csv, points_of
from leansim.engine.execute import Engine
from leansim.errors import LeansimError
from leansim.points.csv import HARNESS, read_points
from leansim.sweeps.executors import using
from leansim.sweeps.predict import predict as predict_points
from leansim.sweeps.predict import predict_rows
from leansim.sweeps.predictions import PREDICTION_COLUMNS, Predictions, prediction_row


def predict(
    points: Points,
    jobs: int | None = None,
    harness: str = "",
    engine: Engine = "auto",
    settings: Sequence[str] = (),
    strict: bool = False,
) -> Predictions:
    """Predict the latency of every point, in microseconds.

    Of the kernel alone, or with what a measured latency contains beside it (`harness_us` of it) where
    `harness` names a measured table or a timer (`do_bench`), or is `table` for the table of the point's
    kernel and device; in a CSV of points a column `harness` does, and `harness` stands in for its empty
    cells. `evidence` says what a time rests on, `extrapolated` that no measurement covers the point, and
    `expected_error` how far off it may be (docs/accuracy.md).
    `jobs` processes: by default one per core when there are many points. `settings` are `key=value`
    texts laid over a file.

    A point that makes no sense has its error in place of a prediction, and in a column `refused`. In a
    CSV where all rows are like that, or `strict`ly any, one `ConfigError` names them.
    `leansim.sweeps.predict.predict` yields predictions as they are made.
    """
    with using(engine):
        if not is_csv(points):
            chosen = points_of(points, settings)
            asked = [p.model_dump(mode="json", by_alias=True, exclude_unset=True) for p in chosen]
            return Predictions(tuple(predict_points(chosen, jobs, harness)), tuple(asked))
        given = read_points(str(points), also=(HARNESS,), settings=settings)
        rows = [{**row, HARNESS: row.get(HARNESS) or harness} if harness else row for row in given.rows]
        found = tuple(predict_rows(rows, given.source, jobs))
        described = (one if isinstance(one, LeansimError) else prediction_row(one) for one in found)
        rows = given.joined(described, PREDICTION_COLUMNS, strict)
        return Predictions(found, tuple(rows), tuple(given.refusals(found)))
