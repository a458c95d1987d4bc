"""Which CTA does which KV tiles of which output tile, and how the partials are combined.

The only thing a partitioner makes, and the only thing lowering and numerics read. An invalid
schedule cannot exist: the constructor proves exact cover, declared emptiness and freedom from
deadlock. Arrays, not objects: a schedule of a million segments stays cheap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from leansim.arrays import BoolArray, IntArray, Ints
from leansim.errors import ScheduleError
from leansim.lazy import cached_property
from leansim.schedule.tiling import TileGrid
from leansim.schedule.whole import one_of, whole_number, whole_numbers

CombineKind = Literal["none", "kernel", "host", "last"]
Dispatch = Literal["grid", "queue"]
IN_LAUNCH: tuple[CombineKind, ...] = ("host", "last")
_COMBINES: tuple[str, ...] = get_args(CombineKind)
_DISPATCHES: tuple[str, ...] = get_args(Dispatch)


def changes(values: IntArray) -> BoolArray:
    """Where a value differs from the one before it; the first does."""
    starts = np.empty(len(values), dtype=np.bool_)
    starts[0] = True
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    return starts


class Segment(NamedTuple):
    """One contiguous run of KV tiles `[start, stop)` of an output tile, done by one CTA."""

    number: int
    cta: int
    output_tile: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """Segments in execution order: sorted by CTA, and inside a CTA in the order it does them.

    `num_ctas` CTAs are launched in index order; those without a segment must be declared as
    `num_empty_ctas`. `combine` says who merges the partials of an output tile that has several
    segments: a separate `kernel`, or the `host` CTA (the one with the tile's first KV tiles), which
    waits for its peers in the same launch. `num_splits` is the split count the partitioner's own
    host code reports, of which output tiles may use fewer. `partials` is, per output tile, how many
    partial slots the combine reads: by default its segment count where that exceeds 1; a kernel that
    always goes through partials gives more. Output tiles that have rows in common leave a partial each,
    which a kernel merges after all others. CTAs are dealt work by the `grid`, or fetch it from a
    `queue`. Raises `ScheduleError`.
    """

    grid: TileGrid
    cta: IntArray
    output_tile: IntArray
    start: IntArray
    stop: IntArray
    num_ctas: int
    combine: CombineKind = "none"
    num_splits: int | None = None
    num_empty_ctas: int = 0
    partials: IntArray | None = None
    dispatch: Dispatch = "grid"
    segments_of_tile: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_options()
        for name in ("cta", "output_tile", "start", "stop"):
            self._own(name, getattr(self, name))
        self._check_shapes()
        self._check_tiles()
        counts = np.bincount(self.output_tile, minlength=self.grid.num_output_tiles)
        self._own("segments_of_tile", counts)
        self._check_cover()
        self._check_ctas()
        self._check_partials()
        self._check_splits()
        if self.combine == "host":  # the last segment of a tile waits for none that is placed after it
            self._check_progress()

    @classmethod
    def from_segments(
        cls,
        grid: TileGrid,
        segments: tuple[IntArray, ...],
        num_ctas: int,
        combine: CombineKind,
        *,
        num_splits: int | None = None,
        partials: IntArray | None = None,
        dispatch: Dispatch = "grid",
    ) -> Schedule:
        """Build a schedule from segments of which some may be empty.

        `segments` are (cta, output_tile, start, stop), `[n]` each, sorted by CTA. One that does not
        start below its stop is left out; CTAs that are left with none are launched and declared empty.
        """
        cta, output_tile, start, stop = segments
        filled = start < stop
        if not filled.all():
            cta, output_tile, start, stop = (column[filled] for column in segments)
        busy = int(np.count_nonzero(changes(cta))) if len(cta) else 0
        return cls(
            grid, cta, output_tile, start, stop, num_ctas, combine,
            num_splits, num_ctas - busy, partials, dispatch,
        )  # fmt: skip

    def _own(self, name: str, values: object) -> None:
        """Keep a read-only copy of an array."""
        object.__setattr__(self, name, whole_numbers(name, values))

    # -- what must hold ------------------------------------------------------------------------

    def _check_options(self) -> None:
        """What is said beside the segments has a meaning."""
        if not isinstance(self.grid, TileGrid):
            raise ScheduleError(f"grid is {self.grid!r}, wanted a TileGrid")
        one_of("combine", self.combine, _COMBINES)
        one_of("dispatch", self.dispatch, _DISPATCHES)
        counts = {"num_ctas": 1, "num_empty_ctas": 0}
        if self.num_splits is not None:
            counts["num_splits"] = 1
        for name, least in counts.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))

    def _check_shapes(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("cta", "output_tile", "start", "stop")}
        if len(set(sizes.values())) > 1:
            raise ScheduleError(f"segment arrays differ in length: {sizes}")
        if not len(self.cta):
            raise ScheduleError("a schedule without segments covers nothing")

    def _check_tiles(self) -> None:
        """Output tiles are those of the grid."""
        count = self.grid.num_output_tiles
        if self.output_tile.min() < 0 or self.output_tile.max() >= count:
            raise ScheduleError(f"output tiles must lie in [0, {count})")

    def _check_cover(self) -> None:
        """Each output tile's KV tiles `[0, n)` are covered exactly once."""
        tiles = self.grid.num_kv_tiles
        whole = (self.start == 0) & (self.stop == tiles[self.output_tile])
        if whole.all() and (self.segments_of_tile == 1).all():
            return  # nothing is split, nothing need be sorted
        if (bad := self.start >= self.stop).any():
            raise ScheduleError(f"{self._name(int(bad.argmax()))} is empty or reversed")
        order = self.by_tile
        tile, start, stop = self.output_tile[order], self.start[order], self.stop[order]
        opens = changes(tile)
        expected = np.empty_like(stop)
        expected[1:] = stop[:-1]
        expected[opens] = 0
        if (wrong := start != expected).any():
            i = int(wrong.argmax())
            what = "overlaps" if start[i] < expected[i] else "leaves a gap before"
            where = f"KV tile {expected[i]} of output tile {tile[i]}"
            raise ScheduleError(f"{self._name(int(order[i]))} {what} {where}")
        if np.count_nonzero(opens) < len(tiles):
            missing = np.setdiff1d(np.arange(len(tiles)), tile)
            raise ScheduleError(f"output tile {missing[0]} has no segment ({len(missing)} such)")
        closes = np.empty_like(opens)
        closes[:-1], closes[-1] = opens[1:], True
        if (short := stop[closes] != tiles).any():
            tile_id = int(short.argmax())
            raise ScheduleError(
                f"output tile {tile_id} is covered up to KV tile {stop[closes][tile_id]}, "
                f"wanted {tiles[tile_id]}"
            )

    def _check_ctas(self) -> None:
        """CTAs are in order and none is silently empty."""
        steps = np.diff(self.cta)
        if np.any(steps < 0):
            raise ScheduleError("segments must be sorted by CTA")
        if self.cta[0] < 0 or self.cta[-1] >= self.num_ctas:
            raise ScheduleError(f"CTA indices must lie in [0, {self.num_ctas})")
        busy = int(np.count_nonzero(steps)) + 1
        if self.num_ctas - busy != self.num_empty_ctas:
            raise ScheduleError(
                f"{self.num_ctas - busy} of {self.num_ctas} CTAs have no segment, "
                f"{self.num_empty_ctas} were declared empty"
            )

    def _check_partials(self) -> None:
        counts = self.segments_of_tile
        split = counts > 1
        if self.combine == "none" and split.any():
            tile = int(np.flatnonzero(split)[0])
            raise ScheduleError(f"output tile {tile} has {counts[tile]} segments and no combiner")
        default = np.where(split, counts, 0)
        if self.partials is None:
            self._own("partials", default)
            return
        partials = whole_numbers("partials", self.partials)
        if self.combine == "none" and partials.any():
            raise ScheduleError("there are partials and no combiner")
        if partials.shape != counts.shape or np.any((partials < counts) & ((partials > 0) | split)):
            raise ScheduleError("partials must be 0 for unsplit output tiles or at least their segments")
        if self.combine in IN_LAUNCH and not np.array_equal(partials, default):
            raise ScheduleError("a CTA merges in its launch exactly the partials of its peers")
        object.__setattr__(self, "partials", partials)

    def _check_splits(self) -> None:
        """The host's split count is no less than what any output tile is cut into."""
        most = int(self.segments_of_tile.max())
        if self.num_splits is None:
            object.__setattr__(self, "num_splits", most)
        elif self.num_splits < most:
            tile = int(self.segments_of_tile.argmax())
            raise ScheduleError(
                f"num_splits is {self.num_splits}, but output tile {tile} has {most} segments"
            )

    def _check_progress(self) -> None:
        """Every wait ends: CTAs are placed in order, and a slot is held until its CTA is done.

        Obvious when all CTAs are resident and none waits before it has published its partials.
        """
        waits = self.merges
        first = changes(self.cta)
        waits_before: IntArray = np.cumsum(waits) - waits
        before_cta = np.maximum.accumulate(np.where(first, waits_before, 0))
        peers_after_waits = self.is_partial & ~waits & (waits_before > before_cta)
        if self.num_ctas > self.grid.slots or np.any(peers_after_waits):
            self._check_progress_step_by_step()

    def _check_progress_step_by_step(self) -> None:
        """Place and finish CTAs as far as they go; timing cannot change how far that is."""
        borders = self.segments_of_cta.tolist()
        tile_of, merges = self.output_tile.tolist(), self.merges.tolist()
        missing = (self.segments_of_tile - 1).tolist()
        at = list(borders[:-1])
        waiting: dict[int, int] = {}
        free, placed, finished = self.grid.slots, 0, 0
        ready: deque[int] = deque()
        while True:
            while free and placed < self.num_ctas:
                ready.append(placed)
                free, placed = free - 1, placed + 1
            if not ready:
                break
            cta = ready.popleft()
            while at[cta] < borders[cta + 1]:
                tile = tile_of[at[cta]]
                if merges[at[cta]] and missing[tile]:
                    waiting[tile] = cta
                    break
                if not merges[at[cta]]:
                    missing[tile] -= 1
                    if not missing[tile] and tile in waiting:
                        ready.append(waiting.pop(tile))
                at[cta] += 1
            else:
                free, finished = free + 1, finished + 1
        if finished < self.num_ctas:
            tile, cta = next(iter(waiting.items()))
            raise ScheduleError(
                f"deadlock: {self._name(at[cta])} waits for {missing[tile]} peers that can never run "
                f"({self.num_ctas} CTAs on {self.grid.slots} slots)"
            )

    def _name(self, i: int) -> str:
        return (
            f"segment {i} (CTA {self.cta[i]}, output tile {self.output_tile[i]}, "
            f"KV tiles [{self.start[i]}, {self.stop[i]}))"
        )

    # -- what can be read off ------------------------------------------------------------------

    @property
    def num_segments(self) -> int:
        """All segments."""
        return len(self.cta)

    @cached_property
    def by_tile(self) -> IntArray:
        """Segment indices sorted by output tile, then by start: the merge order."""
        steps = np.diff(self.output_tile)
        if np.all((steps > 0) | ((steps == 0) & (np.diff(self.start) >= 0))):
            return np.arange(self.num_segments)  # as in a line of tiles
        return np.lexsort((self.start, self.output_tile))

    @cached_property
    def request(self) -> IntArray:
        """Request of each segment."""
        return self.output_tile // (self.grid.heads * self.grid.row_blocks)

    @cached_property
    def is_host(self) -> BoolArray:
        """Whether a segment holds the first KV tiles of its output tile."""
        return np.equal(self.start, 0)

    @cached_property
    def rows(self) -> Ints:
        """Valid query rows of each segment's output tile; one number where all tiles have the same."""
        if self.grid.row_blocks == 1 and self.grid.work is None:
            return self.grid.rows_per_head
        return self.grid.rows[self.output_tile]

    @cached_property
    def merges(self) -> BoolArray:
        """Whether a segment's CTA waits for the other segments of its output tile and merges them."""
        if self.combine not in IN_LAUNCH:
            return np.zeros(self.num_segments, dtype=np.bool_)
        merger = self.is_host
        if self.combine == "last":
            last = np.zeros(self.grid.num_output_tiles, dtype=np.int64)
            np.maximum.at(last, self.output_tile, np.arange(self.num_segments))
            merger = np.equal(last[self.output_tile], np.arange(self.num_segments))
        return merger & (self.segments_of_tile[self.output_tile] > 1)

    @cached_property
    def is_partial(self) -> BoolArray:
        """Whether a segment's result goes through a partial instead of straight to the output.

        That a CTA merges goes there all the same where its rows are those of other output tiles too.
        """
        assert self.partials is not None
        return np.greater(self.partials[self.output_tile], 0)

    @cached_property
    def states(self) -> IntArray | None:
        """Partials of each output tile that a combine kernel reads; None without one.

        Those of rows that are served in another launch too are left to a merge after both.
        """
        assert self.partials is not None
        by_kernel = self.partials if self.combine == "kernel" else np.zeros_like(self.partials)
        if self.grid.is_shared is not None and not self.grid.is_part:
            return np.where(self.grid.is_shared & (by_kernel == 0), 1, by_kernel)
        return by_kernel if self.combine == "kernel" else None

    @cached_property
    def splits_of_request(self) -> IntArray:
        """Most segments of any output tile of each request."""
        most = np.zeros(self.grid.batch_size, dtype=np.int64)
        np.maximum.at(most, self.grid.request, self.segments_of_tile)
        return most

    @cached_property
    def tiles_of_cta(self) -> IntArray:
        """KV tiles each CTA does."""
        counts = np.bincount(self.cta, weights=self.stop - self.start, minlength=self.num_ctas)
        return counts.astype(np.int64)

    @cached_property
    def segments_of_cta(self) -> IntArray:
        """`[num_ctas + 1]` borders of each CTA's segments."""
        borders = np.zeros(self.num_ctas + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.cta, minlength=self.num_ctas), out=borders[1:])
        return borders

    @property
    def num_waves(self) -> float:
        """CTAs over slots; above 1 the last wave is usually part empty."""
        return self.num_ctas / self.grid.slots

    @property
    def wave_efficiency(self) -> float:
        """`num_waves / ceil(num_waves)`: the filled share of the waves."""
        return self.num_waves / -(-self.num_ctas // self.grid.slots)

    def segments(self) -> Iterator[Segment]:
        """Iterate over segments as small objects, for people and tests."""
        columns = (self.cta, self.output_tile, self.start, self.stop)
        for i, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            yield Segment(i, *row)
