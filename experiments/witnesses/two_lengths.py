"""LLMServingSim's decode batches of vLLM 0.19 on two cards: of one length, and of two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from comparing import Call, Part, band_of, errors, predicted, read, said

from leansim.specs import catalog

KERNEL = "vllm_fa2"
HARNESS = "l40s_vllm"
# A skewed batch's time is the sum of so many runs, a uniform one's is their mean.
ITERATIONS = 3
TIMES = {"mean": "t_mean_us", "max": "t_max_us", "skew": "t_skew_us"}
SKEW_COLUMNS = ("n", "nb", "pc", "kvs", "kv_big", "kv_mean", *TIMES.values())
UNIFORM_COLUMNS = ("prefill_chunk", "n_decode", "kv_decode", "time_us")
# The longest context that is one KV tile with the new token: most of its time is not the tile loop.
ONE_TILE = 127


@dataclass(frozen=True)
class Card:
    """A card, its files, and the model whose attention ran there."""

    title: str
    files: str
    call: Call


CARDS = (
    Card("RTX 4090", "llmservingsim_rtx4090_llama31_8b", Call("rtx_4090", 32, 8, "cold", "bfloat16")),
    Card(
        "RTX PRO 6000",
        "llmservingsim_rtxpro6000_qwen3_30b",
        Call("rtx_pro_6000_server", 32, 4, "cold", "bfloat16"),
    ),
)


def uniform(folder: Path, card: Card) -> pd.DataFrame:
    """Batches of one length without a prefill chunk, kernel alone and with a harness beside measured."""
    table = read(folder, f"{card.files}_attention.csv", UNIFORM_COLUMNS)
    table = table[(table["prefill_chunk"] == 0) & (table["n_decode"] > 0)]
    rows = pd.DataFrame(
        {"n": table["n_decode"], "kv": table["kv_decode"], "measured_us": table["time_us"]}
    ).reset_index(drop=True)
    points = [card.call.point(KERNEL, [row.kv + 1] * row.n) for row in rows.itertuples()]
    with_harness = predicted(points, HARNESS)["simulated_us"].rename("with_harness_us")
    return pd.concat([rows, predicted(points), with_harness], axis=1)


def skewed(folder: Path, card: Card) -> tuple[pd.DataFrame, int]:
    """Batches of two lengths, measured and simulated times of one run; how many rows have a chunk.

    Simulated as the table of `HARNESS` times a call, and as the kernel `alone`: the measured call
    appends the new token and copies query and output, as that does.
    """
    table = read(folder, f"{card.files}_skew.csv", SKEW_COLUMNS)
    pure = table[table["pc"] == 0].reset_index(drop=True)
    lens = {
        "mean": [[row.kv_mean] * row.n for row in pure.itertuples()],
        "max": [[row.kv_big] * row.n for row in pure.itertuples()],
        "skew": [[row.kv_big] * row.nb + [row.kvs] * (row.n - row.nb) for row in pure.itertuples()],
    }
    rows = pure[["n", "nb", "kvs", "kv_big", "kv_mean"]].copy()
    for name, column in TIMES.items():
        points = [card.call.point(KERNEL, [tokens + 1 for tokens in batch]) for batch in lens[name]]
        rows[f"simulated_{name}_us"] = predicted(points, HARNESS)["simulated_us"]
        rows[f"alone_{name}_us"] = predicted(points)["simulated_us"]
        rows[f"measured_{name}_us"] = pure[column] / ITERATIONS
    for kind in ("measured", "simulated", "alone"):
        rows[kind] = rows[f"{kind}_skew_us"] / rows[f"{kind}_mean_us"]
    return rows, len(table) - len(pure)


def ratio_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Error of the simulated cost of raggedness, by requests, beside that of saying there is none."""
    groups = [("all", rows), *((f"{n}", group) for n, group in rows.groupby("n"))]
    found = []
    for name, group in groups:
        error = group["simulated"] / group["measured"] - 1.0
        entry = {"requests": name, "rows": len(group), "bias": error.mean(), "mean": error.abs().mean()}
        entry["within_10"] = (error.abs() <= 0.1).mean()
        entry["mean saying 1"] = f"{(1.0 / group['measured'] - 1.0).abs().mean():.1%}"
        entry["measured"], entry["simulated"] = group["measured"].mean(), group["simulated"].mean()
        found.append(entry)
    return pd.DataFrame(found)


