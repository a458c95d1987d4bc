"""Simulates a sweep's chunks on the workers of a Dask scheduler, on this machine or on many.

Dask finds the workers and gives a dead one's chunks to others; nothing but this module knows of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

from leansim.errors import LeansimError, WorkerError
from leansim.files.extras import pip_install
from leansim.sweeps.executors import Chunk, Executor, Finished, lost, simulate_chunk

_AHEAD = 2  # chunks in flight per worker thread
_COUNT_EVERY_S = 2.0  # workers come and go
_RETRIES = 2  # of a chunk whose task failed on the way, beside Dask's own for dead workers
_CONNECT_S = 15.0


def on_cluster(address: str) -> Executor:
    """Make an executor of a Dask scheduler's workers, `address` as in `tcp://host:8786`.

    Raises `WorkerError` without the extra.
    """
    return partial(_on_cluster, _distributed(), address)


def _distributed() -> ModuleType:
    try:
        import distributed
    except ImportError as error:
        raise WorkerError(f"a scheduler needs Dask ({error}): {pip_install('cluster')}") from None
    return distributed


def _on_cluster(dask: ModuleType, address: str, chunks: Iterator[Chunk]) -> Iterator[Finished]:
    try:
        client = dask.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        wanted = "wanted the address of a running Dask scheduler, such as tcp://host:8786"
        raise WorkerError(f"scheduler {address}: found {error}; {wanted}") from None
    with client:
        yield from _Cluster(dask, client, address).finished(chunks)


class _Cluster:
    """Chunks in flight on a scheduler."""

    def __init__(self, dask: ModuleType, client: Any, address: str) -> None:
        self.dask, self.client, self.address = dask, client, address
        self.pending: dict[Any, Chunk] = {}
        self.results = dask.as_completed(loop=client.loop)
        self.suspects: list[Chunk] = []
        self.counted_s, self.room = float("-inf"), 0

    def finished(self, chunks: Iterator[Chunk]) -> Iterator[Finished]:
        """Submit chunks as there is room, and yield what comes back."""
        try:
            self._fill(chunks)
            for future in self.results:
                yield from self._take(future)
                self._fill(chunks)
            for chunk in self.suspects:
                yield self._alone(chunk)
        finally:
            with suppress(Exception):  # a scheduler that is gone has nothing left to cancel
                self.client.cancel(list(self.pending))

    def _fill(self, chunks: Iterator[Chunk]) -> None:
        if time.monotonic() - self.counted_s > _COUNT_EVERY_S:
            threads = sum(self.client.nthreads().values())
            self.counted_s, self.room = time.monotonic(), _AHEAD * max(1, threads)
        while len(self.pending) < self.room and (chunk := next(chunks, None)) is not None:
            self._submit(chunk)

    def _submit(self, chunk: Chunk) -> None:
        # Impure: a chunk tried anew is a new task.
        future = self.client.submit(simulate_chunk, chunk, pure=False, retries=_RETRIES)
        self.pending[future] = chunk
        self.results.add(future)

    def _take(self, future: Any) -> Iterator[Finished]:
        """Yield a future's result; split a chunk that several workers died of into its points.

        Dask blames every task a dead worker had, so a point is only suspected here.
        """
        chunk = self.pending.pop(future)
        if (finished := self._result(future)) is not None:
            yield finished
        elif len(chunk) == 1:
            self.suspects.append(chunk)
        else:
            for item in chunk:
                self._submit((item,))

    def _alone(self, chunk: Chunk) -> Finished:
        """Try a suspected point with nothing else on the cluster, so that the blame is its own."""
        future = self.client.submit(simulate_chunk, chunk, pure=False, retries=_RETRIES)
        return self._result(future) or lost(*chunk[0], "worker")

    def _result(self, future: Any) -> Finished | None:
        """Return what a task found, or None if workers died of it."""
        try:
            finished: Finished = future.result()
        except self.dask.KilledWorker:
            return None
        except LeansimError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            wanted = "wanted workers with the same leansim installed, and a scheduler that stays"
            raise WorkerError(f"scheduler {self.address}: found {found}; {wanted}") from error
        return finished
