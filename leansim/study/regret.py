"""What each split rule loses against the best there is, over a grid: every cell searched.

A cell is a workload on a device. A policy's regret is its latency over that of the best found on its
own kernel: by search over split counts, or by another policy of that kernel.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leansim.answers import Row, Tabled
from leansim.errors import LeansimError
from leansim.points.grid import PointGrid, load
from leansim.points.point import Point, Resolved, resolve
from leansim.points.results_table import results_table
from leansim.specs.kernel import Kernel
from leansim.study.bench import Bench
from leansim.study.oracle import BUDGET, Oracle, Policy, search
from leansim.study.reasons import facts_of, why_slower
from leansim.study.rules import Rule
from leansim.sweeps.compare import TIE, finished, varying
from leansim.sweeps.executors import keyed_all
from leansim.sweeps.spreading import Progress, spread

if TYPE_CHECKING:
    import pandas as pd

Cell = tuple[Point, ...]


@dataclass(frozen=True, eq=False)
class RegretMap(Tabled):
    """A row per policy and cell: point, latency, oracle, regret, and why. `error` where refused.

    `oracle_s` and `oracle_splits` are the best found on the policy's own kernel, `over_fastest` the
    policy's latency over the least of the cell, whatever kernel that is of.
    """

    config: PointGrid
    frame: pd.DataFrame
    most_shown: int = 20

    @property
    def table(self) -> pd.DataFrame:
        """A row per policy and cell."""
        return self.frame

    def records(self) -> list[Row]:
        """One flat record per policy and cell; refused ones have an error and None for numbers."""
        results = self.table.convert_dtypes()  # whole numbers stay whole beside missing ones
        known = results.astype(object).where(results.notna(), None)
        return [{str(key): value for key, value in row.items()} for row in known.to_dict("records")]

    def rows(self) -> list[Row]:
        """The summary."""
        return self.summary()

    def sections(self) -> dict[str, list[Row]]:
        """By device and policy, and the worst cells, `most_shown` of them."""
        return {"Regret": self.summary(), "Worst cells": self.worst_rows(self.most_shown)}

    def notes(self) -> list[str]:
        """What was refused, and what the numbers are."""
        refused = self.table["error"].dropna().value_counts().items()
        meaning = "regret: latency over the best found on the same kernel; over_fastest: on any of these"
        return [*(f"{count} without a result: {reason}" for reason, count in refused), meaning]

    def worst(self, count: int = 10) -> pd.DataFrame:
        """Rows of largest regret, ties left out."""
        lost = finished(self.table)
        lost = lost[lost["regret"] > 1 + TIE]
        return lost.sort_values("regret", ascending=False, kind="stable").head(count)

    def summary(self) -> list[Row]:
        """One row per device and policy: geometric mean, largest, and how often it loses over 5%."""
        rows = []
        done = finished(self.table)
        for (device, policy), group in done.groupby(["device", "policy"], sort=False):
            regret = group["regret"].to_numpy(dtype=float)
            rows.append(
                {
                    "device": device,
                    "policy": policy,
                    "cells": len(regret),
                    "mean_regret": f"{math.exp(np.log(regret).mean()):.3f}",
                    "worst": f"{regret.max():.3f}",
                    "over_5%": f"{(regret > 1.05).mean():.0%}",
                    "never_split": f"{(group['most_splits'] == 1).mean():.0%}",
                    "over_fastest": f"{math.exp(np.log(group['over_fastest']).mean()):.3f}",
                }
            )
        return rows

    def worst_rows(self, count: int = 10) -> list[Row]:
        """The worst rows as people read them: where, how much, what would have been best, and why."""
        told = [c for c in varying(self.table) if c not in ("device", "seed")]
        rows = []
        for row in self.worst(count).to_dict("records"):
            where = " ".join(f"{column}={row[column]}" for column in told if row[column] is not None)
            rows.append(
                {
                    "device": row["device"],
                    "policy": row["policy"],
                    "where": where,
                    "regret": f"{row['regret']:.2f}",
                    "latency_us": f"{row['latency_s'] * 1e6:.1f}",
                    "best": f"{row['oracle_policy']}: {row['oracle_splits']}",
                    "why": row["reason"],
                }
            )
        return rows


def regret(
    config: str | Path | PointGrid,
    settings: Sequence[str] = (),
    jobs: int | None = None,
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> RegretMap:
    """Search every cell of a sweep file and hold its kernels' own split choices against the best.

    `jobs` processes (None: one per core) take a cell at a time; `budget` is as in `oracle`. Nothing is
    stored on the way: an interrupted run starts anew. Raises `WorkerError`, or `LeansimError` if
    every policy of every cell was refused.
    """
    grid = config if isinstance(config, PointGrid) else load(config, settings)
    cells = list(cells_of(grid.points()))
    rows = list(itertools.chain(*spread(partial(cell_rows, budget=budget), cells, jobs, progress)))
    points = [point for cell in cells for point in cell]
    results = results_table(points, rows, keyed_all(points)[1])
    if results["error"].notna().all():
        raise LeansimError(f"every point was refused; the first: {results['error'].iloc[0]}")
    return RegretMap(grid, results)


def cells_of(points: Sequence[Point]) -> Iterator[Cell]:
    """Group points that differ in kernel and partitioner alone, in order."""
    cells: dict[str, list[Point]] = {}
    for point in points:
        key = point.model_dump_json(exclude={"kernel", "partitioner"})
        cells.setdefault(key, []).append(point)
    yield from map(tuple, cells.values())


def cell_rows(cell: Cell, budget: int = BUDGET) -> list[Row]:
    """Search one cell, once for each kernel in it, and describe every policy."""
    rows: dict[int, Row] = {}
    families: dict[str, list[tuple[int, Resolved]]] = {}
    for i, point in enumerate(cell):
        try:
            resolved = resolve(point)
            families.setdefault(family(resolved.kernel), []).append((i, resolved))
        except LeansimError as error:
            rows[i] = {"error": f"{type(error).__name__}: {error}"}
    fastest_s = math.inf
    for members in families.values():
        found, best_s = _family_rows(members, budget)
        rows |= found
        fastest_s = min(fastest_s, best_s)
    for row in rows.values():
        if "latency_s" in row:
            row["over_fastest"] = row["latency_s"] / fastest_s
    return [{"policy": point.policy, "error": None, **rows[i]} for i, point in enumerate(cell)]


def family(kernel: Kernel) -> str:
    """What two kernels share if they differ in name and split rule alone."""
    named = {"name", "description", "sources", "partitioner"}
    return json.dumps(kernel.model_dump(mode="json", exclude=named), sort_keys=True)


def _family_rows(members: Sequence[tuple[int, Resolved]], budget: int) -> tuple[dict[int, Row], float]:
    """Rows of policies on one kernel, by their place in the cell, and the best latency found."""
    bench = Bench(members[0][1])
    rules = [Rule(resolved.point.policy, resolved.partitioner) for _, resolved in members]
    try:
        oracle = search(bench, rules, budget=budget)
    except LeansimError as error:
        return {i: {"error": f"{type(error).__name__}: {error}"} for i, _ in members}, math.inf
    refused = dict(oracle.refused)
    policies = {policy.name: policy for policy in oracle.policies}
    rows: dict[int, Row] = {}
    for i, resolved in members:
        name = resolved.point.policy
        if name in refused:
            rows[i] = {"error": refused[name]}
        else:
            rows[i] = _row(bench, oracle, policies[name])
    return rows, oracle.best.latency_s


def _row(bench: Bench, oracle: Oracle, policy: Policy) -> Row:
    lens = bench.resolved.workload.context_lens
    return {
        "requests": len(lens),
        "mean_context_len": sum(lens) / len(lens),
        "num_splits": policy.num_splits,
        "cuts": policy.cuts,
        "most_splits": max(policy.splits),
        "num_ctas": policy.num_ctas,
        "sm_busy_fraction": policy.sm_busy_fraction,
        "latency_s": policy.latency_s,
        "oracle_s": oracle.best.latency_s,
        "oracle_policy": oracle.best.name,
        "oracle_splits": oracle.best.cuts,
        "regret": oracle.regret(policy),
        "bound_s": oracle.bound.latency_s,
        "reason": _reason(bench, oracle, policy),
    }


def _reason(bench: Bench, oracle: Oracle, policy: Policy) -> str:
    if oracle.regret(policy) < 1 + TIE:
        return ""
    slow, fast = (bench.simulation(one.partitioner) for one in (policy, oracle.best))
    return why_slower(facts_of(slow), facts_of(fast))
