"""Contexts divided over GPUs: each computes attention over its share, and their partials merge.

What travels is `(O, lse)` of every row (vLLM's and SGLang's decode context parallelism); in a ring each
rank folds its own into what it is handed, in a tree pairs merge. Exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal, get_args

import numpy as np

from leansim.errors import UnknownNameError
from leansim.numerics.attention import (
    FloatArray,
    Precision,
    merge_normalised,
    replay_states,
    rounded,
)
from leansim.numerics.reference import random_inputs, reference
from leansim.schedule.schedule import Schedule
from leansim.specs.kv_lists import Shard
from leansim.specs.workload import Workload

MergeOrder = Literal["ring", "tree"]
ORDERS: tuple[MergeOrder, ...] = get_args(MergeOrder)
States = tuple[FloatArray, FloatArray]


def shards(workload: Workload) -> list[Workload]:
    """What each rank computes of a workload that one rank's share is given of."""
    mask = workload.mask
    assert isinstance(mask, Shard)
    return [replace(workload, reads=replace(mask, rank=rank)) for rank in range(mask.ranks)]


def merged(states: Sequence[States], order: MergeOrder) -> States:
    """Merge `(O [..., rows, dim], lse [..., rows])` of ranks. Raises `UnknownNameError` for an order."""
    if order not in ORDERS:
        raise UnknownNameError("merge order", order, ORDERS)
    shape = states[0][0].shape
    left = [(o.reshape(-1, shape[-1]), lse.ravel()) for o, lse in states]
    while order == "tree" and len(left) > 1:
        left = [merge_normalised(left[at : at + 2]) for at in range(0, len(left), 2)]
    o, lse = reduce(lambda one, other: merge_normalised([one, other]), left)
    return o.reshape(shape), lse.reshape(shape[:-1])


def merge_error(
    whole: Workload,
    schedules: Sequence[Schedule],
    order: MergeOrder = "ring",
    precision: Precision = "float64",
    seed: int = 0,
) -> float:
    """Largest error of what several schedules leave and is merged, against a workload's attention.

    As a share of `softmax(scores) @ |v|` (`verify.TOLERANCES`). All inputs are in memory at once: for
    small workloads.
    """
    q, k, v = random_inputs(whole, seed)
    states = [replay_states(schedule, q, k, v, precision) for schedule in schedules]
    found = rounded(merged(states, order)[0], precision)
    q = rounded(q, precision).astype(np.float64)
    keys, values = ([rounded(one, precision).astype(np.float64) for one in some] for some in (k, v))
    error = np.abs(found - reference(whole, q, keys, values))
    return float((error / reference(whole, q, keys, [np.abs(one) for one in values])).max())


def rank_error(
    workload: Workload,
    scheduled: Callable[[Workload], Schedule],
    order: MergeOrder,
    precision: Precision = "float64",
    seed: int = 0,
) -> float:
    """`merge_error` of ranks, for each of which `scheduled` makes a schedule.

    A rank that holds none of any context has none: it would add nothing.
    """
    busy = [shard for shard in shards(workload) if shard.kept_lens.any()]
    whole = replace(workload, reads=None)
    return merge_error(whole, [*map(scheduled, busy)], order, precision, seed)
