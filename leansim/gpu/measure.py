"""Measures points, a campaign of them, or the machine's own mechanisms, into a CSV that grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim.answers import Shown
from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import CsvRow
from leansim.files.writing import write_whole
from leansim.gpu import micro, toolkit
from leansim.gpu.campaign import MeasuredFile, campaign, measured
from leansim.gpu.machine import facts, recognised
from leansim.gpu.measuring import Measurer
from leansim.gpu.toolkit import Toolkit
from leansim.silicon.card import begun
from leansim.silicon.own import MEASUREMENT_COLUMNS, read_measured
from leansim.specs import catalog

if TYPE_CHECKING:
    import pandas as pd

CAMPAIGN, MICRO, CARD = "campaign", "micro", "card"
# What a rehearsal is as on.
_REHEARSED = "h200_sxm"


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


def measure(
    what: str | Path,
    out: str | Path,
    device: str | None = None,
    budget_s: float | None = None,
    resume: bool = True,
    interpret: bool = False,
    input_seed: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    refused: Callable[[CsvRow, LeansimError], None] = lambda _row, _error: None,
) -> Measurements:
    """Measure `campaign`, `micro` or a CSV of points on this machine's NVIDIA GPU, into the CSV `out`.

    `card` measures nothing: it begins a device file, `out`, from what the driver says of the GPU.
    Kernels are leansim's own, and every output is checked. `device` names the GPU in configs/devices
    (recognised by default; a CSV of points says it in each row). No point is begun after `budget_s`
    seconds; with `resume`, rows that `out` holds are kept. `interpret` checks on the CPU and times
    nothing. `input_seed` fixes the inputs. `progress` is told points done and of all, `refused` each
    point that cannot be measured, as it happens. Raises `ConfigError` for what makes no sense,
    `GpuError` where there is no GPU or a kernel is wrong. docs/measuring.md says what times mean.
    """
    name, target = str(what), Path(out)
    named = name in (CAMPAIGN, MICRO, CARD)
    if not named and not name.lower().endswith(".csv"):
        raise _mistake("what to measure", repr(name), "wanted a CSV of points, campaign, micro or card")
    if not named and device is not None:
        raise _mistake("device", repr(device), "wanted the device in each row of the points")
    if name == CARD and target.suffix != ".yaml":
        raise _mistake("out", repr(str(target)), "wanted a YAML file for the card")
    # Complain about points before looking for a GPU.
    rows = None if named else [dict(row) for row in read_measured(name).records]
    tools = toolkit.cuda(interpret)
    if name == CARD:
        return _card(tools, target)
    if name == MICRO:
        return _micro(tools, _device(tools, device), target)
    if rows is None:
        rows = campaign(_device(tools, device), rehearsal=interpret)
    complaints: list[tuple[CsvRow, LeansimError]] = []

    def complain(row: CsvRow, error: LeansimError) -> None:
        complaints.append((row, error))
        refused(row, error)

    measurer = Measurer(tools, input_seed)
    columns = list(dict.fromkeys([*rows[0], *MEASUREMENT_COLUMNS]))
    done = 0
    with MeasuredFile(target, columns, not resume) as file:
        of_row: Callable[[CsvRow], dict[str, Any]] = lambda row: measurer.measure(row, name)  # noqa: E731
        for done, total in measured(rows, of_row, file, budget_s, complain):
            progress(done, total)
    return Measurements(target, done, len(rows), tuple(complaints), tools.interpreted)


def _card(tools: Toolkit, out: Path) -> Measurements:
    said = facts(tools.torch, out.stem)
    write_whole(out, begun(said))
    return Measurements(out, len(said), len(said), (), tools.interpreted, out.stem)


def _micro(tools: Toolkit, device: str, out: Path) -> Measurements:
    count = 0
    with MeasuredFile(out, micro.COLUMNS, fresh=True) as file:
        for row in micro.Micro(tools, catalog.device(device)).rows():
            file.add(row)
            count += 1
    return Measurements(out, count, count, (), tools.interpreted, device)


def _device(tools: Toolkit, name: str | None) -> str:
    """The device named, or recognised; a rehearsal is as on an H200."""
    if name is not None:
        catalog.device(name)
        return name
    return _REHEARSED if tools.interpreted else recognised(tools.torch)


def _mistake(where: str, found: str, wanted: str) -> ConfigError:
    return ConfigError("measure", [Problem(where, found, wanted)])
