"""Reads published measurements into rows: NVIDIA's tables, as installed, or samples of them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from leansim.errors import LeansimError, StoreError, unknown
from leansim.files.csv import CsvRow, read_csv
from leansim.files.extras import pip_install
from leansim.files.strict_yaml import Document
from leansim.points.csv import CsvPoints, outcomes
from leansim.points.point import Point, point
from leansim.silicon.rows import (
    ROW_COLUMNS,
    SHAPE,
    Split,
    check_bytes,
    in_hash_order,
    is_for_fitting,
    matching,
    of_split,
    refused_rows,
    together,
    uniform_bytes,
)
from leansim.specs import catalog
from leansim.specs.base import DTYPE_BYTES, Count, DType, Positive, Spec, WholeNumber
from leansim.specs.harness import MeasuredTable

if TYPE_CHECKING:
    import pandas as pd

DISTRIBUTION = "aiconfigurator-core"
_DATA = "aiconfigurator_core/systems/data"
_FILE = "generation_attention_perf.parquet"
# The file's columns that are needed; `window_size` is absent from old tables, which have none.
FILE_COLUMNS = (
    "kernel_source",
    "batch_size",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "window_size",
    "kv_cache_dtype",
    "step",
    "latency",
)
# What rows call the file's columns that have other names there.
RENAMED = {
    "num_heads": "num_q_heads",
    "num_key_value_heads": "num_kv_heads",
    "window_size": "window",
    "kv_cache_dtype": "kv_dtype",
}
# Fields of a point that its row has under the same name.
_FIELDS = (
    "device", "kernel", "batch_size", "context_len", "num_q_heads", "num_kv_heads", "head_dim",
    "q_dtype", "kv_dtype", "cache", "launch",
)  # fmt: skip


def table_rows(
    names: Sequence[str],
    split: Split = "test",
    sample: int | None = None,
    data: Path | None = None,
    strict: bool = True,
) -> pd.DataFrame:
    """Measured rows of several tables under each other; see `measured_rows`.

    Without names, those of every description for which there is data. Raises `StoreError` for none,
    and `UnknownNameError`.
    """
    if not names and data is not None:
        names = [name for name in catalog.names("table") if (data / f"{name}.csv").is_file()]
        if not names:
            raise StoreError(f"{data}: found no sample of a measured table; wanted <table>.csv")
    known = catalog.names("table")
    if wrong := [name for name in names if name not in known and not name.endswith((".yaml", ".yml"))]:
        raise unknown("table", wrong, known)
    tables = [catalog.table(name) for name in names or known]
    return together([measured_rows(table, split, sample, data, strict) for table in tables])


def measured_rows(
    table: MeasuredTable,
    split: Split = "all",
    sample: int | None = None,
    data: Path | None = None,
    strict: bool = True,
) -> pd.DataFrame:
    """Rows of a measured table (columns: `ROW_COLUMNS`), in the order of a hash.

    Rows that the file has twice are averaged. `sample` takes the first so many. Reads the installed
    tables, or `<table>.csv` in `data`. `attrs["left_out"]` counts the rows left out, by reason. Raises
    `StoreError` where there is nothing to read, and `ConfigError` for rows that make no sense; unless
    `strict`, `attrs["refused"]` has those, where some do make sense.
    """
    import pandas as pd

    path = None if data is None else data / f"{table.name}.csv"
    raw = _read_file(table) if path is None else _read_csv(path, table.kernels, strict)
    refused = raw.attrs.get("refused", [])
    if "window_size" not in raw:
        raw = raw.assign(window_size=0)
    kept, left_out = _kept(table, raw)
    for source, kernel in table.kernels.items():
        unseen = (kept["kernel_source"] == source) & kept["window_size"].isin(kernel.unseen_windows)
        kept.loc[unseen, "window_size"] = 0
    rows = _called(table, kept)
    if table.bytes_check:
        impossible = _too_fast(table, rows)
        left_out["faster than DRAM's datasheet bandwidth"] = int(impossible.sum())
        rows = rows[~impossible]
    shapes = [",".join(map(str, shape)) for shape in rows[list(SHAPE)].itertuples(index=False)]
    rows = rows.assign(fit=np.array([is_for_fitting(shape) for shape in shapes], dtype=bool))
    rows = of_split(in_hash_order(rows, shapes), split).iloc[:sample].reset_index(drop=True)
    rows["point"] = pd.Series(_points(table, rows), index=rows.index, dtype=object)
    rows = rows[list(ROW_COLUMNS)]
    assert isinstance(rows, pd.DataFrame)
    rows.attrs["refused"], rows.attrs["time"] = refused, ("latency", "milliseconds")
    rows.attrs["left_out"] = {reason: count for reason, count in left_out.items() if count}
    return rows


def _called(table: MeasuredTable, kept: pd.DataFrame) -> pd.DataFrame:
    """Lines of a file as calls: what each ran, on what, and its mean time in seconds."""
    rows = kept.rename(columns=RENAMED)
    rows["measured_s"] = rows.pop("latency") / 1e3
    rows = rows.groupby(["kernel_source", *SHAPE], sort=False)["measured_s"].mean().reset_index()
    fp8_query = [source for source, kernel in table.kernels.items() if kernel.fp8_query]
    both = rows["kernel_source"].isin(fp8_query) & (rows["kv_dtype"] == "fp8")
    rows = rows.assign(
        table=table.name,
        source=f"{DISTRIBUTION} {table.file}",
        harness=table.name,
        device=table.device,
        kernel=rows["kernel_source"].map({k: v.name for k, v in table.kernels.items()}),
        context_len=rows["step"] + table.step_offset,
        q_dtype=np.where(both, "fp8", table.q_dtype),
        cache=table.cache,
        launch=table.launch,
    )
    return rows.assign(**uniform_bytes(rows))


def _points(table: MeasuredTable, rows: pd.DataFrame) -> list[Point]:
    told = table.told_context_len
    return [
        point(
            **{name: row[name] for name in _FIELDS},
            window=row["window"] or None,
            max_context_len=None if told is None else max(told, row["context_len"]),
            page_tokens=table.page_tokens,
        )
        for row in rows[[*_FIELDS, "window"]].to_dict("records")
    ]


def installed() -> bool:
    """Whether the distribution that holds the tables is there."""
    try:
        metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return False
    return True


def installed_version() -> str:
    """Name and version of the distribution that holds the tables."""
    return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}" if installed() else "none installed"


def _read_file(table: MeasuredTable) -> pd.DataFrame:
    """Read a table of the installed distribution, by file: importing it would load a native library."""
    import pandas as pd

    if not installed():
        raise StoreError(
            f"{table.name}: found no measured tables; wanted the distribution {DISTRIBUTION}: "
            f"{pip_install('silicon')}"
        )
    wanted = f"{_DATA}/{table.file}/{_FILE}"
    files = metadata.files(DISTRIBUTION) or ()
    found = next((Path(str(file.locate())) for file in files if file.as_posix() == wanted), None)
    if found is None or not found.is_file():
        raise StoreError(f"{table.name}: found no {wanted} in {installed_version()}")
    return pd.read_parquet(found)


class _Cells(Spec):
    """A row of a measured table, its time in milliseconds."""

    kernel_source: str = Field(min_length=1)
    batch_size: Count
    num_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    window_size: WholeNumber = 0
    kv_cache_dtype: DType
    step: WholeNumber
    latency: Positive

    @model_validator(mode="after")
    def _is_a_call(self) -> _Cells:
        if self.num_heads % self.num_key_value_heads:
            raise ValueError("wanted num_heads to be a multiple of num_key_value_heads")
        tokens = self.batch_size * self.num_key_value_heads * (self.step + 1)
        check_bytes(tokens * self.head_dim * 2 * DTYPE_BYTES[self.kv_cache_dtype])
        return self


def _read_csv(path: Path, sources: Container[str], strict: bool) -> pd.DataFrame:
    """Read a sample of a table; rows of kernels beside `sources` as they stand, others as `_Cells`."""
    import pandas as pd

    columns, numbered = read_csv(str(path))
    if missing := [name for name in FILE_COLUMNS if name not in columns and name != "window_size"]:
        raise StoreError(f"{path}: found no column {', '.join(missing)}; wanted those of the tables")
    lines, records = zip(*numbered, strict=True)
    given = CsvPoints(str(path), tuple(columns), lines, records, records)

    def typed(row: CsvRow) -> dict[str, Any]:
        cells = {name: row[name].strip() for name in FILE_COLUMNS if name in row}
        if cells["kernel_source"] and cells["kernel_source"] not in sources:
            return {"kernel_source": cells["kernel_source"]}
        return catalog.validate(_Cells, Document(str(path), cells, {})).model_dump()

    found = given.settled(outcomes(typed, records), strict)
    kept = [one for one in found if not isinstance(one, LeansimError)]
    raw = pd.DataFrame(kept, columns=list(FILE_COLUMNS), dtype=object)
    raw.attrs["refused"] = refused_rows(given, found)
    return raw


def _kept(table: MeasuredTable, raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of the named kernels, less those excluded, and how many were left out, by reason."""
    left_out: dict[str, int] = {}
    known = raw["kernel_source"].isin(list(table.kernels))
    for source, count in raw.loc[~known, "kernel_source"].value_counts().items():
        left_out[f"ran {source}"] = int(count)
    kept = raw[known].infer_objects()
    kept = kept.assign(group_size=kept["num_heads"] // kept["num_key_value_heads"])
    for exclusion in table.exclude:
        hit = matching(kept, exclusion.where)
        left_out[exclusion.reason] = left_out.get(exclusion.reason, 0) + int(hit.sum())
        kept = kept[~hit]
    if kept.empty:
        raise StoreError(f"{table.name}: found no row of {', '.join(table.kernels)}")
    return kept[list(FILE_COLUMNS)].copy(), left_out


def _too_fast(table: MeasuredTable, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows whose KV is more than twice L2 and cannot have come through DRAM in the time, `[n]`."""
    device = catalog.device(table.device)
    kv_bytes = rows["kv_bytes"].to_numpy()
    fastest = kv_bytes / device.dram_bandwidth_bytes_per_s
    too_fast: npt.NDArray[np.bool_] = (kv_bytes > 2 * device.l2_bytes) & (
        rows["measured_s"].to_numpy() < fastest
    )
    return too_fast
