"""Shows a sweep's progress: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from leansim.answers import printable
from leansim.files.terminal import tell

_LINE_EVERY_S = 30.0


class Progress:
    """Points done of all, with rate and time left. Use as a context manager, and call it.

    The first call says how many points were there before: they count as done, not in the rate.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` stands before the bar; `clock` gives seconds."""
        self.name, self.clock = printable(name), clock
        self.first: tuple[int, float] | None = None
        self.shown, self.shown_s = 0, 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.bar = _bar()
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` points are finished."""
        now_s = self.clock()
        if self.first is None:
            self.first = (done, now_s)
            self.shown, self.shown_s = done * 10 // max(total, 1), now_s
            if self.bar is not None:
                self.task = self.bar.add_task(self.name, total=total, completed=done, rate="")
            elif done:
                tell(f"{self.name}: {done}/{total} points already there")
            return
        rate, left_s = estimate(self.first, (done, now_s), total)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, rate=f"{rate:,.1f} points/s")
        elif self._is_due(done, total, now_s):
            self.shown, self.shown_s = done * 10 // total, now_s
            text = f"{self.name}: {done}/{total} points, {rate:,.1f} points/s, {_spell(left_s)} left"
            tell(text)

    def _is_due(self, done: int, total: int, now_s: float) -> bool:
        return done * 10 // total > self.shown or now_s - self.shown_s >= _LINE_EVERY_S


def estimate(first: tuple[int, float], now: tuple[int, float], total: int) -> tuple[float, float]:
    """Points per second since `first` and seconds left, from (points done, time in s) pairs."""
    points, seconds = now[0] - first[0], now[1] - first[1]
    rate = points / seconds if points and seconds > 0 else 0.0
    return rate, (total - now[0]) / rate if rate else 0.0


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bar() -> Any:
    """Make a bar that shows points, points/s and time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=Console(stderr=True))
