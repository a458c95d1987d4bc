"""Runs a grid of points over all cores, or a cluster's, and keeps every finished one.

Results are tidy: one row per point, its fields beside its metrics, in Parquet and CSV, with a
manifest of what made them. They are written from the store, in the order of the grid, so they do
not depend on where, in what order or after how many interruptions the points were simulated.
"""

from __future__ import annotations

import itertools
import platform
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim import __version__
from leansim.answers import Row, Shown, spreadsheet
from leansim.engine.execute import Engine
from leansim.errors import ConfigError, LeansimError, Problem, StoreError
from leansim.files.artifacts import MANIFEST, Digests, check_artifact, read_manifest, write_artifacts
from leansim.files.writing import Content
from leansim.points.grid import PointGrid, load
from leansim.points.keys import plugin_versions
from leansim.points.point import Point
from leansim.points.results_table import results_table
from leansim.sweeps import cluster, executors
from leansim.sweeps.compare import finished
from leansim.sweeps.executors import Chunk, Executor, Finished, keyed_all, using
from leansim.sweeps.store import FILE_NAME, Store

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.parquet"
_CHUNK_S = 0.1  # what a chunk should take: long beside handing it out, short beside a kill's loss
_MOST_POINTS_PER_CHUNK = 256
# Chunks shrink towards the end, so that nobody waits long for the last one or does it as well.
_LEAST_CHUNKS_LEFT = 16
_NEEDED = ("device", "policy")  # columns without which a table is no results
_FEW_POINTS = 8  # not worth starting processes for

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Sweep(Shown):
    """A finished sweep: its folder, its table, and what became of the points.

    `reused` points were there already or came from another process meanwhile, `refused` ones have
    an error that is their result, and `failed` ones an error that a later sweep tries again. `damage`
    says what was not in the store as it was written.
    """

    folder: Path
    table: pd.DataFrame
    simulated: int
    reused: int
    refused: int
    failed: int = 0
    damage: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """One row per device and kernel: points, refused ones, latency from least to greatest."""
        rows = []
        for (device, policy), mine in self.table.groupby(["device", "policy"], sort=False):
            done = finished(mine)["latency_s"] * 1e6
            span = None if done.empty else f"{done.min():.2f}-{done.max():.2f}"
            refused = len(mine) - len(done)
            label = {"device": device, "kernel": policy, "points": len(mine)}
            rows.append({**label, "refused": refused, "latency_us": span})
        return rows

    def notes(self) -> list[str]:
        """What became of the points, and why some have no result."""
        counts = (
            f"{len(self.table)} points in {self.folder}: {self.simulated} simulated, "
            f"{self.reused} already there, {self.refused} refused"
        )
        if self.failed:
            counts += f", {self.failed} failed: the same command tries them again"
        reasons = self.table["error"].dropna().value_counts().items()
        refusals = (f"  {count} without a result: {reason}" for reason, count in reasons)
        return [*self.damage, counts, *refusals]


@dataclass(frozen=True)
class Shard:
    """Every `count`-th point of a grid, the `index`-th first: one of `count` equal parts."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "3/16". Raises `ConfigError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            problem = Problem("--shard", repr(text), "wanted i/n with i from 1 to n, such as 3/16")
            raise ConfigError("command line", [problem])
        return cls(int(match[1]), int(match[2]))

    @property
    def part(self) -> slice:
        """The shard's points. Neighbours go to different shards, for they cost about the same."""
        return slice(self.index - 1, None, self.count)

    def folder(self, out: Path) -> Path:
        """The shard's folder in that of the sweep."""
        width = len(str(self.count))
        return out / f"shard-{self.index:0{width}}-of-{self.count}"


