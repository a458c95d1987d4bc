"""Random inputs of a call on a device, in pages, and its attention in float64.

What must not be read is NaN: tokens past a request's end, and the page that unused entries of the page
table name. Several buffers are as many calls whose KV shares no page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leansim.errors import GpuError, PairingError
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


def pages_of(workload: Workload) -> list[int]:
    """Pages of each request."""
    return [-(-tokens // workload.page_tokens) for tokens in workload.context_lens]


def pool_bytes(workload: Workload) -> int:
    """Bytes of the KV pages of one call, masked tokens included."""
    pages = sum(pages_of(workload))
    return pages * workload.page_tokens * workload.num_kv_heads * workload.kv_bytes_per_token


def draw(torch: Any, workload: Workload, device: str, seed: int, buffers: int = 1) -> Inputs:
    """Draw normal inputs, KV in shuffled pages.

    Raises `PairingError` for what the kernels do not compute, and `GpuError` for lack of memory.
    """
    _check_call(workload)
    needed = buffers * pool_bytes(workload)
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info()
        if needed > (1.0 - _KEPT_FREE) * free:
            raise GpuError(
                f"found {free / 1e9:.1f} GB free; wanted {needed / 1e9:.1f} GB for KV and more"
            )
    random = torch.Generator(device=device).manual_seed(seed)
    dtype = getattr(torch, workload.kv_dtype)
    per_request = pages_of(workload)
    pages = buffers * sum(per_request)
    shape = (pages + 1, workload.page_tokens, workload.num_kv_heads)
    k, v = (
        torch.randn((*shape, dim), generator=random, dtype=dtype, device=device)
        for dim in (workload.head_dim, workload.value_dim)
    )
    rows = workload.batch_size * workload.query_len * workload.num_q_heads
    q_shape, q_dtype = (rows, workload.head_dim), getattr(torch, workload.q_dtype)
    q = torch.randn(q_shape, generator=random, dtype=q_dtype, device=device)
    table, last, tail = _page_table(workload, per_request, buffers, pages, seed)
    at = torch.from_numpy(last).to(device)
    outside = (
        torch.arange(workload.page_tokens, device=device) >= torch.from_numpy(tail).to(device)[:, None]
    )
    for pool in (k, v):
        pool[pages] = float("nan")
        pool[at] = pool[at].masked_fill(outside[:, :, None, None], float("nan"))
    return Inputs(torch, workload, q, k, v, torch.from_numpy(table).to(device))


def _check_call(load: Workload) -> None:
    if load.latent_kv:
        raise PairingError(
            "the Triton kernels read K and V of their own; the workload's are latent (MLA)"
        )
    if load.q_dtype != load.kv_dtype or load.q_dtype not in DTYPES:
        found = f"{load.q_dtype} Q and {load.kv_dtype} KV"
        raise PairingError(f"the Triton kernels take both in {' or '.join(DTYPES)}, found {found}")


def _page_table(
    workload: Workload, per_request: list[int], buffers: int, pages: int, seed: int
) -> tuple[Any, Any, Any]:
    """The page table, each request's last page, and the tokens in it."""
    order = np.random.default_rng([seed, pages]).permutation(pages).astype(np.int32)
    most = -(-max(per_request) // 16) * 16  # a row of 64 bytes: aligned for every request
    table = np.full((buffers * workload.batch_size, most), pages, dtype=np.int32)
    counts = np.tile(np.array(per_request), buffers)
    row = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    table[row, np.arange(pages) - np.repeat(ends - counts, counts)] = order
    lens = np.tile(np.array(workload.context_lens), buffers)
    tail = lens - (counts - 1) * workload.page_tokens
    return table.reshape(buffers, workload.batch_size, most), order[ends - 1].astype(np.int64), tail


def reference(torch: Any, inputs: Inputs, buffer: int = 0) -> Any:
    """Whole-context attention in float64: `[batch * query_len * num_q_heads, value_dim]`.

    As `numerics.reference` computes it, on the device of the inputs.
    """
    load = inputs.workload
    q = inputs.q.double().view(load.batch_size, load.query_len, load.num_kv_heads, load.group_size, -1)
    out = torch.empty((*q.shape[:4], load.value_dim), dtype=torch.float64, device=q.device)
    for request, tokens in enumerate(load.context_lens):
        pages = inputs.page_table[buffer, request, : -(-tokens // load.page_tokens)].long()
        hidden = _hidden(torch, load, tokens, q.device)
        per_head = tokens * (load.head_dim + load.value_dim + load.query_len * load.group_size) * 8
        heads = max(1, _AT_ONCE_BYTES // per_head)
        for first in range(0, load.num_kv_heads, heads):
            some = slice(first, first + heads)
            k, v = (
                pool[pages, :, some].flatten(0, 1)[:tokens].double() for pool in (inputs.k, inputs.v)
            )
            scores = torch.einsum("qhgd,nhd->hqgn", q[request, :, some], k) * load.head_dim**-0.5
            scores.masked_fill_(hidden[None, :, None, :], float("-inf"))
            out[request, :, some] = torch.einsum("hqgn,nhd->qhgd", scores.softmax(-1), v)
    return out.view(-1, load.value_dim)


def _hidden(torch: Any, load: Workload, tokens: int, device: Any) -> Any:
    """`[query_len, tokens]`: keys that a new token does not see."""
    position = tokens - load.query_len + torch.arange(load.query_len, device=device)[:, None]
    key = torch.arange(tokens, device=device)[None, :]
    hidden = key > position
    return hidden if load.window is None else hidden | (key <= position - load.window)
