"""Does the same to many items over the cores, in order. Keeps nothing: a failure ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from leansim.errors import WorkerError
from leansim.sweeps.executors import cores, process_pool

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
Progress = Callable[[int, int], None]


def spread(
    work: Callable[[_Item], _Answer],
    items: Sequence[_Item],
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[_Answer]:
    """Yield `work(item)` of each item in order, from `jobs` processes (None: one per core).

    `progress` is told of items done and of all, first before any. Raises what `work` raises, and
    `WorkerError` if a worker dies.
    """
    jobs = min(jobs or cores(), len(items))
    if progress:
        progress(0, len(items))
    for done, answer in enumerate(_answers(work, items, jobs), 1):
        if progress:
            progress(done, len(items))
        yield answer


def _answers(work: Callable[[_Item], _Answer], items: Sequence[_Item], jobs: int) -> Iterator[_Answer]:
    if jobs <= 1:
        yield from map(work, items)
        return
    pool = process_pool(jobs)
    try:
        yield from pool.map(work, items)
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died; a script needs its calls under "
            '`if __name__ == "__main__":`, or jobs=1'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
