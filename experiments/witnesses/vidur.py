"""Vidur's A100 rows: FlashAttention-2's kvcache entry on uniform batches, told of 4,096 tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from comparing import Call, Part, band_of, errors, predicted, read, said

FILE = "vidur_a100_attention.csv"
TIME = "time_stats.attn_decode.median"
COLUMNS = ("n_q_head", "n_kv_head", "num_tensor_parallel_workers", "max_model_len",
           "batch_size", "kv_cache_size", "is_prefill", TIME)  # fmt: skip
KERNELS = ("flash_decoding_2_5_6", "flash_decoding", "vllm_fa2", "fa2")
KERNEL = KERNELS[0]
DEVICE = "a100_sxm_80gb"
# The kernel itself appends the new token: each CTA reads the new V, then the new K, before all else.
APPENDING = {"kernel.start.loads": 2}
# The last batch before each step.
CLIFFS = (21, 27, 54, 108)
SHORT, LONG, AROUND = 1025, 2049, 3


def rows_of(folder: Path) -> pd.DataFrame:
    """Decode rows: requests, tokens read (the new one is appended first), heads of a rank, time."""
    table = read(folder, FILE, COLUMNS)
    table = table[~table["is_prefill"]]
    ranks = table["num_tensor_parallel_workers"]
    return pd.DataFrame(
        {
            "batch_size": table["batch_size"],
            "context_len": table["kv_cache_size"] + 1,
            "told": table["max_model_len"],
            "q_heads": table["n_q_head"] // ranks,
            "kv_heads": table["n_kv_head"] // ranks,
            "measured_us": table[TIME] * 1e3,
        }
    ).reset_index(drop=True)


def simulated(rows: pd.DataFrame, kernel: str, cache: str = "warm") -> pd.DataFrame:
    """The rows with what a kernel is simulated to take for each."""
    points = [
        Call(DEVICE, row.q_heads, row.kv_heads, cache, "float16").point(
            kernel, [row.context_len] * row.batch_size, row.told, overrides=APPENDING
        )
        for row in rows.itertuples()
    ]
    return pd.concat([rows, predicted(points)], axis=1)


def steps(done: pd.DataFrame, column: str) -> pd.DataFrame:
    """Time of one request more over the time before: a row per batch before, a column per context."""
    table = done.pivot_table(column, "batch_size", "context_len")
    ratio = table.shift(-1) / table
    return ratio.loc[[batch for batch in ratio.index if batch + 1 in ratio.index]]


def cliffs(done: pd.DataFrame) -> pd.DataFrame:
    """Where the largest step near each cliff is, measured and simulated, and how high the cliff is."""
    both = {name: steps(done, f"{name}_us") for name in ("measured", "simulated")}
    found = []
    for cliff in CLIFFS:
        if cliff not in both["measured"].index:
            continue
        entry: dict[str, object] = {"cliff": f"{cliff} -> {cliff + 1}"}
        for name, ratio in both.items():
            near = ratio.loc[cliff - AROUND : cliff + AROUND]
            at = int(np.log(near).median(axis=1).abs().idxmax())
            entry[f"{name}_at"] = f"{at} -> {at + 1}"
        for ends, kept in (("short", lambda n: n <= SHORT), ("long", lambda n: n >= LONG)):
            for name, ratio in both.items():
                columns = [n for n in ratio.columns if kept(n)]
                entry[f"{name}_{ends}"] = float(ratio.loc[cliff, columns].median())
        found.append(entry)
    return pd.DataFrame(found)


def placed(steep: pd.DataFrame) -> int:
    """How many cliffs are simulated where they are measured."""
    return int((steep["measured_at"] == steep["simulated_at"]).sum()) if len(steep) else 0


def rule_errors(by_rule: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Errors of each kernel, and how many cliffs it has in the right place."""
    found = []
    for kernel, done in by_rule.items():
        (row,) = errors(done).drop(columns="rows of").to_dict("records")
        found.append({"kernel": kernel, **row, "cliffs in place": placed(cliffs(done))})
    return pd.DataFrame(found)


def part(folder: Path) -> tuple[Part, pd.DataFrame]:
    """What there is to say of these rows, and the rows with their predictions."""
    rows = rows_of(folder)
    by_rule = {kernel: simulated(rows, kernel) for kernel in KERNELS}
    done = by_rule[KERNEL].assign(band=lambda table: band_of(table["measured_us"]))
    rules = rule_errors(by_rule)
    best = rules.sort_values("mean")["kernel"].iloc[0]
    cold = errors(simulated(rows, KERNEL, "cold"))
    steep = cliffs(done)
    sentences = (
        f"With the split rule of FlashAttention up to 2.5.6 (`{KERNEL}`). {said(errors(done))}",
        f"It puts {placed(steep)} of {len(steep)} cliffs where they are measured. Of the four split "
        f"rules `{best}` has the smallest error.",
        f"With KV that has left L2 (`cache: cold`) the mean error would be {cold['mean'].iloc[0]:.1%}.",
    )
    tables = (
        ("Split rules", rules),
        ("By measured latency", errors(done, "band")),
        ("By number of splits", errors(done, "splits")),
        ("Cliffs: the time of one request more over the time before, medians over contexts", steep),
    )
    return Part("FlashAttention-2 on an A100 (vidur)", sentences, tables), done
