"""Contract: every partitioner, and every kernel with its own, keeps the rules of the kit."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from kernels import kernels_and_a_few_devices, lowered, thorough_beyond_one_device, tiled

from leansim.engine.execute import execute
from leansim.errors import PairingError, PartitionerError, ScheduleError
from leansim.partitioners import registry as partitioners
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.flash_decoding import FlashDecoding
from leansim.partitioners.lean_aiter import LeanAiter
from leansim.partitioners.lean_attention import LeanAttention
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.workload import Workload
from leansim.testing import ConformanceError, awkward_workloads, check_partitioner

EACH = list(
    zip(partitioners.partitioners(), itertools.cycle(["a100_sxm_80gb", "h100_sxm"]), strict=False)
)
PAIRS = kernels_and_a_few_devices(2)


@pytest.mark.parametrize(("name", "device"), EACH)
def test_every_partitioner_conforms(name: str, device: str) -> None:
    check_partitioner(partitioners.make(name), devices=(device,))


@pytest.mark.parametrize(("kernel", "device"), thorough_beyond_one_device(PAIRS))
def test_every_kernel_conforms_with_its_own_partitioner(kernel: str, device: str) -> None:
    choice = catalog.kernel(kernel).partitioner
    check_partitioner(partitioners.make(choice.name, choice.options), kernel, (device,))


def test_every_kernel_and_every_architecture_is_checked_somewhere() -> None:
    assert {kernel for kernel, _ in PAIRS} == set(catalog.names("kernel"))
    archs = {name: catalog.device(name).arch for name in catalog.names("device")}
    assert {archs[device] for _, device in PAIRS} == set(archs.values())


@pytest.mark.parametrize(
    ("partitioner", "kernel", "device"),
    [
        (FlashDecoding(num_splits=7), "fa2", "h100_sxm"),
        (FlashDecoding(num_splits=33), "fa2", "a100_sxm_80gb"),
        (FlashDecoding(sms_factor=1), "fa2", "h100_sxm"),
        (FlashDecoding(packed_only="ragged"), "fa2", "h100_sxm"),
        (LeanAttention(lengths="longest"), "fa2", "h100_sxm"),
        (LeanAttention(ctas_per_sm=1), "lean", "h100_sxm"),
        (LeanAttention(num_ctas=1), "lean", "h100_sxm"),
        (LeanAttention(max_splits_per_head=None), "lean", "h100_sxm"),
        (LeanAttention(max_splits_per_head=1), "lean", "h100_sxm"),
        (LeanAttention(row_blocks="ping_pong"), "lean_prefill", "h100_sxm"),
        (LeanAiter(row_blocks="ping_pong"), "lean_prefill", "h100_sxm"),
        (LeanAiter(num_xcds=2), "fa2", "h100_sxm"),
        (LeanAiter(num_xcds=8), "lean_aiter", "mi300x"),
    ],
    ids=repr,
)
@pytest.mark.thorough
def test_options_conform_too(partitioner: Any, kernel: str, device: str) -> None:
    check_partitioner(partitioner, kernel, (device,))


def test_awkward_workloads_are_awkward() -> None:
    listed = dict(awkward_workloads())
    assert len(listed) == len(awkward_workloads()), "labels are distinct"
    assert all(load.label == label for label, load in listed.items())
    loads = listed.values()
    assert any(load.context_lens == (1,) for load in loads)
    assert any(load.window for load in loads)
    assert any(load.query_len > 1 for load in loads)
    assert any(load.batch_size == 256 and len(set(load.context_lens)) > 99 for load in loads)
    assert any(load.call_context_len > max(load.context_lens) for load in loads)
    groups = {load.group_size for load in loads}
    assert {1, 4} < groups
    assert max(groups) > 64, "more rows than one tile holds"


# -- the kit tells good from bad -------------------------------------------------------------------


@dataclass(frozen=True)
class OneCta:
    """Everything to one CTA: slow, but right."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        n = grid.num_output_tiles
        zero = np.zeros(n, dtype=np.int64)
        return Schedule(grid, zero, np.arange(n), zero, grid.num_kv_tiles, num_ctas=1)


@dataclass(frozen=True)
class Dropping(OneCta):
    """Leaves out the last KV tile of the last output tile that has two."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        whole = OneCta()(grid, device)
        stop = whole.stop.copy()
        stop[np.flatnonzero(stop > 1)[-1:]] -= 1
        return dataclasses.replace(whole, stop=stop)


@dataclass(frozen=True)
class Doctored(OneCta):
    """Leaves out a KV tile after `Schedule` has looked."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        whole = OneCta()(grid, device)
        if grid.num_kv_tiles[0] > 1:
            object.__setattr__(whole, "start", whole.start + (np.arange(len(whole.start)) == 0))
        return whole


@dataclass(frozen=True)
class Fickle(OneCta):
    """Answers differently every other time."""

    calls: ClassVar[Any] = itertools.count()

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        if next(self.calls) % 2:
            return OneCta()(grid, device)
        return FlashAttention2()(grid, device)


@dataclass(frozen=True)
class FickleInName(OneCta):
    """Gives the same segments, but reports another split count each time."""

    calls: ClassVar[Any] = itertools.count(1)

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        return dataclasses.replace(OneCta()(grid, device), num_splits=next(self.calls))


