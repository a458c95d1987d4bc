"""Holds predictions against measured latencies: one row per measurement, and errors by regime.

An error is predicted over measured, less one: below zero the model is too fast. What is compared is
the kernel's predicted latency plus the measured table's named harness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim.errors import LeansimError, StoreError
from leansim.points.point import Point
from leansim.points.settings import overrides_of
from leansim.silicon.own import own_rows
from leansim.silicon.rows import SHAPE, Harnesses, Split, of_split, together
from leansim.specs import catalog
from leansim.sweeps.predict import predict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

BANDS = ((30e-6, "< 30 us"), (300e-6, "30-300 us"), (float("inf"), "> 300 us"))
_GROUPS = ((1, "1"), (4, "2-4"), (8, "5-8"), (16, "9-16"), (64, "17-64"), (float("inf"), "> 64"))
# Columns of a regime, and how the reports call them.
REGIMES = {
    "band": "measured latency",
    "group": "query heads per KV head",
    "split": "schedule",
    "l2": "KV in L2",
    "kv_dtype": "KV dtype",
    "window": "window",
    "head_dim": "head dim",
}
# Each a thousandth of the one before.
_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_PREDICTED = ("num_splits", "num_ctas", "bound", "sm_busy_fraction")
# Measured times closer than this do not say which of two schedules is faster.
_RANKED_APART = 0.10


def validate(
    rows: pd.DataFrame,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    settings: Sequence[str] = (),
) -> pd.DataFrame:
    """Predict measured rows (columns: `rows.ROW_COLUMNS`), in this order.

    In place of the point come `kernel_s` (the kernel alone), `harness_s`, `predicted_s`, `error`, the
    schedule's splits and CTAs, the regimes of each row (`REGIMES`), and `refused`: why a row has no
    prediction, or nothing. Rows that were no measurement (`attrs["refused"]`) come last.
    `settings` are overrides, as `device.num_sms=66`. Raises `ConfigError` for others, and `StoreError`
    where no row has a prediction.
    """
    import pandas as pd

    changed = overrides_of(settings)
    points: Iterable[Point] = rows["point"]
    if changed:
        points = [one.model_copy(update={"overrides": {**one.overrides, **changed}}) for one in points]
    found: list[dict[str, Any]] = []
    progress(0, len(rows))
    for done, outcome in enumerate(predict(points, jobs), start=1):
        if isinstance(outcome, LeansimError):
            found.append({"refused": f"{type(outcome).__name__}: {outcome}"})
        else:
            predicted = {name: getattr(outcome, name) for name in _PREDICTED}
            found.append({"kernel_s": outcome.latency_s, "refused": "", **predicted})
        progress(done, len(rows))
    if found and all(item["refused"] for item in found):
        raise StoreError(f"found no row that can be predicted; the first: {found[0]['refused']}")
    columns = ["kernel_s", "refused", *_PREDICTED]
    known = rows.drop(columns=["point", *columns], errors="ignore").reset_index(drop=True)
    validated = known.join(pd.DataFrame(found, columns=columns))
    validated["harness_s"] = Harnesses(rows).seconds(validated["kernel_s"].to_numpy())
    validated["predicted_s"] = validated["kernel_s"] + validated["harness_s"]
    validated["error"] = validated["predicted_s"] / validated["measured_s"] - 1.0
    judged = _with_unread(with_regimes(validated), rows.attrs.get("refused", []))
    judged.attrs = {"refused": [], **rows.attrs}
    return judged


def _with_unread(judged: pd.DataFrame, unread: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows that were no measurement below the others: what of their cells fits a column."""
    import pandas as pd

    if not unread:
        return judged
    cells = pd.DataFrame(list(unread)).reindex(columns=judged.columns).assign(fit=False)
    for name in judged.columns:
        if name != "fit" and pd.api.types.is_numeric_dtype(judged[name]):
            cells[name] = pd.to_numeric(cells[name], errors="coerce")
    return pd.concat([judged, cells], ignore_index=True)


