"""The one schema of measured rows: a point, its time in seconds, and columns to choose rows by.

Whatever a row came from, it is parsed into its `Point` once, here it is said whether constants may be
fitted to it, and by which hash a sample is drawn; so no calibration can choose its test. Everything
that holds the model against silicon takes rows of this schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.errors import LeansimError, OutOfRangeError, UnknownNameError
from leansim.points.csv import CsvPoints, reason
from leansim.specs import catalog
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.harness import Calls, MeasuredTable, Replays, Validated

if TYPE_CHECKING:
    import pandas as pd

Split = Literal["test", "fit", "all"]
SPLITS: tuple[str, ...] = get_args(Split)
# Rows of which the hash is a multiple of this are for fitting, the others for testing: a fifth of a
# published table, half of one's own measurements, which are few.
FIT_EVERY, OWN_FIT_EVERY = 5, 2
SHAPE = ("batch_size", "num_q_heads", "num_kv_heads", "head_dim", "window", "kv_dtype", "step")
# `table` is the file's short name and `source` what a constant fitted to the row says it rests on;
# `harness` names the measured table whose harness the time contains, or nothing. `kernel_source` is
# the file's own word for the kernel, empty in one's own files. `context_len` is the longest of the
# batch, `step` what a table calls it; `window` is 0 where there is none. `query_bytes`,
# `kv_token_bytes` and `kv_bytes` are as in `Calls`, `fit` says that constants may be fitted to the row.
ROW_COLUMNS = (
    "table", "source", "harness", "device", "kernel", "kernel_source", "batch_size", "context_len",
    "num_q_heads", "num_kv_heads", "head_dim", "window", "q_dtype", "kv_dtype", "cache", "launch",
    "step", "query_bytes", "kv_token_bytes", "kv_bytes", "fit", "measured_s", "point",
)  # fmt: skip


# A sum of some thousand of them fits 64 bits.
_MOST_BYTES = 2**52


def digest(text: str) -> int:
    """SHA-256 of a text as a whole number: a choice that nobody made."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def is_for_fitting(shape: str, every: int = FIT_EVERY) -> bool:
    """Whether a shape, as text, is of those that constants may be fitted to, one in `every`."""
    return digest(shape) % every == 0


def of_split(rows: pd.DataFrame, split: Split) -> pd.DataFrame:
    """The rows of a split. Raises `UnknownNameError`."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    return rows if split == "all" else rows[rows["fit"] == (split == "fit")]


def in_hash_order(rows: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
    """Rows in the order of a hash of a text each, so that a larger sample holds the smaller ones."""
    order = np.array([digest(f"sample,{text}") >> 192 for text in texts], dtype=np.uint64)
    return rows.iloc[np.argsort(order, kind="stable")]


def together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several files under each other; `attrs` has what their own have, by table."""
    import pandas as pd

    rows = pd.concat(parts, ignore_index=True)
    known = [part for part in parts if len(part)]
    rows.attrs = {
        "left_out": {part["table"].iloc[0]: part.attrs["left_out"] for part in known},
        "time": {part["table"].iloc[0]: part.attrs["time"] for part in known},
        "refused": [row for part in parts for row in part.attrs["refused"]],
    }
    return rows


def refused_rows(given: CsvPoints, found: Iterable[object]) -> list[dict[str, Any]]:
    """Rows of a file that make no sense: their cells, and in `refused` their line and why."""
    table = Path(given.source).stem
    return [
        {**record, "table": table, "refused": f"line {line}: {reason(one)}"}
        for record, line, one in zip(given.records, given.lines, found, strict=True)
        if isinstance(one, LeansimError)
    ]


def check_bytes(kv_bytes: int) -> None:
    """Raise `OutOfRangeError` for more KV than a column of whole numbers can hold."""
    if kv_bytes > _MOST_BYTES:
        raise OutOfRangeError(f"found {kv_bytes:,} bytes of KV; wanted at most {_MOST_BYTES:,}")


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


