"""Whether what a request is cut into depends on what else is in its batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import listing
from leansim.numerics.attention import merge_order
from leansim.partitioners.registry import Partitioner
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import tile_grid
from leansim.specs.device import Device
from leansim.specs.instance import instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class Invariance:
    """Whether a request is cut and merged the same way whatever else is in its batch.

    `invariant` says that `batches` batches gave no counterexample to what each length gets alone.
    """

    invariant: bool
    batches: int
    counterexample: str = ""


def batch_invariance(
    partitioner: Partitioner, kernel: Kernel, device: Device, workload: Workload, seed: int = 0
) -> Invariance:
    """Compare each request's segment borders, in merge order, with those it has alone.

    Tries the batch as it is, shuffled, doubled, and with other batch-mates; a `max_context_len` of
    the workload is kept and never exceeded. Raises what tiling and partitioner raise.
    """

    def segments(lens: tuple[int, ...]) -> list[IntArray]:
        load = replace(workload, context_lens=lens)
        grid = tile_grid(load, instance_of(kernel, device, load), device)
        return _segments_by_request(partitioner(grid, device))

    alone: dict[int, IntArray] = {}
    batches = 0
    for batches, lens in enumerate(_batches(workload, seed), 1):
        for request, (tokens, mine) in enumerate(zip(lens, segments(lens), strict=True)):
            if tokens not in alone:
                alone[tokens] = segments((tokens,))[0]
            if not np.array_equal(alone[tokens], mine):
                batch = f"{len(lens)} with lengths {listing((f'{n:,}' for n in lens), most=8)}"
                where = f"{_difference(alone[tokens], mine)} in a batch of {batch}"
                text = f"request {request} of {tokens:,} tokens is cut {where}"
                return Invariance(False, batches, text)
    return Invariance(True, batches)


def _batches(workload: Workload, seed: int) -> Iterator[tuple[int, ...]]:
    """Batches of a workload's requests: as it is, 3 shuffles, doubled, 4 with others in them.

    The last has 256 others: schedules of little work follow other rules than those of much.
    """
    rng = np.random.default_rng(seed)
    lens = workload.lens
    longest = workload.max_context_len or 2 * int(lens.max())
    batches = [lens, *(rng.permutation(lens) for _ in range(3)), np.r_[lens, lens]]
    for num_mates in (len(lens), len(lens), len(lens), 256):
        kept = rng.choice(lens, size=-(-len(lens) // 2), replace=False)
        mates = rng.integers(workload.query_len, longest + 1, size=num_mates)
        batches.append(rng.permutation(np.r_[kept, mates]))
    yield from (tuple(batch.tolist()) for batch in batches)


def _segments_by_request(schedule: Schedule) -> list[IntArray]:
    """Per request, `[segments, 3]` of output tile of the request, start, stop, in merge order."""
    order, borders = merge_order(schedule)
    per_request = schedule.grid.heads * schedule.grid.row_blocks
    columns = (schedule.output_tile % per_request, schedule.start, schedule.stop)
    table = np.stack(columns, axis=1)[order]
    return np.split(table, borders[per_request:-1:per_request])


def _difference(alone: IntArray, batched: IntArray) -> str:
    """Say where the first output tile that two tables of a request cut differently is cut."""
    for tile in range(int(alone[:, 0].max()) + 1):
        a, b = (table[table[:, 0] == tile, 1:] for table in (alone, batched))
        if not np.array_equal(a, b):
            borders = [listing((str(n) for n in x[1:, 0]), 8) or "nowhere" for x in (a, b)]
            return f"at KV tiles [{borders[0]}] of output tile {tile} alone but at [{borders[1]}]"
    raise AssertionError("the tables are equal")
