"""KV lists by query block: new tokens that follow each other have a list in common, others another.

As in sparse prefill, where what is kept moves along with the queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.specs.kv_index import Index
from leansim.specs.kv_list_file import CsrFile
from leansim.specs.kv_lists import KvList, Tokens, TopK


@dataclass(frozen=True)
class QueryBlocks:
    """A list for each `queries` new tokens: what `of` keeps of the context that the newest of them has.

    Block `j` of `m` new tokens of a context of `n` keeps of the first `min(n, n - m + (j + 1) queries)`.
    A file has a row for each block: row `(i * heads + h) * blocks + j` is of request `i`, KV head `h`.
    """

    of: KvList
    queries: Tokens

    def __post_init__(self) -> None:
        if isinstance(self.of, TopK) and self.of.selector != "none":
            wanted = "wanted no selector: what one reads for every block is not modelled"
            raise ValueError(f"queries and selector={self.of.selector}, {wanted}")

    @property
    def run_tokens(self) -> int:
        """As long as those of one list."""
        return self.of.run_tokens

    def index(self, num_heads: int, key_bytes: int) -> Index | None:
        """None: lists by query block are given."""
        return self.of.index(num_heads, key_bytes)

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:
        """Those of a block of one new token, the newest."""
        return self.of.counts(lens, num_heads)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """Those of a block of one new token, the newest."""
        return self.of.kept(tokens, request, head)

    def new_tokens(self, query_len: int) -> list[range]:
        """Numbers of the new tokens of each block."""
        first = range(0, query_len, self.queries)
        return [range(at, min(query_len, at + self.queries)) for at in first]

    def ends(self, lens: IntArray, query_len: int) -> IntArray:
        """Tokens up to the newest of each block, `[batch, blocks]`."""
        after = np.array([one.stop for one in self.new_tokens(query_len)])
        ends: IntArray = lens[:, None] - query_len + after
        return ends

    def block_counts(self, lens: IntArray, query_len: int, num_heads: int) -> IntArray:
        """Tokens that each block keeps, `[batch, KV heads, blocks]`, heads 1 where all keep as many."""
        ends = self.ends(lens, query_len)
        if isinstance(self.of, CsrFile):
            return self.of.row_counts(ends, num_heads)
        counts = self.of.counts(ends.ravel(), num_heads)
        return np.swapaxes(counts.reshape(*ends.shape, -1), 1, 2)

    def block_kept(self, tokens: int, query_len: int, request: int, head: int, block: int) -> IntArray:
        """Which of a request's tokens a KV head keeps for a block: rising numbers."""
        blocks = self.new_tokens(query_len)
        end = tokens - query_len + blocks[block].stop
        if isinstance(self.of, CsrFile):
            return self.of.row_kept(end, request, head, block, len(blocks))
        return self.of.kept(end, request, head)