def uniform_bytes(rows: pd.DataFrame) -> dict[str, IntArray]:
    """`query_bytes`, `kv_token_bytes` and `kv_bytes` of rows of one new token and equal contexts."""
    batch, kv_heads, head_dim = (
        rows[name].to_numpy() for name in ("batch_size", "num_kv_heads", "head_dim")
    )
    q_bytes, kv_bytes = (rows[name].map(DTYPE_BYTES).to_numpy() for name in ("q_dtype", "kv_dtype"))
    context, window = rows["context_len"].to_numpy(), rows["window"].to_numpy()
    visible = np.where(window > 0, np.minimum(context, np.maximum(window, 1)), context)
    token: IntArray = batch * kv_heads * head_dim * 2 * kv_bytes
    return {
        "query_bytes": batch * rows["num_q_heads"].to_numpy() * head_dim * q_bytes,
        "kv_token_bytes": token,
        "kv_bytes": token * visible,
    }


def calls_of(rows: pd.DataFrame) -> Calls:
    """The calls of rows, as a harness sees them."""
    heads, kv_heads = (rows[name].to_numpy() for name in ("num_q_heads", "num_kv_heads"))
    names = ("query_bytes", "kv_token_bytes", "kv_bytes", "batch_size", "head_dim")
    return Calls(
        kernel=np.array([name.partition("+")[0] for name in rows["kernel"]], dtype=str),
        num_kv_heads=kv_heads,
        group_size=heads // kv_heads,
        kv_dtype=rows["kv_dtype"].to_numpy(dtype=str),
        windowed=rows["window"].to_numpy() > 0,
        **{name: rows[name].to_numpy() for name in names},
    )


class Harnesses:
    """What the times of rows contain beside the kernels: the rows of each harness, and their calls."""

    def __init__(self, rows: pd.DataFrame) -> None:
        names = rows["harness"].to_numpy()
        self.count = len(rows)
        self.places: dict[str, IntArray] = {
            str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names) if name
        }
        self.calls = {name: calls_of(rows.iloc[at]) for name, at in self.places.items()}

    def seconds(
        self, kernel_s: FloatArray, changed: Mapping[str, MeasuredTable] | None = None
    ) -> FloatArray:
        """Time of each row's harness `[n]`, s, 0 without one, beside kernels that take `kernel_s`.

        Some tables may be `changed` ones.
        """
        found = np.zeros(self.count)
        for name, at in self.places.items():
            harness = (changed or {}).get(name) or catalog.harness(name)
            found[at] = harness.harness_s(self.calls[name], kernel_s[at])
        return found

    def replay_s(
        self, kernel_s: FloatArray, changed: Mapping[str, MeasuredTable] | None = None
    ) -> FloatArray:
        """How long one replay of each row takes `[n]`, s, before its end is put off to a tick.

        Without replays it is what is measured.
        """
        found: FloatArray = kernel_s + self.seconds(kernel_s, changed)
        for name, table, _ in self._on_ticks():
            at, beside_s = self.places[name], (changed or {}).get(name, table).beside_s
            found[at] = kernel_s[at] + beside_s(self.calls[name])
        return found

    def spans_s(self, measured_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Between what and what one replay of each row took `[n]`, s, by what was measured."""
        least, most = measured_s.copy(), measured_s.copy()
        for name, _, replays in self._on_ticks():
            at = self.places[name]
            least[at], most[at] = replays.span_s(measured_s[at])
        return least, most

    def _on_ticks(self) -> Iterator[tuple[str, MeasuredTable, Replays]]:
        """The tables among the harnesses whose latencies are of replays that begin at ticks."""
        for name in self.places:
            table = catalog.harness(name)
            if isinstance(table, MeasuredTable) and table.replays is not None:
                yield name, table, table.replays


def covered(rows: pd.DataFrame) -> dict[str, Validated]:
    """The range that the rows of each kernel cover."""
    table = rows.assign(group_size=rows["num_q_heads"] // rows["num_kv_heads"])
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
