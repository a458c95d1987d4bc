"""Which tokens of its context a request attends to: generators of KV lists.

A list says how many tokens it keeps of a context, which is all that time depends on, and which, which
numerics ask. What a real selector would choose by score is drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.specs.base import Share, TokenCount
from leansim.specs.kv_index import SELECTORS, Index, Selector

Tokens = TokenCount
MaybeTokens = Annotated[int, Field(ge=0, le=2**40)]


class KvList(Protocol):
    """The tokens that a request attends to. Implementations are frozen dataclasses.

    `run_tokens` of what is kept lie together at least, which is a page of a paged cache to the kernel.
    """

    @property
    def run_tokens(self) -> int:
        """Tokens in a run, at least."""
        ...  # pragma: no cover

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:
        """Tokens kept of each request, `[batch]`, or where heads differ `[batch, KV heads]`."""
        ...  # pragma: no cover

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """Which of a request's tokens a KV head keeps: rising numbers."""
        ...  # pragma: no cover

    def index(self, num_heads: int, key_bytes: int) -> Index | None:
        """What is read to choose it, with `key_bytes` of a head's key; None where nothing is."""
        ...  # pragma: no cover


class Given:
    """What lists have in common that nothing chooses in the call: they are known before."""

    def index(self, num_heads: int, key_bytes: int) -> Index | None:  # noqa: ARG002
        """Nothing."""
        return None


class _Runs(Given):
    """What lists have in common that keep long runs."""

    @property
    def run_tokens(self) -> int:
        """As long as any page."""
        return 2**40


def _draw(count: int, among: int, *seeds: int) -> IntArray:
    """So many of `among` blocks, rising."""
    rng = np.random.default_rng(seeds)
    return np.sort(rng.choice(among, size=count, replace=False)) if count else np.arange(0)


def whole_blocks(blocks: IntArray, size: int) -> IntArray:
    """The tokens of whole blocks."""
    return _integers((blocks[:, None] * size + np.arange(size)).ravel())


def _integers(values: Any) -> IntArray:
    """Whole numbers, whatever an empty part would make of them."""
    return np.asarray(values, dtype=np.int64)


@dataclass(frozen=True)
class WindowSink(_Runs):
    """The first `sink` tokens and the last `window` (StreamingLLM; MInference's A-shape)."""

    window: Tokens
    sink: MaybeTokens = 0

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """`min(n, sink + window)`."""
        return np.minimum(lens, self.sink + self.window)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        if tokens <= self.sink + self.window:
            return np.arange(tokens)
        return _integers(np.r_[0 : self.sink, tokens - self.window : tokens])