def sweep(
    config: str | Path | PointGrid,
    out: str | Path,
    settings: Sequence[str] = (),
    jobs: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    scheduler: str | None = None,
    shard: str | Shard | None = None,
    engine: Engine = "auto",
) -> Sweep:
    """Simulate every point of a sweep file and store the results in `out`.

    Points run in `jobs` processes (None: one per core), or on the Dask cluster of `scheduler`. A
    `shard` "i/n" is the i-th of n parts of the grid, in a folder of its own in `out`; `merge` joins
    them. With `resume`, points the store already has are not simulated again; without, they are
    forgotten first. Interrupting or killing keeps what is finished; a later call goes on. `engine` is
    that of processes here, not of a cluster's workers.

    A point that a kernel or device refuses gets a row with its `error` and no numbers, and so does
    one that kills its worker. `progress` is told of points done and of all, first before any is
    simulated. Raises `WorkerError`, `StoreError`, or `LeansimError` if the whole grid was refused.
    """
    grid = config if isinstance(config, PointGrid) else load(config, settings)
    folder, part = Path(out), slice(None)
    if shard is not None:
        one = Shard.parse(shard) if isinstance(shard, str) else shard
        folder, part = one.folder(folder), one.part
    points = grid.points(part)
    keys, grounds = keyed_all(points)
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder))
        done = store.keys() if resume else set()
        todo = {key: point for key, point in zip(keys, points, strict=True) if key not in done}
        execute = _executor(len(todo), jobs, scheduler)
        stack.enter_context(using(engine))
        damage = _damage(store, dict(zip(keys, points, strict=True)))
        if not resume:
            store.forget(keys)
        store.describe(manifest(grid))
        work = _Work(store, todo, len(set(keys)), progress)
        began = time.perf_counter()
        try:
            work.run(execute)
        finally:
            results = results_table(points, work.rows(keys), grounds)
            write_results(folder, grid, results, time.perf_counter() - began)
    if shard is None and not results.empty and results["error"].notna().all():
        raise LeansimError(f"every point was refused; the first: {results['error'].iloc[0]}")
    return _summary(folder, results, work, damage)


def _summary(folder: Path, results: pd.DataFrame, work: _Work, damage: tuple[str, ...]) -> Sweep:
    errors, failed = int(results["error"].notna().sum()), len(work.failures)
    reused = len(results) - work.simulated - failed
    return Sweep(folder, results, work.simulated, reused, errors - failed, failed, damage)


def _damage(store: Store, points: Mapping[str, Point]) -> tuple[str, ...]:
    """What was damaged in a store, and which of these points it lost by that."""
    lost = [asked(points[key]) for key in sorted(store.dropped & points.keys())]
    told = [f"{store.path}: found a row that was changed, of {one}: simulated again" for one in lost]
    if others := len(store.dropped) - len(lost):
        told.append(f"{store.path}: found {others} rows of other points that were changed: left out")
    return (*([store.recovery] if store.recovery else ()), *told)


def asked(point: Point) -> str:
    """A point by the fields that are given, for people."""
    fields = point.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _executor(points: int, jobs: int | None, scheduler: str | None) -> Executor:
    if scheduler is not None:
        return cluster.on_cluster(scheduler)
    jobs = jobs or executors.cores()
    if jobs == 1 or points <= _FEW_POINTS:
        return executors.in_turn
    return executors.in_processes(min(jobs, points))


