"""Whether what a request is cut into depends on what else is in its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from leansim.specs.kv_list_file import CsrFile
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class Invariance:
    """Whether a request is cut and merged the same way whatever else is in its batch.

    `invariant` says that `batches` batches gave no counterexample to what each length gets alone.
    """

    invariant: bool
    batches: int
    counterexample: str = ""


@dataclass(frozen=True)
class _Family:
    """Requests that share prefixes, by their lengths; most are alone. Prefixes number them from 0."""

    lens: tuple[int, ...]
    prefixes: tuple[Prefix, ...] = ()


def batch_invariance(
    partitioner: Partitioner, kernel: Kernel, device: Device, workload: Workload, seed: int = 0
) -> Invariance:
    """Compare each request's segment borders, in merge order, with those it has alone.

    Tries the batch as it is, shuffled, doubled, and with other batch-mates; a `max_context_len` of
    the workload is kept and never exceeded. Requests that share a prefix stay together. No batches of a
    list from a file, which is of one batch. Raises what tiling and partitioner raise.
    """
    if isinstance(workload.mask, CsrFile):
        return Invariance(True, 0)

    def segments(families: Sequence[_Family]) -> list[IntArray]:
        load = _batch_of(workload, families)
        grid = tile_grid(load, instance_of(kernel, device, load), device)
        return _segments_by_request(partitioner(grid, device))

    alone: dict[_Family, list[IntArray]] = {}
    batches = 0
    for batches, families in enumerate(_batches(workload, seed), 1):
        found = iter(segments(families))
        request = 0
        for family in families:
            if family not in alone:
                alone[family] = segments([family])
            for tokens, own, mine in zip(family.lens, alone[family], found, strict=False):
                if not np.array_equal(own, mine):
                    lens = [n for one in families for n in one.lens]
                    batch = f"{len(lens)} with lengths {listing((f'{n:,}' for n in lens), most=8)}"
                    where = f"{_difference(own, mine)} in a batch of {batch}"
                    text = f"request {request} of {tokens:,} tokens is cut {where}"
                    return Invariance(False, batches, text)
                request += 1
    return Invariance(True, batches)


def _batch_of(workload: Workload, families: Sequence[_Family]) -> Workload:
    """The workload of a batch of families."""
    prefixes, first = [], 0
    for family in families:
        for one in family.prefixes:
            numbers = tuple(first + request for request in one.requests)
            prefixes.append(one._replace(requests=numbers))
        first += len(family.lens)
    lens = tuple(n for family in families for n in family.lens)
    reads = Prefixes(tuple(prefixes)) if workload.prefixes and prefixes else workload.mask
    return replace(workload, context_lens=lens, reads=reads)


def _families(workload: Workload) -> list[_Family]:
    """The requests of a workload, those together that share a prefix."""
    roots = [one for one in workload.prefixes if one.begin == 0]
    members = [one.requests for one in roots]
    sharing = {request for some in members for request in some}
    members += [(request,) for request in range(workload.batch_size) if request not in sharing]
    found = []
    for some in sorted(members):
        number = {request: i for i, request in enumerate(some)}
        prefixes = tuple(
            one._replace(requests=tuple(number[request] for request in one.requests))
            for one in workload.prefixes
            if one.requests[0] in number
        )
        found.append(_Family(tuple(workload.context_lens[request] for request in some), prefixes))
    return found


def _batches(workload: Workload, seed: int) -> Iterator[list[_Family]]:
    """Batches of a workload's requests: as it is, 3 shuffles, doubled, 4 with others in them.

    The last has 256 others: schedules of little work follow other rules than those of much.
    """
    rng = np.random.default_rng(seed)
    families = _families(workload)
    count = len(families)
    longest = workload.max_context_len or 2 * int(workload.lens.max())
    yield families
    for _ in range(3):
        yield [families[at] for at in rng.permutation(count)]
    yield [*families, *families]
    for num_mates in (count, count, count, 256):
        kept = [families[at] for at in rng.choice(count, size=-(-count // 2), replace=False)]
        lens = rng.integers(workload.query_len, longest + 1, size=num_mates).tolist()
        some = [*kept, *(_Family((n,)) for n in lens)]
        yield [some[at] for at in rng.permutation(len(some))]


def _segments_by_request(schedule: Schedule) -> list[IntArray]:
    """Per request, `[segments, 3]` of output tile of the request, start, stop, in merge order."""
    grid = schedule.grid
    order, borders = merge_order(schedule)
    per_item = grid.heads * grid.row_blocks
    columns = (schedule.output_tile % per_item, schedule.start, schedule.stop)
    table = np.stack(columns, axis=1)[order]
    of_item = np.split(table, borders[per_item:-1:per_item])
    if grid.work is None:
        return of_item
    found = []
    for request in range(grid.asked.batch_size):
        mine = [
            of_item[item] + [k * per_item, 0, 0] for k, item in enumerate(grid.work.items_of(request))
        ]
        found.append(np.concatenate(mine) if mine else table[:0])
    return found


def _difference(alone: IntArray, batched: IntArray) -> str:
    """Say where the first output tile that two tables of a request cut differently is cut."""
    for tile in range(int(alone[:, 0].max()) + 1):
        a, b = (table[table[:, 0] == tile, 1:] for table in (alone, batched))
        if not np.array_equal(a, b):
            borders = [listing((str(n) for n in x[1:, 0]), 8) or "nowhere" for x in (a, b)]
            return f"at KV tiles [{borders[0]}] of output tile {tile} alone but at [{borders[1]}]"
    raise AssertionError("the tables are equal")
