"""When LeanAttention pays: its speedup over the better of two other schedules, here and measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from calls import A100, H100, NEW, UNCAPPED, Call, Times, gain
from calls import LEAN as SHIPPED
from over_context import capped_cells
from parts import Part, Rows, geometric_mean
from ragged import cells as ragged_cells

from leansim.points.point import resolve

MEASURED = Path(__file__).resolve().parent.parent / "own_gpus" / "speedups.csv"
CARDS = {"h100": H100, "h200": "h200_sxm"}
LEAN, OTHERS = "triton_lean", ("triton_fa2", "triton_flash_decoding")
UNIFORM, RAGGED = "uniform", "ragged"
RATIO = 0.2  # mean over longest context of the simulated ragged batches
TILES = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048)
RAGGED_TILES = tuple(tiles for tiles in TILES if tiles >= 8)
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
BANDS = ((0.1, "up to 1/10"), (0.5, "1/10 to 1/2"), (1.0, "1/2 to 1"), (math.inf, "more than 1"))
TIE = 0.05
FIGURE = "when_it_pays.png"
_SHAPE = re.compile(r"(\d+) x (\d+) of (\d+)/(\d+) x (\d+)")


@dataclass(frozen=True)
class Dot:
    """A batch that was measured: output tiles, and per slot, mean context, and Lean's speedups."""

    card: str
    shape: str
    batch: str
    tiles: int
    tiles_per_slot: float
    mean_context: int
    measured: float
    simulated: float


@cache
def cells() -> tuple[Call, ...]:
    """Lean's call of each cell: up to 8 KV heads, then more requests; ragged ones the other way."""
    found = [_call(tiles, context) for tiles in TILES for context in CONTEXTS]
    found += [_ragged_call(tiles, mean) for tiles in RAGGED_TILES for mean in CONTEXTS if mean <= 65536]
    return tuple(call for call in found if call.fits)


