"""Reads measured latencies: the installed tables, or samples of them, as points with a time.

Which rows may be fitted and which only tested is settled here, by a hash of the row, so that no
calibration can choose its test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from leansim.errors import StoreError, UnknownNameError
from leansim.points.point import Point, point
from leansim.specs import catalog
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.harness import Calls, MeasuredTable, Validated

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

Split = Literal["test", "fit", "all"]
SPLITS: tuple[str, ...] = get_args(Split)
DISTRIBUTION = "aiconfigurator-core"
_DATA = "aiconfigurator_core/systems/data"
_FILE = "generation_attention_perf.parquet"
# Rows of which the hash is a multiple of this are for fitting, the others for testing.
FIT_EVERY = 5
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
_RENAMED = {"num_heads": "num_q_heads", "num_key_value_heads": "num_kv_heads", "window_size": "window"}
SHAPE = ("batch_size", "num_q_heads", "num_kv_heads", "head_dim", "window", "kv_dtype", "step")
ROW_COLUMNS = (
    "table",
    "device",
    "kernel",
    "kernel_source",
    "batch_size",
    "context_len",
    "num_q_heads",
    "num_kv_heads",
    "head_dim",
    "window",
    "q_dtype",
    "kv_dtype",
    "step",
    "fit",
    "measured_s",
)


def measured_rows(
    table: MeasuredTable, split: Split = "all", sample: int | None = None, data: Path | None = None
) -> pd.DataFrame:
    """Rows of a measured table, a point and its `measured_s` each (columns: `ROW_COLUMNS`).

    `window` is 0 where there is none. Rows that the file has twice are averaged. `sample` takes that
    many, chosen by hash, so that a larger sample holds the smaller ones. Reads the installed tables,
    or `<table>.csv` in `data`. `attrs["left_out"]` counts the rows left out, by reason. Raises
    `StoreError` where there is nothing to read.
    """
    import numpy as np
    import pandas as pd

    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    raw = _read_file(table) if data is None else _read_csv(data / f"{table.name}.csv")
    if "window_size" not in raw:
        raw = raw.assign(window_size=0)
    kept, left_out = _kept(table, raw)
    for source, kernel in table.kernels.items():
        unseen = (kept["kernel_source"] == source) & kept["window_size"].isin(kernel.unseen_windows)
        kept.loc[unseen, "window_size"] = 0
    rows = kept.rename(columns={**_RENAMED, "kv_cache_dtype": "kv_dtype"})
    rows["measured_s"] = rows.pop("latency") / 1e3
    rows = rows.groupby(["kernel_source", *SHAPE], sort=False)["measured_s"].mean().reset_index()
    rows["table"], rows["device"] = table.name, table.device
    rows["kernel"] = rows["kernel_source"].map({k: v.name for k, v in table.kernels.items()})
    rows["context_len"] = rows["step"] + table.step_offset
    fp8_query = [source for source, kernel in table.kernels.items() if kernel.fp8_query]
    both = rows["kernel_source"].isin(fp8_query) & (rows["kv_dtype"] == "fp8")
    rows["q_dtype"] = np.where(both, "fp8", table.q_dtype)
    if table.bytes_check:
        impossible = _too_fast(table, rows)
        left_out["faster than DRAM's datasheet bandwidth"] = int(impossible.sum())
        rows = rows[~impossible]
    shapes = [",".join(map(str, shape)) for shape in rows[list(SHAPE)].itertuples(index=False)]
    rows["fit"] = np.array([digest(shape) % FIT_EVERY == 0 for shape in shapes], dtype=bool)
    order = np.array([digest(f"sample,{shape}") >> 192 for shape in shapes], dtype=np.uint64)
    rows = rows.iloc[np.argsort(order, kind="stable")]
    rows = rows if split == "all" else rows[rows["fit"] == (split == "fit")]
    rows = rows.iloc[:sample].reset_index(drop=True)[list(ROW_COLUMNS)]
    assert isinstance(rows, pd.DataFrame)
    rows.attrs["left_out"] = {reason: count for reason, count in left_out.items() if count}
    return rows


def digest(text: str) -> int:
    """SHA-256 of a text as a whole number: a choice that nobody made."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def points_of(rows: pd.DataFrame) -> Iterator[Point]:
    """The point of each row of `measured_rows`."""
    tables = {name: catalog.table(name) for name in rows["table"].unique()}
    names = [name for name in rows.columns if name in Point.model_fields and name != "window"]
    for row in rows.to_dict("records"):
        table = tables[row["table"]]
        told = table.told_context_len
        yield point(
            **{name: row[name] for name in names},
            window=row["window"] or None,
            max_context_len=None if told is None else max(told, row["context_len"]),
            page_tokens=table.page_tokens,
            launch=table.launch,
            cache=table.cache,
        )