@dataclass(frozen=True)
class OtherGrid(OneCta):
    """Schedules the right tiles on more slots than there are."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        return OneCta()(grid.with_slots(grid.num_sms * 2, grid.ctas_per_sm), device)


@dataclass(frozen=True)
class Refusing(OneCta):
    """Refuses what is longer than `most` tokens."""

    most: int

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        if max(grid.workload.context_lens) > self.most:
            raise PartitionerError(f"more than {self.most} tokens")
        return OneCta()(grid, device)


@dataclass
class Thawed:
    """Not frozen."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        return OneCta()(grid, device)


@dataclass(frozen=True)
class Nothing(OneCta):
    """Forgets to return."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("partitioner", [OneCta(), Refusing(2000)], ids=repr)
def test_slow_and_choosy_partitioners_pass(partitioner: Any) -> None:
    check_partitioner(partitioner, devices=("h100_sxm",))


@pytest.mark.parametrize(
    ("partitioner", "check", "finding"),
    [
        (Dropping(), "valid schedule", r"output tile \d+ is covered up to KV tile \d+, wanted"),
        (Doctored(), "exact cover", r"KV tile 0 of output tile 0 is done 0 times, wanted once"),
        (Fickle(), "deterministic", r"cta differs between two calls"),
        (FickleInName(), "deterministic", r"num_splits is \d+, then \d+"),
        (OtherGrid(), "own grid", r"num_sms 264, wanted 132"),
        (Refusing(0), "does something", r"every workload is refused"),
        (Thawed(), "frozen dataclass", r"Thawed is not a frozen dataclass"),
        (Nothing(), "own grid", r"returned a NoneType, wanted a Schedule"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_partitioners_fail_by_name(partitioner: Any, check: str, finding: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_partitioner(partitioner, devices=("h100_sxm",))
    error = caught.value
    assert error.check == check
    assert re.search(finding, error.finding)
    for part in (repr(partitioner), check, error.workload, error.device):
        assert part in str(error)


def test_a_broken_result_fails_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with no latency, with no limit to memory, that drifts, that stacks CTAs.

    On an L40S, whose SMs ask for more than its DRAM has.
    """
    from leansim import testing

    def faster(program: Any) -> Any:
        result = execute(program)
        times = {name: getattr(result, name) // 9 for name in ("cta_begin", "reached", "end")}
        ends = {name: tuple(t // 9 for t in getattr(result, name)) for name in LAUNCH_TIMES}
        return dataclasses.replace(result, **times, **ends)

    runs = itertools.count()

    def drifting(program: Any) -> Any:
        result = execute(program)
        return dataclasses.replace(result, end=result.end + next(runs) % 2)

    def stacked(program: Any) -> Any:
        result = execute(program)
        return dataclasses.replace(result, slot=result.slot * 0)

    def unlimited(program: Any) -> Any:
        free = dataclasses.replace(program, dram_bytes_per_ps=1e6, l2_bytes_per_ps=1e6)
        return execute(free)

    engines = {
        "longest CTA": faster,
        "repeatable": drifting,
        "slot time": stacked,
        "roofline": unlimited,
    }
    for check, engine in engines.items():
        monkeypatch.setattr(testing, "execute", engine)
        with pytest.raises(ConformanceError) as caught:
            check_partitioner(FlashAttention2(), devices=("l40s",))
        assert caught.value.check == check


LAUNCH_TIMES = ("launch_begin", "launch_end")


# -- pairings that cannot work are refused by name -------------------------------------------------


def test_a_kernel_without_a_combine_refuses_a_schedule_that_needs_one() -> None:
    kernel, device = catalog.kernel("lean"), catalog.device("h100_sxm")
    grid = tiled(Workload((4096,), 1, 1, 128), kernel, device)
    schedule = FlashDecoding(num_splits=4)(grid, device)
    with pytest.raises(PairingError, match="combine"):
        lowered(schedule, kernel, device)


def test_a_launch_mode_the_device_lacks_is_refused() -> None:
    """A100 has no programmatic dependent launch."""
    kernel, device = catalog.kernel("fa2"), catalog.device("a100_sxm_80gb")
    workload = Workload((4096,), 1, 1, 128, launch="pdl")
    with pytest.raises(PairingError, match="pdl"):
        lowered(FlashAttention2()(tiled(workload, kernel, device), device), kernel, device)


@pytest.mark.parametrize("lengths", ["actual", "longest"])
def test_lean_attention_never_deals_more_ctas_than_fit(lengths: Any) -> None:
    """One CTA per SM, and between two and four tiles per SM: two tiles per CTA is too many CTAs.

    On A100 the kernel fits once per SM at head dim 256: 108 slots. 32,768 tokens of one KV head are
    512 tiles of 64 > 4*108, dealt to one CTA per SM (here at most 32). 24,576 tokens in 12 requests
    are 384 <= 432 tiles: 192 CTAs by the small-work rule, more than fit.
    """
    kernel, device = catalog.kernel("lean"), catalog.device("a100_sxm_80gb")
    for context_lens in ((32_768,), (2048,) * 12):
        grid = tiled(Workload(context_lens, 1, 1, 256), kernel, device)
        assert grid.slots == 108
        try:
            schedule = LeanAttention(lengths=lengths)(grid, device)
        except ScheduleError as error:
            pytest.fail(f"{context_lens}: {error}")
        assert schedule.num_ctas <= grid.slots
