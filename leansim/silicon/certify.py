"""Says how right the model is on one card for the kernels of measured rows, before and after a fit.

A fifth of the batches, by hash, is fitted: the few own times of each instance (`own_times`). All other
rows test. Numbers of the card are read off micro-measurements or stay as they are (`card`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.answers import Shown
from leansim.arrays import BoolArray
from leansim.errors import ConfigError, Problem, StoreError, UnknownNameError
from leansim.points.point import Point
from leansim.silicon import own_times as owned
from leansim.silicon.card import Micro, direct
from leansim.silicon.evaluating import Model
from leansim.silicon.fit import Fit, FittedConstant, Free, edited_files, fit_to, rests_on
from leansim.silicon.own import own_rows
from leansim.silicon.rows import FIT_EVERY, digest, together
from leansim.silicon.targets import Target, value_at, with_bases
from leansim.silicon.validate import errors_of, validate
from leansim.specs import catalog
from leansim.sweeps.executors import cores

if TYPE_CHECKING:
    import pandas as pd

WITHIN = 0.10
HOW_TO_MEASURE = (
    "wanted CSVs of measured points: `leansim measure micro -o micro.csv`, then `leansim measure "
    "campaign -o points.csv --budget-s 540` write them on a machine with an NVIDIA GPU"
)
_BY = "leansim certify"
# Numbers of a card that are fitted with the kernels, and how far they may go.
_OF_L2 = "l2_resident_fraction"
_OF_CARD = {"dram_efficiency": (0.6, 1.0), _OF_L2: (0.1, 1.0)}
_FEWEST_FOR_CARD = 12
# Rows of an instance that are fitted at least, if as many test it.
_FEWEST_OF_INSTANCE = 6
_NO_BATCH = {"device", "kernel", "partitioner", "num_splits", "num_sms"}
# Share of the most that a number may be, below which it is none.
_NONE = 1e-3


@dataclass(frozen=True, eq=False)
class Certification(Shown):
    """What became of measured rows of one card.

    `table` has a row for each, as of `validate`, with `before_s` and `error_before` as the files have it
    beside `predicted_s` and `error` after the fit; `fit` is None where there were too few rows for one.
    `card` are numbers of the card that were read off micro-measurements, with their sources.
    """

    device: str
    table: pd.DataFrame
    fit: Fit | None
    card: Mapping[Target, tuple[float, str]]
    within: float

    @property
    def constants(self) -> list[FittedConstant]:
        """Every fitted number, but those that no file said and no row asks for."""
        return _found(self.fit)

    @property
    def tested(self) -> pd.DataFrame:
        """The rows that nothing was fitted to and that have a prediction."""
        return self.table[(self.table["refused"] == "") & ~self.table["fitted"]]

    @property
    def passed(self) -> bool:
        """Whether every kernel has rows that test it and meets `within`, and no row was refused."""
        done = (self.table["refused"] == "").all()
        return bool(done and all(row["meets"] == "yes" for row in self.rows()))

    def rows(self) -> list[dict[str, Any]]:
        """Errors of each kernel on the rows that nothing was fitted to, before and after."""
        return [self._of_kernel(str(name), mine) for name, mine in self.table.groupby("kernel")]

    def notes(self) -> list[str]:
        """What the errors are of."""
        refused = int((self.table["refused"] != "").sum())
        rows = f"{len(self.tested):,} rows test, {int(self.table['fitted'].sum()):,} were fitted to"
        told = [f"{self.device}: {rows}; a kernel is to have a mean error of {self.within:.0%} at most."]
        return told + ([f"{refused:,} rows were refused: see `refused`."] if refused else [])

    def _of_kernel(self, name: str, mine: pd.DataFrame) -> dict[str, Any]:
        done = mine[mine["refused"] == ""]
        test = done[~done["fitted"]]
        before, after = errors_of(test["error_before"]), errors_of(test["error"])
        meets = len(test) > 0 and after["mean"] <= self.within
        return {
            "kernel": name,
            "fitted": int(done["fitted"].sum()),
            "tested": len(test),
            "before": f"{before['mean']:.1%}",
            "after": f"{after['mean']:.1%}",
            "bias": f"{after['bias']:+.1%}",
            "median": f"{after['median']:.1%}",
            "p90": f"{after['p90']:.1%}",
            "within 10%": f"{after['within_10']:.0%}",
            "meets": "yes" if meets else "no",
        }


def certify(
    points: str | Path | Sequence[str | Path],
    device: str | None = None,
    kernels: str | Sequence[str] | None = None,
    micro: str | Path | None = None,
    within: float = WITHIN,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    strict: bool = False,
) -> Certification:
    """Hold the model against measured rows of one card, fit a fifth, and say the error on the rest.

    `points` are CSVs of measured points, or what FlashInfer's benchmark writes. `device` is the card, in
    place of what rows say: a name, or a YAML file. `kernels` keeps rows by kernel. `micro` is what
    `leansim measure micro` wrote. `within` is the mean error that a kernel may have. Nothing is written:
    `leansim.report.certificate.write_certification` does that. Raises `ConfigError` for files, and where
    `strict` for rows, that make no sense, and `StoreError` where nothing is left or there is no SciPy.
    """
    files = [points] if isinstance(points, str | Path) else list(points)
    if not files:
        raise ConfigError("certify", [Problem("points", "none", HOW_TO_MEASURE)])
    rows = _chosen(_read(files, device, strict), kernels)
    card = _read_card(micro, str(rows["device"].iloc[0]))
    judged = validate(rows, jobs, progress)
    judged = judged.assign(before_s=judged["predicted_s"], error_before=judged["error"], fitted=False)
    usable = np.flatnonzero(judged["refused"].iloc[: len(rows)] == "")
    asked = rows.iloc[usable].reset_index(drop=True)
    asked = asked.assign(kernel=[owned.kernel_name(point) for point in asked["point"]])
    fixed = {target: value for target, (value, _) in card.items()}
    mine = to_fit(asked)
    fit = _fit(asked[mine], jobs, fixed)
    after = {constant.target: constant.after for constant in _found(fit)}
    with Model(list(after), asked, jobs or cores(), fixed) as model:
        seconds = model.seconds(np.array(list(after.values())))
    places = judged.index[usable]
    judged.loc[places, "predicted_s"] = seconds
    judged.loc[places, "kernel_s"] = seconds - judged.loc[places, "harness_s"]
    judged.loc[places, "fitted"] = mine
    judged["error"] = judged["predicted_s"] / judged["measured_s"] - 1.0
    return Certification(str(rows["device"].iloc[0]), judged, fit, card, within)


def _read(files: Sequence[str | Path], device: str | None, strict: bool) -> pd.DataFrame:
    """Rows of all files, which are of one card."""
    settings = [] if device is None else [f"device={device}"]
    rows = together([own_rows(file, device, settings, strict, FIT_EVERY) for file in files])
    if rows.empty:
        raise StoreError("certify: found no rows")
    if len(named := sorted(rows["device"].unique())) > 1:
        wanted = "wanted rows of one card: a certification is of one"
        raise ConfigError("certify", [Problem("device", ", ".join(named), wanted)])
    return rows


def _read_card(micro: str | Path | None, device: str) -> dict[Target, tuple[float, str]]:
    """What micro-measurements read directly of a card."""
    if micro is None:
        return {}
    read = direct(Micro(micro), catalog.device(device))
    return {Target("device", device, keys): said for keys, said in read.items()}


def _chosen(rows: pd.DataFrame, kernels: str | Sequence[str] | None) -> pd.DataFrame:
    """Rows of some kernels, under any partitioner. Raises `UnknownNameError`."""
    if kernels is None:
        return rows
    names = kernels.split(",") if isinstance(kernels, str) else list(kernels)
    known = {name.partition("+")[0] for name in rows["kernel"]}
    for name in names:
        if name not in known:
            raise UnknownNameError("kernel of these rows", name, known)
    kept = rows[[name.partition("+")[0] in names for name in rows["kernel"]]].reset_index(drop=True)
    kept.attrs = rows.attrs
    return kept


def to_fit(rows: pd.DataFrame) -> BoolArray:
    """Rows that are fitted: of the fifth, and under the kernel's own partitioner where some are.

    Of an instance that has few rows there, more in the order of a hash, up to half of all its rows.
    """
    own = np.array(["+" not in point.policy for point in rows["point"]], dtype=bool)
    usable = own | ~rows["kernel"].isin(set(rows["kernel"][own])).to_numpy()
    chosen: BoolArray = rows["fit"].to_numpy(dtype=bool) & usable
    places: dict[tuple[str, int], list[int]] = {}
    for at in np.flatnonzero(usable):
        places.setdefault(owned.instance_of_point(rows["point"].iloc[at]), []).append(int(at))
    for mine in places.values():
        wanted = min(_FEWEST_OF_INSTANCE, len(mine) // 2)
        others = sorted(
            (at for at in mine if not chosen[at]), key=lambda at: _order(rows["point"].iloc[at])
        )
        chosen[others[: max(0, wanted - int(chosen[mine].sum()))]] = True
    return chosen


def _order(point: Point) -> int:
    """A place by hash of a point's batch, the same under all kernels."""
    return digest(point.model_dump_json(exclude=_NO_BATCH))