def _call(tiles: int, context: int) -> Call:
    kv_heads = min(8, tiles)
    return Call(H100, LEAN, tiles // kv_heads, context, 4 * kv_heads, kv_heads)


def _ragged_call(tiles: int, mean: int) -> Call:
    kv_heads = 1 if tiles <= 32 else 8
    longest = round(mean / RATIO)
    return Call(H100, LEAN, tiles // kv_heads, longest, 8 * kv_heads, kv_heads, ragged=f"mean {RATIO}")


def calls() -> list[Call]:
    """Every call."""
    return [call.by(kernel) for call in cells() for kernel in (LEAN, *OTHERS)]


def speedup(times: Times, call: Call) -> float:
    """Lean over the faster of the others."""
    return min(gain(times, call, over, LEAN) for over in OTHERS)


@cache
def slots_of(device: str, heads: tuple[int, int], head_dim: int) -> int:
    """CTAs of the Triton kernel that a device runs at one time."""
    return resolve(Call(device, LEAN, 1, 4096, *heads, head_dim).point).grid.slots


def place(call: Call) -> tuple[float, int]:
    """Where a cell is drawn: output tiles per slot, mean context."""
    slots = slots_of(call.device, (call.num_q_heads, call.num_kv_heads), call.head_dim)
    mean = round(call.context_len * RATIO) if call.ragged else call.context_len
    return call.output_tiles / slots, mean


@cache
def dots() -> tuple[Dot, ...]:
    """Every batch that was measured under all three schedules, of both cards."""
    rows = pd.read_csv(MEASURED)
    found = []
    for (card, shape), mine in rows.groupby(["card", "shape"], sort=True):
        if set(mine["over"]) != set(OTHERS):
            continue
        said = _SHAPE.match(shape)
        assert said is not None
        requests, context, q_heads, kv_heads, head_dim = map(int, said.groups())
        slots = slots_of(CARDS[card], (q_heads, kv_heads), head_dim)
        found.append(
            Dot(
                card,
                shape,
                str(mine["batch"].iloc[0]),
                requests * kv_heads,
                requests * kv_heads / slots,
                context,
                float(mine["measured"].min()),
                float(mine["simulated"].min()),
            )
        )
    return tuple(found)


def part(times: Times) -> Part:
    """Measured and simulated by how full the machine is, and ten lines on when it pays."""
    measured = dots()
    even, uneven = ([dot for dot in measured if dot.batch == kind] for kind in (UNIFORM, RAGGED))
    apart = [dot for dot in measured if abs(math.log(dot.measured)) > math.log1p(TIE)]
    right = sum((dot.measured > 1) == (dot.simulated > 1) for dot in apart)
    sentences = (
        "**The figure** has Lean's speedup over the faster of the two other schedules, unsplit and "
        "FlashDecoding's newer rule, all three on one Triton kernel, so that only the schedule "
        "differs. The ground is simulated on an H100 (head dim 128; uniform batches of 4 query heads "
        f"per KV head; ragged ones with a mean of {RATIO} of the longest context). Circles were "
        f"measured on an H100 (left half) and an H200 (right half), {len(measured)} batches of "
        f"[own_gpus](../own_gpus/RESULTS.md): {len(even)} uniform, {len(uneven)} ragged, drawn from "
        "traces, with head dims 64 and 128. Blue: Lean is faster; red: it is slower.",
        f"Measured, Lean is {_geo(even):.2f}x as fast as the better other schedule on uniform batches "
        f"(geometric mean; {_least(even):.2f} to {_most(even):.2f}) and {_geo(uneven):.2f}x on ragged "
        f"ones ({_least(uneven):.2f} to {_most(uneven):.2f}). Simulated, on the same batches, "
        f"{_geo(even, 'simulated'):.2f}x and {_geo(uneven, 'simulated'):.2f}x. Where measured times "
        f"are more than {TIE:.0%} apart ({len(apart)} batches) both say the same of who is faster in "
        f"{right / len(apart):.0%}.",
        "## In ten lines\n\n" + "\n".join(f"- {line}" for line in lines(times, measured)),
    )
    tables = (("Lean over the better of the others, by output tiles per slot", _bands(measured)),)
    shown = (("when LeanAttention pays", FIGURE),)
    return Part("When LeanAttention pays", sentences, tables, figures=shown)


def lines(times: Times, measured: Sequence[Dot]) -> list[str]:
    """Ten lines, each with its figure."""
    many = _of(measured, RAGGED, 0.1)
    unsplit = pd.read_csv(MEASURED).query("over == @OTHERS[0]")["measured"].max()
    cap = max(gain(times, call, SHIPPED, UNCAPPED) for call in capped_cells())
    return [
        "It pays where lengths are unlike and there are requests enough: measured "
        f"{_geo(many):.2f}x over the better other schedule, up to {_most(many):.1f}x, with more "
        f"than a tenth of an output tile per slot ({len(many)} batches).",
        "It pays most where one long request sits among many short ones, as rules for a whole call "
        f"do not split then: simulated {_uneven(times, A100):.1f}x (A100) and "
        f"{_uneven(times, H100):.1f}x (H100) over the newer rule where the mean is a tenth of the "
        "longest.",
        *_even_lines(measured),
        "Unlike lengths do not help where there are few tiles: measured "
        f"{_geo(_of(measured, RAGGED, 0.0, 0.05)):.2f}x below 1/20 of a tile per slot.",
        "Over a kernel that does not split at all it gains as many times as slots are left empty, up "
        f"to {unsplit:.0f}x measured; so does any good split count.",
        "As ONNX Runtime has it, padded to the longest request, it keeps little of its gain on "
        f"ragged batches; and its cap of 32 CTAs per head costs up to {cap:.1f}x with one KV head and "
        "millions of tokens.",
        "If your batch is uniform, take FlashDecoding's newer rule; if it is ragged, take Lean, or "
        "split per request.",
    ]


def _even_lines(measured: Sequence[Dot]) -> list[str]:
    """Four lines on equal lengths."""
    many, some, few = (_of(measured, UNIFORM, *ends) for ends in ((1.0,), (0.1, 1.0), (0.0, 0.1)))
    short = [dot for dot in few if dot.mean_context <= 4096]
    long = [dot for dot in few if dot.mean_context > 65536 and dot.tiles > 2]
    fewest = [dot for dot in few if dot.mean_context > 65536 and dot.tiles <= 2]
    return [
        f"With equal lengths and more output tiles than slots it ties: measured {_geo(many):.2f}x "
        f"({_least(many):.2f} to {_most(many):.2f}); what it gains there is the last, part empty wave.",
        "With equal lengths and from 1/10 tile per slot to one, it ties or loses: measured "
        f"{_geo(some):.2f}x ({_least(some):.2f} to {_most(some):.2f}).",
        f"With equal lengths and fewer tiles it loses: measured {_geo(few):.2f}x ({_least(few):.2f} "
        f"to {_most(few):.2f}), as each host merges its many partials one after the other.",
        f"That loss is {_geo(short):.2f}x up to 4k tokens and gone above 64k, where merging weighs "
        f"little ({_geo(long):.2f}x); but with one or two tiles the cap of 32 CTAs leaves most slots "
        f"empty there ({_geo(fewest):.2f}x).",
    ]


def _of(measured: Sequence[Dot], kind: str, low: float, high: float = math.inf) -> list[Dot]:
    """Batches of a kind with so many output tiles per slot."""
    return [dot for dot in measured if dot.batch == kind and low < dot.tiles_per_slot <= high]


def _uneven(times: Times, device: str) -> float:
    """Lean over the newer rule where the mean is a tenth of the longest."""
    some = [call for call in ragged_cells() if (call.device, call.ragged) == (device, "mean 0.1")]
    return geometric_mean(gain(times, call, NEW, SHIPPED) for call in some)


def _geo(some: Sequence[Dot], which: str = "measured") -> float:
    return geometric_mean(getattr(dot, which) for dot in some) if some else math.nan


def _least(some: Sequence[Dot]) -> float:
    return min(dot.measured for dot in some)


def _most(some: Sequence[Dot]) -> float:
    return max(dot.measured for dot in some)


def _inside() -> Iterator[tuple[str, float, float]]:
    low = 0.0
    for high, name in BANDS:
        yield name, low, high
        low = high


def _bands(measured: Sequence[Dot]) -> Rows:
    rows: Rows = []
    for kind in (UNIFORM, RAGGED):
        for name, low, high in _inside():
            row: dict[str, object] = {"lengths": kind, "tiles per slot": name}
            for card in CARDS:
                some = [
                    dot
                    for dot in measured
                    if (dot.card, dot.batch) == (card, kind) and low < dot.tiles_per_slot <= high
                ]
                if some:
                    row[f"{card}: batches"] = len(some)
                    row[f"{card}: measured"] = f"{_geo(some):.2f} ({_least(some):.2f}-{_most(some):.2f})"
                    row[f"{card}: simulated"] = f"{_geo(some, 'simulated'):.2f}"
            rows.append(row)
    return rows
