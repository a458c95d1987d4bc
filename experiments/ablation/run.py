"""Takes each mechanism out of the time model, one at a time, and writes what errors become.

    python experiments/ablation/run.py [--sample N] [--only NAME] [--data FOLDER] [-o FOLDER]

Wants the extra `silicon`. Of each measured table, kernel and kind of row it takes the first N rows (in
the order of a hash) that no constant was fitted to. No constant is fitted anew after a removal. Writes
errors.csv and RESULTS.md here, and the summary in docs/residuals.md, or all of it into the folder of
-o; with --only it prints instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_validator, model_validator

from leansim.answers import render
from leansim.checkout.scripts import parser_of, write_part
from leansim.errors import UnknownNameError
from leansim.files.strict_yaml import read
from leansim.files.writing import write_whole
from leansim.points.point import Point, Resolved, resolve
from leansim.silicon.own import holds_points, own_rows
from leansim.silicon.published import table_rows
from leansim.silicon.rows import ROW_COLUMNS, Harnesses, together
from leansim.silicon.validate import KINDS, kinds_of, validate
from leansim.specs import catalog
from leansim.specs.base import Spec
from leansim.specs.device import Device
from leansim.specs.harness import HarnessTerm, MeasuredTable
from leansim.specs.instance import Instance, LoopNumbers, instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.overrides import overridden
from leansim.sweeps.executors import cores
from leansim.sweeps.progress import Progress
from leansim.timing.loops.registry import make
from leansim.timing.loops.tile import TileLoop

HERE = Path(__file__).resolve().parent
RESIDUALS = HERE.parent.parent / "docs" / "residuals.md"
OWN, FITTED_ON = HERE.parent / "own_gpus", "h200"
# A mechanism that earns less on every table and kind, and is no exact fact of the code, goes.
LEAST_POINTS = 0.3
# Rows of a table that are looked through for each that is wanted of every kind.
_LOOKED_THROUGH = 40
GROUP = ["table", "kernel", "kind"]


class Mechanism(Spec):
    """One entry of mechanisms.yaml, which says what the fields are."""

    name: str
    what: str
    kind: Literal["code", "physics", "fitted"]
    source: str = ""
    overrides: dict[str, Any] = Field(default_factory=dict)
    harness: dict[str, dict[str, Any]] = Field(default_factory=dict)
    table: dict[str, Any] = Field(default_factory=dict)
    point: dict[str, Any] = Field(default_factory=dict)
    where: dict[str, int | str | tuple[int | str, ...]] = Field(default_factory=dict)

    @field_validator("harness")
    @classmethod
    def _of_terms(cls, harness: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in (name for numbers in harness.values() for name in numbers):
            if name not in HarnessTerm.model_fields:
                raise UnknownNameError("number of a harness term", name, HarnessTerm.model_fields)
        return harness

    @property
    def is_beside(self) -> bool:
        """Whether it is of what a latency contains beside the kernels, which take what they took."""
        return bool(self.harness or self.table)

    @model_validator(mode="after")
    def _facts_have_a_source(self) -> Mechanism:
        if self.kind == "code" and not self.source:
            raise ValueError("wanted a source: an exact fact of the code stands somewhere")
        return self


class Mechanisms(Spec):
    """mechanisms.yaml."""

    mechanisms: tuple[Mechanism, ...]


def mechanisms() -> dict[str, Mechanism]:
    """All of them by name."""
    read_ = catalog.validate(Mechanisms, read(HERE / "mechanisms.yaml")).mechanisms
    return {one.name: one for one in read_}


def sampled(sample: int, data: Path | None = None) -> pd.DataFrame:
    """Measured rows that no constant was fitted to: `sample` of each table, kernel and kind."""
    own = own_cards() if data is None else ()
    rows = together([table_rows((), "test", sample * _LOOKED_THROUGH, data), *own])
    rows["kind"] = kinds_of(rows)
    return rows.groupby(GROUP, sort=False).head(sample).reset_index(drop=True)


def own_cards() -> Iterator[pd.DataFrame]:
    """Rows of kernels timed alone on our own cards, a table each, without those that fit constants."""
    for card in ("h200", "h100"):
        for file in sorted((OWN / card).glob("*.csv")):
            if holds_points(file):
                rows = own_rows(file)
                tests = rows if card != FITTED_ON else rows[~rows["fit"].astype(bool)]
                yield tests[list(ROW_COLUMNS)].assign(table=f"own_{card}").reset_index(drop=True)


def touched(mechanism: Mechanism, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of which a number changes without the mechanism, with their points as they are then."""
    if mechanism.is_beside:
        published = set(rows["table"]) & set(catalog.names("table"))
        return rows[rows["table"].isin([name for name in published if _is_of(mechanism, name)])]
    for column, wanted in mechanism.where.items():
        rows = rows[rows[column].isin(wanted if isinstance(wanted, tuple) else (wanted,))]
    change = _Change(mechanism)
    points = list(map(change, rows["point"], rows["resolved"]))
    there = [point is not None for point in points]
    return rows[there].assign(point=[point for point in points if point is not None])


