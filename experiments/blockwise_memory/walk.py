"""Walks the schedules of a transformer layer and counts what is live, tensor by tensor.

Score tiles, running maxima and sums stay on the chip, as in a fused kernel; a query block lies where its
output will. Tensors that are made whole are freed whole. No weights, gradients or optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

BYTES = 2  # bfloat16
FFN_WIDTH = 4  # of the hidden size

Op = tuple[str, int, int]  # attend (query block, KV block), or feed (query block, 0)


@dataclass(frozen=True)
class Layer:
    """b requests of s tokens, n heads, hidden h; blocks of c tokens, and of `inner` in a ring's host."""

    b: int
    s: int
    n: int
    h: int
    c: int
    inner: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of a sequence."""
        return self.s // self.c

    def tokens_bytes(self, tokens: int) -> int:
        """A tensor of the hidden size."""
        return BYTES * self.b * tokens * self.h


@dataclass
class Walk:
    """What is live, the most that was (beside what a sublayer is given, and in all), and operations."""

    live: dict[str, int] = field(default_factory=dict)
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    made_peak: dict[str, int] = field(default_factory=dict)
    live_peak: int = 0
    ops: list[Op] = field(default_factory=list)

    def make(self, sublayer: str, name: str, size: int, given_to: tuple[str, ...] = ()) -> None:
        """A tensor comes to life, which the sublayers of `given_to` find there."""
        self.live[name], self.given[name] = size, given_to
        made = sum(n for key, n in self.live.items() if sublayer not in self.given[key])
        self.made_peak[sublayer] = max(self.made_peak.get(sublayer, 0), made)
        self.live_peak = max(self.live_peak, sum(self.live.values()))

    def free(self, *names: str) -> None:
        """Tensors that nothing needs any more."""
        for name in names:
            del self.live[name]

    def attend(self, layer: Layer, query: int, kv: int, block: int) -> None:
        """A query block to a KV block, whose keys and values are projected from the input for it."""
        self.make("attention", "k", layer.tokens_bytes(block))
        self.make("attention", "v", layer.tokens_bytes(block))
        self.ops.append(("attend", query, kv))
        self.free("k", "v")

    def feed(self, layer: Layer, query: int, tokens: int) -> None:
        """The feedforward network of some tokens, written where their attention was."""
        self.make("ffn", "hidden", FFN_WIDTH * layer.tokens_bytes(tokens))
        self.ops.append(("feed", query, 0))
        self.free("hidden")


def vanilla(layer: Layer) -> Walk:
    """All scores at once, then all of the feedforward network."""
    walk = _given_input(layer)
    walk.make("attention", "scores", BYTES * layer.b * layer.n * layer.s**2)
    walk.make("attention", "attended", layer.tokens_bytes(layer.s), ("ffn",))
    walk.ops.append(("attend", 0, 0))
    walk.free("scores", "input")
    walk.feed(layer, 0, layer.s)
    return walk


def memory_efficient(layer: Layer) -> Walk:
    """Attention block by block, then all of the feedforward network."""
    walk = _given_input(layer)
    walk.make("attention", "attended", layer.tokens_bytes(layer.s), ("ffn",))
    for query in range(layer.blocks):
        for kv in range(layer.blocks):
            walk.attend(layer, query, kv, layer.c)
    walk.free("input")
    walk.feed(layer, 0, layer.s)
    return walk


def blockwise(layer: Layer) -> Walk:
    """Of each query block attention block by block, and at once its feedforward network."""
    walk = _given_input(layer)
    walk.make("attention", "output", layer.tokens_bytes(layer.s))
    for query in range(layer.blocks):
        for kv in range(layer.blocks):
            walk.attend(layer, query, kv, layer.c)
        walk.feed(layer, query, layer.c)
    return walk


def ring(layer: Layer) -> Walk:
    """One host's share: a query block, and KV blocks that come round while the last are attended to."""
    walk = Walk()
    block = layer.tokens_bytes(layer.c)
    for name in ("query", "k0", "v0", "output"):
        walk.make("attention", name, block, ("ffn",) if name == "query" else ())
    for hop in range(layer.blocks):
        if hop + 1 < layer.blocks:
            walk.make("attention", f"k{hop + 1}", block)
            walk.make("attention", f"v{hop + 1}", block)
        walk.ops.append(("attend", 0, hop))
        walk.free(f"k{hop}", f"v{hop}")
    inner = layer.inner or layer.c
    for piece in range(layer.c // inner):
        walk.feed(layer, piece, inner)
    return walk


def _given_input(layer: Layer) -> Walk:
    """The layer's input, which keys and values of every block are projected from."""
    walk = Walk()
    walk.make("attention", "input", layer.tokens_bytes(layer.s), ("attention", "ffn"))
    return walk


SCHEDULES: dict[str, Callable[[Layer], Walk]] = {
    "vanilla": vanilla,
    "memory_efficient": memory_efficient,
    "blockwise": blockwise,
    "ring": ring,
}


def feeds_at_once(ops: list[Op], blocks: int) -> bool:
    """Whether the feedforward network of each query block follows its last KV block, before the next."""
    wanted: list[Op] = []
    for query in range(blocks):
        wanted += [("attend", query, kv) for kv in range(blocks)]
        wanted.append(("feed", query, 0))
    return ops == wanted


def formula(name: str, sublayer: str, layer: Layer) -> int:
    """Bytes by Ring Attention's table 1, as it prints them."""
    b, s, n, h, c = layer.b, layer.s, layer.n, layer.h, layer.c
    return {
        ("vanilla", "attention"): 2 * b * n * s**2,
        ("vanilla", "ffn"): 8 * b * s * h,
        ("memory_efficient", "attention"): 2 * b * s * h + 4 * b * c * h,
        ("memory_efficient", "ffn"): 8 * b * s * h,
        ("blockwise", "attention"): 2 * b * s * h,
        ("blockwise", "ffn"): 2 * b * s * h,
        ("ring", "attention"): 6 * b * c * h,
        ("ring", "ffn"): 2 * b * c * h,
    }[name, sublayer]
