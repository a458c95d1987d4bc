"""SM busy fraction over heads, requests and context: what the paper may mean by occupancy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

from calls import A100, FA2, H100, LEAN, NEW, OLD, SHORT, Call, Times, gain
from parts import Part, Rows

DEVICES, KERNELS = (A100, H100), (FA2, OLD, NEW, LEAN)
BATCHES, HEADS = (1, 4, 16), (4, 8, 16, 32, 64)
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 65536, 262144)
LONG = 4096  # tokens from which on a call is long enough that its start does not weigh
FIGURE = "busy.png"


@cache
def cells() -> tuple[Call, ...]:
    """The unsplit call of each cell; MHA, head dim 128."""
    grid = product(DEVICES, BATCHES, HEADS, CONTEXTS)
    found = [Call(device, FA2, batch, context, heads, heads) for device, batch, heads, context in grid]
    return tuple(call for call in found if call.fits)


def calls() -> list[Call]:
    """Every cell under every kernel."""
    return [call.by(kernel) for call in cells() for kernel in KERNELS]


def part(times: Times) -> Part:
    """Means by context, and where Lean is least busy."""
    lean = {call: times[call.by(LEAN)].busy for call in cells()}
    long = [call for call in cells() if call.context_len >= LONG]
    least = min(long, key=lean.__getitem__)
    few, full = Call(A100, LEAN, 1, 262144, 4, 4), Call(A100, FA2, 1, 262144, 64, 64)
    worse = [
        call for call in cells() if lean[call] < max(times[call.by(one)].busy for one in KERNELS[:-1])
    ]
    mean = {one: _mean(times, cells(), one) for one in KERNELS}
    sentences = (
        f"{len(cells())} cells: {_all(BATCHES)} requests, {_all(HEADS)} heads (MHA, head dim 128), "
        "contexts of 512 to 256k tokens, on both GPUs. The paper says that Lean has near perfect "
        "occupancy whatever the size of the problem; how it measures that could not be read. Here it "
        "is the share of all slots' time between the call's first and last moment in which a CTA is "
        "on the slot and does not wait for a peer: busy says that there is work, not that it is "
        "useful.",
        f"The means over all cells are {_said(mean)}. From {LONG:,} tokens on Lean is at "
        f"{_mean(times, long, LEAN):.0%} in the mean and at {lean[least]:.0%} at the least "
        f"({least.named}, {SHORT[least.device]}). So the claim holds in the model for most long "
        "contexts. It does not hold for short ones: with fewer than two KV tiles for each slot there "
        "is not enough to share out, as Lean gives each CTA at least two, and hosts wait.",
        f"Nor does it hold with one request of few heads, however long: with {few.named} on an A100 "
        f"the cap of 32 CTAs per head leaves the machine {times[few].busy:.0%} busy. In {len(worse)} "
        f"of {len(cells())} cells ({len(worse) / len(cells()):.0%}) another kernel is busier than "
        "Lean, with few tiles, where FlashDecoding cuts finer.",
        f"Busy is not fast: with {full.named} on an A100 FlashAttention-2 is {times[full].busy:.0%} "
        f"busy and Lean {times[full.by(LEAN)].busy:.0%}, yet Lean is only "
        f"{gain(times, full, FA2):.2f}x as fast, as 64 CTAs draw nearly all that DRAM gives.",
    )
    tables = (
        ("Mean SM busy fraction by context", _by(times, "context_len", CONTEXTS)),
        ("Mean SM busy fraction by output tiles (requests x heads)", _by_tiles(times)),
    )
    shown = (("SM busy fraction over requests, heads and context", FIGURE),)
    return Part("2. SM busy fraction", sentences, tables, figures=shown)


def _all(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _mean(times: Times, some: Sequence[Call], kernel: str) -> float:
    return sum(times[call.by(kernel)].busy for call in some) / len(some)


def _said(mean: dict[str, float]) -> str:
    return ", ".join(f"{kernel} {share:.0%}" for kernel, share in mean.items())


def _row(times: Times, head: dict[str, str], some: Sequence[Call]) -> dict[str, str]:
    return head | {
        f"{SHORT[device]} {kernel}": f"{_mean(times, mine, kernel):.0%}"
        for device in DEVICES
        if (mine := [call for call in some if call.device == device])
        for kernel in KERNELS
    }


def _by(times: Times, axis: str, values: tuple[int, ...]) -> Rows:
    return [
        _row(
            times, {"context": f"{value:,}"}, [call for call in cells() if getattr(call, axis) == value]
        )
        for value in values
    ]


def _by_tiles(times: Times) -> Rows:
    rows: Rows = []
    for count in sorted({call.output_tiles for call in cells()}):
        some = [call for call in cells() if call.output_tiles == count]
        rows.append(_row(times, {"output tiles": str(count)}, some))
    return rows
