"""Joins the stores of a sweep's shards into one folder, as if one sweep had simulated all points."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leansim import __version__
from leansim.errors import StoreError
from leansim.files.strict_yaml import Document
from leansim.points.grid import MOST_POINTS, GridFile, PointGrid
from leansim.points.point import Point
from leansim.points.results_table import results_table
from leansim.specs import catalog
from leansim.sweeps.executors import keyed_all
from leansim.sweeps.store import FILE_NAME, Store
from leansim.sweeps.sweep import Sweep, asked, manifest, write_results

_SAME = ("model_version", "config", "plugins")


def merge(out: str | Path, folders: Sequence[str | Path] = (), partial: bool = False) -> Sweep:
    """Merge the stores of `folders` (by default the shards in `out`) into `out`.

    The results are those of a sweep that was never divided. Nothing is written unless every point
    is there, or `partial` asks for what there is; merging again, with more folders, goes on. Raises
    `StoreError` for points that are missing, or more than one table can have, and for stores of other
    sweeps, versions or plug-ins than the first one's and this installation's.
    """
    target = Path(out)
    sources = [Path(folder) for folder in folders] or sorted(target.glob("shard-*-of-*"))
    if not sources:
        raise StoreError(f"{target}: found no shards; wanted the folders of `leansim sweep --shard`")
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(folder, create=False)) for folder in sources]
        grid = _common_grid(stores, target)
        if grid.size > MOST_POINTS:
            wanted = f"wanted at most {MOST_POINTS:,} in one table: each shard's folder has its own"
            raise StoreError(f"{target}: found {grid.size:,} points; {wanted}")
        points = grid.points()
        keys, grounds = keyed_all(points)
        present = set[str]().union(*(store.keys() for store in stores))
        merged = stack.enter_context(Store(target)) if _is_store(target) else None
        before = merged.keys() if merged else set()
        missing = [
            point
            for point, key in zip(points, keys, strict=True)
            if key not in present and key not in before
        ]
        dropped = tuple(
            f"{store.path}: found {len(store.dropped)} rows that were changed: left out"
            for store in stores
            if store.dropped
        )
        if missing and not partial:
            raise StoreError("\n".join([*dropped, _missing(missing, len(points))]))
        merged = merged or stack.enter_context(Store(target))
        merged.describe(manifest(grid))
        for store in stores:
            merged.adopt(store)
        results = results_table(points, merged.rows(keys), grounds)
        write_results(target, grid, results)
    refused = int(results["error"].notna().sum())
    return Sweep(target, results, 0, len(results), refused, damage=dropped)


def _is_store(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


def _common_grid(stores: Sequence[Store], target: Path) -> PointGrid:
    """The sweep that all stores are parts of. Raises `StoreError`."""
    first = _described(stores[0])
    if first["model_version"] != __version__:
        found = f"results of version {first['model_version']}"
        raise StoreError(f"{stores[0].path}: found {found}; wanted {__version__}, which is merging")
    for store in stores[1:]:
        _same_sweep(store, first, stores[0].path)
    if _is_store(target):
        with Store(target) as merged:
            if merged.description() is not None:
                _same_sweep(merged, first, stores[0].path)
    grid: PointGrid = catalog.validate(GridFile, Document(str(stores[0].path), first["config"], {}))
    return grid


def _same_sweep(store: Store, first: dict[str, Any], path: Path) -> None:
    mine = _described(store)
    for name in _SAME:
        if mine[name] != first[name]:
            other = f"another {name.replace('_', ' ')}"
            if name == "model_version":
                other += f" ({mine[name]})"
            raise StoreError(f"{store.path}: found {other}; wanted that of {path}")


def _described(store: Store) -> dict[str, Any]:
    description = store.description()
    if description is None or not set(_SAME) <= description.keys():
        raise StoreError(f"{store.path}: found no sweep in it; wanted a store of `leansim sweep`")
    return description


def _missing(missing: Sequence[Point], total: int) -> str:
    return (
        f"merge: found {total - len(missing)} of {total} points, {len(missing)} missing, "
        f"the first: {asked(missing[0])}; wanted all of them, or --partial"
    )
