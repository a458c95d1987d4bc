"""What a point's times rest on: who timed that kernel, where and how, and how far off they may be.

`leansim/data/evidence` lists what was timed (`measured.csv`: published tables and our own cards, with
the error of rows that nothing was fitted to) and the error to expect of what was not (`classes.csv`).
`experiments/evidence/run.py` writes both from the experiments' results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from leansim.files.csv import CsvRow, read_csv
from leansim.specs import catalog
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.harness import Validated
from leansim.specs.workload import Workload

Evidence = Literal["measured", "carried", "counted", "assumed"]
FOLDER = Path(__file__).resolve().parent.parent / "data" / "evidence"
MEASURED, CLASSES = FOLDER / "measured.csv", FOLDER / "classes.csv"
UNIFORM, RAGGED = "uniform", "ragged"
# Columns of results that say it.
COLUMNS = ("evidence", "extrapolated", "expected_error")


@dataclass(frozen=True)
class Grounds:
    """What the times of a point rest on.

    `measured`: that kernel was timed on that device and in that setting, alone or in a published table.
    `carried`: some of its numbers were fitted to times of another device, setting or kernel. `counted`:
    none was, and most were read in source or machine code. `assumed`: none was, and most were guessed.

    `outside` names what no measurement covers, nothing where all is covered. `expected_error` is the
    mean size of the relative error to expect, as found on rows that nothing was fitted to.
    """

    evidence: Evidence
    outside: str
    expected_error: float

    @property
    def extrapolated(self) -> bool:
        """Whether no measurement covers the point."""
        return bool(self.outside)

    def beyond(self, what: str) -> Grounds:
        """The same of a call that no measurement covers for another reason: that another kernel runs."""
        return replace(self, outside=what)

    def columns(self) -> dict[str, Any]:
        """The cells of `COLUMNS`."""
        values = (self.evidence, self.extrapolated, round(self.expected_error, 4))
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class Called:
    """How a kernel is called where all calls of one measurement are alike."""

    kernel: str
    device: str
    launch: str
    cache: str
    page_tokens: int
    batch: str


@dataclass(frozen=True)
class Setting(Called):
    """How a kernel is called, of all that decides which measurements speak of a point."""

    head_dim: int
    kv_bytes: int
    windowed: bool
    plain: bool


@dataclass(frozen=True)
class Measurement(Called):
    """What one file has of a kernel called in one way, and the error of rows nothing was fitted to."""

    ranges: Validated
    rows: int
    mean_error: float


# What a measurement must share with a point, in this order, and how a point is called that differs.
_Shares = Callable[[Measurement, Setting], bool]
_SHARED: tuple[tuple[Callable[[Setting], str], _Shares], ...] = (
    (lambda s: f"device {s.device}", lambda m, s: m.device == s.device),
    (lambda s: f"{s.launch} launches", lambda m, s: m.launch == s.launch),
    (lambda s: f"{s.batch} batch", lambda m, s: m.batch == s.batch),
    (lambda s: f"{s.cache} cache", lambda m, s: m.cache == s.cache),
    (lambda s: f"pages of {s.page_tokens}", lambda m, s: m.page_tokens == s.page_tokens),
    (lambda s: f"head dim {s.head_dim}", lambda m, s: s.head_dim in m.ranges.head_dims),
    (
        lambda s: f"{8 * s.kv_bytes}-bit KV",
        lambda m, s: s.kv_bytes in {DTYPE_BYTES[dtype] for dtype in m.ranges.kv_dtypes},
    ),
    (lambda s: "window" if s.windowed else "no window", lambda m, s: s.windowed in m.ranges.windows),
    (lambda _: "several new tokens or latent KV", lambda _, s: s.plain),
)


def grounds(policy: str, device: str, workload: Workload, changed: bool = False) -> Grounds:
    """What a kernel's times on a device rest on.

    `policy` is the kernel, `kernel+partitioner` where that is not its own; `changed` says that numbers
    of the device or the kernel are not those of the files.
    """
    least, most = int(workload.lens.min()), int(workload.lens.max())
    setting = Setting(
        policy,
        device,
        workload.launch,
        workload.cache,
        workload.page_tokens,
        _batch(workload, least == most),
        workload.head_dim,
        DTYPE_BYTES[workload.kv_dtype],
        workload.window is not None,
        workload.query_len == 1 and not workload.latent_kv and workload.value_dim == workload.head_dim,
    )
    of_setting, without = _of_setting(setting, catalog.search_path())
    if changed:
        return Grounds(without.evidence, "changed numbers", without.expected_error)
    for one in of_setting:
        if not one.ranges.outside(workload, least, most):
            return Grounds("measured", "", one.mean_error)
    if not of_setting:
        return without
    first = of_setting[0]
    error = max(first.mean_error, without.expected_error)
    return Grounds("measured", first.ranges.outside(workload, least, most), error)


def _batch(workload: Workload, alike: bool) -> str:
    """How the contexts of a batch differ, or what is read of them: nobody timed prefixes and lists."""
    if workload.shared:
        return "shared-prefix"
    if not workload.is_dense:
        return "KV-list"
    return UNIFORM if alike else RAGGED


@lru_cache(maxsize=4096)
def _of_setting(setting: Setting, _configs: str) -> tuple[tuple[Measurement, ...], Grounds]:
    """Measurements in a setting, those of most rows first, and what there is without them."""
    kernel = setting.kernel.partition("+")[0]
    evidence = origin(kernel)
    elsewhere = [m.mean_error for m in measurements() if m.kernel == kernel]
    error = max(class_error(evidence), sum(elsewhere) / max(len(elsewhere), 1))
    found = [m for m in measurements() if m.kernel == setting.kernel]
    outside = "" if found else "another schedule" if setting.kernel != kernel else "never timed"
    for name, shares in _SHARED if found else ():
        if not (closer := [m for m in found if shares(m, setting)]):
            outside, found = name(setting), []
            break
        found = closer
    ranked = sorted(found, key=lambda m: -m.rows)
    return tuple(ranked), Grounds(evidence, outside, error)


def origin(kernel: str) -> Evidence:
    """What a kernel's numbers rest on where it was not timed itself.

    `carried` if some were fitted to times, else `counted` or `assumed`, whichever most are.
    """
    counts = catalog.kernel(kernel).source_counts()
    if counts["fitted"]:
        return "carried"
    return "counted" if counts["counted"] > counts["assumed"] else "assumed"


@cache
def measurements() -> tuple[Measurement, ...]:
    """All that was timed."""
    return tuple(map(_measurement, _rows(MEASURED)))


def class_error(evidence: Evidence) -> float:
    """The error to expect where nobody timed the kernel in the setting."""
    return _class_errors()[evidence]


@cache
def _class_errors() -> dict[str, float]:
    return {row["evidence"]: float(row["mean_error"]) for row in _rows(CLASSES)}


def _rows(path: Path) -> list[CsvRow]:
    return [row for _, row in read_csv(str(path))[1]]


def _measurement(row: CsvRow) -> Measurement:
    spans = ("batch_size", "context_len", "group_size", "kv_bytes")
    ranges = Validated(
        head_dims=tuple(map(int, row["head_dims"].split())),
        kv_dtypes=tuple(row["kv_dtypes"].split()),
        windows=tuple(word == "yes" for word in row["windows"].split()),
        **{name: tuple(map(int, row[name].split("-"))) for name in spans},
    )
    return Measurement(
        **{name: row[name] for name in ("kernel", "device", "launch", "cache", "batch")},
        page_tokens=int(row["page_tokens"]),
        ranges=ranges,
        rows=int(row["rows"]),
        mean_error=float(row["mean_error"]),
    )


def told(found: Iterable[tuple[str, Grounds]]) -> str:
    """One sentence: what the times of kernels rest on, and what of it no measurement covers."""
    rest: dict[tuple[str, str], dict[str, None]] = {}
    outside: dict[str, dict[str, None]] = {}
    for kernel, one in found:
        error = f"{one.expected_error:.0%}"
        rest.setdefault((one.evidence, error), {})[kernel] = None
        if one.extrapolated:
            outside.setdefault(one.outside, {})[kernel] = None
    parts = [
        f"{', '.join(kernels)} {evidence} ({'' if i else 'expected error '}{error})"
        for i, ((evidence, error), kernels) in enumerate(rest.items())
    ]
    text = f"Times rest on: {'; '.join(parts)}"
    if outside:
        text += "; extrapolated: " + "; ".join(
            f"{', '.join(kernels)} ({what})" for what, kernels in outside.items()
        )
    return text + "."
