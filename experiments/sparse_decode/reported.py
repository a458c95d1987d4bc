"""What was reported of sparse decode kernels on silicon, and what the model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
from parts import Part, Pins, beside, timed, us

import leansim
from leansim.points.point import resolve

KERNELS = Path(__file__).resolve().parent / "kernels"
TOP_K = "top_k(budget=2048, page=1)"
# What an MI355X has of its own, of what these kernels meet (AMD's datasheet). LDS stays that of the
# MI300X: there the wide tile has a compute unit to itself and two narrow ones share one, as reported.
MI355X = {
    "device": "mi300x",
    "num_sms": 256,
    "overrides": {
        "device.sm_clock_hz": 2.4e9,
        "device.tensor_flop_per_clk_per_sm": {"bfloat16": 4096, "float16": 4096, "fp8": 8192},
        "device.dram_bandwidth_bytes_per_s": 8e12,
    },
}


def splits(count: int) -> dict[str, Any]:
    """The partitioner that cuts every request into so many."""
    return {"name": "per_request_splits", "options": {"num_splits": count}}


def sparse_mla(tile: int, heads: int, count: int, **fields: Any) -> leansim.Point:
    """A call of AITER's sparse decode on KV tiles of so many tokens, as split as that."""
    shape = {"num_q_heads": heads, "num_kv_heads": 1, "head_dim": 512, "head_dim_v": 512}
    kernel = str(KERNELS / f"sparse_mla_{tile}.yaml")
    return leansim.point(
        **MI355X, **shape, kernel=kernel, partitioner=splits(count), latent_kv=True, q_dtype="bfloat16",
        kv_dtype="fp8", **fields,
    )  # fmt: skip


# -- the staircase ---------------------------------------------------------------------------------

# Microseconds by tile and queries (ROCm/aiter#5293); of ranges the middle. What the grids are follows
# from its steps: 4 CTAs a query, and two splits while those fit 256 compute units.
STAIRS = {
    64: {32: 75.0, 64: 132.5, 128: 264.5, 256: 552.1},
    32: {32: 93.0, 64: 165.0, 128: 186.9, 256: 399.5},
}


