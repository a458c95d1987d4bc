"""What adapters share: which calls they take, lengths as tensors, KV out of its pages, versions."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from leansim.errors import GpuError, PairingError
from leansim.gpu.inputs import Inputs
from leansim.specs.device import Device
from leansim.specs.workload import Workload


def version_of(module: str, *distributions: str) -> str:
    """`name version` of a library that can be imported, the name being its first distribution's.

    Raises what its import raises.
    """
    found = import_module(module)
    name = (distributions or (module,))[0]
    for distribution in distributions or (module,):
        try:
            return f"{name} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return f"{name} {getattr(found, '__version__', 'of unknown version')}"


def plain_decode(
    who: str,
    load: Workload,
    window: bool = False,
    ragged: bool = True,
    latent: bool = False,
    query_lens: bool = True,
) -> None:
    """Refuse what a kernel has no call for. Raises `PairingError` saying what it is.

    `window`, `ragged` and `query_lens` say that it takes windows, contexts of several lengths and
    several new tokens, `latent` that its KV must be latent.
    """
    found = {
        "prefixes or KV lists": load.reads is not None,
        "a window": load.window is not None and not window,
        "contexts of several lengths": len(set(load.context_lens)) > 1 and not ragged,
        "several new tokens": load.query_len > 1 and not query_lens,
        "K and V of their own": latent and not load.latent_kv,
        "latent KV": load.latent_kv and not latent,
        "values of another width": load.value_dim != load.head_dim and not latent,
    }
    if wrong := [what for what, there in found.items() if there]:
        raise PairingError(f"{who} has no call for {' and '.join(wrong)}")


def for_arch(who: str, device: Device, *archs: str) -> None:
    """Refuse a device for which a library has no kernel. Raises `GpuError`."""
    if not device.arch.startswith(archs):
        raise GpuError(f"{who} runs on {' and '.join(archs)}; found {device.arch}")


def scale_of(load: Workload) -> float:
    """What scores are multiplied by."""
    return float(load.head_dim**-0.5)


def window_of(load: Workload) -> tuple[int, int]:
    """FlashAttention's pair: tokens to the left of a query's own, none to its right; (-1, -1) for all.

    A zero to the right would be a window too, and take another instance than servers do.
    """
    return (-1, -1) if load.window is None else (load.window - 1, 0)


def queries(given: Inputs) -> Any:
    """Q `[batch, query_len, num_q_heads, head_dim]`."""
    load = given.workload
    return given.q.view(load.batch_size, load.query_len, load.num_q_heads, load.head_dim)


def flat_queries(given: Inputs) -> Any:
    """Q `[batch * query_len, num_q_heads, head_dim]`: requests one after another."""
    return queries(given).flatten(0, 1)


def page_tables(given: Inputs) -> list[Any]:
    """The page table of each buffer, int32 `[batch, pages]`."""
    return list(given.page_table.unbind(0))


def lengths(given: Inputs) -> Any:
    """Tokens of each context, int32 `[batch]`."""
    return _int32(given, given.workload.lens)


def query_starts(given: Inputs) -> Any:
    """Where each request's queries begin, int32 `[batch + 1]`."""
    load = given.workload
    return _int32(given, np.arange(load.batch_size + 1) * load.query_len)


def context_starts(given: Inputs) -> Any:
    """Where each request's tokens begin once they are put together, int32 `[batch + 1]`."""
    return _int32(given, np.concatenate([[0], np.cumsum(given.workload.lens)]))


def page_starts(given: Inputs) -> Any:
    """Where each request's pages begin in `pages_of`, int32 `[batch + 1]`, on the host."""
    ends = np.cumsum(_page_counts(given))
    return given.torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))


def pages_of(given: Inputs, buffer: int) -> Any:
    """Pages of all requests one after another, int32."""
    table, counts = given.page_table[buffer], _page_counts(given).tolist()
    return given.torch.cat([table[i, :n] for i, n in enumerate(counts)]).contiguous()


def tail_lengths(given: Inputs) -> Any:
    """Tokens in each request's last page, int32 `[batch]`, on the host."""
    load = given.workload
    return given.torch.from_numpy(((load.lens - 1) % load.page_tokens + 1).astype(np.int32))


def contiguous(given: Inputs, buffer: int) -> tuple[Any, Any]:
    """K and V `[batch, longest, num_kv_heads, dim]` out of their pages, and what is past the end."""
    load = given.workload
    most = -(-max(load.context_lens) // load.page_tokens)
    pages = given.page_table[buffer, :, :most].long()
    k, v = (
        pool[pages].flatten(1, 2)[:, : max(load.context_lens)].contiguous()
        for pool in (given.k, given.v)
    )
    return k, v


def together(given: Inputs, buffer: int) -> tuple[Any, Any]:
    """K and V `[all tokens, num_kv_heads, dim]`, one request after another."""
    k, v = contiguous(given, buffer)
    lens = given.workload.context_lens
    k, v = (given.torch.cat([x[i, :n] for i, n in enumerate(lens)]) for x in (k, v))
    return k, v


def empty_like_queries(given: Inputs) -> Any:
    """Room for the output `[batch, query_len, num_q_heads, value_dim]`."""
    load = given.workload
    shape = (load.batch_size, load.query_len, load.num_q_heads, load.value_dim)
    return given.q.new_empty(shape)


def _page_counts(given: Inputs) -> Any:
    load = given.workload
    return -(-load.lens // load.page_tokens)


def _int32(given: Inputs, values: Any) -> Any:
    return given.torch.from_numpy(np.asarray(values).astype(np.int32)).to(given.q.device)
