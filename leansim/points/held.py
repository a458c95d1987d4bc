"""What a batch holds of KV over all layers of its model, and what is seen in layers cut in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.model import Model
from leansim.specs.prefixes import Prefixes


def in_chunks(lens: Sequence[int], chunk: int, query_len: int) -> tuple[int, ...]:
    """Tokens that the newest one sees of each context where it sees its own chunk alone.

    New tokens on both sides of a chunk's edge are all taken to be of the later chunk.
    """
    return tuple(max((n - 1) % chunk + 1, min(n, query_len)) for n in lens)


def kv_bytes_of(
    model: Model,
    lens: Sequence[int],
    kv_dtype: str,
    instead: Mapping[str, Any] | None = None,
    of_rank: Callable[[IntArray], IntArray] | None = None,
    shared: Prefixes | None = None,
) -> int:
    """Bytes of KV that requests of these lengths have in all layers of a model, or of a GPU's share.

    A window or a chunk keeps no more tokens than it is long; layers that read another's KV have none.
    `instead` has what is said of the shape in place of what the model says; `of_rank` is what one of the
    GPUs that divide contexts has of so many tokens; what requests have `shared` is held once.
    """
    tokens = np.asarray(lens, dtype=np.int64)
    total = 0
    for some in model.kinds:
        shape = {**model.shape(some), **(instead or {})}
        values = shape["head_dim_v"] if shape["head_dim_v"] is not None else shape["head_dim"]
        elements = shape["head_dim"] + (0 if shape["latent_kv"] else values)
        reach = shape["window"] or some.chunk
        kept = tokens if reach is None else np.minimum(tokens, reach)
        kept = kept if of_rank is None else of_rank(kept)
        spared = 0 if shared is None else shared.spared_from(tokens - kept)
        layers = some.count - some.shared_kv
        token_bytes = shape["num_kv_heads"] * elements * DTYPE_BYTES[kv_dtype]
        total += layers * (int(kept.sum()) - spared) * token_bytes
    return total
