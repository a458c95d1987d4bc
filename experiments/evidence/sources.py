"""The experiments' errors as they stand in their CSVs: of published tables, our own cards, witnesses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from leansim.specs import catalog

EXPERIMENTS = Path(__file__).resolve().parent.parent
OWN = EXPERIMENTS / "own_gpus"
# Constants are fitted to rows of this card alone.
FITTED_CARD = "h200"
# Other people's measurements: a group of `witnesses/summary.csv`, and the kernel that ran.
WITNESSES = {
    ("FlashAttention-2 on an A100 (vidur)", "flash_decoding_2_5_6"): "flash_decoding_2_5_6",
    (
        "vLLM's FlashAttention-2 on an RTX 4090 (LLMServingSim)",
        "uniform, with the harness of l40s_vllm",
    ): "vllm_fa2",
    (
        "vLLM's FlashAttention-2 on an RTX PRO 6000 (LLMServingSim)",
        "uniform, with the harness of l40s_vllm",
    ): "vllm_fa2",
    ("vLLM's PagedAttention on an A40 (RelayAttention)", "vllm_paged_v1"): "vllm_paged_v1",
    ("vLLM's PagedAttention on an A40 (RelayAttention)", "vllm_paged_v2"): "vllm_paged_v2",
}


class Error(NamedTuple):
    """Size of the relative error of some rows of one kernel, and the share of rows within 10%."""

    kernel: str
    source: str
    rows: int
    mean: float
    within_10: float


def kinds() -> pd.DataFrame:
    """Errors of unseen rows of the published tables, by kernel and kind; `fits` as the tables say."""
    found = pd.read_csv(EXPERIMENTS / "silicon" / "kinds.csv")
    tables = {name: catalog.table(name) for name in found["table"].unique()}
    fits = {
        (name, source.name): source.fits
        for name, table in tables.items()
        for source in table.kernels.values()
    }
    pairs = zip(found["table"], found["kernel"], strict=True)
    return found.assign(fits=[fits[pair] for pair in pairs])


def own() -> pd.DataFrame:
    """Errors on our own cards, by file, kernel and setting; `rows_are` fitted to, or not (`test`)."""
    return pd.read_csv(OWN / "errors_by_file.csv")


def blind() -> pd.DataFrame:
    """What was said of rows of our own cards before anybody had seen them, by card and adapter.

    With the `evidence` that the catalogue gave then (at its `commit`); since then constants were fitted
    to half of the H200's.
    """
    return pd.read_csv(OWN / "blind.csv")


def witnesses() -> Iterator[Error]:
    """Errors on other people's measurements."""
    table = pd.read_csv(EXPERIMENTS / "witnesses" / "summary.csv")
    for (witness, group), kernel in WITNESSES.items():
        (row,) = table[(table["witness"] == witness) & (table["group"] == group)].itertuples()
        yield Error(kernel, witness, int(row.rows), float(row.mean), float(row.within_10))


def joined(rows: pd.DataFrame, kernel: str = "", source: str = "") -> Error:
    """Error tables of groups of rows as that of all their rows."""
    count = rows["rows"]
    mean, within = ((rows[name] * count).sum() / count.sum() for name in ("mean", "within_10"))
    return Error(kernel, source, int(count.sum()), float(mean), float(within))
