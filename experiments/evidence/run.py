"""Writes what simulated times rest on, from the results of the other experiments.

    python experiments/evidence/run.py [-o FOLDER]

Writes leansim/data/evidence (what was timed, and the error to expect of what was not) and the table of
rings in docs/accuracy.md; or all of it into FOLDER. Simulates nothing, so run it after
experiments/own_gpus/report.py, experiments/silicon/run.py and experiments/witnesses/run.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rings import rings
from sources import FITTED_CARD, OWN, Error, blind, joined, kinds, own, witnesses

from leansim.answers import Row, render
from leansim.checkout.scripts import parser_of, write_part
from leansim.files.writing import write_whole
from leansim.points.point import resolve
from leansim.silicon.own import own_rows
from leansim.silicon.rows import covered
from leansim.silicon.validate import PLAIN_HEAD_DIMS
from leansim.specs import catalog
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.evidence import CLASSES, MEASURED, RAGGED, UNIFORM, origin
from leansim.specs.harness import Validated

HERE = Path(__file__).resolve().parent
ACCURACY = HERE.parent.parent / "docs" / "accuracy.md"
_GROUP = ["kernel", "launch", "cache", "page_tokens", "batch"]


def main() -> None:
    """Write."""
    out = parser_of(__doc__, HERE).parse_args().out
    folder = MEASURED.parent if out == HERE else out
    write_whole(folder / MEASURED.name, csv([*of_tables(), *of_our_cards()]))
    write_whole(folder / CLASSES.name, csv(list(class_rows())))
    text = f"Written by `python experiments/evidence/run.py`; do not edit.\n\n{render(rings(), 'md')}\n"
    write_part(ACCURACY, "rings", text, out, HERE)


def of_tables() -> Iterator[Row]:
    """What the published tables cover: a row for each table, kernel and kind of row."""
    for row in kinds().itertuples():
        table = catalog.table(str(row.table))
        setting = {
            "kernel": row.kernel,
            "device": table.device,
            "source": f"table {table.name}, {row.kind}",
            "launch": table.launch,
            "cache": table.cache,
            "page_tokens": table.page_tokens,
            "batch": UNIFORM,
        }
        ranges = of_kind(table.validated[str(row.kernel)], str(row.kind))
        yield {**setting, **_ranges(ranges), **_errors(row.rows, row.mean, row.within_10)}


def of_kind(whole: Validated, kind: str) -> Validated:
    """The part of a table's range that a kind of its rows covers; see `kinds_of`."""
    plain = [dim for dim in whole.head_dims if dim in PLAIN_HEAD_DIMS]
    dims = {"plain": plain, "other head dim": [dim for dim in whole.head_dims if dim not in plain]}
    size = 1 if "8-bit" in kind else 2
    return whole.model_copy(
        update={
            "head_dims": tuple(dims.get(kind, whole.head_dims)),
            "kv_dtypes": tuple(d for d in whole.kv_dtypes if DTYPE_BYTES[d] == size),
            "windows": ("window" in kind,),
        }
    )


def of_our_cards() -> Iterator[Row]:
    """What was timed on our own cards: a row for each file, kernel and setting."""
    tests = own()[lambda rows: rows["rows_are"] == "test"]
    for (card, file), errors in tests.groupby(["card", "file"]):
        rows = own_rows(OWN / card / f"{file}.csv")
        loads = [resolve(point).workload for point in rows["point"]]
        shortest = [min(load.context_lens) for load in loads]
        rows = rows.assign(
            page_tokens=[load.page_tokens for load in loads],
            shortest=shortest,
            batch=np.where(rows["context_len"] == shortest, UNIFORM, RAGGED),
        )
        for (device, *values), mine in rows.groupby(["device", *_GROUP]):
            setting = dict(zip(_GROUP, values, strict=True))
            error = _error_of(errors, setting)
            ranges = covered(mine)[setting["kernel"]]
            longest = ranges.context_len[1]
            ranges = ranges.model_copy(update={"context_len": (int(mine["shortest"].min()), longest)})
            head = {"kernel": setting.pop("kernel"), "device": device, "source": f"{card}/{file}.csv"}
            yield {**head, **setting, **_ranges(ranges), **_errors(*error[2:])}


def _error_of(errors: pd.DataFrame, setting: dict[str, Any]) -> Error:
    for name in ("kernel", "cache", "page_tokens", "batch"):
        errors = errors[errors[name] == setting[name]]
    return joined(errors)


def _ranges(ranges: Validated) -> Row:
    spans = ("batch_size", "context_len", "group_size", "kv_bytes")
    return {
        "head_dims": " ".join(map(str, ranges.head_dims)),
        "kv_dtypes": " ".join(ranges.kv_dtypes),
        "windows": " ".join("yes" if windowed else "no" for windowed in ranges.windows),
        **{name: "{}-{}".format(*getattr(ranges, name)) for name in spans},
    }


def _errors(rows: Any, mean: Any, within_10: Any) -> Row:
    return {"rows": int(rows), "mean_error": f"{mean:.4f}", "within_10": f"{within_10:.4f}"}


def unfitted() -> Iterator[Error]:
    """Errors of each kernel on each device and data that none of its constants were fitted to."""
    tables = kinds()[lambda rows: ~rows["fits"]]
    for (table, kernel), mine in tables.groupby(["table", "kernel"]):
        yield joined(mine, str(kernel), str(table))
    cards = own()[lambda rows: rows["rows_are"] == "test"]
    for (card, kernel), mine in cards.groupby(["card", "kernel"]):
        if card != FITTED_CARD or origin(kernel.partition("+")[0]) != "carried":
            yield joined(mine, str(kernel), str(card))
    yield from witnesses()


def unseen() -> Iterator[tuple[str, Error]]:
    """Errors that no constant was fitted to, with the class: as it is, or as it was said blindly."""
    for error in unfitted():
        yield origin(error.kernel.partition("+")[0]), error
    for (card, adapter, evidence), mine in blind().groupby(["card", "adapter", "evidence"]):
        yield str(evidence), joined(mine, str(adapter), f"{card}, blind")


def class_rows() -> Iterator[Row]:
    """The error to expect of each class, the mean over kernels and sources, each counting alike."""
    found = list(unseen())
    for evidence in ("carried", "counted", "assumed"):
        mine = [error for of, error in found if of == evidence]
        mean, within = (sum(error[at] for error in mine) / len(mine) for at in (3, 4))
        errors = _errors(sum(error.rows for error in mine), mean, within)
        yield {"evidence": evidence, "sources": len(mine), **errors}


def csv(rows: Sequence[Row]) -> str:
    """Rows as a CSV."""
    return render(rows, "csv") + "\n"


if __name__ == "__main__":
    main()
