"""Prefill in closed form: attention, a list that bounds it, choosing the list, and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Pattern = tuple[int, int, int]  # single tokens, diagonals, heads


@dataclass(frozen=True)
class Machine:
    """FLOP/s of attention and bytes/s of memory, as reached."""

    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Shape:
    """A model: layers, query and KV heads of `dim`, and parameters of its linear layers in all."""

    layers: int
    q_heads: int
    kv_heads: int
    dim: int
    linear_parameters: float


def attention_flop(n: int, shape: Shape) -> float:
    """A layer's causal attention: two products of 2 d for each of n^2 / 2 pairs a head, `2 n^2 d H`."""
    return 2.0 * n**2 * shape.dim * shape.q_heads


def attention_s(n: int, shape: Shape, machine: Machine) -> float:
    """A layer's dense attention: FLOP, or Q, K, V and O once in 16 bits, whichever takes longer."""
    moved = 2 * n * shape.dim * 2 * (shape.q_heads + shape.kv_heads)
    return max(attention_flop(n, shape) / machine.flop_per_s, moved / machine.bytes_per_s)


def linear_s(n: int, shape: Shape, machine: Machine) -> float:
    """All layers' linear parts: 2 FLOP for each parameter and token, at attention's rate (assumed)."""
    return 2 * shape.linear_parameters * n / machine.flop_per_s


def density(n: int, tokens: float) -> float:
    """Pairs that are left where query i sees `min(i, B)` tokens: `2 b - b^2` with b = B / n, at most 1.

    16 queries and B = 4: 4 * 4 / 2 + 12 * 4 = 56 of 128, as 2 / 4 - 1 / 16 = 0.4375.
    """
    b = min(1.0, tokens / n)
    return 2 * b - b * b


def tokens_of(wanted: float, n: int) -> float:
    """The B of a density: `n (1 - sqrt(1 - density))`."""
    return float(n * (1 - (1 - min(1.0, max(0.0, wanted))) ** 0.5))


def heads_density(n: int, heads: Sequence[Pattern], width: float) -> float:
    """Mean over heads whose lists are v tokens and s diagonals, each of which costs `width` tokens."""
    total = sum(count for *_, count in heads)
    return sum(count * density(n, v + width * s) for v, s, count in heads) / total


def index_s(n: int, shape: Shape, machine: Machine, queries: int, passes: int) -> float:
    """Choosing a layer's lists: scores of the last queries, made and passed through memory."""
    flop = 2.0 * queries * n * shape.dim * shape.q_heads
    moved = 4.0 * passes * queries * n * shape.q_heads + 2 * n * shape.dim * shape.kv_heads
    return flop / machine.flop_per_s + moved / machine.bytes_per_s


def break_even(
    tokens: float, slower: float, index_share: float, least: int = 1024, most: int = 2**21
) -> int | None:
    """The least context, to 1%, from which on `slower * density + index < 1`; None: at none.

    `slower`: time of a listed tile over that of a dense one; `index_share`, of choosing, at `least`
    tokens over dense attention there, which falls as 1 / n.
    """

    def pays(n: float) -> bool:
        return slower * density(round(n), tokens) + index_share * least / n < 1

    if not pays(most):
        return None
    low, high = float(least), float(most)
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if pays(middle) else (middle, high)
    return round(high)
