"""What a verb is given: a point, several, a grid, or a file of them; one name, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from leansim.errors import ConfigError, Problem
from leansim.points.csv import outcomes, read_points
from leansim.points.point import Point, point_from_row

if TYPE_CHECKING:
    from leansim.points.grid import PointGrid

# A point, several, a grid, or a file: a run or sweep file (YAML), or a CSV of points.
Points: TypeAlias = "Point | Iterable[Point] | PointGrid | str | Path"
Names: TypeAlias = str | Sequence[str]
Progress: TypeAlias = Callable[[int, int], None]
_WANTED = "wanted a point, several, a grid or a file"


def points_of(points: Points, settings: Sequence[str] = ()) -> list[Point]:
    """Every point that is meant, in order. Raises `ConfigError` for what makes no sense."""
    if is_csv(points):
        return _points_of_csv(str(points))
    from leansim.points.grid import PointGrid, load  # which takes a while to load

    if isinstance(points, str | Path):
        return load(points, settings).points()
    if settings:
        raise ConfigError("arguments", [Problem("settings", ", ".join(settings), "wanted a file")])
    if isinstance(points, PointGrid):
        return points.points()
    several = [points] if isinstance(points, Point) else list(points)
    for position, one in enumerate(several):
        if not isinstance(one, Point):
            problem = Problem(f"points[{position}]", type(one).__name__, _WANTED)
            raise ConfigError("arguments", [problem])
    return several


def _points_of_csv(file: str) -> list[Point]:
    given = read_points(file)
    return given.checked(outcomes(lambda row: point_from_row(row, given.source), given.rows))


def is_csv(points: Points) -> bool:
    """Whether what is given is a CSV of points."""
    return isinstance(points, str | Path) and str(points).lower().endswith(".csv")


def names_of(names: Names) -> tuple[str, ...]:
    """The names that are given."""
    return (names,) if isinstance(names, str) else tuple(names)
