"""The campaign of installed libraries: a CSV of times, and one of the kernels of each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from leansim.errors import ConfigError, GpuError, Problem
from leansim.files.terminal import tell
from leansim.gpu.campaign import MeasuredFile
from leansim.gpu.kernel_log import KERNEL_COLUMNS
from leansim.gpu.libraries.registry import Installed, installed
from leansim.gpu.libraries.running import LibraryRunner
from leansim.gpu.libraries.sheet import Sheet, sheet
from leansim.gpu.measuring import Measurer
from leansim.gpu.rows import Going, Measurements, measure_rows
from leansim.specs.workload import Cache

TIMES, KERNELS = "libraries.csv", "kernels.csv"


@dataclass(frozen=True)
class LibraryOptions:
    """Which libraries, and on what.

    `only` names adapters (all that are found, by default), `batches` a CSV of points whose batches are
    measured instead of the campaign's, `sample` how many shapes at most, `caches` in which states of
    L2; with `kernels` each kernel of a call is looked at apart.
    """

    only: Sequence[str] = ()
    batches: str | Path | None = None
    sample: int | None = None
    caches: Sequence[Cache] = ("cold",)
    kernels: bool = False

    @classmethod
    def of(
        cls,
        only: str | Sequence[str] | None,
        batches: str | Path | None,
        sample: int | None,
        cache: str | None,
        kernels: bool,
    ) -> LibraryOptions:
        """As the verb is told them: names in a text have commas between. Raises `ConfigError`."""
        names = only.split(",") if isinstance(only, str) else (only or ())
        caches = (cache or "cold").split(",")
        for one in caches:
            if one not in get_args(Cache):
                raise ConfigError(
                    "measure", [Problem("cache", repr(one), f"wanted {' or '.join(get_args(Cache))}")]
                )
        if sample is not None and sample < 1:
            raise ConfigError("measure", [Problem("sample", str(sample), "wanted at least one shape")])
        stripped = tuple(name.strip() for name in names)
        return cls(stripped, batches, sample, tuple(caches), kernels)  # type: ignore[arg-type]


def measure_libraries(going: Going, device: str, out: Path, options: LibraryOptions) -> Measurements:
    """Measure what is installed, into `out`/libraries.csv and, if asked for, `out`/kernels.csv.

    Raises `GpuError` where nothing is, or nothing that has a call for any shape.
    """
    found = installed(options.only)
    if not found.libraries:
        raise GpuError(f"found none of the libraries; wanted one at least. {_absent(found)}")
    tell(f"measuring {', '.join(f'{name} ({found.versions[name]})' for name in found.libraries)}")
    if found.absent:
        tell(f"not here: {_absent(found)}")
    batches = None if options.batches is None else str(options.batches)
    asked = sheet(
        device, found, batches, options.sample, options.caches, rehearsal=going.tools.interpreted
    )
    _tell_what_is_left_out(asked)
    runner = LibraryRunner(found.libraries)
    out.mkdir(parents=True, exist_ok=True)
    if not options.kernels:
        measurer = Measurer(going.tools, going.input_seed, runner)
        return measure_rows(going, measurer, asked.rows, out / TIMES, "libraries")
    columns = [*asked.columns, *KERNEL_COLUMNS]
    with MeasuredFile(out / KERNELS, columns, not going.resume) as log:

        def note(row: Mapping[str, str], kernels: Sequence[dict[str, Any]]) -> None:
            for kernel in kernels:
                log.add({**row, **kernel})

        measurer = Measurer(going.tools, going.input_seed, runner, note)
        return measure_rows(going, measurer, asked.rows, out / TIMES, "libraries")


def _absent(found: Installed) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in found.absent.items())


def _tell_what_is_left_out(asked: Sheet) -> None:
    for reason, count in asked.not_theirs.items():
        tell(f"no call for {count} batches: {reason}")
    if not asked.rows:
        wanted = "wanted a batch that one of the libraries has a call for"
        raise ConfigError("measure libraries", [Problem("batches", "none", wanted)])
