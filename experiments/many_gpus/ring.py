"""Ring attention of a prompt over the GPUs of a node: blocks, what merges them, and hops of KV.

Blocks are simulated; memory passes and hops are priced in closed form. Ignores what NCCL takes to start,
traffic of other ranks, host code, and what a short kernel takes beyond its bytes and its gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from orders import Block, Order

from leansim.arrays import FloatArray
from leansim.engine.execute import execute
from leansim.errors import UnknownNameError
from leansim.partitioners import registry
from leansim.schedule.tiling import tile_grid
from leansim.specs import catalog
from leansim.specs.instance import instance_of
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.workload import Workload
from leansim.timing.lowering import lower
from leansim.timing.merges import kernel_gap_s

HEADS, KV_HEADS, DIM = 32, 8, 128
Hop = Literal["beside", "holds_sms", "after"]
HOPS: tuple[Hop, ...] = ("beside", "holds_sms", "after")


@dataclass(frozen=True)
class Pass:
    """A kernel that goes through O and LSE once: bytes per element of O, and per row of a head."""

    element_bytes: int = 0
    row_bytes: int = 0


# What update_out_and_lse runs, of O in float32 (4 B) and a block's in bfloat16 (2 B), and three on LSE.
_LSE = (Pass(row_bytes=12), Pass(row_bytes=8), Pass(row_bytes=12))
# All of O in one kernel, as TorchScript's fuser might make of it, which has no log_sigmoid.
FUSED = (Pass(4 + 2 + 4, 8), *_LSE)
# A kernel an operation, as the repository's pull request 87 says: to, sub, sigmoid, sub, mul, sub.
APART = (Pass(6), Pass(row_bytes=12), Pass(row_bytes=8), Pass(12), Pass(8, 4), Pass(12), *_LSE)
SLICED = (Pass(8), Pass(row_bytes=8))  # written back where a block had some of the rows
CONVERT = (Pass(6),)  # the first block's O to float32, and all of it back at the end
UPDATES = {"fused": FUSED, "apart": APART}


@dataclass(frozen=True)
class Machine:
    """GPUs of a node: the device that stands for one, a link's bytes/s one way, and CTAs of a hop."""

    name: str
    device: str
    link_bytes_per_s: float
    hop_ctas: int
    ranks: int = 8


@dataclass(frozen=True)
class Account:
    """What is counted: how O is updated (None: not at all), what a hop does, who deals tiles."""

    update: Literal["fused", "apart"] | None = "apart"
    hop: Hop = "beside"
    kernel: str = "fa2_prefill"
    partitioner: str | None = None

    def __post_init__(self) -> None:
        if self.hop not in HOPS:
            raise UnknownNameError("hop", self.hop, HOPS)
        if self.update is not None and self.update not in UPDATES:
            raise UnknownNameError("update", self.update, tuple(UPDATES))


def block_s(account: Account, device: str, block: Block) -> float:
    """Simulated seconds of a block, all heads, launched behind another kernel of a stream."""
    return _simulated(
        account.kernel, account.partitioner, device, len(block.rows), len(block.keys), block.causal
    )


@cache
def _simulated(
    kernel: str, partitioner: str | None, name: str, rows: int, keys: int, causal: bool
) -> float:
    """A block without a mask is what rows see of a prefix that is all before them."""
    device, spec = catalog.device(name), catalog.kernel(kernel)
    reads = None if causal else Prefixes((Prefix(0, keys, (0,)),))
    context = keys if causal else keys + rows
    workload = Workload(
        (context,), HEADS, KV_HEADS, DIM, query_len=rows, launch="stream", reads=reads
    )  # fmt: skip
    instance = instance_of(spec, device, workload)
    grid = tile_grid(workload, instance, device, "all" if causal else "prefix")
    choice = spec.partitioner
    made = (
        registry.make(choice.name, choice.options)
        if partitioner is None
        else registry.make(partitioner, {})
    )
    return execute(lower(made(grid, device), instance, device)).latency_s