def validate_points(
    file: str | Path,
    device: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    split: Split = "all",
    settings: Sequence[str] = (),
    strict: bool = False,
) -> pd.DataFrame:
    """Predict measurements of one's own (see `own_rows`); columns as of `validate`.

    `split` keeps the fifth that constants may be fitted to, or the rest. Raises `UnknownNameError`,
    and `StoreError` where nothing is left.
    """
    rows = together([own_rows(file, device, settings, strict)])
    kept = of_split(rows, split).reset_index(drop=True)
    if kept.empty:
        raise StoreError(f"{file}: found no point of the {split} split")
    return validate(kept, jobs, progress)


def with_regimes(validated: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of `REGIMES` that are not there."""
    import numpy as np

    groups = validated["num_q_heads"] // validated["num_kv_heads"]
    resident = validated["device"].map(
        {name: _resident_bytes(name) for name in validated["device"].unique()}
    )
    inside = validated["kv_bytes"].to_numpy() / resident.to_numpy(dtype=float)
    inside = np.where(validated["cache"] == "cold", np.inf, inside)  # not as a replay leaves it
    return validated.assign(
        band=_binned(validated["measured_s"].to_numpy(), BANDS),
        group=_binned(groups.to_numpy(), _GROUPS),
        split=np.where(validated["num_splits"].fillna(1).to_numpy() > 1, "split", "unsplit"),
        l2=np.where(inside <= 1, "all", np.where(inside < 2, "part", "none")),
    )


def _resident_bytes(name: str) -> float:
    """KV that a replay finds in L2 whole, as the model has it."""
    device = catalog.device(name)
    return device.l2_resident_fraction * device.l2_bytes


def _binned(values: npt.NDArray[np.float64], bins: Sequence[tuple[float, str]]) -> list[str]:
    """Name of the first bin that each value is not above."""
    return [next(name for top, name in bins if value <= top) for value in values]


def errors_of(errors: pd.Series[float]) -> dict[str, Any]:
    """Rows, signed mean (`bias`), and mean, median, 90th percentile and share under 10% of |error|."""
    size = errors.abs()
    return {
        "rows": len(errors),
        "bias": errors.mean(),
        "mean": size.mean(),
        "median": size.median(),
        "p90": size.quantile(0.9),
        "within_10": (size <= 0.1).mean(),
    }


def error_table(validated: pd.DataFrame, regimes: Sequence[str] = tuple(REGIMES)) -> pd.DataFrame:
    """Errors per table and kernel: over all rows, and by each regime that has several values."""
    import pandas as pd

    done = validated[validated["refused"] == ""]
    rows = []
    for (name, kernel), mine in done.groupby(["table", "kernel"], sort=True):
        head = {"table": name, "device": mine["device"].iloc[0], "kernel": kernel}
        rows.append({**head, "regime": "all", "value": "", **errors_of(mine["error"])})
        for regime in regimes:
            if mine[regime].nunique() < 2:
                continue
            for value in _in_order(regime, mine[regime]):
                part = mine.loc[mine[regime] == value, "error"]
                rows.append({**head, "regime": regime, "value": str(value), **errors_of(part)})
    return pd.DataFrame(rows)


KINDS = ("plain", "other head dim", "8-bit KV", "window", "8-bit KV, window")
PLAIN_HEAD_DIMS = (64, 128, 256)


def kinds_of(rows: pd.DataFrame, plain_head_dims: Sequence[int] = PLAIN_HEAD_DIMS) -> pd.Series[Any]:
    """Which of `KINDS` each row is.

    `plain` rows are what most people run: 16-bit KV, no window, and a plain head dim.
    """
    import pandas as pd

    small, windowed = rows["kv_dtype"] == "fp8", rows["window"] > 0
    kind = pd.Series("plain", index=rows.index)
    kind[~rows["head_dim"].isin(plain_head_dims)] = "other head dim"
    kind[small], kind[windowed], kind[small & windowed] = KINDS[2:]
    return kind


def kind_table(
    validated: pd.DataFrame, plain_head_dims: Sequence[int] = PLAIN_HEAD_DIMS
) -> pd.DataFrame:
    """Errors per table, kernel and kind of row, with the bias of each latency band.

    Kinds are those of `kinds_of`.
    """
    import pandas as pd

    done = validated[validated["refused"] == ""]
    kind = kinds_of(done, plain_head_dims)
    rows = []
    for (name, kernel), mine in done.groupby(["table", "kernel"], sort=True):
        for label in KINDS:
            part = mine[kind[mine.index] == label]
            if part.empty:
                continue
            bands = part.groupby("band")["error"].mean()
            bias = {f"bias {band}": bands.get(band, float("nan")) for _, band in BANDS}
            head = {"table": name, "kernel": kernel, "kind": label}
            rows.append({**head, **errors_of(part["error"]), **bias})
    return pd.DataFrame(rows)


def _in_order(regime: str, values: pd.Series[Any]) -> list[Any]:
    bins = {"band": BANDS, "group": _GROUPS}.get(regime)
    present = set(values.unique())
    return [name for _, name in bins if name in present] if bins else sorted(present)


def worst_rows(validated: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """The rows that the model is furthest from, by ratio, with their schedules."""
    done = validated[validated["refused"] == ""]
    ratio = done["predicted_s"] / done["measured_s"]
    far = ratio.where(ratio > 1, 1 / ratio).sort_values(ascending=False)
    columns = ["table", "kernel", *SHAPE, "num_splits", "num_ctas", "bound"]
    worst = done.loc[far.index[:most]]
    return worst[columns].assign(
        num_splits=worst["num_splits"].astype(int),
        num_ctas=worst["num_ctas"].astype(int),
        measured_us=worst["measured_s"] * 1e6,
        predicted_us=worst["predicted_s"] * 1e6,
        error=worst["error"],
    )


def ranking(validated: pd.DataFrame) -> pd.DataFrame:
    """How often the model says rightly whether the split or the unsplit schedule is faster.

    Pairs are rows of one table and kernel that read the same KV (equal batch, KV heads, head dim,
    window, dtype, context) with different group sizes, one split and the other not, with measured
    times more than 10% apart. `always_split` is the share that saying "split" each time would get.
    """
    import pandas as pd

    done = validated[validated["refused"] == ""]
    keys = ["table", "kernel", *(name for name in SHAPE if name != "num_q_heads")]
    few = ["num_q_heads", "measured_s", "predicted_s"]
    parts = {name: done.loc[done["split"] == name, [*keys, *few]] for name in ("split", "unsplit")}
    pairs = parts["split"].merge(parts["unsplit"], on=keys, suffixes=("", "_unsplit"))
    ratio = pairs["measured_s"] / pairs["measured_s_unsplit"]
    pairs = pairs[(ratio > 1 + _RANKED_APART) | (ratio < 1 / (1 + _RANKED_APART))]
    faster = pairs["measured_s"] < pairs["measured_s_unsplit"]
    said = pairs["predicted_s"] < pairs["predicted_s_unsplit"]
    pairs = pairs.assign(right=faster == said, faster=faster)
    rows = [
        {
            "table": name,
            "kernel": kernel,
            "pairs": len(mine),
            "right": mine["right"].mean(),
            "always_split": mine["faster"].mean(),
        }
        for (name, kernel), mine in pairs.groupby(["table", "kernel"])
    ]
    return pd.DataFrame(rows, columns=["table", "kernel", "pairs", "right", "always_split"])


def refusals(validated: pd.DataFrame) -> Iterator[str]:
    """Sentences on rows left out of the tables and rows that have no prediction."""
    for name, reasons in validated.attrs.get("left_out", {}).items():
        for reason, count in reasons.items():
            yield f"{name}: {count:,} rows left out: {reason}"
    refused = validated[validated["refused"] != ""]
    for (name, reason), mine in refused.groupby(["table", "refused"]):
        yield f"{name}: {len(mine):,} rows without a prediction: {reason}"
    yield from _other_units(validated)


def _other_units(validated: pd.DataFrame) -> Iterator[str]:
    """Tables whose times look as if they were in another unit than that of their column."""
    import numpy as np

    done = validated[validated["refused"] == ""]
    for name, (column, unit) in validated.attrs.get("time", {}).items():
        mine = done[done["table"] == name]
        if mine.empty:
            continue
        ratio = float((mine["predicted_s"] / mine["measured_s"]).median())
        steps = round(np.log10(ratio) / 3)
        at = _UNITS.index(unit) - steps
        if steps and 0 <= at < len(_UNITS):
            yield (
                f"{name}: predictions are {ratio:,.4g} times what was measured: {column} holds {unit}; "
                f"are these {_UNITS[at]}?"
            )
