"""Reads what was measured on our own cards, has it simulated, and says of each row what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leansim.errors import StoreError
from leansim.points.point import Point, resolve
from leansim.silicon.own import MEASURED, holds_points, own_rows
from leansim.silicon.rows import digest
from leansim.silicon.validate import validate

# Constants are fitted to rows of this device alone, and of these only to the half that `fit` names.
FITTED_ON = "h200_sxm"
UNIFORM, RAGGED = "uniform", "ragged"
# What is one batch under several kernels or schedules: file and card, how it was called, and its shape.
BATCH = ["card", "file", "cache", "page_tokens", "shape"]

_Band = tuple[float, str]
_TILES = {
    UNIFORM: ((8, "1-8"), (32, "9-32"), (132, "33-132"), (np.inf, "above 132")),
    RAGGED: ((8, "1-8"), (32, "9-32"), (132, "33-132"), (400, "133-400"), (np.inf, "above 400")),
}
_BYTES = (
    (1e6, "up to 1 MB"),
    (1e7, "1-10 MB"),
    (1e8, "10-100 MB"),
    (1e9, "0.1-1 GB"),
    (np.inf, "above 1 GB"),
)
_SPLITS = ((1, "1"), (4, "2-4"), (16, "5-16"), (np.inf, "above 16"))
# How bands are ordered in tables.
ORDER = list(dict.fromkeys(name for bands in (*_TILES.values(), _BYTES, _SPLITS) for _, name in bands))


def files_of(folder: Path) -> list[Path]:
    """CSVs of points with a time in the folders of the cards; those of other measurements have none."""
    found = [path for path in sorted(folder.glob("*/*.csv")) if holds_points(path)]
    if not found:
        raise StoreError(f"{folder}: found no measurements; wanted CARD/FILE.csv with {MEASURED}")
    return found


def simulated(
    files: Sequence[Path], progress: Callable[[int, int], None] = lambda _done, _total: None
) -> pd.DataFrame:
    """Every row of the files with its simulated time (columns as of `validate`), and what it is.

    `card` is the folder a file is in. `batch` says uniform or ragged, `tiles` are requests x KV heads,
    and `shape` names heads and lengths, the same in all files.
    `fit` says that constants were fitted to the row.
    """
    rows = pd.concat([_read(path) for path in files], ignore_index=True)
    rows = rows.join(pd.DataFrame(map(_described, rows["point"])))
    rows["fit"] = rows["fit"].astype(bool) & (rows["device"] == FITTED_ON)
    rows.attrs = {}
    found = validate(rows, progress=progress)
    if (refused := found["refused"] != "").any():
        raise StoreError(f"found {refused.sum()} rows that were not simulated: {found['refused'].max()}")
    return found.assign(
        group=found["num_q_heads"] // found["num_kv_heads"],
        tiles_band=_tile_bands(found),
        bytes_band=_banded(found["kv_bytes"], _BYTES),
        splits_band=_banded(found["most_splits"], _SPLITS),
    )


def _read(path: Path) -> pd.DataFrame:
    """Rows of a file; what it does not say of the machine is empty."""
    rows = own_rows(path)
    missing = {
        name: "" for name in ("library", "gpu", "driver", "cuda", "torch", "triton") if name not in rows
    }
    return rows.assign(card=path.parent.name, file=path.stem, **missing)


def _described(point: Point) -> dict[str, Any]:
    """What a point's batch and schedule are in numbers, none of them a time."""
    resolved = resolve(point)
    load, schedule = resolved.workload, resolved.schedule
    lens = np.asarray(load.context_lens)
    heads = f"{load.num_q_heads}/{load.num_kv_heads} x {load.head_dim}"
    which = f"{digest(str(lens.tolist())) % 16**8:08x}"
    return {
        "shape": f"{load.batch_size} x {lens.mean():.0f} of {heads}, {which}",
        "batch": UNIFORM if lens.min() == lens.max() else RAGGED,
        "tiles": load.batch_size * load.num_kv_heads,
        "mean_context_len": float(lens.mean()),
        "context_spread": float(lens.std() / lens.mean()),
        "most_splits": int(schedule.splits_of_request.max()),
        "most_tiles_of_a_cta": int(schedule.tiles_of_cta.max()),
        "tiles_per_cta": float(schedule.tiles_of_cta.mean()),
    }


def _tile_bands(rows: pd.DataFrame) -> list[str]:
    """The band of output tiles of each row; ragged batches have a finer one at the top."""
    return [
        _band(tiles, _TILES[batch]) for tiles, batch in zip(rows["tiles"], rows["batch"], strict=True)
    ]


def _banded(values: pd.Series[Any], bands: Sequence[_Band]) -> list[str]:
    return [_band(value, bands) for value in values]


def _band(value: float, bands: Sequence[_Band]) -> str:
    """Name of the first band that a value is not above."""
    return next(name for top, name in bands if value <= top)


def in_order(values: pd.Series[Any] | npt.NDArray[Any]) -> Iterator[Any]:
    """Each value once: bands in their order, numbers by size."""
    known = {name: at for at, name in enumerate(ORDER)}
    return iter(sorted(set(values), key=lambda value: (known.get(value, -1), value)))