def passes_s(passes: Iterable[Pass], rows: int, device: str) -> float:
    """Seconds of passes over some rows: each a gap, and its bytes at the pace of long reads of DRAM."""
    spec = catalog.device(device)
    seconds = 0.0
    for one in passes:
        moved = rows * HEADS * (DIM * one.element_bytes + one.row_bytes)
        seconds += kernel_gap_s(spec, "stream") + moved / spec.achievable_dram_bytes_per_s
    return seconds


def hop_s(machine: Machine, tokens: int) -> float:
    """Seconds for K and V of a rank to go one hop, at the link's pace, with the latency of the node."""
    latency_s = catalog.node(f"{machine.device}_x8").link_latency_s
    return latency_s + kv_bytes(tokens) / machine.link_bytes_per_s


def kv_bytes(tokens: int) -> int:
    """Bytes of K and V in 16 bits: 33.6 MB of 8,192 tokens."""
    return tokens * KV_HEADS * DIM * 2 * 2


def update_s(account: Account, block: Block | None, step: int, tokens: int, device: str) -> float:
    """Seconds to merge a block into O and LSE; the first block becomes O."""
    if block is None or account.update is None:
        return 0.0
    if step == 0:
        return passes_s(CONVERT, tokens, device)
    rows = len(block.rows)
    passes = UPDATES[account.update] + (SLICED if rows < tokens else ())
    return passes_s(passes, rows, device)


def around_s(account: Account, tokens: int, device: str) -> float:
    """Seconds before the first round and after the last: K and V made contiguous, O to 16 bits."""
    if account.update is None:
        return 0.0
    copied = 2 * kv_bytes(tokens) / catalog.device(device).achievable_dram_bytes_per_s
    gaps = 2 * kernel_gap_s(catalog.device(device), "stream")
    return copied + gaps + passes_s(CONVERT, tokens, device)


def call_s(order: Order, machine: Machine, account: Account, tokens: int = 8192) -> float:
    """Seconds of a call on all ranks, of many that follow one another: what a benchmark's loop shows."""
    attention, update = (np.zeros((machine.ranks, machine.ranks)) for _ in range(2))
    for rank in range(machine.ranks):
        for step in range(machine.ranks):
            block = order.block(rank, step, tokens)
            if block is not None:
                attention[rank, step] = block_s(account, machine.device, block)
            update[rank, step] = update_s(account, block, step, tokens, machine.device)
    hop = hop_s(machine, tokens)
    if account.hop == "holds_sms":
        held = machine.hop_ctas / catalog.device(machine.device).num_sms
        attention[:, :-1] += np.where(attention[:, :-1] > 0.0, held * hop, 0.0)
    update[:, -1] += around_s(account, tokens, machine.device)
    return period_s(attention, update, hop, after=account.hop == "after")


def period_s(attention: FloatArray, update: FloatArray, hop: float, after: bool = False) -> float:
    """Seconds from call to call of ranks that wait for their neighbours' hops, `[ranks, steps]` each.

    A rank's next round begins when its own work is done and its hops are, to the next rank and from
    the one before; a hop runs once both have begun their round, or `after` their attention. The last
    round has no hop.

    By hand: two ranks, two rounds, 1 s and 3 s on one and 2 s twice on the other, take 4 s a call; with
    a hop of 5 s, 5 s and then the slower of 3 s and 2 s: 8 s.
    """
    ranks, steps = attention.shape
    begin, ends = np.zeros(ranks), []
    for _ in range(2 * _CALLS):
        for step in range(steps):
            done = begin + attention[:, step] + update[:, step]
            if step + 1 < steps:
                ready = begin + (attention[:, step] if after else 0.0)
                sent = np.maximum(ready, np.roll(ready, -1)) + hop
                done = np.maximum(done, np.maximum(sent, np.roll(sent, 1)))
            begin = done
        ends.append(float(begin.max()))
    return (ends[-1] - ends[_CALLS - 1]) / _CALLS


_CALLS = 16  # some to forget how it began, and as many to look at
