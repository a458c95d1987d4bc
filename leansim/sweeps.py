"""Runs a grid of points over all cores and keeps every finished one.

Results are tidy: one row per point, its fields beside its metrics, in Parquet and CSV, with a
manifest of what made them.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim import __version__
from leansim.api import simulate
from leansim.config import GridConfig, load
from leansim.errors import LeansimError, StoreError
from leansim.points import POINT_KEYS, Point, resolve
from leansim.store import FILE_NAME, Store

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.parquet"
MANIFEST = "manifest.json"
_POINTS_PER_TASK = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A finished sweep: its folder, its table, and how many points were simulated or refused."""

    folder: Path
    table: pd.DataFrame
    simulated: int
    reused: int
    refused: int


def sweep(
    config: str | Path | GridConfig,
    out: str | Path,
    settings: Sequence[str] = (),
    jobs: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Simulate every point of a sweep file and store the results in `out`.

    A point that a kernel or device refuses gets a row with its `error` and no numbers. With
    `resume`, points the store already has are not simulated again. Interrupting keeps what is
    finished; a later call goes on. Raises `LeansimError` if every point was refused.
    """
    grid = config if isinstance(config, GridConfig) else load(config, settings)
    folder = Path(out)
    points = grid.points()
    keys = [point_key(point) for point in points]
    with Store(folder) as store:
        done = store.keys() if resume else set()
        todo = {key: point for key, point in zip(keys, points, strict=True) if key not in done}
        began = time.perf_counter()
        try:
            for rows in _finished(list(todo.items()), jobs, progress):
                store.put(rows)
        finally:
            table = results_table(points, store.rows(keys))
            _write(folder, grid, table, time.perf_counter() - began)
    refused = int(table["error"].notna().sum())
    if refused == len(table):
        raise LeansimError(f"every point was refused; the first: {table['error'].iloc[0]}")
    return Sweep(folder, table, len(todo), len(points) - len(todo), refused)


def point_key(point: Point) -> str:
    """Key of a point's result; of the point itself where it cannot be resolved."""
    try:
        return resolve(point).key
    except LeansimError:
        return "refused:" + point.model_dump_json()


def simulate_row(point: Point) -> dict[str, Any]:
    """Simulate a point into a flat record; a refusal becomes its `error`."""
    try:
        return {**simulate(point).row, "error": None}
    except LeansimError as error:
        return {"policy": point.policy, "error": f"{type(error).__name__}: {error}"}


def _simulate_rows(work: Sequence[tuple[str, Point]]) -> list[tuple[str, dict[str, Any]]]:
    return [(key, simulate_row(point)) for key, point in work]


def _finished(
    work: list[tuple[str, Point]], jobs: int | None, progress: Progress | None
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yield finished chunks as they come. A few chunks per worker are in flight at a time."""
    jobs = jobs or os.cpu_count() or 1
    total, count = len(work), 0
    for rows in _in_turn(work) if jobs == 1 or total <= _POINTS_PER_TASK else _in_pool(work, jobs):
        yield rows
        count += len(rows)
        if progress:
            progress(count, total)


def _in_turn(work: list[tuple[str, Point]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    for item in work:
        yield _simulate_rows([item])


def _in_pool(work: list[tuple[str, Point]], jobs: int) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    # Spawned, not forked: the parent may hold threads and an open database.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        chunks = _batched(work)
        pending: set[Future[list[tuple[str, dict[str, Any]]]]] = set()
        try:
            while True:
                for chunk in itertools.islice(chunks, 2 * jobs - len(pending)):
                    pending.add(pool.submit(_simulate_rows, chunk))
                if not pending:
                    return
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _batched(work: list[tuple[str, Point]]) -> Iterator[tuple[tuple[str, Point], ...]]:
    items = iter(work)
    while chunk := tuple(itertools.islice(items, _POINTS_PER_TASK)):
        yield chunk


def results_table(points: Sequence[Point], rows: Iterable[dict[str, Any] | None]) -> pd.DataFrame:
    """One row per finished point (None: not finished): its fields, then its record."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and only sweeps need it

    names = {name: key for key, name in POINT_KEYS.items()}
    records = []
    for point, row in zip(points, rows, strict=True):
        if row is None:
            continue
        given = point.model_dump(mode="json", exclude={"overrides", "partitioner"})
        lens = given.pop("context_lens")
        given["context_lens"] = None if lens is None else " ".join(map(str, lens))
        given["overrides"] = json.dumps(point.overrides) if point.overrides else None
        records.append({**{names.get(k, k): v for k, v in given.items()}, **row})
    table = pd.DataFrame.from_records(records)
    return table if "error" in table else table.assign(error=None)


def _write(folder: Path, grid: GridConfig, table: pd.DataFrame, seconds: float) -> None:
    """Write results and manifest, each whole or not at all."""
    if table.empty:
        return
    for name, write in (
        (RESULTS, lambda path: table.to_parquet(path, index=False)),
        ("results.csv", lambda path: table.to_csv(path, index=False)),
        (
            MANIFEST,
            lambda path: path.write_text(json.dumps(manifest(grid, seconds), indent=2) + "\n"),
        ),
    ):
        part = folder / f".{name}.part"
        write(part)
        part.replace(folder / name)


def manifest(grid: GridConfig, seconds: float | None = None) -> dict[str, Any]:
    """What made a set of results: the resolved config, versions, commit, seeds."""
    return {
        "config": grid.model_dump(mode="json", by_alias=True, exclude_none=True),
        "model_version": __version__,
        "seconds": None if seconds is None else round(seconds, 3),
        "seeds": list(grid.axes.get("seed", (0,))),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("numpy", "simpy", "pandas", "pydantic")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this package runs from, None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def read_results(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a sweep's table and manifest. Raises `StoreError` where there are none."""
    import pandas as pd  # noqa: PLC0415

    folder = Path(folder)
    if not (folder / RESULTS).exists():
        found = "an unfinished store" if (folder / FILE_NAME).exists() else "nothing"
        raise StoreError(f"{folder / RESULTS}: found {found}; wanted the results of `leansim sweep`")
    try:
        return pd.read_parquet(folder / RESULTS), json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder}: found {error}; wanted results and a manifest") from None