@dataclass(frozen=True)
class BlockDiagonal(_Runs):
    """The block of `block` tokens that the newest token lies in."""

    block: Tokens

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """`n - (n - 1) // block * block`."""
        return lens - (lens - 1) // self.block * self.block

    def kept(self, tokens: int, request: int, head: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        return np.arange((tokens - 1) // self.block * self.block, tokens)


@dataclass(frozen=True)
class Dilated(Given):
    """`window` tokens, of which each is `stride` before the next (Longer Attention Span, 1-D)."""

    window: Tokens
    stride: Tokens

    @property
    def run_tokens(self) -> int:
        """Single tokens, but of stride 1."""
        return 1 if self.stride > 1 else self.window

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """`min(window, ceil(n / stride))`."""
        return np.minimum(self.window, -(-lens // self.stride))

    def kept(self, tokens: int, request: int, head: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        count = min(self.window, -(-tokens // self.stride))
        return tokens - 1 - np.arange(count)[::-1] * self.stride


@dataclass(frozen=True)
class Strided(Given):
    """Every `stride`-th block of `block` tokens, counted from the newest."""

    block: Tokens
    stride: Tokens

    @property
    def run_tokens(self) -> int:
        """A block."""
        return self.block

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """`n - (blocks - kept blocks) * block`: the newest block is kept, others are whole."""
        blocks = -(-lens // self.block)
        return lens - (blocks - -(-blocks // self.stride)) * self.block

    def kept(self, tokens: int, request: int, head: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        last = -(-tokens // self.block) - 1
        kept = whole_blocks(np.arange(last % self.stride, last + 1, self.stride), self.block)
        return _integers(kept[kept < tokens])


@dataclass(frozen=True)
class RandomBlocks(Given):
    """The newest block of `block` tokens, and of the others a share `density`, drawn for each head.

    Hybrid Dynamic Pruning keeps as many blocks of each row, and of some heads, `pruned_heads` of all,
    none.
    """

    density: Share
    block: Tokens = 64
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    pruned_heads: Share = 0.0

    @property
    def run_tokens(self) -> int:
        """A block."""
        return self.block

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:
        """`n - (others - round(density * others)) * block`, nothing of pruned heads."""
        others = (lens - 1) // self.block
        counts = lens - (others - self._drawn(others)) * self.block
        if not self.pruned_heads:
            return counts
        kept = np.isin(np.arange(num_heads), self._pruned(num_heads), invert=True)
        return _integers(counts[:, None] * kept)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """Drawn from the seed, the request and the head."""
        others = (tokens - 1) // self.block
        drawn = _draw(int(self._drawn(np.array(others))), others, self.seed, request, head)
        return _integers(np.r_[whole_blocks(drawn, self.block), others * self.block : tokens])

    def _drawn(self, others: IntArray) -> IntArray:
        return _integers(np.rint(self.density * others))

    def _pruned(self, num_heads: int) -> IntArray:
        return _draw(min(num_heads - 1, round(self.pruned_heads * num_heads)), num_heads, self.seed)


@dataclass(frozen=True)
class TopK:
    """`budget` tokens in pages of `page`, and beside them the last `window`.

        kept = min(n, budget + window)

    Pages are drawn for each head, as scores are not known; what whole pages leave of the budget are the
    newest tokens before the window. Quest keeps pages; DSA, with `page` 1, and SparseK single tokens,
    the latter beside a window. With a `selector` a launch before attention reads what that chooses by:
    of Quest the keys' least and largest of each page, of DSA an index of each token for all heads, of
    NSA the compressed KV, its first branch; what is chosen and the window are the other two.
    """

    budget: Tokens
    page: Tokens = 16
    window: MaybeTokens = 0
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    selector: Selector = "none"

    @property
    def run_tokens(self) -> int:
        """A page."""
        return self.page

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """`min(n, budget + window)`."""
        return np.minimum(lens, self.budget + self.window)

    def index(self, num_heads: int, key_bytes: int) -> Index | None:
        """That of the selector."""
        made = SELECTORS.get(self.selector)
        return None if made is None else made(self.page, num_heads, key_bytes)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """Drawn from the seed, the request and the head; DSA's are those of every head."""
        head = 0 if self.selector == "dsa" else head
        if tokens <= self.budget + self.window:
            return np.arange(tokens)
        last = (tokens - self.window - 1) // self.page * self.page  # where the newest page begins
        budget = self.budget - (tokens - self.window - last)
        if budget < 0:
            return np.arange(tokens - self.window - self.budget, tokens)
        newest = last - budget % self.page
        drawn = _draw(budget // self.page, newest // self.page, self.seed, request, head)
        return _integers(np.r_[whole_blocks(drawn, self.page), newest:tokens])


@dataclass(frozen=True)
class VerticalSlash(Given):
    """`vertical` single tokens and the last `slash` (MInference, for the newest query)."""

    vertical: Tokens
    slash: Tokens
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0

    @property
    def run_tokens(self) -> int:
        """Single tokens."""
        return 1

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:
        """`min(n, vertical + slash)`."""
        return self._as_top_k().counts(lens, num_heads)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """Drawn from the seed, the request and the head."""
        return self._as_top_k().kept(tokens, request, head)

    def _as_top_k(self) -> TopK:
        return TopK(self.vertical, 1, self.slash, self.seed)


@dataclass(frozen=True)
class Shard(Given):
    """What one of `ranks` holds of each context: every `ranks`-th token, or a run of them.

    `interleaved`, position p is on rank p mod ranks (SGLang); else each has a run of
    `ceil(n / ranks)` tokens.
    """

    rank: Annotated[int, Field(ge=0)]
    ranks: Tokens
    interleaved: bool = True

    @property
    def run_tokens(self) -> int:
        """A rank's own cache holds its tokens one after the other."""
        return 2**40

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        return self.of_rank(lens)

    def of_rank(self, lens: IntArray) -> IntArray:
        """`ceil((n - rank) / ranks)`, or the length of the rank's run."""
        if self.interleaved:
            return np.maximum(0, -(-(lens - self.rank) // self.ranks))
        run = -(-lens // self.ranks)
        return _integers(np.clip(lens - self.rank * run, 0, run))

    def kept(self, tokens: int, request: int, head: int) -> IntArray:  # noqa: ARG002
        """The same for every head."""
        if self.interleaved:
            return np.arange(self.rank, tokens, self.ranks)
        run = -(-tokens // self.ranks)
        return np.arange(min(tokens, self.rank * run), min(tokens, (self.rank + 1) * run))
