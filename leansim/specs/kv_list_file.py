"""KV lists from a file: the blocks that each request attends to, in compressed sparse rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import WorkloadError
from leansim.specs.kv_lists import Given, Tokens, whole_blocks


@dataclass(frozen=True)
class CsrFile(Given):
    """Blocks of `block` tokens by their numbers, rising, from an .npz file with `indptr` and `indices`.

    Row `i` is of request `i`; with `heads`, of request `i // heads` and KV head `i % heads`; with query
    blocks each of those rows is several, one after the other (`QueryBlocks`). `digest` is
    of the file's contents, and need not be given. Raises `WorkloadError` for a file of another kind.
    """

    path: str
    block: Tokens = 1
    heads: Tokens = 1
    digest: str = ""
    _rows: ClassVar[tuple[IntArray, IntArray]]  # of each list its own, as read when it was made

    def __post_init__(self) -> None:
        indptr, indices = _read(self.path, _modified(self.path))
        object.__setattr__(self, "_rows", (indptr, indices))
        whole = hashlib.sha256(indptr.tobytes() + b"|" + indices.tobytes())
        object.__setattr__(self, "digest", whole.hexdigest()[:16])

    @property
    def run_tokens(self) -> int:
        """A block."""
        return self.block

    def counts(self, lens: IntArray, num_heads: int) -> IntArray:
        """Tokens of each row's blocks. Raises `WorkloadError` where the rows are not the batch's."""
        counts = self.row_counts(lens[:, None], num_heads)[:, :, 0]
        return counts[:, 0] if self.heads == 1 else counts

    def row_counts(self, ends: IntArray, num_heads: int) -> IntArray:
        """The same where each query block has a row, `[batch, heads, query blocks]`.

        `ends`, `[batch, query blocks]`, are the tokens that a block's list may be of.
        """
        indptr, indices = self._rows
        rows, (batch, query_blocks) = len(indptr) - 1, ends.shape
        if self.heads not in (1, num_heads) or rows != ends.size * self.heads:
            each = f"{query_blocks} query blocks of {batch}" if query_blocks > 1 else str(batch)
            raise WorkloadError(
                f"mask: {self.path} has {rows} rows, read as of {self.heads} heads; wanted one for each "
                f"of {each} requests, or with heads={num_heads} one for each of their KV heads"
            )
        tokens = np.repeat(ends, self.heads, axis=0).ravel()
        newest = indices[indptr[1:] - 1]
        beyond = np.maximum(0, (newest + 1) * self.block - tokens)
        if (wrong := np.flatnonzero(beyond >= self.block)).size:
            row = int(wrong[0])
            raise WorkloadError(
                f"mask: row {row} of {self.path} has block {newest[row]} of {self.block} tokens, "
                f"beyond the {tokens[row]} of its request"
            )
        counts: IntArray = np.diff(indptr) * self.block - beyond
        return counts.reshape(batch, self.heads, query_blocks)

    def kept(self, tokens: int, request: int, head: int) -> IntArray:
        """The tokens of a row's blocks."""
        return self.row_kept(tokens, request, head, 0, 1)

    def row_kept(
        self, tokens: int, request: int, head: int, query_block: int, query_blocks: int
    ) -> IntArray:
        """The same of one of several query blocks."""
        indptr, indices = self._rows
        of_head = request * self.heads + (head if self.heads > 1 else 0)
        row = of_head * query_blocks + query_block
        kept = whole_blocks(indices[indptr[row] : indptr[row + 1]], self.block)
        kept_here: IntArray = kept[kept < tokens]
        return kept_here


def _modified(path: str) -> tuple[int, ...]:
    """When a file was last written, and its size; nothing of one that is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=16)
def _read(path: str, _written: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """`indptr` and `indices` of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            indptr, indices = (np.asarray(file[name], dtype=np.int64) for name in ("indptr", "indices"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = "an .npz file with arrays indptr and indices"
        raise WorkloadError(f"mask: {path} is not {wanted}: {error}") from None
    sized = indptr.ndim == indices.ndim == 1 and len(indptr) > 1
    if not (sized and indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr) > 0).all()):
        raise WorkloadError(f"mask: indptr of {path} must rise from 0 to the length of indices")
    rises = np.diff(indices) > 0
    rises[indptr[1:-1] - 1] = True  # from row to row they may fall
    if indices.min() < 0 or not rises.all():
        raise WorkloadError(f"mask: the block numbers of each row of {path} must rise from 0 or more")
    return indptr, indices
