"""Prefill over eight GPUs in the orders of ring attention, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orders import ORDERS, RING, Block, Order, balance, replay_error, round_times
from ring import Account, Machine, block_s, call_s, hop_s, update_s

from leansim.checkout.pages import Part, Rows

TOKENS = 8192
ALL = range(TOKENS)
BLOCKS = {
    "causal": Block(ALL, ALL, True),
    "whole": Block(ALL, ALL, False),
    "half the keys": Block(ALL, range(TOKENS // 2), False),
    "half the rows": Block(range(TOKENS // 2, TOKENS), ALL, False),
    "causal, shifted": Block(range(1, TOKENS), range(TOKENS - 1), True),
}
FUSED, APART = Account("fused"), Account("apart")
ONE_KERNEL, UPDATED = "update, O in one kernel", "update, a kernel an operation"
ACCOUNTS = {
    "blocks alone": Account(None),
    ONE_KERNEL: FUSED,
    UPDATED: APART,
    "and hop holds SMs": Account("apart", "holds_sms"),
    "and hop after attention": Account("apart", "after"),
}
SCHEDULES = {
    "fa2_prefill": APART,
    "fa2_prefill + lean_attention": Account("apart", partitioner="lean_attention"),
    "lean_prefill": Account("apart", kernel="lean_prefill"),
}
Times = Mapping[tuple[str, str, str], float]


def machines(said: Sequence[Mapping[str, Any]]) -> dict[str, Machine]:
    """Nodes that were measured, by name."""
    names = ("name", "device", "link_bytes_per_s", "hop_ctas")
    return {one["name"]: Machine(**{name: one[name] for name in names}) for one in said}


def single_s(machine: Machine) -> float:
    """Seconds of flash-attention on one GPU's tokens alone."""
    return block_s(APART, machine.device, BLOCKS["causal"])


