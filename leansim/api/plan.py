"""The verb that makes schedules without simulating."""

from __future__ import annotations

from collections.abc import Sequence

from leansim.api.given import Points, is_csv, points_of
from leansim.files.csv import CsvRow
from leansim.points.csv import outcomes, read_points
from leansim.points.plan import Plan, Plans, made
from leansim.points.point import PLAN_COLUMNS, point_from_row, resolve


def plan(points: Points, settings: Sequence[str] = (), strict: bool = False) -> Plans:
    """Make the schedule of each point without simulating.

    `settings` are `key=value` texts laid over a file. Raises a `LeansimError` where a point makes no
    sense. In a CSV such a row has the reason in a column `refused`; where all rows are like that, or
    `strict`ly any, one `ConfigError` names them.
    """
    if not is_csv(points):
        return Plans(tuple(made(resolve(point)) for point in points_of(points, settings)))
    given = read_points(str(points), settings=settings)

    def planned(row: CsvRow) -> Plan:
        return made(resolve(point_from_row(row, given.source))).released()

    found = given.settled(outcomes(planned, given.rows), strict)
    rows = given.joined((one.row if isinstance(one, Plan) else one for one in found), PLAN_COLUMNS)
    plans = tuple(one for one in found if isinstance(one, Plan))
    return Plans(plans, tuple(rows), tuple(given.refusals(found)))
