"""Where the points of a sweep are simulated: an executor takes chunks and yields them finished.

This module has the two that need one machine: in turn, and in a process per core. A chunk is drawn
when there is room for it and not before, so what is in flight stays small.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

from leansim.engine.execute import ENGINE_VARIABLE, Engine, check_engine, load
from leansim.errors import FaultError, LeansimError, WorkerError
from leansim.points.keys import unresolved_key
from leansim.points.point import Point, resolve
from leansim.points.simulate import Simulation, simulate_each
from leansim.specs.evidence import Grounds
from leansim.sweeps.allocator import keep_memory

Chunk = tuple[tuple[str, Point], ...]
_STRIKES = 3
_AHEAD = 2  # chunks in flight per worker: one at work, one waiting for it


@dataclass(frozen=True)
class Outcome:
    """What came of a point: its record, and whether that is final or worth another try some day."""

    key: str
    row: dict[str, Any]
    final: bool = True


@dataclass(frozen=True)
class Finished:
    """A finished chunk and the time its simulations took."""

    outcomes: tuple[Outcome, ...]
    seconds: float


Executor = Callable[[Iterator[Chunk]], Iterator[Finished]]


def point_key(point: Point) -> str:
    """Key of a point's result; of the point itself where it cannot be resolved."""
    return keyed(point)[0]


def keyed(point: Point) -> tuple[str, Grounds | None]:
    """A point's key, and what its times rest on: nothing where it cannot be resolved."""
    try:
        resolved = resolve(point)
        return resolved.key, resolved.grounds
    except LeansimError:
        return unresolved_key(point.model_dump_json()), None


def _outcome(key: str, point: Point, simulation: Simulation | Exception) -> Outcome:
    """Turn a simulated point into a flat record; a refusal becomes its `error`.

    An error that is no refusal is a fault of leansim or of a plug-in: it becomes the point's error
    too, so that it costs one point and not the sweep, but it is not final. Raises `WorkerError` if
    the point is another one here, by its key: other configs, traces, plug-ins or versions.
    """
    try:
        if isinstance(simulation, Exception):
            raise simulation
        found, outcome = simulation.resolved.key, Outcome(key, {**simulation.row, "error": None})
    except FaultError as error:
        return Outcome(key, {"policy": point.policy, "error": str(error)}, final=False)
    except LeansimError as error:
        row = {"policy": point.policy, "error": f"{type(error).__name__}: {error}"}
        found, outcome = point_key(point), Outcome(key, row)
    except Exception as error:
        row = {"policy": point.policy, "error": f"{type(error).__name__}: {error}"}
        return Outcome(key, row, final=False)
    if found != key:
        raise WorkerError(
            f"{point.device}, {point.policy}: found another point under these names in a worker; "
            "wanted the same configs, traces, plug-ins and version of leansim everywhere"
        )
    return outcome


def simulate_chunk(chunk: Chunk) -> Finished:
    """Simulate a chunk's points: what a worker does. Raises `WorkerError` as `_outcome`."""
    began = time.perf_counter()
    simulations = simulate_each(point for _, point in chunk)
    outcomes = tuple(_outcome(*asked, found) for asked, found in zip(chunk, simulations, strict=True))
    return Finished(outcomes, time.perf_counter() - began)


def lost(key: str, point: Point, what: str = "worker process") -> Finished:
    """Outcome of a point whose worker died again and again; a later sweep tries it anew."""
    error = f"WorkerError: its {what} died again and again"
    return Finished((Outcome(key, {"policy": point.policy, "error": error}, final=False),), 0.0)


def cores() -> int:
    """Cores this process may use, which a batch system may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def using(engine: Engine) -> Iterator[None]:
    """Execute with an engine in this process and those it starts; `auto` is what it was before.

    Raises `UnknownNameError` for an engine that is not there.
    """
    check_engine(engine)
    before = os.environ.get(ENGINE_VARIABLE)
    if engine != "auto":
        os.environ[ENGINE_VARIABLE] = engine
    try:
        yield
    finally:
        if before is not None:
            os.environ[ENGINE_VARIABLE] = before
        else:
            os.environ.pop(ENGINE_VARIABLE, None)


def keyed_all(points: Iterable[Point]) -> tuple[list[str], list[Grounds | None]]:
    """Keys of points, and what the times of each rest on."""
    found = [keyed(point) for point in points]
    return [key for key, _ in found], [grounds for _, grounds in found]


def in_turn(chunks: Iterator[Chunk]) -> Iterator[Finished]:
    """Simulate chunk after chunk in this process."""
    yield from map(simulate_chunk, chunks)


def in_processes(jobs: int) -> Executor:
    """Make an executor of `jobs` processes that outlives the death of any of them."""
    return partial(_in_processes, jobs)


def _in_processes(jobs: int, chunks: Iterator[Chunk]) -> Iterator[Finished]:
    while True:
        in_flight: dict[Future[Finished], Chunk] = {}
        drawn: list[Chunk] = []
        try:
            yield from _pooled(jobs, chunks, in_flight, drawn)
        except BrokenProcessPool:  # one worker died, which takes the pool with it
            done = [future for future in in_flight if _has_result(future)]
            yield from (future.result() for future in done)
            suspects = [chunk for future, chunk in in_flight.items() if future not in done]
            yield from _one_by_one(itertools.chain(*suspects, *drawn))
        else:
            return


def _pooled(
    jobs: int, chunks: Iterator[Chunk], in_flight: dict[Future[Finished], Chunk], drawn: list[Chunk]
) -> Iterator[Finished]:
    """Keep a pool busy. What is drawn and not yielded stands in `in_flight` or `drawn`."""
    pool = process_pool(jobs)
    try:
        while True:
            for chunk in itertools.islice(chunks, _AHEAD * jobs - len(in_flight)):
                drawn.append(chunk)
                in_flight[pool.submit(simulate_chunk, chunk)] = chunk
                drawn.clear()
            if not in_flight:
                return
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                finished = future.result()
                del in_flight[future]
                yield finished
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _has_result(future: Future[Finished]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _one_by_one(suspects: Iterable[tuple[str, Point]]) -> Iterator[Finished]:
    """Simulate points alone in a process each may kill: it is then known which point did."""
    pool = process_pool(1)
    try:
        for key, point in suspects:
            for _ in range(_STRIKES):
                try:
                    yield pool.submit(simulate_chunk, ((key, point),)).result()
                    break
                except BrokenProcessPool:
                    pool.shutdown(wait=False)
                    pool = _checked_pool()
            else:
                yield lost(key, point)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _checked_pool() -> ProcessPoolExecutor:
    """Start a pool of one worker and see it work. Raises `WorkerError`."""
    pool = process_pool(1)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise WorkerError(
            "worker processes die as they start; a script that sweeps needs its calls under "
            '`if __name__ == "__main__":`, or jobs=1'
        ) from None
    return pool


def process_pool(jobs: int) -> ProcessPoolExecutor:
    """Start worker processes that die with this one."""
    # Spawned, not forked: the parent may hold threads and an open database.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Let a worker die quietly of an interrupt, and with its parent however that ends; ready it."""
    keep_memory()
    load()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(100_000, 20, 20)  # simulations leave no cycles behind
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