def _is_of(mechanism: Mechanism, name: str) -> bool:
    """Whether a measured table has one of its terms, or says otherwise than it would without."""
    table = catalog.table(name)
    terms = {term.name for term in table.harness}
    says = any(getattr(table, field) != value for field, value in mechanism.table.items())
    return says or bool(mechanism.harness.keys() & terms)


class _Change:
    """Takes a mechanism out of points; each kernel and device is changed once."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        parts: dict[str, dict[str, Any]] = {"device": {}, "kernel": {}}
        for path, value in mechanism.overrides.items():
            what, _, number = path.partition(".")
            parts[what][number] = value
        self.of_device, self.of_kernel = parts["device"], parts["kernel"]
        self.device, self.kernel = cache(self._device), cache(self._kernel)

    def __call__(self, point: Point, resolved: Resolved) -> Point | None:
        """The point without the mechanism, or None where it is none of it."""
        device, changed = self.device(point.device)
        kernel, numbers = self.kernel(point.kernel)
        changed |= any(getattr(point, name) != value for name, value in self.mechanism.point.items())
        if not changed:
            instance = instance_of(kernel, device, resolved.workload, resolved.is_split)
            if _priced(instance) == _priced(resolved.instance):
                return None
        overrides = {f"device.{name}": value for name, value in self.of_device.items()}
        overrides |= {f"kernel.{name}": value for name, value in numbers.items()}
        return point.model_copy(update={**self.mechanism.point, "overrides": overrides})

    def _device(self, name: str) -> tuple[Device, bool]:
        spec = catalog.device(name)
        changed = overridden(spec, self.of_device)
        return changed, _said(changed) != _said(spec)

    def _kernel(self, name: str) -> tuple[Kernel, dict[str, Any]]:
        """The kernel without it, and the numbers of it that the kernel has."""
        spec = catalog.kernel(name.partition("+")[0])
        mine = {path: value for path, value in self.of_kernel.items() if _has(spec, path)}
        return overridden(spec, mine), mine


def _priced(instance: Instance) -> tuple[Instance, TileLoop]:
    """An instance with its tile loop as that makes of its numbers: one that is the default is none."""
    loop = make(instance.loop, instance.kernel)
    return replace(instance, loop=LoopNumbers(instance.loop.name, ())), loop


def _said(spec: Device) -> dict[str, Any]:
    return spec.model_dump(exclude={"sources"})


def _has(kernel: Kernel, path: str) -> bool:
    """Whether a kernel has the tile loop, or the combine kernel, that a path is about."""
    part, _, rest = path.partition(".")
    if part == "combine":
        return kernel.combine is not None
    if part == "loops":
        return rest.partition(".")[0] in {kernel.loop(tile)[0] for tile in kernel.tiles}
    return True


def changed_tables(mechanism: Mechanism, names: Iterable[str]) -> dict[str, MeasuredTable]:
    """Tables by name, with their harness as it is without the mechanism."""
    changed = {}
    for name in names:
        table = catalog.table(name)
        of = mechanism.harness
        terms = tuple(term.model_copy(update=of.get(term.name, {})) for term in table.harness)
        changed[name] = table.model_copy(update={"harness": terms, **mechanism.table})
    return changed


def predicted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with their errors as the model is, and what each resolves to; without those it refuses."""
    with Progress("with all") as progress:
        found = validate(rows, cores(), progress)
    kept = (found["refused"] == "").to_numpy()
    columns = {name: found[name].to_numpy() for name in ("kernel_s", "error")}
    rows = rows.assign(**columns)[kept].reset_index(drop=True)
    return rows.assign(resolved=[resolve(point) for point in rows["point"]])


