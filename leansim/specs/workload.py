"""What must be computed: a batch of decode requests and its attention shape. No hardware here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from leansim.errors import WorkloadError, suggestion
from leansim.lazy import cached_property
from leansim.specs.base import DTYPE_BYTES, DTYPES, LaunchMode
from leansim.specs.kv_index import Index
from leansim.specs.kv_lists import KvList
from leansim.specs.prefixes import Prefix, Prefixes, SharedPages, prefix_problems
from leansim.specs.query_blocks import QueryBlocks

Cache = Literal["cold", "warm"]
MOST_TOKENS = 2**40
# Fields that count something, and those that name one of a few things.
_COUNTS = (
    "num_q_heads", "num_kv_heads", "head_dim", "query_len", "page_tokens",
    "head_dim_v", "window", "max_context_len",
)  # fmt: skip
_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("q_dtype", DTYPES),
    ("kv_dtype", DTYPES),
    ("cache", get_args(Cache)),
    ("launch", get_args(LaunchMode)),
)


@dataclass(frozen=True)
class Workload:
    """One attention call of a decode batch.

    `context_lens` holds the KV tokens of each request, the new tokens included. `query_len` is the
    new tokens per request (1 in plain decode). `max_context_len` is the longest context the *call*
    is told about: split heuristics and CUDA-graph captures read it instead of the lengths
    themselves; None means the longest request. `window` keeps only the last tokens of each
    context. `reads` are the prefixes that requests have in common, whose tokens count in `context_lens`,
    or whose pages they have in common, each reading its context for itself; or the KV list that each
    keeps of its context. `latent_kv` says that a token's cache entry is one
    latent key per KV head, whose leading `head_dim_v` elements are the value too (MLA with its
    up-projections absorbed into the query and the output). `cache` says whether KV is in L2 from a
    replay (`warm`) or not (`cold`, as in serving), `launch` how kernels are issued. Raises
    `WorkloadError` naming every contradiction at once.
    """

    context_lens: tuple[int, ...]
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int | None = None
    query_len: int = 1
    q_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    page_tokens: int = 16
    window: int | None = None
    max_context_len: int | None = None
    latent_kv: bool = False
    cache: Cache = "cold"
    launch: LaunchMode = "graph"
    reads: Prefixes | KvList | None = None
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        lens = self.context_lens
        if type(lens) is not tuple or not set(map(type, lens)) <= {int}:
            object.__setattr__(self, "context_lens", tuple(map(int, lens)))
        problems = [*self._count_problems(), *self._name_problems(), *self._length_problems()]
        if not problems and self.reads is not None:
            problems = [*self._reading_problems()]
        if problems:
            raise WorkloadError("workload: " + "; ".join(problems))

    def _count_problems(self) -> list[str]:
        problems = []
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}, wanted at least 1")
        if not problems and self.num_q_heads % self.num_kv_heads:
            problems.append(
                f"num_q_heads {self.num_q_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if not problems and self.latent_kv and self.value_dim > self.head_dim:
            problems.append(
                f"head_dim_v is {self.value_dim}, wanted at most head_dim {self.head_dim}: with "
                "latent_kv a value is the leading part of its key"
            )
        return problems

    def _name_problems(self) -> list[str]:
        return [
            f"{name} is {value!r}, wanted one of {', '.join(known)}{suggestion(str(value), known)}"
            for name, known in _NAMES
            if (value := getattr(self, name)) not in known
        ]

    def _length_problems(self) -> list[str]:
        if not self.context_lens:
            return ["context_lens is empty, wanted at least one request"]
        least = max(1, self.query_len)
        problems = []
        try:
            shortest, longest = int(self.lens.min()), int(self.lens.max())
        except OverflowError:  # longer than any that is wanted
            shortest, longest = min(self.context_lens), max(self.context_lens)
        if shortest < least:
            problems = [
                f"context_lens[{i}] is {n}, wanted at least query_len ({self.query_len})"
                for i, n in enumerate(self.context_lens)
                if n < least
            ][:8]
        if longest > MOST_TOKENS:
            problems.append(f"a request has {longest:,} tokens, wanted at most {MOST_TOKENS:,}")
        if self.max_context_len is not None and longest > self.max_context_len:
            problems.append(
                f"max_context_len is {self.max_context_len}, shorter than a request of {longest} tokens"
            )
        return problems

    def _reading_problems(self) -> Iterator[str]:
        """Prefixes that are no tree, and a window beside what is read."""
        if self.window is not None:
            found = "prefixes" if self.shared else "a KV list"
            yield f"found {found} and a window, wanted one of them (a list can keep a window)"
        elif self.shared:
            yield from islice(prefix_problems(self.shared, (self.lens - self.query_len).tolist()), 8)

    @classmethod
    def uniform(cls, batch_size: int, context_len: int, **shape: object) -> Workload:
        """Build a batch of `batch_size` requests of `context_len` tokens each."""
        if batch_size < 1:
            raise WorkloadError(f"workload: batch_size is {batch_size}, wanted at least 1")
        return cls(context_lens=(context_len,) * batch_size, **shape)  # type: ignore[arg-type]

    @property
    def is_dense(self) -> bool:
        """Whether each request attends to all of its own context, or to a window of it."""
        return self.reads is None or self.in_common is not None

    @property
    def shared(self) -> tuple[Prefix, ...]:
        """What requests share, to be read once or by each for itself."""
        return self.reads.tree if isinstance(self.reads, Prefixes) else ()

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The same, if it is to be read once."""
        return () if self.in_common else self.shared

    @property
    def in_common(self) -> SharedPages | None:
        """The pages that requests have in common, if each reads its context for itself."""
        return self.reads if isinstance(self.reads, SharedPages) else None

    @property
    def mask(self) -> KvList | None:
        """The list that requests keep of their contexts, if not all."""
        return None if isinstance(self.reads, Prefixes) else self.reads

    @property
    def batch_size(self) -> int:
        """Number of requests."""
        return len(self.context_lens)

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def value_dim(self) -> int:
        """Head dimension of V and of the output."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @cached_property
    def lens(self) -> npt.NDArray[np.int64]:
        """`context_lens` as an array, `[batch]`."""
        lens = np.array(self.context_lens, dtype=np.int64)
        lens.flags.writeable = False
        return lens

    @cached_property
    def call_context_len(self) -> int:
        """The longest context the call is told about."""
        return int(self.lens.max()) if self.max_context_len is None else self.max_context_len

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token of one KV head; a latent cache holds K alone."""
        values = 0 if self.latent_kv else self.value_dim
        return (self.head_dim + values) * DTYPE_BYTES[self.kv_dtype]

    @property
    def is_local(self) -> bool:
        """Whether a sliding window hides anything of the longest context of the call.

        FlashAttention drops a window that does not (flash-attention hopper/flash_api.cpp, mha_fwd).
        """
        return self.window is not None and self.window < self.call_context_len

    def visible_tokens(self, context_len: int) -> int:
        """Tokens of a context that at least one new token attends to."""
        if self.window is None:
            return context_len
        return min(context_len, self.window + self.query_len - 1)

    @property
    def visible_lens(self) -> npt.NDArray[np.int64]:
        """The same of each request, `[batch]`."""
        return np.minimum(self.lens, self.visible_tokens(MOST_TOKENS))

    @cached_property
    def query_blocks(self) -> list[range]:
        """Numbers of the new tokens that have a list in common, one run after the other."""
        if isinstance(self.mask, QueryBlocks):
            return self.mask.new_tokens(self.query_len)
        return [range(self.query_len)]

    def block_of(self, token: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Query block of each of some new tokens."""
        return token // len(self.query_blocks[0])

    @cached_property
    def block_lens(self) -> npt.NDArray[np.int64]:
        """Tokens that query blocks keep, `[batch, KV heads, blocks]`, heads 1 where all keep as many."""
        if isinstance(self.mask, QueryBlocks):
            return self.mask.block_counts(self.lens, self.query_len, self.num_kv_heads)
        kept = self.visible_lens if self.mask is None else self.mask.counts(self.lens, self.num_kv_heads)
        return kept.reshape(self.batch_size, -1, 1)

    @cached_property
    def kept_lens(self) -> npt.NDArray[np.int64]:
        """Tokens that requests attend to, `[batch]`, or where KV heads differ `[batch, KV heads]`.

        Lists of query blocks are taken to have as little in common as they can (assumed).
        """
        kept: npt.NDArray[np.int64] = np.minimum(self.lens[:, None], self.block_lens.sum(axis=2))
        return kept[:, 0] if kept.shape[1] == 1 else kept

    def kept(self, request: int, head: int, block: int = 0) -> npt.NDArray[np.int64]:
        """Which tokens of a request a KV head keeps for a query block; they rise."""
        tokens, mask = self.context_lens[request], self.mask
        if not self.block_lens[request, min(head, self.block_lens.shape[1] - 1), block]:
            return np.arange(0)
        if mask is None:
            return np.arange(tokens)
        if isinstance(mask, QueryBlocks):
            return mask.block_kept(tokens, self.query_len, request, head, block)
        return mask.kept(tokens, request, head)

    @cached_property
    def kv_bytes(self) -> int:
        """KV bytes the batch reads: those of a shared prefix once, of pages in common for each request.

        What choosing a list reads besides is no KV, and is in `index_bytes`.
        """
        kept = self.kept_lens
        heads = self.num_kv_heads if kept.ndim == 1 else 1
        spared = Prefixes(self.prefixes).spared_tokens
        return (int(kept.sum()) * heads - spared * self.num_kv_heads) * self.kv_bytes_per_token

    @cached_property
    def distinct_kv_bytes(self) -> int:
        """The same, those of pages in common once."""
        common = 0 if self.in_common is None else self.in_common.spared_tokens
        return self.kv_bytes - common * self.num_kv_heads * self.kv_bytes_per_token

    @cached_property
    def index(self) -> Index | None:
        """What the lists of requests are chosen by in the call, if they are."""
        if self.mask is None:
            return None
        return self.mask.index(self.num_kv_heads, self.head_dim * DTYPE_BYTES[self.kv_dtype])

    @cached_property
    def index_bytes(self) -> int:
        """Bytes that choosing the lists reads: the index of each context that is not read whole."""
        if self.index is None:
            return 0
        return int(self.index.bytes_of(self.lens[self._is_chosen]).sum())

    @cached_property
    def list_bytes(self) -> int:
        """Bytes of the lists that are chosen: 4 for each page or token of them."""
        if self.index is None:
            return 0
        entries = -(-self.kept_lens[self._is_chosen] // self.index.tokens)
        return 4 * int(entries.sum()) * self.index.heads

    @property
    def _is_chosen(self) -> npt.NDArray[np.bool_]:
        """Which requests leave something out."""
        left_out: npt.NDArray[np.bool_] = self.kept_lens < self.lens
        return left_out

    @property
    def num_query_rows(self) -> int:
        """Rows of Q and of the output: one per new token and query head."""
        return self.batch_size * self.num_q_heads * self.query_len

    @property
    def q_bytes(self) -> int:
        """Bytes of Q."""
        return self.num_query_rows * self.head_dim * DTYPE_BYTES[self.q_dtype]

    @property
    def o_bytes(self) -> int:
        """Bytes of the output, in the query's dtype."""
        return self.num_query_rows * self.value_dim * DTYPE_BYTES[self.q_dtype]

    @cached_property
    def flop(self) -> int:
        """Multiply-adds of QK and PV counted as two operations each, nothing padded."""
        per_score = 2 * (self.head_dim + self.value_dim)
        if self.mask is not None:
            heads = self.num_q_heads if self.block_lens.shape[1] == 1 else self.group_size
            scores = self.block_lens.sum(axis=(0, 1)) * [len(block) for block in self.query_blocks]
            return per_score * int(scores.sum()) * heads
        limit = self.window or MOST_TOKENS
        seen = (np.minimum(self.lens - j, limit) for j in range(self.query_len))  # by each new token
        scores = sum(int(tokens.sum()) for tokens in seen)
        return per_score * scores * self.num_q_heads

    def describe(self) -> str:
        """One line for tables and figures."""
        lens = self.context_lens
        heads = f"{self.num_q_heads}q/{self.num_kv_heads}kv heads, d={self.head_dim}"
        if self.latent_kv:
            heads += f" latent (V {self.value_dim})"
        if min(lens) == max(lens):
            batch = f"batch {len(lens)} x {lens[0]:,} tokens"
        else:
            mean = sum(lens) / len(lens)
            batch = f"batch {len(lens)}, {min(lens):,}-{max(lens):,} tokens (mean {mean:,.0f})"
        if self.prefixes:
            batch += f", {len(self.prefixes)} shared prefixes"
        if self.mask is not None:
            batch += f", {int(self.kept_lens.mean()):,} of them kept"
        return f"{self.label + ': ' if self.label else ''}{batch}, {heads}, {self.kv_dtype} KV"


def lognormal_lens(mean: int, cv: float, count: int, seed: int) -> list[int]:
    """Draw lengths whose logarithm is normal, with the given mean and coefficient of variation."""
    sigma = np.sqrt(np.log1p(cv**2))
    draws = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    lens: list[int] = np.maximum(1, np.rint(draws)).astype(np.int64).tolist()
    return lens