def time_errors(flat: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of absolute times: uniform batches, without and with the harness; and the three times."""
    named = {
        "uniform, kernel alone": flat,
        f"uniform, with the harness of {HARNESS}": flat.assign(simulated_us=flat["with_harness_us"]),
    }
    for name, column in TIMES.items():
        renamed = {f"{kind}_{name}_us": f"{kind}_us" for kind in ("measured", "simulated")}
        named[f"two lengths, {column}, with it"] = rows.rename(columns=renamed)
    return pd.concat([errors(table).assign(**{"rows of": name}) for name, table in named.items()])


def left_over(flat: pd.DataFrame) -> pd.DataFrame:
    """Measured less simulated, microseconds: medians by requests, of contexts of one tile and others."""
    over = flat.assign(left_us=flat["measured_us"] - flat["simulated_us"])
    short = over["kv"] <= ONE_TILE
    found = []
    for n, group in over.groupby("n"):
        parts = {"one tile": group[short[group.index]], "longer": group[~short[group.index]]}
        found.append(
            {"requests": n} | {f"left, {k} (us)": v["left_us"].median() for k, v in parts.items()}
        )
    return pd.DataFrame(found)


def _pace(flat: pd.DataFrame, card: Card) -> str:
    """What the times say about bandwidth: of the largest call, and of calls too fast for DRAM."""
    device = catalog.device(card.call.device)
    kv_bytes = flat["n"] * (flat["kv"] + 1) * card.call.num_kv_heads * 128 * 2 * 2
    pace = kv_bytes / (flat["measured_us"] * 1e-6)
    largest = kv_bytes.idxmax()
    beyond = int((pace > device.dram_bandwidth_bytes_per_s).sum())
    share = pace[largest] / device.dram_bandwidth_bytes_per_s
    text = (
        f"The largest uniform call moves {kv_bytes[largest] / 1e9:.1f} GB of KV at "
        f"{pace[largest] / 1e9:,.0f} GB/s, {share:.1%} of the datasheet's bandwidth; the device file "
        f"has {device.dram_efficiency:.1%}."
    )
    if beyond:
        calls = "call is" if beyond == 1 else "calls are"
        text += f" {beyond} uniform {calls} faster than DRAM can be: there KV was partly in L2."
    return text


def part(folder: Path, card: Card) -> tuple[Part, pd.DataFrame]:
    """What there is to say of a card, and its batches of two lengths."""
    flat, (rows, mixed) = uniform(folder, card), skewed(folder, card)
    ratios, left = ratio_errors(rows), left_over(flat)
    every = ratios.iloc[0]
    correlation = np.corrcoef(np.log(rows["measured"]), np.log(rows["simulated"]))[0, 1]
    apart = (rows["alone"] / rows["measured"] - 1.0).abs().mean()
    alone = said(errors(flat))
    several, single = left[left["requests"] > 1].iloc[:, 1], left[left["requests"] == 1].iloc[:, 1]
    sentences = [
        f"Cost of raggedness, {TIMES['skew']} over {TIMES['mean']}, with the harness of {HARNESS}, "
        "whose call is the same and was timed on another card: the mean error is "
        f"{every['mean']:.1%} over {every['rows']:,} batches (measured ratio "
        f"{every['measured']:.3f} on average, simulated "
        f"{every['simulated']:.3f}, correlation of logarithms {correlation:.2f}); with the kernel alone "
        f"{apart:.1%}, and to say that raggedness costs nothing {every['mean saying 1']}.",
        f"Uniform batches, kernel alone: {alone[0].lower()}{alone[1:]}",
        _pace(flat, card),
        f"{mixed:,} batches with a prefill chunk beside the decodes are left out.",
    ]
    if len(several) and len(single):
        sentences.append(
            f"In contexts of one tile {single.iloc[0]:.1f} us are left over with one request and "
            f"{several.median():.1f} us with several: the append of the new token, and the query and "
            "output that FlashAttention-2 copies around a group of heads, are in the measured times and "
            "not in the kernel."
        )
    tables = (
        ("Cost of raggedness", ratios),
        ("Absolute times", time_errors(flat, rows)),
        (
            "Uniform batches by measured latency",
            errors(flat.assign(band=band_of(flat["measured_us"])), "band"),
        ),
        ("What is left over", left),
    )
    title = f"vLLM's FlashAttention-2 on an {card.title} (LLMServingSim)"
    return Part(title, tuple(sentences), tables), rows
