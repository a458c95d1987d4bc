"""A schedule that is wrong cannot be built, and the refusal names the place; odd ones can."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from kernels import lowered

from leansim.engine.execute import execute
from leansim.engine.program import Phase
from leansim.errors import ScheduleError
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.workload import Workload

Segments = list[tuple[int, int, int, int]]


def grid_of(tiles: int = 5, heads: int = 2, slots: int = 4) -> TileGrid:
    """`heads` output tiles of `tiles` KV tiles of 256 tokens, on SMs that hold one CTA each."""
    workload = Workload((256 * tiles,), heads, heads, 64)
    return TileGrid(workload, tile_rows=64, tile_tokens=256, num_sms=slots, ctas_per_sm=1)


def schedule_of(
    segments: Segments, num_ctas: int, grid: TileGrid | None = None, **more: Any
) -> Schedule:
    """Build a schedule from (CTA, output tile, start, stop)."""
    columns = np.array(segments, dtype=np.int64).reshape(-1, 4).T
    return Schedule(grid or grid_of(), *columns, num_ctas=num_ctas, **more)


def named(i: int, cta: int, tile: int, start: int, stop: int) -> str:
    """How a message names a segment, as a pattern."""
    return re.escape(f"segment {i} (CTA {cta}, output tile {tile}, KV tiles [{start}, {stop}))")


WHOLE: Segments = [(0, 0, 0, 5), (1, 1, 0, 5)]
HOSTED: Segments = [(0, 0, 0, 3), (1, 0, 3, 5), (2, 1, 0, 5)]


def test_legal_schedules_are_accepted() -> None:
    """The base of each case below, so that only the named fault can be what is refused."""
    assert schedule_of(WHOLE, 2).segments_of_tile.tolist() == [1, 1]
    for combine in ("host", "kernel"):
        schedule = schedule_of(HOSTED, 3, combine=combine)
        assert schedule.segments_of_tile.tolist() == [2, 1]
        assert schedule.tiles_of_cta.tolist() == [3, 2, 5]
        assert schedule.num_splits == 2


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        pytest.param(
            [(0, 0, 0, 2), (1, 0, 3, 5), (2, 1, 0, 5)],
            named(1, 1, 0, 3, 5) + r" leaves a gap before KV tile 2 of output tile 0",
            id="gap",
        ),
        pytest.param(
            [(0, 0, 0, 5), (1, 1, 1, 5)],
            named(1, 1, 1, 1, 5) + r" leaves a gap before KV tile 0 of output tile 1",
            id="gap at the start",
        ),
        pytest.param(
            [(0, 0, 0, 3), (1, 0, 2, 5), (2, 1, 0, 5)],
            named(1, 1, 0, 2, 5) + r" overlaps KV tile 3 of output tile 0",
            id="overlap",
        ),
        pytest.param(
            [(0, 0, 0, 5), (1, 0, 0, 5), (2, 1, 0, 5)],
            named(1, 1, 0, 0, 5) + r" overlaps KV tile 5 of output tile 0",
            id="twice",
        ),
        pytest.param(
            [(0, 0, 0, 5)], r"output tile 1 has no segment \(1 such\)", id="missing output tile"
        ),
        pytest.param(
            [(0, 0, 0, 5), (1, 1, 0, 4)],
            r"output tile 1 is covered up to KV tile 4, wanted 5",
            id="missing last KV tile",
        ),
        pytest.param(
            [(0, 0, 0, 6), (1, 1, 0, 5)],
            r"output tile 0 is covered up to KV tile 6, wanted 5",
            id="past the last KV tile",
        ),
        pytest.param(
            [(0, 0, -1, 5), (1, 1, 0, 5)],
            named(0, 0, 0, -1, 5) + r" overlaps KV tile 0",
            id="before the first KV tile",
        ),
        pytest.param(
            [(0, 0, 0, 5), (1, 2, 0, 5)],
            r"output tiles must lie in \[0, 2\)",
            id="no such output tile",
        ),
        pytest.param(
            [(0, -1, 0, 5), (1, 1, 0, 5)],
            r"output tiles must lie in \[0, 2\)",
            id="negative output tile",
        ),
        pytest.param(
            [(0, 0, 0, 5), (0, 0, 5, 5), (1, 1, 0, 5)],
            named(1, 0, 0, 5, 5) + r" is empty or reversed",
            id="empty segment",
        ),
        pytest.param(
            [(0, 0, 5, 0), (1, 1, 0, 5)],
            named(0, 0, 0, 5, 0) + r" is empty or reversed",
            id="reversed segment",
        ),
        pytest.param([], r"without segments covers nothing", id="no segments"),
    ],
)
def test_each_tile_is_covered_once_or_named(segments: Segments, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule_of(segments, max((row[0] for row in segments), default=0) + 1, combine="kernel")


@pytest.mark.parametrize(
    ("segments", "num_ctas", "more", "message"),
    [
        pytest.param(
            WHOLE,
            3,
            {},
            r"1 of 3 CTAs have no segment, 0 were declared empty",
            id="silent empty CTA",
        ),
        pytest.param(
            [(0, 0, 0, 5), (2, 1, 0, 5)],
            3,
            {},
            r"1 of 3 CTAs have no segment, 0 were declared empty",
            id="silent empty CTA in the middle",
        ),
        pytest.param(
            WHOLE,
            2,
            {"num_empty_ctas": 1},
            r"0 of 2 CTAs have no segment, 1 were declared empty",
            id="declared but busy",
        ),
        pytest.param(
            [(1, 0, 0, 5), (0, 1, 0, 5)], 2, {}, r"segments must be sorted by CTA", id="unsorted"
        ),
        pytest.param(WHOLE, 1, {}, r"CTA indices must lie in \[0, 1\)", id="no such CTA"),
        pytest.param(
            [(-1, 0, 0, 5), (0, 1, 0, 5)],
            1,
            {},
            r"CTA indices must lie in \[0, 1\)",
            id="negative CTA",
        ),
        pytest.param(HOSTED, 3, {}, r"output tile 0 has 2 segments and no combiner", id="no combiner"),
        pytest.param(
            HOSTED,
            3,
            {"combine": "kernel", "partials": np.array([1, 0])},
            r"partials must be 0 .* or at least their segments",
            id="fewer partials than segments",
        ),
        pytest.param(
            HOSTED,
            3,
            {"combine": "kernel", "partials": np.array([0, 0])},
            r"partials must be 0 .* or at least their segments",
            id="no partials of a split tile",
        ),
        pytest.param(
            HOSTED,
            3,
            {"combine": "kernel", "partials": np.array([2])},
            r"partials must be 0 .* or at least their segments",
            id="partials of another number of tiles",
        ),
        pytest.param(
            HOSTED,
            3,
            {"combine": "host", "partials": np.array([3, 0])},
            r"merges in its launch exactly the partials of its peers",
            id="a host with partials nobody writes",
        ),
        pytest.param(
            HOSTED,
            3,
            {"combine": "host", "grid": grid_of(slots=1)},
            r"deadlock: .* waits for \d peers that can never run \(3 CTAs on 1 slots\)",
            id="more CTAs than slots",
        ),
    ],
)
def test_ctas_and_partials_add_up_or_are_named(
    segments: Segments, num_ctas: int, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule_of(segments, num_ctas, **more)


def test_arrays_of_different_lengths_are_refused() -> None:
    two, one = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)
    with pytest.raises(ScheduleError, match=r"differ in length: .*'stop': 1"):
        Schedule(grid_of(), two, two, two, one, num_ctas=1)


def test_ctas_that_do_not_wait_may_outnumber_the_slots() -> None:
    """A second kernel combines: nobody waits inside the launch, so CTAs run in waves."""
    schedule = schedule_of(HOSTED, 3, grid_of(slots=2), combine="kernel")
    assert schedule.num_waves == 1.5
    assert schedule.wave_efficiency == 0.75


def test_a_declared_empty_cta_is_accepted() -> None:
    schedule = schedule_of([(0, 0, 0, 5), (2, 1, 0, 5)], 4, num_empty_ctas=2)
    assert schedule.tiles_of_cta.tolist() == [5, 0, 5, 0]


def test_extra_partials_are_accepted_from_a_combine_kernel() -> None:
    """FlashDecoding reads the partials of empty CTAs too."""
    schedule = schedule_of(HOSTED, 3, combine="kernel", partials=np.array([4, 4]))
    assert schedule.is_partial.all()


# -- deadlock --------------------------------------------------------------------------------------


def test_a_circle_of_waits_is_refused() -> None:
    """CTA 0 waits for CTA 1's part of A before it starts its part of B; CTA 1 the other way round.

    CTA 0: host of A [0, 3), then peer of B [3, 5). CTA 1: host of B [0, 3), then peer of A [3, 5).
    Each host's peer segment stands behind the other host's wait.
    """
    circle = [(0, 0, 0, 3), (0, 1, 3, 5), (1, 1, 0, 3), (1, 0, 3, 5)]
    with pytest.raises(ScheduleError, match=r"deadlock: segment \d \(CTA [01], output tile [01]"):
        schedule_of(circle, 2, combine="host")
    schedule_of(circle, 2, combine="kernel")  # with a second kernel nobody waits


def test_a_circle_over_three_ctas_is_refused() -> None:
    """As above, each CTA waiting for the next: A on 0 and 1, B on 1 and 2, C on 2 and 0."""
    circle = [(c, t, *run) for c in range(3) for t, run in ((c, (0, 3)), ((c - 1) % 3, (3, 5)))]
    with pytest.raises(ScheduleError, match="deadlock"):
        schedule_of(circle, 3, grid_of(heads=3), combine="host")


def test_a_cta_that_waits_for_itself_is_refused() -> None:
    """The host segment comes first in its CTA, its only peer after it in the same CTA."""
    with pytest.raises(ScheduleError, match=r"deadlock: segment 0 \(CTA 0, output tile 0"):
        schedule_of([(0, 0, 0, 3), (0, 0, 3, 5), (1, 1, 0, 5)], 2, combine="host")
    schedule_of([(0, 0, 3, 5), (0, 0, 0, 3), (1, 1, 0, 5)], 2, combine="host")  # peer first


def test_a_wait_before_a_peer_segment_is_accepted_where_nothing_closes_the_circle() -> None:
    """CTA 0: host of A (waits for CTA 1), then peer of B. CTA 1: peer of A, then host of B.

    CTA 1 publishes its part of A before it waits for anyone, so CTA 0 gets on, publishes its part
    of B, and CTA 1 can finish. The engine must get through it in that order.
    """
    segments = [(0, 0, 0, 2), (0, 1, 2, 5), (1, 0, 2, 5), (1, 1, 0, 2)]
    schedule = schedule_of(segments, 2, combine="host")
    device = catalog.device("h100_sxm").model_copy(update={"num_sms": 4})
    program = lowered(schedule, catalog.kernel("lean"), device)
    result = execute(program)

    def phase(kind: Phase, segment: int) -> int:
        (at,) = np.flatnonzero((program.kind == kind) & (program.segment == segment))
        return int(at)

    merge_a, merge_b = phase(Phase.MERGE, 0), phase(Phase.MERGE, 3)
    published_a, published_b = phase(Phase.WRITE, 2), phase(Phase.WRITE, 1)
    assert result.ready[merge_a] == result.end[published_a] > result.begin[merge_a]
    assert result.begin[phase(Phase.RAMP, 1)] == result.end[phase(Phase.WRITE, 0)]
    assert result.ready[merge_b] == result.end[published_b] > result.begin[merge_b]


# -- values ----------------------------------------------------------------------------------------


def test_a_schedule_cannot_be_changed() -> None:
    stop = np.array([5, 5])
    schedule = Schedule(grid_of(), np.arange(2), np.arange(2), np.zeros(2), stop, num_ctas=2)
    stop[0] = 1
    assert schedule.stop.tolist() == [5, 5], "the caller's array is not the schedule's"
    with pytest.raises(ValueError, match="read-only"):
        schedule.stop[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.num_ctas = 3  # type: ignore[misc]


def test_partials_cannot_be_changed_from_outside() -> None:
    partials = np.array([2, 0])
    schedule = schedule_of(HOSTED, 3, combine="kernel", partials=partials)
    partials[0] = 9
    assert schedule.partials is not None
    assert schedule.partials.tolist() == [2, 0]


def test_segments_iterate_in_order() -> None:
    rows = [tuple(segment) for segment in schedule_of(HOSTED, 3, combine="host").segments()]
    assert rows == [(i, *row) for i, row in enumerate(HOSTED)]


def test_more_ctas_than_slots_are_fine_while_somebody_can_finish() -> None:
    """HOSTED on two slots: CTA 0 waits for CTA 1, which runs beside it and frees its slot for CTA 2."""
    assert schedule_of(HOSTED, 3, grid_of(slots=2), combine="host").num_ctas == 3


def test_fractions_are_refused() -> None:
    with pytest.raises(ScheduleError, match=r"start holds 0\.5, wanted whole"):
        Schedule(grid_of(), np.arange(2), np.arange(2), np.array([0, 0.5]), np.array([5, 5]), num_ctas=2)


# -- what makes no sense ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"combine": "hosts"}, r"combine is 'hosts', wanted one of none, kernel, host, last .*'host'"),
        ({"combine": None}, r"combine is None, wanted one of none, kernel, host, last"),
        ({"combine": np.array(["host"])}, r"combine is array"),
        ({"dispatch": "bogus"}, r"dispatch is 'bogus', wanted one of grid, queue"),
        ({"dispatch": True}, r"dispatch is True, wanted one of grid, queue"),
        ({"num_splits": -5}, r"num_splits is -5, wanted a whole number of at least 1"),
        ({"num_splits": 0}, r"num_splits is 0, wanted"),
        ({"num_splits": 2.5}, r"num_splits is 2\.5, wanted"),
        ({"num_splits": True}, r"num_splits is True, wanted"),
        ({"num_splits": "2"}, r"num_splits is '2', wanted"),
        ({"num_splits": float("nan")}, r"num_splits is nan, wanted"),
        ({"num_splits": 1}, r"num_splits is 1, but output tile 0 has 2 segments"),
        ({"num_splits": 2**70}, r"num_splits is 11805"),
        ({"num_ctas": 3.5}, r"num_ctas is 3\.5, wanted a whole number of at least 1"),
        ({"num_ctas": np.float64("inf")}, r"num_ctas is .*inf.*, wanted"),
        ({"num_ctas": None}, r"num_ctas is None, wanted"),
        ({"num_ctas": 0}, r"num_ctas is 0, wanted"),
        ({"num_empty_ctas": -1, "num_ctas": 2}, r"num_empty_ctas is -1, wanted"),
        ({"num_empty_ctas": 0.5}, r"num_empty_ctas is 0\.5, wanted"),
        ({"partials": np.array([2.5, 0.0])}, r"partials holds 2\.5, wanted"),
        ({"partials": np.array([[2, 0]])}, r"partials has 2 dimensions, wanted 1"),
        ({"partials": "none"}, r"partials is of <U4, wanted whole numbers"),
        ({"grid": "a grid"}, r"grid is 'a grid', wanted a TileGrid"),
    ],
    ids=str,
)
def test_what_is_said_beside_the_segments_has_a_meaning(more: dict[str, Any], message: str) -> None:
    said = {"num_ctas": 3, "combine": "kernel", **more}
    with pytest.raises(ScheduleError, match=message):
        schedule_of(HOSTED, **said)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.array([False, False]), r"start is of bool, wanted whole numbers"),
        (["0", "0"], r"start is of <U1, wanted whole numbers"),
        (np.array([0.0, np.nan]), r"start holds nan, wanted whole numbers of 64 bits"),
        (np.array([0.0, 1e300]), r"start holds 1e\+300, wanted"),
        (np.array([0, 2**63], dtype=np.uint64), r"start holds 9223372036854775808, wanted"),
        ([0, 2**80], r"start is of object, wanted"),
        ([[0], [0, 1]], r"start is no array, wanted"),
        (None, r"start is of object, wanted"),
        (0, r"start has 0 dimensions, wanted 1"),
        (np.zeros((2, 1)), r"start has 2 dimensions, wanted 1"),
    ],
    ids=str,
)
def test_segments_are_whole_numbers(start: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Schedule(grid_of(), np.arange(2), np.arange(2), start, np.array([5, 5]), num_ctas=2)


def test_whole_numbers_of_other_types_are_taken() -> None:
    schedule = schedule_of(HOSTED, np.int32(3), combine="kernel", num_splits=np.float64(2))  # type: ignore[arg-type]
    assert (schedule.num_ctas, schedule.num_splits) == (3, 2)
    assert type(schedule.num_ctas) is type(schedule.num_splits) is int


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tile_rows": 0}, "tile_rows is 0, wanted a whole number of at least 1"),
        ({"tile_tokens": -1}, "tile_tokens is -1, wanted"),
        ({"num_sms": 1.5}, r"num_sms is 1\.5, wanted"),
        ({"ctas_per_sm": 0}, "ctas_per_sm is 0, wanted"),
        ({"num_xcds": 0}, "num_xcds is 0, wanted"),
        ({"step_tokens": -64}, "step_tokens is -64, wanted"),
        (
            {"tile_order": "backwards"},
            r"tile_order is 'backwards', wanted .*\(did you mean 'backward'\?\)",
        ),
    ],
    ids=str,
)
def test_tiles_that_nothing_can_be_cut_into_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        dataclasses.replace(grid_of(), **changed)