def times(said: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Seconds of a call, by node, order and account or schedule; order `single` is one GPU alone."""
    found = {}
    for name, machine in machines(said).items():
        for what, account in (ACCOUNTS | SCHEDULES).items():
            found |= {(name, one.name, what): call_s(one, machine, account, TOKENS) for one in ORDERS}
        found[name, "single", "fa2_prefill"] = single_s(machine)
    return found


def pins(found: Times) -> Rows:
    """What is pinned: each call, ns."""
    return [
        {"node": node, "order": order, "account": what, "time_ns": round(seconds * 1e9)}
        for (node, order, what), seconds in found.items()
    ]


def errors(said: Sequence[Mapping[str, Any]], account: Account) -> dict[tuple[str, str], float]:
    """Simulated over measured time less one, by node and order: the eight rows."""
    found = {}
    for one, machine in zip(said, machines(said).values(), strict=True):
        seconds = {"single": single_s(machine)}
        seconds |= {order.name: call_s(order, machine, account, TOKENS) for order in ORDERS}
        found |= {(one["name"], name): s * one["calls_per_s"][name] - 1.0 for name, s in seconds.items()}
    return found


def _beside(said: Sequence[Mapping[str, Any]]) -> Rows:
    fused, apart = errors(said, FUSED), errors(said, APART)
    rows = []
    for one in said:
        for order, calls in one["calls_per_s"].items():
            key = (one["name"], order)
            rows.append(
                {
                    "node": one["name"],
                    "order": order,
                    "calls/s measured": f"{calls:g}",
                    "ms measured": f"{1e3 / calls:.2f}",
                    "ms, a kernel an operation": f"{1e3 / calls * (1 + apart[key]):.2f}",
                    "error": f"{apart[key]:+.1%}",
                    "ms, O in one kernel": f"{1e3 / calls * (1 + fused[key]):.2f}",
                    "error ": f"{fused[key]:+.1%}",
                }
            )
    return rows


def _mechanisms(said: Sequence[Mapping[str, Any]], found: Times) -> Rows:
    rows = []
    for what in ACCOUNTS:
        row = {"counted": what}
        for one in said:
            for order in ORDERS:
                error = found[one["name"], order.name, what] * one["calls_per_s"][order.name] - 1.0
                row[f"{one['name']}: {order.name}"] = f"{error:+.1%}"
        rows.append(row)
    return rows


def missing_s(
    said: Sequence[Mapping[str, Any]], found: Times, scaled: bool
) -> dict[tuple[str, str], float]:
    """Seconds measured beyond the count with O in one kernel, of each of 7 rounds with an update.

    `scaled`: with blocks as much shorter or longer as the measured row of one GPU is.
    """
    missing = {}
    for one in said:
        calls, node = one["calls_per_s"], one["name"]
        scale = 1.0 / calls["single"] / found[node, "single", "fa2_prefill"] if scaled else 1.0
        for order in ORDERS:
            blocks_s = found[node, order.name, "blocks alone"]
            counted_s = found[node, order.name, ONE_KERNEL] - (1.0 - scale) * blocks_s
            missing[node, order.name] = (1.0 / calls[order.name] - counted_s) / 7
    return missing


def _missing(said: Sequence[Mapping[str, Any]], found: Times) -> Rows:
    rows = []
    for name, machine in machines(said).items():
        extra = [update_s(a, BLOCKS["whole"], 1, TOKENS, machine.device) for a in (FUSED, APART)]
        for what, scaled in (("simulated", False), ("scaled to the row of one GPU", True)):
            missing = missing_s(said, found, scaled)
            rows.append(
                {
                    "node": name,
                    "blocks": what,
                    **{f"{o.name}: missing": f"{missing[name, o.name] * 1e6:.0f}" for o in ORDERS},
                    "update, one kernel": f"{extra[0] * 1e6:.0f}",
                    "a kernel an operation": f"{extra[1] * 1e6:.0f}",
                    "a hop": f"{hop_s(machine, TOKENS) * 1e6:.0f}",
                }
            )
    return rows


def _balance() -> Rows:
    rows = []
    for ranks in (4, 8):
        for order in ORDERS:
            rounds = round_times(order, ranks, TOKENS)
            rows.append(
                {
                    "ranks": ranks,
                    "order": order.name,
                    "full blocks": f"{sum(rounds):.2f}",
                    "ideal": ranks // 2,
                    "share": f"{balance(order, ranks, TOKENS):.1%}",
                    "replay of 4 x 16 tokens": "exact" if replay_error(order) < 1e-12 else "wrong",
                }
            )
    return rows


def _schedules(said: Sequence[Mapping[str, Any]], found: Times) -> Rows:
    rows = []
    for name, machine in machines(said).items():
        for what, account in SCHEDULES.items():
            blocks = {b: block_s(account, machine.device, block) for b, block in BLOCKS.items()}
            rows.append(
                {
                    "node": name,
                    "schedule": what,
                    **{f"{block}, us": f"{seconds * 1e6:,.0f}" for block, seconds in blocks.items()},
                    **{f"{o.name}, ms": f"{found[name, o.name, what] * 1e3:.1f}" for o in ORDERS},
                }
            )
    return rows


def gain(found: Times, node: str, order: Order) -> float:
    """How many times sooner a call is over with blocks dealt as LeanAttention does."""
    return (
        found[node, order.name, "fa2_prefill"]
        / found[node, order.name, "fa2_prefill + lean_attention"]
    )  # fmt: skip


def part(said: Sequence[Mapping[str, Any]], found: Times) -> Part:
    """The eight rows, what each mechanism adds, and how orders and schedules balance."""
    fused, apart = errors(said, FUSED), errors(said, APART)
    within = sum(abs(error) <= 0.10 for error in fused.values())
    worst = max(map(abs, apart.values()))
    missing = missing_s(said, found, True)
    a100, h800 = (one["name"] for one in said)
    ratios = (missing[a100, order.name] / missing[h800, order.name] for order in ORDERS)
    told = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    most = max(
        found[node, order.name, what] / found[node, order.name, UPDATED] - 1.0
        for node in (a100, h800)
        for order in ORDERS
        for what in ("and hop holds SMs", "and hop after attention")
    )
    gains = [gain(found, one["name"], order) for one in said for order in ORDERS if order is not RING]
    return Part(
        "Prefill of 65,536 tokens on eight GPUs in ring, zigzag and striped order (Llama-3-8B's heads)",
        (
            "Blocks are simulated FlashAttention-2; what merges them is priced by its bytes. Nothing",
            "is fitted but A100's first row, by `fa2_prefill`. O is updated by a kernel for each",
            "operation, 38 bytes an element, as that repository's pull request 87, which sets out",
            f"to save them, says of its code: all 8 rows are within {worst:.0%}. TorchScript's fuser,",
            f"asked on a CPU, makes one kernel of 10 bytes; counted so, {within} are within 10%, and",
            "zigzag and striped order come out too fast. What that count misses grows from ring over",
            "zigzag to stripe. With blocks",
            f"scaled to the row of one GPU it is {told} times as long on A100, whose links",
            "are 1.5 times as fast and whose DRAM has half the pace: in balanced orders it goes with",
            "DRAM, as the update does, and no one loss a round makes up all six. Hops hide behind",
            "blocks; that NCCL's CTAs hold SMs meanwhile, or wait until attention leaves some, adds at",
            f"most {most:.1%}. Dealing each block's tiles equally makes calls in balanced order",
            f"{min(gains):.2f} to {max(gains):.2f} times as fast, since blocks of half the rows or keys",
            "have few waves; `lean_prefill`, whose row blocks have 64 rows, loses more by those than it",
            "gains.",
        ),
        (
            ("A call beside zhuzilin/ring-flash-attention's benchmark, forward", _beside(said)),
            ("Error of the time by what is counted", _mechanisms(said, found)),
            (
                "What is missing a round with O in one kernel, and what could be, us",
                _missing(said, found),
            ),
            ("Balance: a call in full blocks where the rank with most decides each round", _balance()),
            ("Who deals a block's tiles", _schedules(said, found)),
        ),
    )