def _fit(rows: pd.DataFrame, jobs: int | None, fixed: Mapping[Target, float]) -> Fit | None:
    """Own times, those of rows that share some together; then all once more with numbers of the card.

    None where there are too few rows for any.
    """
    times = owned.own_times(list(rows["point"]), list(rows["measured_s"]))
    found: list[Free] = []
    for places in _families(times):
        mine, some = rows.iloc[places], owned.free(times[at] for at in places)
        card = [replace(one, starts=one.starts * len(some[0].starts)) for one in _of_card(mine)]
        alone = fit_to(_BY, [*some, *card], mine, 1, fixed=fixed)
        after = {constant.target: constant.after for constant in alone.constants}
        found += [replace(one, starts=(after[one.target],)) for one in some]
    if not found:
        return None
    return fit_to(_BY, [*found, *_of_card(rows)], rows, jobs, fixed=fixed)


def _found(fit: Fit | None) -> list[FittedConstant]:
    constants = () if fit is None else fit.constants
    return [one for one in constants if one.before is not None or one.after > _NONE * one.bounds[1]]


def _families(times: Sequence[Sequence[owned.OwnTime]]) -> list[list[int]]:
    """Rows that depend on common numbers, directly or through others; rows without any are in none."""
    groups: list[tuple[set[Target], list[int]]] = []
    for at, mine in enumerate(times):
        targets = {one.target for one in mine}
        if not targets:
            continue
        near = [group for group in groups if group[0] & targets]
        groups = [group for group in groups if not group[0] & targets]
        merged = sorted({at, *(place for _, places in near for place in places)})
        groups.append((targets.union(*(known for known, _ in near)), merged))
    return [places for _, places in groups]