def calls_of(rows: pd.DataFrame) -> Calls:
    """The calls of rows, as a harness sees them."""
    heads, kv_heads = (rows[name].to_numpy() for name in ("num_q_heads", "num_kv_heads"))
    batch, head_dim = (rows[name].to_numpy() for name in ("batch_size", "head_dim"))
    q_bytes, kv_bytes = (rows[name].map(DTYPE_BYTES).to_numpy() for name in ("q_dtype", "kv_dtype"))
    return Calls(
        kernel=rows["kernel"].to_numpy(dtype=str),
        batch_size=batch,
        num_kv_heads=kv_heads,
        group_size=heads // kv_heads,
        query_bytes=batch * heads * head_dim * q_bytes,
        kv_token_bytes=batch * kv_heads * head_dim * 2 * kv_bytes,
        kv_bytes=kv_bytes_of(rows),
        kv_dtype=rows["kv_dtype"].to_numpy(dtype=str),
        head_dim=head_dim,
        windowed=rows["window"].to_numpy() > 0,
    )


def covered(rows: pd.DataFrame) -> dict[str, Validated]:
    """The range that the rows of each kernel cover."""
    table = rows.assign(
        group_size=rows["num_q_heads"] // rows["num_kv_heads"], kv_bytes=kv_bytes_of(rows)
    )
    spans = ("batch_size", "context_len", "group_size", "kv_bytes")
    return {
        str(kernel): Validated(
            head_dims=sorted(mine["head_dim"].unique().tolist()),
            kv_dtypes=sorted(mine["kv_dtype"].unique()),
            windows=sorted(set((mine["window"] > 0).tolist())),
            **{name: (int(mine[name].min()), int(mine[name].max())) for name in spans},
        )
        for kernel, mine in table.groupby("kernel")
    }


def kv_bytes_of(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """KV bytes that each row reads, `[n]`."""
    import numpy as np

    context, window = rows["context_len"].to_numpy(), rows["window"].to_numpy()
    visible = np.where(window > 0, np.minimum(context, np.maximum(window, 1)), context)
    itemsize = rows["kv_dtype"].map(DTYPE_BYTES).to_numpy()
    heads = rows["batch_size"].to_numpy() * rows["num_kv_heads"].to_numpy()
    kv_bytes: npt.NDArray[np.int64] = heads * visible * rows["head_dim"].to_numpy() * 2 * itemsize
    return kv_bytes


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
            "pip install 'leansim-attention[silicon]'"
        )
    wanted = f"{_DATA}/{table.file}/{_FILE}"
    files = metadata.files(DISTRIBUTION) or ()
    found = next((Path(str(file.locate())) for file in files if file.as_posix() == wanted), None)
    if found is None or not found.is_file():
        raise StoreError(f"{table.name}: found no {wanted} in {installed_version()}")
    return pd.read_parquet(found)


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        raw = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: found {error}; wanted a sample of a measured table") from None
    if missing := [name for name in FILE_COLUMNS if name not in raw and name != "window_size"]:
        raise StoreError(f"{path}: found no column {', '.join(missing)}; wanted those of the tables")
    return raw


def _kept(table: MeasuredTable, raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of the named kernels, less those excluded, and how many were left out, by reason."""
    left_out: dict[str, int] = {}
    known = raw["kernel_source"].isin(list(table.kernels))
    for source, count in raw.loc[~known, "kernel_source"].value_counts().items():
        left_out[f"ran {source}"] = int(count)
    kept = raw[known]
    kept = kept.assign(group_size=kept["num_heads"] // kept["num_key_value_heads"])
    for exclusion in table.exclude:
        hit = matching(kept, exclusion.where)
        left_out[exclusion.reason] = left_out.get(exclusion.reason, 0) + int(hit.sum())
        kept = kept[~hit]
    if kept.empty:
        raise StoreError(f"{table.name}: found no row of {', '.join(table.kernels)}")
    return kept[list(FILE_COLUMNS)].copy(), left_out


def matching(rows: pd.DataFrame, where: Mapping[str, Any]) -> pd.Series[bool]:
    """Rows that have a value, or one of `(first, last)`, in each column. Raises `UnknownNameError`."""
    import pandas as pd

    hit = pd.Series(data=True, index=rows.index)
    for column, wanted in where.items():
        if column not in rows:
            raise UnknownNameError("column", column, map(str, rows.columns))
        inside = rows[column].between(*wanted) if isinstance(wanted, tuple) else rows[column] == wanted
        hit &= inside
    return hit


def _too_fast(table: MeasuredTable, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows whose KV is more than twice L2 and cannot have come through DRAM in the time, `[n]`."""
    device = catalog.device(table.device)
    kv_bytes = kv_bytes_of(rows)
    fastest = kv_bytes / device.dram_bandwidth_bytes_per_s
    too_fast: npt.NDArray[np.bool_] = (kv_bytes > 2 * device.l2_bytes) & (
        rows["measured_s"].to_numpy() < fastest
    )
    return too_fast
