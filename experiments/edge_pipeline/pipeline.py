"""A matrix and a vector unit, beside each other or one after the other, and a buffer that may be short.

Times are in units of both products of all row blocks. Ignores energy, and stalls on the buffer's ports.
"""

from __future__ import annotations

from dataclasses import dataclass


def walked(blocks: int, product_s: float, softmax_s: float) -> float:
    """Two streams: MAC does QK of the next row block and PV of the last beside softmax on VEC.

    MAC's order is QK 1, QK 2, PV 1, QK 3, PV 2, ..., PV n; each waits for what it needs.
    """
    order = [("qk", 0)]
    for block in range(1, blocks):
        order += [("qk", block), ("pv", block - 1)]
    order.append(("pv", blocks - 1))
    mac = vec = 0.0
    scored: dict[int, float] = {}
    for what, block in order:
        if what == "qk":
            mac += product_s
            vec = max(vec, mac) + softmax_s
            scored[block] = vec
        else:
            mac = max(mac, scored[block]) + product_s
    return mac


def overlapped(blocks: int, product_s: float, softmax_s: float) -> float:
    """The same in closed form, with a product of p and a softmax of v for each of n row blocks.

        v <= p        2 n p
        p < v < 2 p   2 n p + 2 (v - p), or for one block 2 p + v
        v >= 2 p      n v + 2 p

    MAC never waits; at both ends only; or VEC never does.
    """
    if blocks == 1:
        return 2 * product_s + softmax_s
    if softmax_s >= 2 * product_s:
        return blocks * softmax_s + 2 * product_s
    return 2 * blocks * product_s + 2 * max(0.0, softmax_s - product_s)


def overlap_gain(ratio: float) -> float:
    """One after the other over both at once, of many blocks: `(T_mac + T_vec) / max`, 2 at most."""
    return (1 + ratio) / max(1.0, ratio)


def passes(buffer: float, tokens: int, dim: int, score_blocks: int = 1) -> float:
    """How often K and V are read: once where they fit beside a row of scores, else once a row block.

    `buffer` is L1 over the bytes of K and V. A row block of r rows has r n scores, so of a buffer of
    `2 n d` numbers times `buffer` there are `2 d buffer` rows: `n / (2 d buffer)` passes, and twice as
    many where scores of two blocks are held.
    """
    row = score_blocks / (2 * dim)  # a row of scores over K and V
    if buffer >= 1 + row:
        return 1.0
    return max(1.0, tokens * row / max(buffer, row))


def moved(times: float) -> float:
    """Bytes over those of Q, K, V and O once, where K and V are read so many times."""
    return (1 + times) / 2


@dataclass(frozen=True)
class Device:
    """Softmax, and moving everything once, over both products; L1 over K and V; and the head's shape."""

    ratio: float
    memory: float
    buffer: float
    tokens: int
    dim: int

    @property
    def serial(self) -> float:
        """FLAT's units, one after the other."""
        return 1 + self.ratio

    @property
    def flat(self) -> float:
        """FLAT: its units, or what it moves beside them, whichever takes longer."""
        return max(self.serial, self.memory * moved(passes(self.buffer, self.tokens, self.dim)))

    @property
    def mas_at_best(self) -> float:
        """Both units at once, all moved once: what tilings and overwriting can do at most."""
        return max(1.0, self.ratio, self.memory)

    @property
    def mas_same_tiles(self) -> float:
        """Both units at once in FLAT's tiles, of which two row blocks' scores are held."""
        again = moved(passes(self.buffer, self.tokens, self.dim, score_blocks=2))
        return max(1.0, self.ratio, self.memory * again)

    @property
    def gains(self) -> tuple[float, float]:
        """By overlap, were no buffer short; and by the buffer, on top of that. Their product is all."""
        enough = max(self.serial, self.memory)
        return enough / self.mas_at_best, self.flat / enough