def staircase() -> Part:
    """Time over queries, for the wide and for the narrow tile."""
    points = {
        f"tile {tile}, {queries} queries": sparse_mla(
            tile, 64, max(1, 64 // queries), batch_size=queries, context_len=65536, mask=TOP_K
        )
        for tile, claimed in STAIRS.items()
        for queries in claimed
    }
    pins = timed(points)
    rows = []
    for tile, claimed in STAIRS.items():
        first = f"tile {tile}, 32 queries"
        for queries, claim in claimed.items():
            name = f"tile {tile}, {queries} queries"
            rows.append(
                {
                    "tile": tile,
                    "queries": queries,
                    "CTAs": 4 * queries * max(1, 64 // queries),
                    "reported_us": claim,
                    "simulated_us": us(pins[name]),
                    **beside(claim / claimed[32], pins[name] / pins[first]),
                }
            )
    off = [
        _by_tile(pins)[tile][queries] / claim / 1e3 - 1
        for tile, claimed in STAIRS.items()
        for queries, claim in claimed.items()
        if queries > 32
    ]
    faster = [
        min(STAIRS, key=lambda tile, q=queries: times[tile][q])  # type: ignore[misc]
        for times in (STAIRS, _by_tile(pins))
        for queries in STAIRS[64]
    ]
    agree = sum(a == b for a, b in zip(faster[:4], faster[4:], strict=True))
    sentences = (
        "A sparse decode kernel of AITER on an MI355X (ROCm/aiter#5293): 64 heads, 2,048 tokens "
        "chosen of each context, KV tiles of 64 or 32 tokens. Time climbs a step for each wave: the "
        "wide tile has a compute unit to itself, so 512 CTAs take twice the time of 256; of the "
        "narrow one two share a unit, so they take little more. Ratios are to 32 queries.",
        f"Which tile is faster comes out right at {agree} of 4 sizes. What a tile takes (unpacking "
        "8-bit KV is in it) was neither measured nor counted: it is fitted to the time of 32 queries, "
        f"one number for each tile. The other six times are off by {min(off):+.0%} to {max(off):+.0%}; "
        "without it they were four times too fast.",
    )
    return Part("The staircase of waves", sentences, (("Time over queries", pd.DataFrame(rows)),), pins)


def _by_tile(pins: Pins) -> dict[int, dict[int, float]]:
    return {tile: {q: pins[f"tile {tile}, {q} queries"] for q in of} for tile, of in STAIRS.items()}


# -- a grid of one CTA -----------------------------------------------------------------------------

# What an RTX 5090 has of its own, of what this kernel meets (NVIDIA RTX Blackwell whitepaper). Its
# tensor rate with FP32 accumulation is in the kernel's chain too.
RTX_5090: dict[str, Any] = {
    "device": "rtx_pro_6000",
    "num_sms": 170,
    "overrides": {
        "device.sm_clock_hz": 2.407e9,
        "device.tensor_flop_per_clk_per_sm": {"bfloat16": 512, "float16": 512, "fp8": 1024},
        "device.l2_bytes": 96 * 2**20,
    },
}
ONE_CTA = {"before_us": 213.0, "after_us": 28.7}
SPLITS = (1, 8, 16, 32)


def one_cta() -> Part:
    """A token's heads in one CTA, and split."""
    points = {
        f"{count} splits, {tokens} tokens, {queries} queries": _one_token(count, tokens, queries)
        for tokens, queries in ((2048, 1), (2048, 4), (128, 1))
        for count in SPLITS
        if count > 1 or tokens == 2048  # unsplit it walks all 2,048, valid or not
    }
    points |= {f"{count} splits, from DRAM": _one_token(count, cache="cold") for count in SPLITS}
    points["16 splits, no small kernels"] = _one_token(16, setup_kernels=0)
    pins = timed(points)
    of = {count: pins[f"{count} splits, 2048 tokens, 1 queries"] for count in SPLITS}
    cold = {count: pins[f"{count} splits, from DRAM"] for count in SPLITS}
    rows = [
        {
            "splits": count,
            "simulated_us": us(of[count]),
            "gain": f"{of[1] / of[count]:.1f}x",
            "4 queries_us": us(pins[f"{count} splits, 2048 tokens, 4 queries"]),
            "128 tokens_us": us(pins[f"{count} splits, 128 tokens, 1 queries"]) if count > 1 else "-",
            "from DRAM_us": us(cold[count]),
            "gain from DRAM": f"{cold[1] / cold[count]:.1f}x",
        }
        for count in SPLITS
    ]
    before, after = ONE_CTA.values()
    claimed, gain = before / after, of[1] / of[16]
    small = of[16] - pins["16 splits, no small kernels"]
    sentences = (
        "Sparse MLA in Triton on an RTX 5090 (vllm-project/vllm#54929): one token, 8 heads, 2,048 "
        "tokens chosen; the grid is one CTA, which takes 213 us, and 28.7 us with 16 to 32 splits. "
        "What its loop takes is counted of the compiled kernel, and the 14 small kernels around it of "
        "its source. The split kernel's source was not found: the report says that its loop is the "
        "same, and what merging takes is assumed. A graph that is replayed finds its tokens in L2, so "
        "they are taken to be there; the last columns have them in DRAM.",
        f"Reported {claimed:.1f}x, simulated {gain:.1f}x with 16 splits ({gain / claimed - 1:+.0%}) and "
        f"{of[1] / of[32]:.1f}x with 32. The 213 us come out as {us(of[1])} "
        f"({of[1] / before / 1e3 - 1:+.0%}), the 28.7 us as {us(of[16])} "
        f"({of[16] / after / 1e3 - 1:+.0%}), of which the small kernels are {us(small)}.",
        "Four queries take as long as one, as reported. 128 tokens are reported to take as long as "
        "2,048, and do not here. What would explain it is that the candidates are split, and not those "
        "that are valid: the first 128 are then one split's, and it walks as many tiles as all do of "
        "2,048. That is a guess, and not simulated.",
    )
    return Part("A grid of one CTA", sentences, (("Time over splits", pd.DataFrame(rows)),), pins)


def _one_token(
    count: int,
    tokens: int = 2048,
    queries: int = 1,
    cache: Literal["cold", "warm"] = "warm",
    **ctas: int,
) -> leansim.Point:
    overrides = {f"kernel.ctas.{name}": value for name, value in ctas.items()}
    return leansim.point(
        **RTX_5090 | {"overrides": RTX_5090["overrides"] | overrides},
        kernel=str(KERNELS / "vllm_sparse_mla.yaml"), partitioner=splits(count), batch_size=queries,
        context_len=65536, mask=f"top_k(budget={tokens}, page=1)", num_q_heads=8, num_kv_heads=1,
        head_dim=576, head_dim_v=512, latent_kv=True, q_dtype="bfloat16", kv_dtype="fp8", cache=cache,
    )  # fmt: skip


# -- the straggler ---------------------------------------------------------------------------------

# sgl-project/sglang#39968: 14 requests of 7 tokens and 32 heads in CTAs of 16, 196 CTAs on 256 units.
QUERIES, DISPERSION, LONGEST = 98, 0.7, 5000
GAINS = {  # what splits change of the time, by the median length
    200: {2: -0.300, 4: -0.418, 8: -0.358, 16: -0.218},
    500: {2: -0.357, 4: -0.514, 8: -0.519, 16: -0.451},
    1300: {2: -0.348, 4: -0.501, 8: -0.540, 16: -0.497},
    3000: {2: -0.135, 4: -0.238, 8: -0.270, 16: -0.224},
}


def straggler() -> Part:
    """One long list beside short ones, lists of one length, and lists as dispersed as reported."""
    lists = {
        "one of 5,000, 97 of 200": [LONGEST] + [200] * (QUERIES - 1),
        "1,152 each": [1152] * QUERIES,
    }
    lists |= {f"median {median}": dispersed(median) for median in GAINS}
    claims = {f"median {median}": gains for median, gains in GAINS.items()} | {"1,152 each": {8: 0.051}}
    points, pins = {}, {}
    with TemporaryDirectory() as folder:
        for name, lens in lists.items():
            mask = written_list(Path(folder) / f"{len(points)}.npz", lens, block=1)
            call = {"batch_size": QUERIES, "context_len": 8192, "mask": mask}
            for tile in (64, 32):
                for count in (1, 2, 4, 8, 16):
                    points[f"{name}, tile {tile}, {count} splits"] = sparse_mla(tile, 32, count, **call)
        pins = timed(points)
    rows, right = [], dict.fromkeys((64, 32), 0)
    points_off: dict[int, list[float]] = {tile: [] for tile in right}
    for name in lists:
        for tile in right:
            whole = pins[f"{name}, tile {tile}, 1 splits"]
            row = {"lists": name, "tile": tile, "unsplit_us": us(whole)}
            for count in (2, 4, 8, 16):
                change = pins[f"{name}, tile {tile}, {count} splits"] / whole - 1
                claim = claims.get(name, {}).get(count)
                row[f"{count} splits"] = f"{change:+.0%}" + ("" if claim is None else f" ({claim:+.0%})")
                if claim is not None:
                    right[tile] += (change > 0) == (claim > 0)
                    points_off[tile].append(100 * abs(change - claim))
            rows.append(row)
    sentences = (
        "Sparse decode of MLA on an MI355X (sgl-project/sglang#39968): what it takes is set by one "
        "CTA that walks 5,000 entries beside CTAs that walk 200; splitting breaks that up. Where "
        "lists are of one length it costs 5%. Kernel and device are those of the staircase; which "
        "tile that report's kernel has is not said, so both are here. Lists are drawn with the "
        "report's dispersion of 0.7.",
        "The sign flips as reported: 8 splits gain on the straggler and lose on equal lists. Of the "
        f"17 changes that were reported {right[64]} (wide tile) and {right[32]} (narrow) have the "
        f"right sign. The wide tile's are {np.mean(points_off[64]):.0f} points off in the mean, the "
        f"narrow's {np.mean(points_off[32]):.0f}: two narrow CTAs share a unit and gain where lists are "
        "equal, so that the wide one is nearer to what was run. What a tile takes is the staircase's; "
        "nothing is fitted to this report. Where lists are long, splitting gains more here than there.",
    )
    caption = "What splits change of the time (in brackets what was reported)"
    return Part("The straggler", sentences, ((caption, pd.DataFrame(rows)),), pins)


def dispersed(median: int) -> list[int]:
    """Lengths of lists: lognormal about a median, none longer than the longest."""
    sigma = np.sqrt(np.log1p(DISPERSION**2))
    draws = median * np.exp(sigma * np.random.default_rng(1).standard_normal(QUERIES))
    lens: list[int] = np.clip(np.rint(draws), 1, LONGEST).astype(int).tolist()
    return lens


def written_list(path: Path, lens: Sequence[int], block: int, heads: int = 1, among: int = 8192) -> str:
    """A mask of so many random blocks for each row, in a file."""
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(among, size=count, replace=False)) for count in lens]
    np.savez(path, indptr=np.cumsum([0, *lens]), indices=np.concatenate(rows))
    return f"csr(path={path}, block={block}, heads={heads})"