def ablated(chosen: Sequence[Mechanism], rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of the rows that each mechanism touches, with it (`error`) and `without`."""
    parts = []
    for mechanism in chosen:
        mine = touched(mechanism, rows).assign(mechanism=mechanism.name)
        if mechanism.is_beside and len(mine):
            changed = changed_tables(mechanism, set(mine["table"]))
            harness_s = Harnesses(mine).seconds(mine["kernel_s"].to_numpy(), changed)
            mine["without"] = (mine["kernel_s"] + harness_s) / mine["measured_s"] - 1.0
        parts.append(mine.drop(columns="resolved"))
    every = pd.concat(parts, ignore_index=True)
    asked = every["without"].isna() if "without" in every else pd.Series(data=True, index=every.index)
    if asked.any():
        with Progress("without one") as progress:
            found = validate(every[asked].drop(columns="error"), cores(), progress)
        every.loc[asked, "without"] = found["error"].to_numpy()
    return every.dropna(subset="without")


def errors(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Per mechanism, table, kernel and kind: mean error with and without it, and what it earns.

    In points (hundredths) of mean absolute error, `standard_error` that of what it earns. Rows that a
    mechanism does not touch count: their error is the same.
    """
    groups = {key: part["error"].abs() for key, part in rows.groupby(GROUP, sort=False)}
    found = []
    for (name, *key), mine in table.groupby(["mechanism", *GROUP], sort=False):
        group = groups[tuple(key)]
        worse = mine["without"].abs().to_numpy() - mine["error"].abs().to_numpy()
        count = len(group)
        mean = worse.sum() / count
        variance = max(0.0, (worse**2).sum() / count - mean**2)
        found.append(
            {
                "mechanism": name,
                **dict(zip(GROUP, key, strict=True)),
                "rows": count,
                "touched": len(mine),
                "with": round(100 * group.mean(), 3),
                "without": round(100 * (group.mean() + mean), 3),
                "earns": round(100 * mean, 3),
                "standard_error": round(100 * (variance / count) ** 0.5, 3),
            }
        )
    return pd.DataFrame(found)


def summary(chosen: Sequence[Mechanism], found: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row per mechanism: what it earns at most and at least, where, and what the rule says."""
    for mechanism in chosen:
        mine = found[found["mechanism"] == mechanism.name]
        row = {"mechanism": mechanism.name, "is": mechanism.kind}
        if mine.empty:
            yield {**row, "earns at most": "-", "on": "no row", "verdict": verdict(mechanism, 0.0)}
            continue
        most, least = mine.loc[mine["earns"].idxmax()], mine.loc[mine["earns"].idxmin()]
        paying = mine.loc[mine["earns"] >= LEAST_POINTS, "table"].nunique()
        yield {
            **row,
            "earns at most": f"{most['earns']:.2f}",
            "on": _place(most),
            "tables": f"{paying} of {mine['table'].nunique()}",
            "earns at least": f"{least['earns']:.2f}",
            "there": _place(least),
            "verdict": verdict(mechanism, float(most["earns"])),
        }


def verdict(mechanism: Mechanism, points: float) -> str:
    """What the rule says of a mechanism that earns so much at most."""
    if points >= LEAST_POINTS:
        return "earns its place"
    return "stays as a fact of the code" if mechanism.kind == "code" else "goes"


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['table']} {row['kernel']}, {row['kind']}"


def by_table(chosen: Sequence[Mechanism], found: pd.DataFrame) -> list[dict[str, Any]]:
    """What each mechanism earns on each table, the most of its kinds."""
    most = found.groupby(["mechanism", "table"])["earns"].max()
    tables = sorted(found["table"].unique())
    return [
        {
            "mechanism": one.name,
            **{t: f"{most[one.name, t]:.2f}" if (one.name, t) in most else "" for t in tables},
        }
        for one in chosen
    ]


def by_kind(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean error of the rows with all mechanisms, in points, per table, kernel and kind."""
    mean = 100 * rows.assign(error=rows["error"].abs()).groupby(GROUP)["error"].mean()
    count = rows.groupby(GROUP).size()
    heads = dict.fromkeys((table, kernel) for table, kernel, _ in mean.index)
    return [
        {
            "table": table,
            "kernel": kernel,
            **{
                kind: f"{mean[table, kernel, kind]:.2f} ({count[table, kernel, kind]})"
                if (table, kernel, kind) in mean
                else ""
                for kind in KINDS
            },
        }
        for table, kernel in heads
    ]


NOTES = """\
In points of mean absolute error. *With* is the model as it is, *without* the same without one
mechanism and **no constant fitted anew**: what a fitted number would take over counts as earned.
Rows are of the test split, the first {sample} of each table, kernel and kind in the order of a
hash; fewer where there are not so many. *own* tables are kernels timed alone
(experiments/own_gpus). *Earns at most* is the most on any table, kernel and kind; *tables*, on how
many it earns {least} points or more of those it touches; *earns at least*, where it earns least:
below zero, errors are smaller without. The rule: what earns less than {least} points everywhere and
is no exact fact of the code goes.
"""


def main() -> None:
    """Predict, take out, write."""
    parser = parser_of(__doc__, HERE)
    parser.add_argument("--sample", type=int, default=100, help="rows of each table, kernel and kind")
    parser.add_argument("--only", action="append", default=[], help="a mechanism by name; prints")
    parser.add_argument("--data", type=Path, help="a folder with <table>.csv, not what is installed")
    asked = parser.parse_args()
    known = mechanisms()
    for name in asked.only:
        if name not in known:
            raise UnknownNameError("mechanism", name, known)
    chosen = [known[name] for name in asked.only or known]
    rows = predicted(sampled(asked.sample, asked.data))
    found = errors(ablated(chosen, rows), rows)
    if asked.only:
        short = list(summary(chosen, found))
        print(render(found.to_dict("records"), "table"), render(short, "table"), sep="\n\n")
    else:
        write(chosen, rows, found, asked.sample, asked.out)


def write(
    chosen: Sequence[Mechanism], rows: pd.DataFrame, found: pd.DataFrame, sample: int, out: Path
) -> None:
    """Write errors.csv and RESULTS.md, and the summary in docs/residuals.md or beside them."""
    what = f"Written by `python experiments/ablation/run.py --sample {sample}`; do not edit."
    notes = NOTES.format(sample=sample, least=LEAST_POINTS)
    top = f"{what}\n\n{notes}\n{render(list(summary(chosen, found)), 'md')}"
    parts = {
        "# Results": top,
        "## What each earns on each table": f"The most of its kinds.\n\n{_md(by_table(chosen, found))}",
        "## Errors with all": f"Mean in points, and rows.\n\n{_md(by_kind(rows))}",
        "## The mechanisms": _md([_described(one) for one in chosen]),
    }
    write_whole(out / "errors.csv", found.to_csv(index=False))
    text = "\n\n".join(f"{title}\n\n{part}" for title, part in parts.items())
    write_whole(out / "RESULTS.md", text + "\n")
    write_part(RESIDUALS, "ablation", top, out, HERE)


def _md(rows: Sequence[Mapping[str, Any]]) -> str:
    return render(rows, "md")


def _described(mechanism: Mechanism) -> dict[str, str]:
    changes = {**mechanism.overrides, **mechanism.point}
    changes |= {f"harness {term}": numbers for term, numbers in mechanism.harness.items()}
    where = f" where {json.dumps(mechanism.where)}" if mechanism.where else ""
    return {
        "mechanism": mechanism.name,
        "what": mechanism.what,
        "is": mechanism.kind,
        "source": mechanism.source,
        "taken out by": ", ".join(f"`{k}: {json.dumps(v)}`" for k, v in changes.items()) + where,
    }


if __name__ == "__main__":
    main()
