"""Which points a campaign measures, and a file of measurements that outlives an interruption.

Shapes come in the order of a hash, with all kernels of a shape together: however far a run gets, what it
leaves is a sample of the whole, and speedups can be taken from it.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

from leansim.answers import csv_cell
from leansim.errors import ConfigError, LeansimError, Problem, StoreError
from leansim.files.csv import CsvRow, read_csv
from leansim.files.writing import write_whole
from leansim.silicon.own import MEASUREMENT_COLUMNS
from leansim.silicon.rows import digest
from leansim.specs.traces import builtin_traces

KERNELS = ("triton_fa2", "triton_flash_decoding", "triton_lean")
COLUMNS = (
    "device", "kernel", "batch_size", "context_len", "trace", "seed", "context_scale", "num_q_heads",
    "num_kv_heads", "head_dim", "query_len", "window", "q_dtype", "kv_dtype", "page_tokens", "cache",
    "launch", "num_sms",
)  # fmt: skip
# Query and KV heads: MHA, groups of 4 and 8, and one KV head as a tensor-parallel rank has it.
HEADS = ((32, 32), (32, 8), (64, 8), (8, 1))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = tuple(2**i for i in range(9, 19))
HEAD_DIMS = (64, 128)
RAGGED_BATCHES = (4, 8, 16, 32, 64, 128)
RAGGED_SEEDS = (0, 1)
UNIFORM_SHAPES, RAGGED_SHAPES = 240, 72
# Larger calls say the same as these, and take longer to draw and to check than to time.
MOST_KV_BYTES = 8 * 2**30


def campaign(device: str, rehearsal: bool = False) -> list[CsvRow]:
    """The points of a campaign on a device, as rows of a CSV (columns: `COLUMNS`).

    A `rehearsal` has few, tiny shapes on four SMs: what an interpreter can do.
    """
    fixed = {"device": device, "page_tokens": "16", "launch": "graph"}
    rows = []
    for shape in shapes(rehearsal):
        for kernel in KERNELS:
            row = dict.fromkeys(COLUMNS, "") | fixed | {k: str(v) for k, v in shape.items()}
            rows.append(row | {"kernel": kernel})
    return rows


def shapes(rehearsal: bool = False) -> list[dict[str, Any]]:
    """The batches of a campaign and their head shapes, in the order of a hash."""
    found = _tiny() if rehearsal else [*_uniform(), *_ragged()]
    return sorted(found, key=lambda shape: digest(repr(sorted(shape.items()))))


def _shape(heads: tuple[int, int], head_dim: int, **more: Any) -> dict[str, Any]:
    names = {"num_q_heads": heads[0], "num_kv_heads": heads[1], "head_dim": head_dim}
    return {**names, "q_dtype": "bfloat16", "kv_dtype": "bfloat16", "cache": "cold", **more}


def _uniform() -> list[dict[str, Any]]:
    """Equal contexts: of all combinations that are not too large, `UNIFORM_SHAPES` by hash."""
    shapes = [
        _shape(heads, dim, batch_size=batch, context_len=context)
        for heads, dim, batch, context in product(HEADS, HEAD_DIMS, BATCHES, CONTEXTS)
        if batch * context * heads[1] * dim * 4 <= MOST_KV_BYTES
    ]
    order = sorted(shapes, key=lambda shape: digest("uniform" + repr(sorted(shape.items()))))
    return order[:UNIFORM_SHAPES]


def _ragged() -> list[dict[str, Any]]:
    """Requests in flight in the built-in traces, `RAGGED_SHAPES` by hash."""
    shapes = [
        _shape(heads, 128, trace=trace, batch_size=batch, seed=seed)
        for trace, heads, batch, seed in product(
            builtin_traces(), HEADS[1:], RAGGED_BATCHES, RAGGED_SEEDS
        )
    ]
    order = sorted(shapes, key=lambda shape: digest("ragged" + repr(sorted(shape.items()))))
    return order[:RAGGED_SHAPES]


def _tiny() -> list[dict[str, Any]]:
    trace = next(iter(builtin_traces()))
    kept = {"num_sms": 4}
    return [
        _shape((4, 1), 64, batch_size=2, context_len=300, **kept),
        _shape((2, 2), 64, batch_size=1, context_len=500, **kept) | {"cache": "warm"},
        _shape((8, 1), 128, batch_size=1, context_len=200, **kept)
        | {"q_dtype": "float16", "kv_dtype": "float16"},
        _shape((4, 2), 64, trace=trace, batch_size=3, seed=0, context_scale=0.1, **kept),
    ]


# -- the file ------------------------------------------------------------------------------------


class MeasuredFile:
    """A CSV that grows by whole rows. Use as a context manager.

    It is written as it grows, not whole or not at all as other files are: a row takes a second of a GPU,
    and each is safe on the disk before the next begins. Opening it again keeps the rows that are there;
    half a row, from a run that was killed, is removed.
    """

    def __init__(self, path: Path, columns: Sequence[str], fresh: bool = False) -> None:
        """Open or create. Raises `ConfigError` for a file of other columns."""
        self.path, self.columns = path, tuple(columns)
        self.rows: list[CsvRow] = []
        if path.exists() and not path.is_file():
            found = f"{path}, which is no regular file"
            raise ConfigError("measure", [Problem("--out", found, "wanted a file that can grow")])
        if path.exists() and path.stat().st_size and not fresh:
            self._resume()
        else:
            write_whole(path, self._line(self.columns))
        self._handle = path.open("ab")

    def _resume(self) -> None:
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        header = next(csv.reader(io.StringIO(whole.decode("utf-8", "replace"))), [])
        if tuple(header) != self.columns:
            wanted = "wanted the columns of these measurements, or --fresh to begin anew"
            raise ConfigError(str(self.path), [Problem("header", ", ".join(header[:8]), wanted, 1, 1)])
        if len(whole) < len(text):
            with self.path.open("r+b") as handle:
                handle.truncate(len(whole))
        if whole.count(b"\n") > 1:
            self.rows = [row for _, row in read_csv(str(self.path))[1]]

    def __enter__(self) -> MeasuredFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, to the disk. Raises `StoreError` for a value that is in no column."""
        if foreign := sorted(set(row) - set(self.columns)):
            raise StoreError(f"{self.path}: found a value of {foreign[0]!r}; wanted one of its columns")
        line = self._line([row.get(name, "") for name in self.columns])
        whole = self._handle.tell()
        try:
            self._handle.write(line.encode("utf-8", "backslashreplace"))
            self._handle.flush()
        except OSError:  # a full disk, say: half a row is none
            self._handle.truncate(whole)
            raise
        os.fsync(self._handle.fileno())

    @staticmethod
    def _line(values: Iterable[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(map(csv_cell, values))
        return text.getvalue()


def measured(
    rows: Sequence[CsvRow],
    measure: Callable[[CsvRow], dict[str, Any]],
    file: MeasuredFile,
    budget_s: float | None = None,
    refused: Callable[[CsvRow, LeansimError], None] = lambda _row, _error: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, int]]:
    """Measure the rows that the file does not hold yet, and yield how many are done of all.

    `refused` is told of rows that cannot be measured; they stay out of the file. No point is begun
    after `budget_s` seconds.
    """
    start = clock()
    names = [name for name in rows[0] if name not in MEASUREMENT_COLUMNS] if rows else []
    present = {tuple(row[name] for name in names) for row in file.rows}
    done = sum(tuple(csv_cell(row[name]) for name in names) in present for row in rows)
    yield done, len(rows)
    for row in rows:
        if tuple(csv_cell(row[name]) for name in names) in present:
            continue
        if budget_s is not None and clock() - start > budget_s:
            return
        try:
            file.add({**row, **measure(row)})
        except LeansimError as error:
            refused(row, error)
            continue
        done += 1
        yield done, len(rows)
