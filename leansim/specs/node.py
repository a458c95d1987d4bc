"""GPUs that are linked to each other, and what a collective between some of them takes.

Answers "how long does an all-reduce of so many bytes take here?" from measured tables, or from the
link where there is none. Ignores other traffic on the links, and what of a collective hides behind
computation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from leansim.errors import WorkloadError
from leansim.specs.base import Count, Positive, SourcedSpec, Spec

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)


class CollectiveTable(Spec):
    """Seconds that one implementation of a collective takes, for each of a node's `message_bytes`.

    A shorter list is of the first of them.
    """

    op: Collective
    library: str
    num_gpus: Count
    seconds: tuple[Positive, ...] = Field(min_length=1)


class Node(SourcedSpec):
    """`num_gpus` GPUs of one kind and the links between them.

    `link_bandwidth_bytes_per_s` is what a GPU sends in one direction. The size of a message is that of
    the whole vector, as nccl-tests count it: what is reduced, or gathered, or scattered, and of an
    all-to-all what one GPU sends.
    """

    device: str
    num_gpus: Count
    link_bandwidth_bytes_per_s: Positive
    link_latency_s: Positive
    message_bytes: tuple[Count, ...] = ()
    collectives: tuple[CollectiveTable, ...] = ()

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names and structure."""
        return super().unsourced() | {"device", "message_bytes"}

    @model_validator(mode="after")
    def _tables_have_their_sizes(self) -> Node:
        sizes = self.message_bytes
        if any(small >= large for small, large in pairwise(sizes)):
            raise ValueError("found message_bytes that do not rise; wanted each above the one before")
        for table in self.collectives:
            if len(table.seconds) > len(sizes):
                raise ValueError(
                    f"found {len(table.seconds)} times of {table.op} on {table.num_gpus} GPUs; "
                    f"wanted at most one for each of {len(sizes)} message_bytes"
                )
        return self

    def hop_s(self, size: float) -> float:
        """Seconds for a GPU to send `size` bytes to another: `latency + size / bandwidth`."""
        return self.link_latency_s + size / self.link_bandwidth_bytes_per_s

    def collective_s(
        self, op: Collective, num_gpus: int, size: float, library: str | None = None
    ) -> float:
        """Seconds of a collective between `num_gpus` GPUs over a vector of `size` bytes.

        The fastest implementation that was measured, as serving frameworks choose one by size, or the
        one of a `library`; straight lines between logarithms of sizes and times, and beyond the
        largest size its pace. Where nothing was measured, `ring_s`. Raises `WorkloadError` for more
        GPUs than there are.
        """
        if num_gpus > self.num_gpus:
            raise WorkloadError(
                f"node: found {num_gpus} GPUs; wanted at most the {self.num_gpus} of {self.name}"
            )
        if num_gpus == 1 or size <= 0:
            return 0.0
        tables = [
            one
            for one in self.collectives
            if (one.op, one.num_gpus) == (op, num_gpus) and library in (None, one.library)
        ]
        if not tables:
            return self.ring_s(op, num_gpus, size)
        return min(self._interpolated(table.seconds, size) for table in tables)

    def ring_s(self, op: Collective, num_gpus: int, size: float) -> float:
        """Seconds of a collective round a ring: `hops * (latency + size / num_gpus / bandwidth)`.

        Each of `n - 1` hops moves an n-th of the vector, and twice as many reduce and gather it
        (Patarasuk and Yuan, 2009). An all-to-all sends its `n - 1` parts at once.
        """
        hops = (num_gpus - 1) * (2 if op == "all_reduce" else 1)
        part = size / num_gpus
        if op == "all_to_all":
            return self.hop_s(hops * part)
        return hops * self.hop_s(part)

    def _interpolated(self, seconds: tuple[float, ...], size: float) -> float:
        sizes = self.message_bytes[: len(seconds)]
        if size >= sizes[-1]:
            return seconds[-1] * size / sizes[-1]
        return math.exp(np.interp(math.log(size), np.log(sizes), np.log(seconds)))