class _Work:
    """Points left to do: dealt out in chunks, and kept as they come back."""

    def __init__(
        self, store: Store, todo: Mapping[str, Point], total: int, progress: Progress | None
    ) -> None:
        self.store, self.todo, self.progress = store, todo, progress
        self.done, self.total, self.simulated = total - len(todo), total, 0
        self.failures: dict[str, Row] = {}
        self.size, self.point_s = 1, 0.0

    def run(self, execute: Executor) -> None:
        """Simulate what is left; each chunk is in the store before the next is waited for."""
        self._tell()
        with closing(execute(self.chunks())) as results:  # type: ignore[type-var]
            for finished in results:
                self.keep(finished)

    def chunks(self) -> Iterator[Chunk]:
        """Deal out the points that no other process has done or is at; then what is still open.

        So two sweeps share a store's work, and none waits for another that may have been killed.
        """
        claimed: list[str] = []
        for keys in self._batches(list(self.todo)):
            mine, finished = self.store.claim(keys)
            claimed += [key for key in keys if key not in mine and key not in finished]
            yield from self._chunk(keys, mine, finished)
        for keys in self._batches(claimed):
            yield from self._chunk(keys, *self.store.claim(keys, anyway=True))

    def _batches(self, keys: Sequence[str]) -> Iterator[list[str]]:
        rest = iter(keys)
        while batch := list(itertools.islice(rest, self.size)):
            yield batch

    def _chunk(self, keys: Sequence[str], mine: set[str], finished: set[str]) -> Iterator[Chunk]:
        if finished:
            self.done += len(finished)
            self._tell()
        if chunk := tuple((key, self.todo[key]) for key in keys if key in mine):
            yield chunk

    def keep(self, finished: Finished) -> None:
        """Store a chunk's final outcomes, remember the others, and learn how long points take."""
        outcomes = finished.outcomes
        final = [(outcome.key, outcome.row) for outcome in outcomes if outcome.final]
        self.store.put(final)
        self.failures |= {outcome.key: outcome.row for outcome in outcomes if not outcome.final}
        self.simulated += len(final)
        self.done += len(outcomes)
        now_s = finished.seconds / len(outcomes)
        self.point_s = now_s if self.point_s == 0.0 else 0.7 * self.point_s + 0.3 * now_s
        wanted = int(_CHUNK_S / max(self.point_s, 1e-6))
        share = (self.total - self.done) // _LEAST_CHUNKS_LEFT
        self.size = max(1, min(wanted, share, 2 * self.size, _MOST_POINTS_PER_CHUNK))
        self._tell()

    def rows(self, keys: Sequence[str]) -> Iterator[Row | None]:
        """What there is of each point: its stored row, else why it failed."""
        for key, row in zip(keys, self.store.rows(keys), strict=True):
            yield row or self.failures.get(key)

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.done, self.total)


def write_results(
    folder: Path, grid: PointGrid, results: pd.DataFrame, seconds: float | None = None
) -> None:
    """Write results and manifest, whole or not at all; nothing where there is no result.

    Figures of other results are removed.
    """
    if results.empty:
        return
    files: dict[str, Content] = {
        RESULTS: lambda part: results.to_parquet(part, index=False),
        "results.csv": lambda part: spreadsheet(results).to_csv(part, index=False),
    }
    write_artifacts(folder, files, manifest(grid, seconds), _if_same_results)


def _if_same_results(before: Digests, now: Digests) -> Collection[str]:
    return before if before.get(RESULTS) == now[RESULTS] else ()


def manifest(grid: PointGrid, seconds: float | None = None) -> dict[str, Any]:
    """What made a set of results: the resolved config, versions, commit, seeds."""
    return {
        "config": grid.model_dump(mode="json", by_alias=True, exclude_none=True),
        "model_version": __version__,
        "plugins": dict(plugin_versions()),
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
    root = Path(__file__).resolve().parent.parent.parent
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
    import pandas as pd

    folder = Path(folder)
    if not (folder / RESULTS).exists():
        found = "an unfinished store" if (folder / FILE_NAME).exists() else "nothing"
        raise StoreError(f"{folder / RESULTS}: found {found}; wanted the results of `leansim sweep`")
    manifest = read_manifest(folder)
    if not isinstance(config := manifest.get("config"), dict) or "name" not in config:
        raise StoreError(f"{folder / MANIFEST}: found no config in it; wanted that of a sweep")
    try:
        check_artifact(folder, RESULTS)
        table = pd.read_parquet(folder / RESULTS)
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / RESULTS}: found {error}; wanted results") from None
    if missing := [name for name in _NEEDED if name not in table]:
        raise StoreError(f"{folder / RESULTS}: found no column {missing[0]!r}; wanted results")
    return table, manifest
