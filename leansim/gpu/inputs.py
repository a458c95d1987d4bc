"""Random inputs of a call on a device, in pages, and its attention in float64.

What must not be read is NaN by default: tokens past a request's end, and the page that unused entries of
the page table name. Several buffers are as many calls whose KV shares no page. Requests with a prefix in
common have the same pages of it, and a copy of what of it lies on a page with tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leansim.arrays import BoolArray, IntArray
from leansim.errors import GpuError, PairingError
from leansim.numerics.reference import lists_of
from leansim.specs.kv_lists import Shard
from leansim.specs.workload import Workload

_AT_ONCE_BYTES = 2**30  # of float64 keys in the reference
_KEPT_FREE = 0.25
DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Inputs:
    """Tensors of `buffers` calls of one workload.

    `q [batch * query_len * num_q_heads, head_dim]`; pools `k [pages, page_tokens, num_kv_heads,
    head_dim]` and `v [.., value_dim]`; `page_table [buffers, batch, most_pages]` int32.
    """

    torch: Any
    workload: Workload
    q: Any
    k: Any
    v: Any
    page_table: Any
    _expected: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def buffers(self) -> int:
        """How many calls there are KV pages for."""
        return int(self.page_table.shape[0])

    def expected(self, buffer: int = 0) -> Any:
        """`reference` of a buffer, computed once."""
        if buffer not in self._expected:
            self._expected[buffer] = reference(self.torch, self, buffer)
        return self._expected[buffer]


def held(workload: Workload, request: int) -> IntArray:
    """Tokens of a request's context that the cache holds: a rank's where ranks divide it, else all."""
    tokens = workload.context_lens[request]
    if isinstance(workload.mask, Shard):
        return workload.mask.kept(tokens, request, 0)
    return np.arange(tokens)


def _held_lens(workload: Workload) -> IntArray:
    """How many, `[batch]`."""
    return workload.kept_lens if isinstance(workload.mask, Shard) else workload.lens


def _page_numbers(workload: Workload) -> IntArray:
    """Number of each page of each request, `[batch, most pages]`, -1 past the last."""
    counts = -(-_held_lens(workload) // workload.page_tokens)
    used = np.arange(counts.max()) < counts[:, None]
    numbers = np.full(used.shape, -1)
    numbers[used] = np.arange(counts.sum())
    for prefix in sorted(workload.prefixes):
        whole = slice(prefix.begin // workload.page_tokens, prefix.end // workload.page_tokens)
        numbers[list(prefix.requests), whole] = numbers[prefix.requests[0], whole]
    numbers[used] = np.unique(numbers[used], return_inverse=True)[1]
    return numbers


def pool_bytes(workload: Workload) -> int:
    """Bytes of the KV pages of one call, masked tokens included."""
    pages = int(_page_numbers(workload).max()) + 1
    return pages * workload.page_tokens * workload.num_kv_heads * workload.kv_bytes_per_token


def draw(
    torch: Any,
    workload: Workload,
    device: str,
    seed: int,
    buffers: int = 1,
    unread: float = float("nan"),
) -> Inputs:
    """Draw normal inputs, KV in shuffled pages; what must not be read is `unread`.

    Of latent KV, `v` is the leading part of `k`. Raises `PairingError` for element types that are not
    drawn, and `GpuError` for lack of memory.
    """
    _check_types(workload)
    needed = buffers * pool_bytes(workload)
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info()
        if needed > (1.0 - _KEPT_FREE) * free:
            raise GpuError(
                f"found {free / 1e9:.1f} GB free; wanted {needed / 1e9:.1f} GB for KV and more"
            )
    random = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, workload.kv_dtype)
    numbers = _page_numbers(workload)
    pages = buffers * (int(numbers.max()) + 1)
    shape = (pages + 1, workload.page_tokens, workload.num_kv_heads)
    k, v = _pools(torch, workload, shape, generator=random, dtype=dtype, device=device)
    rows = workload.batch_size * workload.query_len * workload.num_q_heads
    q_shape, q_dtype = (rows, workload.head_dim), getattr(torch, workload.q_dtype)
    q = torch.randn(q_shape, generator=random, dtype=q_dtype, device=device)
    table, last, tail = _page_table(workload, numbers, buffers, pages, seed)
    at = torch.from_numpy(last).to(device)
    outside = (
        torch.arange(workload.page_tokens, device=device) >= torch.from_numpy(tail).to(device)[:, None]
    )
    for pool in (k, v):
        pool[pages] = unread
        pool[at] = pool[at].masked_fill(outside[:, :, None, None], unread)
        for first, copies, tokens in _copied(workload, table):
            pool[copies, :tokens] = pool[first, :tokens]
    return Inputs(torch, workload, q, k, v, torch.from_numpy(table).to(device))


def _pools(torch: Any, workload: Workload, shape: tuple[int, ...], **how: Any) -> tuple[Any, Any]:
    """K and V `[*shape, dim]`; latent V is a view of K."""
    k = torch.randn((*shape, workload.head_dim), **how)
    if workload.latent_kv:
        return k, k[..., : workload.value_dim]
    return k, torch.randn((*shape, workload.value_dim), **how)


def _check_types(load: Workload) -> None:
    if load.q_dtype != load.kv_dtype or load.q_dtype not in DTYPES:
        found = f"{load.q_dtype} Q and {load.kv_dtype} KV"
        raise PairingError(f"Q and KV are drawn both in {' or '.join(DTYPES)}, found {found}")


def _page_table(
    workload: Workload, numbers: IntArray, buffers: int, pages: int, seed: int
) -> tuple[Any, Any, Any]:
    """The page table, each request's last page, and the tokens in it."""
    order = np.random.default_rng([seed, pages]).permutation(pages).astype(np.int32)
    most = -(-numbers.shape[1] // 16) * 16  # a row of 64 bytes: aligned for every request
    table = np.full((buffers, workload.batch_size, most), pages, dtype=np.int32)
    used = numbers >= 0
    for buffer, mine in enumerate(order.reshape(buffers, -1)):
        table[buffer, :, : numbers.shape[1]][used] = mine[numbers[used]]
    some = np.flatnonzero(used[:, 0])
    counts = used.sum(axis=1)[some]
    last = table[:, some, counts - 1].astype(np.int64).ravel()
    tail = _held_lens(workload)[some] - (counts - 1) * workload.page_tokens
    return table, last, np.tile(tail, buffers)


def _copied(workload: Workload, table: Any) -> Iterator[tuple[int, IntArray, int]]:
    """What is left of prefixes beyond their whole pages: whose page, to which pages, how many tokens."""
    for prefix in sorted(workload.prefixes):
        page, tokens = divmod(prefix.end, workload.page_tokens)
        if tokens:
            for mine in table[:, list(prefix.requests), page].astype(np.int64):
                yield int(mine[0]), mine[1:], tokens


def reference(torch: Any, inputs: Inputs, buffer: int = 0) -> Any:
    """Whole-context attention in float64: `[batch * query_len * num_q_heads, value_dim]`.

    As `numerics.reference` computes it, on the device of the inputs; 0 where all is hidden.
    """
    load = inputs.workload
    q = inputs.q.double().view(load.batch_size, load.query_len, load.num_kv_heads, load.group_size, -1)
    out = torch.empty((*q.shape[:4], load.value_dim), dtype=torch.float64, device=q.device)
    for request, tokens in enumerate(_held_lens(load).tolist()):
        pages = inputs.page_table[buffer, request, : -(-tokens // load.page_tokens)].long()
        per_head = tokens * (load.head_dim + load.value_dim + load.query_len * load.group_size) * 8
        heads = max(1, _AT_ONCE_BYTES // max(1, per_head))
        for first in range(0, load.num_kv_heads, heads):
            some = slice(first, first + heads)
            k, v = (
                pool[pages, :, some].flatten(0, 1)[:tokens].double() for pool in (inputs.k, inputs.v)
            )
            hidden = _hidden(load, request, range(load.num_kv_heads)[some])
            unseen = torch.from_numpy(hidden).to(q.device)[:, :, None, :]
            scores = torch.einsum("qhgd,nhd->hqgn", q[request, :, some], k) * load.head_dim**-0.5
            weights = scores.masked_fill_(unseen, float("-inf")).softmax(-1).masked_fill_(unseen, 0.0)
            out[request, :, some] = torch.einsum("hqgn,nhd->qhgd", weights, v)
    return out.view(-1, load.value_dim)


def _hidden(load: Workload, request: int, heads: range) -> BoolArray:
    """`[heads or 1, query_len, tokens]`: held keys that a new token does not see."""
    key = held(load, request)
    position = load.context_lens[request] - load.query_len + np.arange(load.query_len)[:, None]
    hidden = key > position
    if load.window is not None:
        hidden |= key <= position - load.window
    if load.mask is None:
        return hidden[None]
    unseen = np.stack([hidden] * len(heads))
    for row, head in zip(unseen, heads, strict=True):
        for tokens, kept in lists_of(load, request, head):
            row[tokens.start : tokens.stop] |= np.isin(key, kept, invert=True)
    return unseen