def _of_card(rows: pd.DataFrame) -> list[Free]:
    """Numbers of the card that only kernels show: what of DRAM they reach, what L2 keeps of a replay."""
    card = str(rows["device"].iloc[0])
    asked = [name for name in _OF_CARD if name != _OF_L2 or (rows["cache"] == "warm").any()]
    found = []
    for name in asked:
        target, (low, high) = Target("device", card, (name,)), _OF_CARD[name]
        start = min(max(value_at(target) or low, low), high)
        found.append(Free(target, (low, high), (start,)))
    return found if len(rows) >= _FEWEST_FOR_CARD else []


def files(found: Certification) -> dict[str, str]:
    """The files of a folder that `LEANSIM_CONFIGS` may name, by their names in it, as text.

    Each file that holds a changed number, edited, and those through which a measured kernel is based on
    it, so that a kernel and its base are found beside each other. The card's own file is always there.
    """
    values = {constant.target: constant.after for constant in found.constants}
    values |= {target: value for target, (value, _) in found.card.items()}

    def source(target: Target) -> str:
        if target in found.card:
            return found.card[target][1]
        assert found.fit is not None
        return f"fitted: {rests_on(found.fit, target)}"

    edited = edited_files(values, source)
    homes = {target.name for target in values if target.kind == "kernel"}
    wanted = [catalog.spec_path("device", found.device)]
    for name in sorted({str(kernel).partition("+")[0] for kernel in found.table["kernel"]}):
        line = with_bases(name)
        far = max((at for at, base in enumerate(line) if base in homes), default=-1)
        wanted += [catalog.spec_path("kernel", base) for base in line[: far + 1]]
    texts = {path: edited.get(path) or path.read_text(encoding="utf-8") for path in wanted}
    device = wanted[0]
    return {
        f"{'devices' if path == device else 'kernels'}/{path.name}": text for path, text in texts.items()
    }
