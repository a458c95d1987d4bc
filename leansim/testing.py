"""Checks what must hold for every schedule of a partitioner and every simulation of one.

For authors of partitioners, in this package or another: call `check_partitioner(MyPartitioner())`
in a test. It schedules awkward workloads, runs them, and recomputes what must hold. It does not
say whether a schedule is good, only whether it is right.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.execute import execute
from leansim.engine.program import PS_PER_S, Program
from leansim.engine.result import Result
from leansim.errors import LeansimError, NumericsError, PairingError, PartitionerError
from leansim.numerics.verify import verify
from leansim.partitioners.registry import Partitioner, is_partitioner
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.instance import NoCombine, instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.kv_lists import RandomBlocks, Shard, TopK, WindowSink
from leansim.specs.prefixes import Prefix, Prefixes
from leansim.specs.query_blocks import QueryBlocks
from leansim.specs.workload import Workload
from leansim.timing.lowering import lower
from leansim.timing.roofline import roofline

_TIMES = ("begin", "ready", "moving", "end", "slot")
_SEGMENTS = ("cta", "output_tile", "start", "stop")
_REPLAYED_TOKENS = 2048
_REPLAYED_WIDTH = 16
_PREFIX = Prefixes((Prefix(0, 320, (0, 1, 2)),))
_TREE = Prefixes((Prefix(0, 300, (0, 1, 2, 3)), Prefix(300, 1500, (0, 2))))
_UNLIKE = RandomBlocks(0.3, 64, pruned_heads=0.5)
_OF_TOKENS = QueryBlocks(RandomBlocks(0.3, 64), 1)
_MANY = Prefixes((Prefix(0, 256, tuple(range(40))),))


class ConformanceError(AssertionError):
    """A check that a partitioner fails, and where: partitioner, workload, device."""

    def __init__(
        self, check: str, finding: str, partitioner: object, workload: str, device: str
    ) -> None:
        """`check` names the check, `finding` says what was seen; `workload` is its label."""
        super().__init__(
            f"{partitioner!r} fails the check {check!r} on workload {workload!r}, "
            f"device {device!r}: {finding}"
        )
        self.check, self.finding = check, finding
        self.partitioner, self.workload, self.device = partitioner, workload, device


@dataclass(frozen=True)
class Case:
    """One workload on one device with one partitioner, and what came of it."""

    partitioner: Partitioner
    workload: Workload
    kernel: Kernel
    device: Device
    grid: TileGrid
    schedule: Schedule
    again: Schedule
    program: Program
    result: Result
    repeat: Result


Check = Callable[[Case], Iterator[str]]


def awkward_workloads() -> list[tuple[str, Workload]]:
    """Small workloads at the edges of what a partitioner must deal with, by label."""
    gqa = partial(Workload, num_q_heads=8, num_kv_heads=2, head_dim=128)
    mha = partial(Workload, num_q_heads=4, num_kv_heads=4, head_dim=128)
    mla = partial(Workload, num_kv_heads=1, head_dim=576, head_dim_v=512, latent_kv=True)
    ragged = (1, 127, 128, 129, 1000, 1024, 4097, 333)
    many = tuple(1 + (i * 7919) % 1500 for i in range(256))
    listed = [
        ("one token", gqa((1,))),
        ("one token, one head", Workload((1,), 1, 1, 128)),
        ("one tile too many for a CTA", Workload((385,), 1, 1, 128)),
        ("fewer tiles than slots", gqa((700, 900))),
        ("as many tiles as slots", mha((128 * 27,) * 2)),
        ("ragged", gqa(ragged)),
        ("equal", gqa((2048,) * 5)),
        ("one huge, many tiny", gqa((131_072, *(16,) * 31))),
        ("multi-query", Workload((3000, 77, 20_000), 16, 1, 128)),
        ("multi-head", mha((3000, 77, 20_000))),
        ("more rows than a tile", Workload((2000, 50), 96, 1, 128)),
        ("four new tokens", gqa((4, 5, 129, 3000), query_len=4)),
        ("whole prompts", mha((300, 300), query_len=300)),
        ("chunks of prompts", gqa((150, 700, 1025), query_len=150)),
        ("window", gqa((100, 1025, 9000, 5120), window=1024)),
        ("window, four new tokens", mha((1025, 9001), window=128, query_len=4)),
        ("head dim 64", Workload((5000, 257), 4, 4, 64)),
        ("head dim 256", Workload((3300,) * 3, 16, 2, 256)),
        ("call told of a longer context", gqa(ragged, max_context_len=65_536)),
        ("warm cache", gqa((4000, 300), cache="warm")),
        ("batch 256, ragged", Workload(many, 4, 1, 128)),
        ("a prefix of two tiles and a half", gqa((400, 333, 321, 700, 5000), reads=_PREFIX)),
        ("a tree of prefixes", mha((2000, 1501, 1600, 1000, 77), reads=_TREE, query_len=2)),
        ("a prefix of more rows than a tile", Workload((300,) * 40, 8, 2, 128, reads=_MANY)),
        ("a list of pages", gqa((100, 2000, 9000, 4097), reads=TopK(1024, 16))),
        (
            "heads that keep unlike lists",
            mha((1500, 900), reads=RandomBlocks(0.3, 64, pruned_heads=0.5)),
        ),
        (
            "a window and a sink, four new tokens",
            gqa((5000, 300), reads=WindowSink(512, 4), query_len=4),
        ),
        ("a list for each new token", gqa((5000, 300), reads=_OF_TOKENS, query_len=4)),
        ("every third token", gqa((1000, 2, 401), reads=Shard(1, 3))),
        ("latent cache, ragged", mla((1, 64, 65, 4097, 333), num_q_heads=16)),
        ("latent cache, two new tokens", mla((2, 130, 3000), num_q_heads=128, query_len=2)),
    ]
    return [(label, dataclasses.replace(load, label=label)) for label, load in listed]


def check_partitioner(
    partitioner: Partitioner,
    kernel: str | Kernel = "fa2",
    devices: Sequence[str | Device] = ("a100_sxm_80gb", "h100_sxm"),
) -> None:
    """Check a partitioner on every awkward workload. Raises `ConformanceError`.

    Each device is tried whole and as a single slot. A partitioner may refuse a workload by raising
    `PartitionerError`; workloads that `kernel` is not built for are passed over. Not one workload
    may be left in the end.
    """
    if not is_partitioner(type(partitioner)):
        raise ConformanceError(
            "frozen dataclass",
            f"{type(partitioner).__name__} is not a frozen dataclass with its own __call__",
            partitioner,
            "any",
            "any",
        )
    spec = catalog.kernel(kernel) if isinstance(kernel, str) else kernel
    for named in devices:
        device = catalog.device(named) if isinstance(named, str) else named
        single = device.model_copy(update={"num_sms": 1, "name": f"{device.name}, one slot"})
        for where in (device, single):
            checked = sum(
                _check_case(partitioner, label, workload, spec, where)
                for label, workload in awkward_workloads()
            )
            if where is device and not checked:
                finding = f"every workload is refused, by the partitioner or by kernel {spec.name!r}"
                raise ConformanceError("does something", finding, partitioner, "all", device.name)


def _check_case(
    partitioner: Partitioner, label: str, workload: Workload, kernel: Kernel, device: Device
) -> bool:
    """Check one case; False where it is refused."""

    def failed(check: str, finding: object) -> ConformanceError:
        return ConformanceError(check, str(finding), partitioner, label, device.name)

    try:
        instance = instance_of(kernel, device, workload)
        if workload.prefixes and isinstance(instance.combine, NoCombine):
            return False  # nobody merges what is of several work tiles
        grid = tile_grid(workload, instance, device)
    except PairingError:
        return False
    if device.num_sms == 1:
        grid = grid.with_slots(1, 1)
    try:
        schedule, again = partitioner(grid, device), partitioner(grid, device)
    except PartitionerError:
        return False
    except LeansimError as error:
        raise failed("valid schedule", f"{type(error).__name__}: {error}") from error
    except Exception as error:  # a bug of the author's can be anything
        raise failed("does not crash", f"{type(error).__name__}: {error}") from error
    for finding in _grid_kept(grid, schedule):
        raise failed("own grid", finding)
    for finding in _exact_cover(grid, schedule):
        raise failed("exact cover", finding)
    try:
        program = lower(schedule, instance, device)
        result, repeat = execute(program), execute(program)
    except LeansimError as error:
        raise failed("runs", f"{type(error).__name__}: {error}") from error
    case = Case(partitioner, workload, kernel, device, grid, schedule, again, program, result, repeat)
    for name, check in CHECKS.items():
        for finding in check(case):
            raise failed(name, finding)
    return True


# -- checks: each yields what it finds wrong --------------------------------------------------------


def _grid_kept(grid: TileGrid, schedule: object) -> Iterator[str]:
    """Require a schedule, and one for the tiles and slots that were asked for."""
    if not isinstance(schedule, Schedule):
        yield f"returned a {type(schedule).__name__}, wanted a Schedule"
        return
    for field in dataclasses.fields(TileGrid):
        if field.init and getattr(schedule.grid, field.name) != getattr(grid, field.name):
            found, wanted = getattr(schedule.grid, field.name), getattr(grid, field.name)
            yield f"the schedule's grid has {field.name} {found!r}, wanted {wanted!r}"


def _exact_cover(grid: TileGrid, schedule: Schedule) -> Iterator[str]:
    """Each KV tile of each output tile is done once, counted here tile by tile."""
    tiles = grid.num_kv_tiles
    base = np.cumsum(tiles) - tiles
    done = np.zeros(int(tiles.sum()), dtype=np.int64)
    segments = zip(*(getattr(schedule, name).tolist() for name in _SEGMENTS), strict=True)
    for cta, tile, start, stop in segments:
        if not 0 <= start < stop <= tiles[tile]:
            run = f"KV tiles [{start}, {stop}) of output tile {tile}"
            yield f"CTA {cta} does {run}, which has {tiles[tile]}"
        done[base[tile] + start : base[tile] + stop] += 1
    if len(wrong := np.flatnonzero(done != 1)):
        tile = int(np.searchsorted(base, wrong[0], side="right")) - 1
        times = f"{done[wrong[0]]} times, wanted once"
        yield f"KV tile {wrong[0] - base[tile]} of output tile {tile} is done {times}"


def _deterministic(case: Case) -> Iterator[str]:
    """Asked twice, it answers the same."""
    one, two = case.schedule, case.again
    for name in (*_SEGMENTS, "partials"):
        if not np.array_equal(getattr(one, name), getattr(two, name)):
            yield f"{name} differs between two calls"
    for name in ("num_ctas", "num_empty_ctas", "num_splits", "combine", "dispatch"):
        if getattr(one, name) != getattr(two, name):
            yield f"{name} is {getattr(one, name)}, then {getattr(two, name)}"


def _same_kv_bytes(case: Case) -> Iterator[str]:
    """KV is streamed once per output tile, in whole pages or by token, however the tiles are dealt."""
    grid, load, program = case.grid, case.grid.workload, case.program
    streamed = program.kv_bytes
    unit = min(load.page_tokens, grid.tile_tokens) if grid.whole_pages else 1
    units = -(-grid.kv_end // unit) - grid.kv_begin // unit
    wanted = int(units.sum()) * unit * load.kv_bytes_per_token
    if grid.row_blocks == 1 and unit == 1:
        wanted = load.kv_bytes * (1 if grid.packed else load.group_size)
    if not math.isclose(streamed, wanted, rel_tol=1e-9):
        yield f"{streamed:,.0f} B of KV are streamed, wanted {wanted:,} B"
    if case.result.bytes_served != case.program.shared_bytes:
        yield f"{case.result.bytes_served:,} B served of {case.program.shared_bytes:,} B"


def _roofline(case: Case) -> Iterator[str]:
    """No run beats the roofline: peak bandwidths, less what L2 kept of a replay, and dense FLOP."""
    least_s = roofline(case.workload, case.device).floor_s
    if case.result.makespan_s < least_s:
        yield f"makespan {case.result.makespan_s:.3e} s, the roofline is {least_s:.3e} s"


def _longest_cta(case: Case) -> Iterator[str]:
    """No launch ends before its longest CTA could, nor before the work of all its slots."""
    program = case.program
    # Bytes without a flow (-1, the last here) take no time of their own: it is in the latency.
    rate = np.array([*(flow.max_bytes_per_ps for flow in program.flows), np.inf])[program.flow]
    # An engine may finish a transfer within its rounding: a picosecond per phase.
    least = np.maximum(0.0, np.floor(program.bytes / rate) - 1) + program.latency_ps
    of_cta = np.add.reduceat(least, program.phase_of_cta[:-1])
    begins, ends = case.result.launch_begin, case.result.launch_end
    for launch, begin, end in zip(program.launches, begins, ends, strict=True):
        mine = of_cta[launch.first_cta : launch.last_cta]
        spread = math.floor(float(mine.sum()) / program.slots(launch))
        bound = launch.gap_ps + max(int(mine.max()), spread)
        if end - begin < bound:
            yield f"launch {launch.name!r} takes {end - begin} ps, its CTAs need {bound} ps"


def _slot_time(case: Case) -> Iterator[str]:
    """CTAs of a slot follow each other, and slot time is all busy, waiting or idle."""
    result, program = case.result, case.program
    for index, launch in enumerate(program.launches):
        mine = slice(launch.first_cta, launch.last_cta)
        window = result.launch_end[index] - result.launch_begin[index]
        slots = program.slots(launch)
        yield from _overlaps(result, mine, slots)
        held = int((result.cta_end[mine] - result.cta_begin[mine]).sum())
        spent = result.spent_ps(launch)
        if any(value < 0 for value in spent.values()):
            yield f"launch {launch.name!r} spends negative time: {spent}"
        at_work = sum(spent.values()) - spent["idle"]
        if at_work != held or spent["idle"] != window * slots - held:
            yield f"launch {launch.name!r}: CTAs hold slots for {held} ps, accounted are {spent}"


def _overlaps(result: Result, mine: slice, slots: int) -> Iterator[str]:
    slot, begin, end = result.slot[mine], result.cta_begin[mine], result.cta_end[mine]
    if slot.min() < 0 or slot.max() >= slots:
        yield f"a CTA is on slot {slot.max()}, there are {slots}"
    order = np.lexsort((begin, slot))
    same = slot[order][1:] == slot[order][:-1]
    early = begin[order][1:] < end[order][:-1]
    if len(where := np.flatnonzero(same & early)):
        yield f"two CTAs are on slot {slot[order][where[0]]} at the same time"


def _repeatable(case: Case) -> Iterator[str]:
    """Run twice, a program takes the same time to the picosecond, phase by phase."""
    for name in _TIMES:
        one: IntArray = getattr(case.result, name)
        if not np.array_equal(one, getattr(case.repeat, name)):
            yield f"{name} differs between two runs of one program"
    if case.result.makespan_ps >= PS_PER_S:
        yield "a small workload takes more than a second"


def _exact(case: Case) -> Iterator[str]:
    """Replay some output tiles against whole-context attention; the cover is counted for all.

    Heads are narrow, for speed: a schedule cuts tokens, and does not ask how wide they are.
    """
    value = _REPLAYED_WIDTH // 2 if case.workload.latent_kv else None
    narrow = partial(dataclasses.replace, head_dim=_REPLAYED_WIDTH, head_dim_v=value)
    schedule = copy.copy(case.schedule)  # as it is, right or wrong: its constructor does not look again
    grid, work = schedule.grid, schedule.grid.work
    if work is not None:
        work = dataclasses.replace(work, whole=narrow(work.whole))
    grid = dataclasses.replace(grid, workload=narrow(grid.workload), work=work)
    object.__setattr__(schedule, "grid", grid)
    verification = verify(schedule, ("float64",), max_tokens=_REPLAYED_TOKENS)
    try:
        verification.raise_if_failed()
    except NumericsError as error:
        yield str(error)


CHECKS: dict[str, Check] = {
    "deterministic": _deterministic,
    "exact": _exact,
    "same KV bytes": _same_kv_bytes,
    "roofline": _roofline,
    "longest CTA": _longest_cta,
    "slot time": _slot_time,
    "repeatable": _repeatable,
}
