"""Measures points, a campaign of them, or the machine's own mechanisms, into a CSV that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import CsvRow
from leansim.files.terminal import tell
from leansim.files.writing import write_whole
from leansim.gpu import micro, pace, timers, toolkit
from leansim.gpu.campaign import MeasuredFile, campaign
from leansim.gpu.libraries.measure import LibraryOptions, measure_libraries
from leansim.gpu.machine import facts, recognised
from leansim.gpu.measuring import BASE, Measurer
from leansim.gpu.rows import Going, Measurements, measure_rows
from leansim.gpu.toolkit import Toolkit
from leansim.silicon.card import begun
from leansim.silicon.own import read_measured
from leansim.specs import catalog

CAMPAIGN, MICRO, LIBRARIES = "campaign", "micro", "libraries"
TIMERS, PACE, CARD = "timers", "pace", "card"
NAMED = (CAMPAIGN, MICRO, LIBRARIES, TIMERS, PACE, CARD)
# Whose pace is measured if nobody says: what the others are based on.
_PACED = (BASE,)
# What a rehearsal is as on.
_REHEARSED = "h200_sxm"


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
    only: str | Sequence[str] | None = None,
    batches: str | Path | None = None,
    sample: int | None = None,
    cache: str | None = None,
    kernels: bool = False,
) -> Measurements:
    """Measure points (a CSV), or what is named, on this machine's GPU, into `out`; see `NAMED`.

    `card` measures nothing: it begins a device file, `out`, from what the driver says of the GPU.
    Kernels are leansim's own, and every output is checked. `pace` takes `only` too: kernels of
    leansim's own (triton_fa2 by default) or adapters. Of `libraries` they are those of installed
    ones, or `only` of some (names, or text with commas), and `out` is a folder, not a CSV: `batches` is
    a CSV of points whose batches are measured (without columns device and kernel, if it likes),
    `sample` how many shapes, `cache` cold, warm or both with a comma (cold by default), and `kernels`
    adds a CSV of the kernels of each call. `device` names the GPU in configs/devices (recognised by
    default; a CSV of points says it in each row). No point is
    begun after `budget_s` seconds; with `resume`, rows that `out` holds are kept. `interpret` checks on
    the CPU and times nothing. `input_seed` fixes the inputs. `progress` is told points done and of all,
    `refused` each point that cannot be measured, as it happens. Raises `ConfigError` for what makes no
    sense, `GpuError` where there is no GPU or a kernel is wrong. docs/measuring.md says what times mean.
    """
    name, target = str(what), Path(out)
    options = LibraryOptions.of(only, batches, sample, cache, kernels)
    _check(name, device, options)
    if name == CARD and target.suffix != ".yaml":
        raise _mistake("out", repr(str(target)), "wanted a YAML file for the card")
    # Complain about points before looking for a GPU.
    rows = None if name in NAMED else [dict(row) for row in read_measured(name).records]
    tools = toolkit.cuda(interpret)
    if name == CARD:
        return _card(tools, target)
    if name in (MICRO, TIMERS):
        return _mechanisms(tools, name, _device(tools, device), target)
    if name == PACE:
        return _pace(tools, _device(tools, device), target, options.only or _PACED, input_seed)
    going = Going(tools, budget_s, resume, input_seed, progress, refused)
    if name == LIBRARIES:
        return measure_libraries(going, _device(tools, device), target, options)
    if rows is None:
        rows = campaign(_device(tools, device), rehearsal=interpret)
    return measure_rows(going, Measurer(tools, input_seed), rows, target, name)


def _check(name: str, device: str | None, options: LibraryOptions) -> None:
    """Refuse what is neither named nor a file, and options that are not for it. Raises `ConfigError`."""
    if name not in NAMED and not name.lower().endswith(".csv"):
        wanted = f"wanted a CSV of points, {', '.join(NAMED[:-1])} or {NAMED[-1]}"
        raise _mistake("what to measure", repr(name), wanted)
    plain = LibraryOptions(options.only) if name == PACE else LibraryOptions()
    if options != plain and name != LIBRARIES:
        wanted = "wanted libraries, or none of only, batches, sample, cache and kernels"
        raise _mistake("what to measure", f"options of libraries with {name!r}", wanted)
    if name not in NAMED and device is not None:
        raise _mistake("device", repr(device), "wanted the device in each row of the points")


def _card(tools: Toolkit, out: Path) -> Measurements:
    said = facts(tools.torch, out.stem)
    write_whole(out, begun(said))
    return Measurements(out, len(said), len(said), (), tools.interpreted, out.stem)


def _mechanisms(tools: Toolkit, name: str, device: str, out: Path) -> Measurements:
    count, there = 0, catalog.device(device)
    rows = timers.rows(tools, there) if name == TIMERS else micro.Micro(tools, there).rows()
    columns = timers.COLUMNS if name == TIMERS else micro.COLUMNS
    with MeasuredFile(out, columns, fresh=True) as file:
        for row in rows:
            file.add(row)
            count += 1
    return Measurements(out, count, count, (), tools.interpreted, device)


def _pace(tools: Toolkit, device: str, out: Path, only: Sequence[str], seed: int | None) -> Measurements:
    count, there = 0, catalog.device(device)
    with MeasuredFile(out, pace.COLUMNS, fresh=True) as file:
        for curve in pace.curves(tools, there, only, seed):
            for row in curve.rows:
                file.add(row)
            count += len(curve.rows)
            tell("\n".join(pace.told(curve, there)))
    return Measurements(out, count, count, (), tools.interpreted, device)


def _device(tools: Toolkit, name: str | None) -> str:
    """The device named, or recognised; a rehearsal is as on an H200."""
    if name is not None:
        catalog.device(name)
        return name
    return _REHEARSED if tools.interpreted else recognised(tools.torch)


def _mistake(where: str, found: str, wanted: str) -> ConfigError:
    return ConfigError("measure", [Problem(where, found, wanted)])
