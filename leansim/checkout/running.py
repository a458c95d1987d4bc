"""Runs experiments of a checkout, each in a process of its own, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from leansim.answers import Listed, Row
from leansim.checkout.experiments import Experiment, Experiments, experiments
from leansim.errors import ConfigError, Problem, UnknownNameError

ALL = "all"
Told = Callable[[str], None]


@dataclass(frozen=True)
class Ran:
    """What came of an experiment: seconds by the clock, the exit code, and what it printed."""

    name: str
    seconds: float
    exit_code: int
    output: str = field(repr=False)

    @property
    def ended(self) -> str:
        """How, in words."""
        return f"failed (exit code {self.exit_code})" if self.exit_code else "done"


@dataclass(frozen=True, eq=False)
class Runs(Listed[Ran]):
    """What came of each experiment that was run; `skipped` has why others were not, by name."""

    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of those that failed."""
        return [one.name for one in self if one.exit_code]

    def rows(self) -> list[Row]:
        """A row each."""
        return [{"experiment": r.name, "seconds": f"{r.seconds:.1f}", "ended": r.ended} for r in self]

    def records(self) -> list[Row]:
        """A record each."""
        return [{"experiment": r.name, "seconds": r.seconds, "exit_code": r.exit_code} for r in self]

    def notes(self) -> list[str]:
        """What failed, what was skipped, and what all of it took."""
        total = sum(one.seconds for one in self)
        failed = f", {len(self.failed)} failed: {', '.join(self.failed)}" if self.failed else ""
        ran = f"{len(self)} ran in {total / 60:.1f} minutes{failed}"
        return [ran, *(f"skipped {name}: {why}" for name, why in self.skipped)]


def experiment(
    name: str,
    out: str | Path | None = None,
    data: str | Path | None = None,
    arguments: Sequence[str] = (),
    told: Told = lambda _line: None,
    folder: str | Path | None = None,
) -> Runs:
    """Run an experiment of the checkout, or `all` that have what they need here, in turn.

    Results go to `out` (of `all`: a folder of that for each), by default to where they are published.
    `data` is the folder of outside measurements, `arguments` go to the script; `told` hears what it
    prints, line by line, and what begins and ends. `folder` is as in `experiments`.

    Raises `UnknownNameError`, or `ConfigError` where an extra or data is missing, before anything runs.
    A script that fails is no error: see `Runs.failed`.
    """
    known = experiments(folder)
    out, data = (None if path is None else Path(path).resolve() for path in (out, data))
    if name != ALL:
        chosen = _named(known, name)
        if missing := chosen.missing(data):
            raise ConfigError(f"experiment {name}", missing)
        return Runs((_run(chosen, out, data, arguments, told),))
    if arguments:
        problem = Problem(ALL, " ".join(arguments), "wanted one experiment for these")
        raise ConfigError("arguments", [problem])
    every = in_order(known)
    missing_of = {one.name: "; ".join(p.wanted for p in one.missing(data)) for one in every}
    ran = [
        _run(one, out and out / one.name, data if one.says.data else None, (), told)
        for one in every
        if not missing_of[one.name]
    ]
    return Runs(tuple(ran), tuple((name, why) for name, why in missing_of.items() if why))


def in_order(known: Experiments) -> list[Experiment]:
    """Each after those whose results it reads. Raises `ConfigError` where they wait for each other."""
    try:
        order = TopologicalSorter({one.name: one.says.after for one in known}).static_order()
        return [known.named(name) for name in order]
    except CycleError as error:
        found = " after ".join(error.args[1])
        raise ConfigError("experiments", [Problem("after", found, "wanted no circle")]) from None


def _named(known: Experiments, name: str) -> Experiment:
    try:
        return known.named(name)
    except UnknownNameError as error:
        raise UnknownNameError("experiment", name, [*error.known, ALL]) from None


def _run(
    one: Experiment, out: Path | None, data: Path | None, arguments: Sequence[str], told: Told
) -> Ran:
    """Run a script from the root of its checkout, with the Python that runs this."""
    script, *rest = one.says.command
    command = [sys.executable, str(one.folder / script), *rest]
    command += [] if data is None else ["--data", str(data)]
    command += [] if out is None else ["-o", str(out)]
    told(f"{one.name}: {one.says.title} (about {one.says.minutes:g} min)")
    begin_s = time.monotonic()
    lines = []
    with subprocess.Popen(
        [*command, *arguments],
        cwd=one.root,
        env=_environment(one.root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                told(line.rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
    ran = Ran(one.name, time.monotonic() - begin_s, process.returncode, "".join(lines))
    told(f"{one.name}: {ran.ended} after {ran.seconds:.1f} s")
    return ran


def _environment(root: Path) -> dict[str, str]:
    """The script imports leansim of its checkout, where that has it, and prints at once."""
    path = [str(root)] if (root / "leansim").is_dir() else []
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
