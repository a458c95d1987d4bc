"""What a prefix that is split, or dealt by stream-K, gains over the unsplit one that is shipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from calls import Call, Times

from leansim.checkout.pages import Part, Rows, geometric_mean, tokens
from leansim.points.simulate import simulate

DEVICES = ("a100_sxm_80gb", "h100_sxm", "h200_sxm", "l40s")
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
PREFIXES = (512, 1024, 2048, 4096, 8192, 32768, 131072)
SUFFIXES = (128, 2048)
SHIPPED, SPLIT, LEAN, FLASHINFER = (
    "vllm_cascade", "vllm_cascade_split", "lean_cascade", "flashinfer_cascade",
)  # fmt: skip
NOT_ON = {FLASHINFER: ("l40s",)}  # its kernels are not described for that card
WORST = 5


def cells() -> list[Call]:
    """The shipped call of each cell: Llama-3-8B's heads."""
    grid = product(DEVICES, SUFFIXES, BATCHES, PREFIXES)
    return [
        Call(device, SHIPPED, batch, prefix, suffix, 32, 8) for device, suffix, batch, prefix in grid
    ]


def others(call: Call) -> list[Call]:
    """The same call by what else there is on its device."""
    kernels = (SPLIT, LEAN, FLASHINFER)
    return [replace(call, kernel=one) for one in kernels if call.device not in NOT_ON.get(one, ())]


def calls() -> list[Call]:
    """Every call of every cell."""
    return [one for cell in cells() for one in (cell, *others(cell))]


def gain(times: Times, cell: Call, kernel: str) -> float:
    """Shipped time over a kernel's."""
    return times[cell] / times[replace(cell, kernel=kernel)]


def part(times: Times) -> Part:
    """Gains by GPU, by batch and by prefix; who is fastest; and where Lean cascade loses."""
    all_cells = cells()
    lost = [cell for cell in all_cells if gain(times, cell, LEAN) < 1.0]
    behind = [cell for cell in all_cells if gain(times, cell, LEAN) < gain(times, cell, SPLIT)]
    least = min(gain(times, cell, LEAN) for cell in all_cells)
    sentences = (
        f"{len(all_cells)} cells: {BATCHES[0]} to {BATCHES[-1]} requests that share a prefix of 512 "
        "to 128k tokens and have 128 or 2k of their own, 32 query and 8 KV heads of dim 128, on "
        f"four GPUs. Gains are over `{SHIPPED}`, whose prefix call has a CTA for each query head "
        f"and 64 requests, however long the prefix. `{SPLIT}` has that call cut by FlashDecoding's "
        f"rule; `{LEAN}` is one launch, all tiles dealt in equal parts, merged by one kernel; "
        f"`{FLASHINFER}` is FlashInfer of today, which splits.",
        f"Splitting alone gains {_said(times, SPLIT)}; Lean cascade {_said(times, LEAN)}. With up "
        "to 16 requests much of what Lean gains beyond splitting is packing: the four query heads "
        "of a KV head are rows of one tile, so the prefix is loaded once and not four times. From "
        "64 requests on, tiles are full either way.",
        f"**Lean cascade loses** to the shipped cascade in {len(lost)} cells "
        f"({len(lost) / len(all_cells):.0%}), at worst {least:.2f}x, and to the split one in "
        f"{len(behind)} ({len(behind) / len(all_cells):.0%}). It loses with 256 requests and more "
        "and short suffixes, on Hopper and the L40S, and with short prefixes and long suffixes "
        "everywhere. The cause is one: equal tiles are not equal times. The line has the prefix "
        "first; its CTAs stream one long segment, from L2, and are through early. Those at the end "
        "of the line get suffixes alone, from DRAM and, where suffixes are short, hundreds of "
        "segments with a start each. A line in another order, or parts weighed by segments, may "
        "not have it; neither was tried.",
        "With full tiles the prefix is bound by the CTAs' tile loop, not by memory; where a wave "
        "of unsplit CTAs fills the SMs, splitting gains nothing and costs a combine kernel.",
        f"How far to believe it: `{FLASHINFER}` is often the fastest on Hopper, but its 64- and "
        "128-row tiles were never timed there and have no chain (see FlashInfer's cascade below), "
        "so the comparison to make is among the other three, which have FlashAttention-2's prices "
        "in common.",
    )
    short, long = ([cell for cell in lost if cell.suffix_len == suffix] for suffix in SUFFIXES)
    tables = (
        ("Gain over the shipped cascade, by GPU and suffix", _by_gpu(times, all_cells)),
        ("By requests, geometric mean over prefixes: split / Lean", _by(times, "batch_size", BATCHES)),
        ("By prefix, geometric mean over requests: split / Lean", _by(times, "prefix_len", PREFIXES)),
        ("Fastest of the four, share of cells", _fastest(times, all_cells)),
        ("Where Lean cascade loses most, suffixes of 128", _worst(times, short)),
        ("Where Lean cascade loses most, suffixes of 2k", _worst(times, long)),
        ("Prefixes at which it loses, by requests and suffix", _lost_by(lost)),
    )
    return Part("What a split or Lean prefix gains", sentences, tables)


