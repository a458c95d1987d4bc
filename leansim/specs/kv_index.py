"""What a list of KV is chosen by: an index of the whole context, smaller than the KV itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from leansim.arrays import IntArray

Selector = Literal["none", "quest", "dsa", "nsa"]


@dataclass(frozen=True)
class Index:
    """An entry of `entry_bytes` for each `tokens` tokens in a row, of each of `heads` heads.

    Of `heads` 1 the list that it gives is that of every KV head.
    """

    tokens: int
    entry_bytes: int
    heads: int

    def bytes_of(self, lens: IntArray) -> IntArray:
        """Bytes of the index of contexts of so many tokens: `ceil(n / tokens) * entry_bytes * heads`."""
        read: IntArray = -(-lens // self.tokens) * self.entry_bytes * self.heads
        return read


def _quest(page: int, num_heads: int, key_bytes: int) -> Index:
    """Least and largest key of each page, of each KV head (mit-han-lab/Quest).

    In the KV's own dtype, as Quest has it; an 8-bit cache may keep them in 16 bits, which is twice this.
    """
    return Index(page, 2 * key_bytes, num_heads)


def _dsa(_page: int, _num_heads: int, _key_bytes: int) -> Index:
    """A key of 128 bytes and its scale of each token, for all heads (DeepSeek-V3.2's indexer)."""
    return Index(1, 128 + 4, 1)


def _nsa(_page: int, num_heads: int, key_bytes: int) -> Index:
    """A compressed key and a compressed value of each 16 tokens, of each KV head (arXiv:2502.11089).

    Attention to them is a branch of its own, whose scores choose blocks: what it reads is what they are
    chosen by. Blocks of 32 tokens overlap, 16 apart. A value is taken to be as long as a key.
    """
    return Index(16, 2 * key_bytes, num_heads)


SELECTORS: dict[str, Callable[[int, int, int], Index]] = {"quest": _quest, "dsa": _dsa, "nsa": _nsa}
