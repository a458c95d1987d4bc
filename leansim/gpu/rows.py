"""Measures the rows of a campaign, one by one, into a CSV that grows, and says what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim.answers import Shown
from leansim.errors import LeansimError
from leansim.files.csv import CsvRow
from leansim.gpu.campaign import MeasuredFile, measured
from leansim.gpu.measuring import Measurer
from leansim.gpu.toolkit import Toolkit
from leansim.silicon.own import MEASUREMENT_COLUMNS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Going:
    """How a campaign goes on, whatever is measured: see `measure`."""

    tools: Toolkit
    budget_s: float | None
    resume: bool
    input_seed: int | None
    progress: Callable[[int, int], None]
    refused: Callable[[CsvRow, LeansimError], None]


@dataclass(frozen=True, eq=False)
class Measurements(Shown):
    """What became of the points: `done` of `total` are in the CSV `out`, `refused` ones are not.

    `interpreted` says that they were checked on the CPU and not timed, `device` whose mechanisms a
    `micro` measured.
    """

    out: Path
    done: int
    total: int
    refused: tuple[tuple[CsvRow, LeansimError], ...]
    interpreted: bool
    device: str | None = None

    @property
    def left(self) -> int:
        """Points for which there was no time: the same call goes on with them."""
        return self.total - self.done - len(self.refused)

    @property
    def table(self) -> pd.DataFrame:
        """The CSV as it stands; times in microseconds, empty after a rehearsal."""
        import pandas as pd

        return pd.read_csv(self.out)

    def rows(self) -> list[dict[str, Any]]:
        """The counts, in one row."""
        counts = {"done": self.done, "total": self.total, "left": self.left}
        return [{"file": str(self.out), **counts, "refused": len(self.refused)}]

    def notes(self) -> list[str]:
        """What is in the file, in a sentence."""
        how = "checked in the interpreter, not timed" if self.interpreted else "measured and checked"
        if self.out.suffix == ".yaml":
            return [f"{self.out}: a file of {self.device}, {self.done} numbers as its driver says them"]
        if self.device is not None:
            return [f"{self.done} micro-measurements as on {self.device} in {self.out}: {how}"]
        text = f"{self.done} of {self.total} points in {self.out}: {how}"
        text += f"; {self.left} left: the same command goes on" if self.left else ""
        return [text + (f"; {len(self.refused)} refused" if self.refused else "")]


def measure_rows(
    going: Going, measurer: Measurer, rows: Sequence[CsvRow], out: Path, source: str
) -> Measurements:
    """Measure rows that `out` does not hold yet, as long as there is time."""
    complaints: list[tuple[CsvRow, LeansimError]] = []

    def complain(row: CsvRow, error: LeansimError) -> None:
        # A traceback holds on to the tensors of the call that failed.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        complaints.append((row, error))
        going.refused(row, error)

    columns = list(dict.fromkeys([*rows[0], *MEASUREMENT_COLUMNS]))
    done = 0
    with MeasuredFile(out, columns, not going.resume) as file:
        of_row: Callable[[CsvRow], dict[str, Any]] = lambda row: measurer.measure(row, source)  # noqa: E731
        for done, total in measured(rows, of_row, file, going.budget_s, complain):
            going.progress(done, total)
    return Measurements(out, done, len(rows), tuple(complaints), going.tools.interpreted)