def _said(times: Times, kernel: str) -> str:
    gains = [gain(times, cell, kernel) for cell in cells()]
    return f"{geometric_mean(gains):.2f}x in the geometric mean and up to {max(gains):.1f}x"


def _where(cell: Call) -> str:
    return f"{cell.batch_size} x ({tokens(cell.prefix_len)} + {tokens(cell.suffix_len)})"


def _by_gpu(times: Times, found: Sequence[Call]) -> Rows:
    rows: Rows = []
    for device, suffix, kernel in product(DEVICES, SUFFIXES, (SPLIT, LEAN, FLASHINFER)):
        if device in NOT_ON.get(kernel, ()):
            continue
        mine = [cell for cell in found if (cell.device, cell.suffix_len) == (device, suffix)]
        gains = {cell: gain(times, cell, kernel) for cell in mine}
        best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
        rows.append(
            {
                "device": device,
                "suffix": tokens(suffix),
                "kernel": kernel,
                "mean": f"{geometric_mean(gains.values()):.2f}x",
                "largest": f"{gains[best]:.2f}x at {_where(best)}",
                "smallest": f"{gains[worst]:.2f}x at {_where(worst)}",
                "slower in": f"{sum(one < 1.0 for one in gains.values()) / len(gains):.0%}",
            }
        )
    return rows


def _by(times: Times, axis: str, values: Iterable[int]) -> Rows:
    rows: Rows = []
    for value, suffix in product(values, SUFFIXES):
        row = {axis.partition("_")[0]: tokens(value), "suffix": tokens(suffix)}
        for device in DEVICES:
            mine = [
                cell
                for cell in cells()
                if (cell.device, cell.suffix_len, getattr(cell, axis)) == (device, suffix, value)
            ]
            means = (
                geometric_mean(gain(times, one, kernel) for one in mine) for kernel in (SPLIT, LEAN)
            )
            row[device] = " / ".join(f"{mean:.2f}" for mean in means)
        rows.append(row)
    return rows


def _fastest(times: Times, found: Sequence[Call]) -> Rows:
    rows: Rows = []
    for device in DEVICES:
        mine = [cell for cell in found if cell.device == device]
        first = [min((cell, *others(cell)), key=times.__getitem__).kernel for cell in mine]
        shares = {one: first.count(one) / len(mine) for one in (SHIPPED, SPLIT, LEAN, FLASHINFER)}
        gone = {one for one in shares if device in NOT_ON.get(one, ())}
        rows.append(
            {"device": device} | {one: "-" if one in gone else f"{x:.0%}" for one, x in shares.items()}
        )
    return rows


def _worst(times: Times, lost: Sequence[Call]) -> Rows:
    """The worst cells, with what the CTAs of Lean cascade did."""
    rows: Rows = []
    for cell in sorted(lost, key=lambda one: gain(times, one, LEAN))[:WORST]:
        lean = replace(cell, kernel=LEAN)
        simulation = simulate(lean.point)
        schedule, result = simulation.schedule, simulation.result
        ends = np.asarray(result.cta_end)[: schedule.num_ctas]
        segments = np.bincount(schedule.cta, minlength=schedule.num_ctas)
        rows.append(
            {
                "device": cell.device,
                "call": _where(cell),
                "shipped": f"{times[cell] / 1e3:.0f} us",
                "split": f"{times[replace(cell, kernel=SPLIT)] / 1e3:.0f} us",
                "Lean": f"{times[lean] / 1e3:.0f} us",
                "gain": f"{gain(times, cell, LEAN):.2f}x",
                "median CTA is through at": f"{np.median(ends) / ends.max():.0%}",
                "segments: median CTA, last CTA": f"{np.median(segments):.0f}, "
                f"{segments[ends.argmax()]}",
            }
        )
    return rows


def _lost_by(lost: Sequence[Call]) -> Rows:
    rows: Rows = []
    for batch, suffix in product(BATCHES, SUFFIXES):
        mine = [cell for cell in lost if (cell.batch_size, cell.suffix_len) == (batch, suffix)]
        if mine:
            prefixes = {
                device: ", ".join(tokens(one.prefix_len) for one in mine if one.device == device) or "-"
                for device in DEVICES
            }
            rows.append({"batch": batch, "suffix": tokens(suffix), **prefixes})
    return rows
