"""The arrays that the kernels execute say what the schedule says. No Triton needed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gpu_kit import numpy_kernels, schedules
from hypothesis import given, settings
from kernels import device_for

from leansim.errors import GpuError, LeansimError
from leansim.gpu.execution import check_residency
from leansim.gpu.worklist import SEGMENT, SEGMENT_COLUMNS, one_at_a_time, work_list
from leansim.numerics.reference import random_inputs, reference
from leansim.points.point import point, resolve
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.workload import Workload

BATCH = {"context_lens": (700, 33, 1500, 64, 3000), "num_q_heads": 16, "num_kv_heads": 4, "head_dim": 64}


def output(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The output of the work list in NumPy, and the reference."""
    load = schedule.grid.workload
    inputs = random_inputs(load, seed=3)
    expected = reference(load, *inputs).reshape(-1, load.value_dim)
    return numpy_kernels(one_at_a_time(work_list(schedule)), inputs), expected


@settings(deadline=None, max_examples=150)
@given(schedule=schedules())
def test_any_schedule_gives_attention(schedule: Schedule) -> None:
    found, expected = output(schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", catalog.names("kernel"))
@pytest.mark.thorough
def test_every_kernels_schedule_gives_attention(kernel: str) -> None:
    """Each partitioner on the tiles and the packing of its own kernel, by name."""
    if catalog.kernel(kernel).latent_kv:
        pytest.skip("reads a latent cache")
    for extra in ({}, {"query_len": 2}, {"window": 200}):
        try:
            item = resolve(point(device=device_for(kernel), kernel=kernel, **BATCH, **extra))
            schedule = item.schedule
        except LeansimError:
            assert extra, "a plain decode call that the kernel refuses"
            continue
        found, expected = output(schedule)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_segment_by_hand() -> None:
    """One request of 100 tokens, one KV head, tiles of 64, two CTAs: the host has tile 0, its peer 1."""
    load = Workload((100,), num_q_heads=4, num_kv_heads=1, head_dim=64)
    item = resolve(point(device="h100_sxm", kernel="triton_lean", context_lens="100", num_q_heads=4,
                         num_kv_heads=1, head_dim=64))  # fmt: skip
    assert item.workload == load
    schedule = Schedule(item.grid, [0, 1], [0, 0], [0, 1], [1, 2], num_ctas=2, combine="host")
    work = work_list(schedule)
    rows = [dict(zip(SEGMENT, row.tolist(), strict=False)) for row in work.segments]
    common = {"tile": 0, "request": 0, "head": 0, "first_row": 0, "rows": 4, "context": 100,
              "first_slot": 0, "tiles": 1, "origin": 0, "state": -1}  # fmt: skip
    host = {"kv_begin": 0, "kv_end": 64, "first_tile": 0, "slot": -1, "peers": 1}
    peer = {"kv_begin": 64, "kv_end": 100, "first_tile": 1, "slot": 0, "peers": 0}
    assert rows == [common | host, common | peer]
    assert work.segments.shape == (2, SEGMENT_COLUMNS)
    assert work.first.tolist() == [0, 1]
    assert work.last.tolist() == [1, 2]
    assert work.num_slots == 1
    assert not len(work.merged_rows)
    turned = one_at_a_time(work)
    assert (turned.first.tolist(), turned.last.tolist()) == ([1, 0], [2, 1])  # the peer first


def test_ctas_that_wait_for_each_other_are_cut() -> None:
    """Each of two CTAs is the other's peer: no order of whole CTAs could run one after the other."""
    item = resolve(point(device="h100_sxm", kernel="triton_lean", context_len=128, batch_size=2,
                         num_q_heads=1, num_kv_heads=1, head_dim=64))  # fmt: skip
    schedule = Schedule(item.grid, [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0], [2, 1, 2, 1], num_ctas=2,
                        combine="host")  # fmt: skip
    work = one_at_a_time(work_list(schedule))
    assert len(work.first) == 3
    found, expected = output(schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_empty_partials_are_written_by_ctas_without_work() -> None:
    """FlashDecoding cuts the longest context: the short request's CTAs have nothing but to say so."""
    item = resolve(point(device="h100_sxm", kernel="triton_flash_decoding", context_lens="64,6400",
                         num_q_heads=1, num_kv_heads=1, head_dim=64))  # fmt: skip
    schedule = item.schedule
    assert schedule.num_empty_ctas > 0
    work = work_list(schedule)
    assert (work.last > work.first).all()
    slots = work.column("slot")
    assert sorted(slots.tolist()) == list(range(work.num_slots))
    assert np.count_nonzero(work.column("tiles") == 0) == schedule.num_empty_ctas


@pytest.mark.parametrize(
    ("column", "change"),
    [("first_tile", 1), ("tiles", -1), ("kv_end", -1), ("request", 1), ("head", 1), ("slot", 1),
     ("peers", -1)],
)  # fmt: skip
def test_a_wrong_column_shows(column: str, change: int) -> None:
    """Each number of a segment matters: changed, the output is no longer attention, or nothing comes."""
    item = resolve(point(device="h100_sxm", kernel="triton_lean", num_sms=3, **BATCH))
    work = one_at_a_time(work_list(item.schedule))
    segments = work.segments.copy()
    eligible = np.flatnonzero(segments[:, SEGMENT.index("slot")] >= 0)
    if column == "peers":
        eligible = np.flatnonzero(segments[:, SEGMENT.index("peers")] > 0)
    segments[eligible[0], SEGMENT.index(column)] += change
    wrong = dataclasses.replace(work, segments=segments)
    inputs = random_inputs(item.workload, seed=3)
    expected = reference(item.workload, *inputs).reshape(-1, item.workload.value_dim)
    try:
        found = numpy_kernels(wrong, inputs)
    except (AssertionError, IndexError):  # a slot twice or not at all, tokens that are not there
        return
    assert not np.allclose(found, expected, rtol=1e-3)


def test_too_few_resident_ctas_are_refused() -> None:
    """Hosts come first and wait: with room for them alone, their peers could never start."""
    item = resolve(point(device="h100_sxm", kernel="triton_lean", batch_size=1, context_len=65536,
                         num_q_heads=8, num_kv_heads=1, head_dim=128))  # fmt: skip
    schedule = dataclasses.replace(item.schedule, grid=item.grid.with_slots(1, item.schedule.num_ctas))
    check_residency(schedule, schedule.num_ctas)
    with pytest.raises(GpuError, match=r"found room for 1 CTAs.*deadlock"):
        check_residency(schedule, 1)
    with pytest.raises(GpuError, match="does not fit"):
        check_residency(schedule, 0)