# -- what the call is told -------------------------------------------------------------------------

CAP = 2051
RULES = ("flash_decoding", "fa3", "trtllm_xqa", "flex_decoding", "sglang_triton")


def imp_splits(told: int, num_sms: int = 170, heads: int = 12) -> int:
    """Splits of imp's rule (kekzl/imp#1421, #2072): two waves of CTAs, and a page each at least.

    12 heads are what gives the 29 splits reported on an RTX 5090.
    """
    return min(-(-told // 16), -(-2 * num_sms // heads))


def told_length() -> Part:
    """Splits and time by what a rule is told: the list's length, a cap, or the context."""
    arithmetic = [
        {
            "context": context,
            "told it": imp_splits(context),
            f"told {CAP}": imp_splits(CAP),
            "reported": text,
        }
        for context, text in ((100, "7, 29 before"), (1700, "29, 29 before"))
    ]
    points = {
        f"{kernel}, {context} tokens, told {told or 'of the list'}": leansim.point(
            device="h100_sxm", kernel=kernel, model="llama_3_8b", batch_size=1, context_len=context,
            mask="top_k(budget=2048)", max_context_len=told,
        )
        for context, told in ((100, None), (100, CAP), (131072, None), (131072, 131072))
        for kernel in RULES
    }  # fmt: skip
    pins = timed(points)
    rows = []
    for kernel in RULES:
        names = [name for name in points if name.startswith(f"{kernel},")]
        cells = [f"{_most(points[name])} ({us(pins[name])} us)" for name in names]
        columns = ("100 tokens", f"told {CAP:,}", "2,048 of 131,072", "told 131,072")
        rows.append({"kernel": kernel, **dict(zip(columns, cells, strict=True))})
    sentences = (
        "Which length is a split rule told, where a list is read and not the context? A constant cap "
        f"({CAP}) for a context of 100 tokens gave 29 splits for 7 and other bits than dense "
        "attention (kekzl/imp#2072). A point's rules are told the length of the list; "
        "`max_context_len` tells them another, such as the context that a captured graph was made "
        "for.",
        "Told the cap for a list of 100 tokens, which is one KV tile, rules launch splits of which "
        "one has tokens. Told the context of 131,072 for a list of 2,048 they launch more, and some "
        "cut the list where the context would be cut. Rules that read lengths on the device "
        "(`sglang_triton`) cannot be told wrong.",
    )
    tables = (
        ("imp's rule, by arithmetic", pd.DataFrame(arithmetic)),
        ("Splits and time by what is told, one request of Llama-3-8B on an H100", pd.DataFrame(rows)),
    )
    return Part("What the call is told", sentences, tables, pins)


def _most(point: leansim.Point) -> int:
    """Segments that the longest output tile is cut into."""
    schedule = resolve(point).schedule
    return int(max(schedule.segments_of_tile.max(), schedule.num_splits or 1))
