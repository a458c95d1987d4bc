"""By hand: segments that start beside others, loops with a pace of their own, rounds, and fixed costs.

All run on the toy GPU of `toy.py`. There a CTA of n tiles takes 200 + 788 + 512 + 3176 n + 4 ns where
nothing holds it up, 512 of which are the first K, 32,768 B at 64 B/ns. At the end: a call that its host
leaves in one piece, through an entry of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import NS, grid_of, ns, pipelined, priced, run, toy, toy_instance

import leansim
from leansim.engine.program import Phase
from leansim.engine.result import Result
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.points.point import Resolved, resolve
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.instance import CombineNumbers, LoopNumbers
from leansim.study.bench import Bench
from leansim.timing.lowering import lower
from leansim.timing.merges import combine_gap_s, combine_latency_s

# -- the first loads ------------------------------------------------------------------------------


def ramps(result: Result) -> np.ndarray:
    """What each segment's first loads take, ns."""
    ramp = result.program.is_kind(Phase.RAMP)
    taken: np.ndarray = (result.end - result.moving)[ramp] / 1000
    return taken


@pytest.mark.parametrize(
    ("memory", "paces"),
    [
        ({"dram_bandwidth_bytes_per_s": 80 / NS}, (64.0, 40.0, 16.0)),
        ({"l2_bandwidth_bytes_per_s": 80 / NS}, (64.0, 40.0, 16.0)),
        ({}, (64.0, 64.0, 64.0)),
    ],
)
def test_first_loads_wait_for_each_other(memory: dict[str, float], paces: tuple[float, ...]) -> None:
    """1, 2 and 5 CTAs with an SM each, and 80 B/ns of DRAM or of L2: 64, 40 and 16 B/ns for each.

    The first K takes 32,768 B at that pace: 512, 819.2, 2048. V takes as long, or the 1000 that it takes
    from an idle memory, and then 2176 are left.
    """
    device = toy(**memory)
    for ctas, pace in zip((1, 2, 5), paces, strict=True):
        result = run(FlashAttention2()(grid_of((256,) * ctas, 1), device), device)
        assert ramps(result) == pytest.approx(np.full(ctas, 32_768 / pace), abs=0.002)
        end = 200 + 788 + 32_768 / pace + max(32_768 / pace, 1000.0) + 2176 + 4
        assert result.cta_end / 1000 == pytest.approx(np.full(ctas, end), abs=0.02)


def test_whoever_starts_beside_work_waits_for_what_it_leaves() -> None:
    """CTA 0 has 9 tiles, CTA 1 one and its SM's next one too. Once K is there a tile is at its pace.

    Both begin with K at 40 B/ns, 819.2, and CTA 1 is done at 988 + 819.2 + 3176 + 4 = 4987.2, when CTA 2
    follows. CTA 0 works through 65,536 B in 3176. Of the 720,896 B of all 11 tiles 622,592 are not
    waited for first, and come with the 586,193 B that precede softmax and PV of the last tiles:
    1.062,094 of its 20.635 B/ns pass DRAM, 21.916. CTA 2 has 58.084 of the 80 left for its K, below 64,
    and 32,768 B take 564.149.
    """
    device = toy(2, dram_bandwidth_bytes_per_s=80 / NS)
    grid = grid_of((9 * 256, 256, 256), 1).with_slots(2, 1)
    result = run(FlashAttention2()(grid, device), device)
    assert ns(result.cta_begin[2]) == pytest.approx(4987.2)
    assert ramps(result) == pytest.approx(np.array([819.2, 819.2, 564.149]), abs=0.002)
    assert result.cta_end[2] / 1000 == pytest.approx(4987.2 + 988 + 564.149 + 3176 + 4, abs=0.004)


def test_what_all_ask_for_at_once_comes_before_any_goes_on() -> None:
    """Three CTAs on two SMs with 80 B/ns of DRAM, two stages of 65,536 B: 40 B/ns for each of two.

    Those of two tiles ask for both: their first is there after 131,072 B at 40 B/ns, 3276.8. The third
    begins when one is through, and waits for its first alone.
    """
    device = toy(2, dram_bandwidth_bytes_per_s=80 / NS)
    grid = grid_of((512,) * 3, 1).with_slots(2, 1)
    result = run(FlashAttention2()(grid, device), device, toy_instance(pipelined(2)))
    assert ramps(result) == pytest.approx(np.array([3276.8, 3276.8, 1024.0]), abs=0.002)
    one_tile = grid_of((256,) * 2, 1).with_slots(2, 1)
    result = run(FlashAttention2()(one_tile, device), device, toy_instance(pipelined(2)))
    assert ramps(result) == pytest.approx(np.array([1638.4, 1638.4]), abs=0.002)


@pytest.mark.parametrize(
    ("drained", "slow_ns", "fast_ns"), [(1, 2688.0, 4 * 2688.0), (2, 5376.0, 4 * 2688.0)]
)
def test_the_last_tiles_are_left_when_all_loads_are_there(
    drained: int, slow_ns: float, fast_ns: float
) -> None:
    """Four tiles of 2688 and 65,536 B in two stages, the first two of which are asked for at once.

    DRAM of 8 B/ns takes 32,768 for all of them, whatever is computed meanwhile, and what is left of the
    last comes on top. One of 64 takes 2048 for the first two, and hides the others.
    """
    instance = toy_instance(LoopNumbers("pipelined", (("stages", 2), ("drained", drained))))
    for pace, first_ns, left_ns in ((8, 32_768, slow_ns), (64, 2048, fast_ns)):
        device = toy(dram_bandwidth_bytes_per_s=pace / NS)
        result = run(FlashAttention2()(grid_of((1024,), 1), device), device, instance)
        assert result.makespan_ps / 1000 == pytest.approx(988 + first_ns + left_ns + 4, abs=0.005)
        assert result.program.dram_bytes == pytest.approx(4 * 65_536)


def test_reads_behind_another_segment_wait_in_the_queue_of_dram() -> None:
    """Two CTAs with two tiles each in flight, 262,144 B, take DRAM 16,384 at 16 B/ns; 2688 are computed.

    The rest, 13,696, is what one read of the second segment of CTA 0 waits; at 1e4 B/ns there is none.
    """
    schedule = Schedule(
        grid_of((512, 512, 512), 1), np.array([0, 0, 1]), np.arange(3), np.zeros(3), np.full(3, 2),
        num_ctas=2,
    )  # fmt: skip
    for bytes_per_ns, waits in ((16.0, 13_696), (10_000.0, 0)):
        device = toy(dram_bandwidth_bytes_per_s=bytes_per_ns / NS)
        for reads in (0, 1, 2):
            program = priced(schedule, toy_instance(pipelined(2), start={"queued_reads": reads}), device)
            ramp_ns = program.latency_ps[program.is_kind(Phase.RAMP)] / 1000
            assert ramp_ns == pytest.approx([788, 788 + reads * waits, 788])


def test_ctas_share_their_sm_for_the_last_tile_too() -> None:
    """Two CTAs of two tiles on one SM, which has time for one: 2 * 2 * 2688 behind 1024 and 1024."""
    device, instance = toy(1), toy_instance(pipelined(2))
    grid = grid_of((512,) * 2, 1).with_slots(1, 2)
    result = run(FlashAttention2()(grid, device), device, instance)
    wanted = 988 + 2 * 1024 + 4 * 2688 + 4
    assert result.cta_end / 1000 == pytest.approx(np.full(2, wanted), abs=0.005)


def test_few_bytes_in_flight_wait_for_their_latency_once() -> None:
    """A DRAM five microseconds away: K is asked for, comes 5000 later, and takes 512 as ever.

    A tile takes 2 * (5000 + 512), the last no K behind it: 3336 less. 32,768 B in flight are 6.6 B/ns in
    the long run, but what is waited for first is over before there is one.
    """
    device = toy(dram_latency_s=5000 * NS)
    result = run(FlashAttention2()(grid_of((256,), 1), device), device)
    assert ramps(result) == pytest.approx(np.array([512.0]))
    assert ns(result.makespan_ps) == 200 + 300 + 5000 - 3336 + 512 + 11_024 + 4


def test_a_segment_waits_for_a_tile_or_for_what_it_has() -> None:
    """65,536 B of 1, 2 and 6 tiles, a quarter of 64 tokens; in a queue, those of the first wave."""
    instance = toy_instance(pipelined(4))
    schedule = FlashAttention2()(grid_of((256, 512, 6 * 256, 64), 1), toy())
    program = priced(schedule, instance)
    assert program.bytes[program.is_kind(Phase.RAMP)].tolist() == [65_536, 65_536, 65_536, 16_384]
    assert program.dram_bytes == pytest.approx((256 + 512 + 6 * 256 + 64) * 256)
    early = toy_instance(pipelined(4), ctas={"prefetches_items": True})
    queue = Schedule(
        grid := grid_of((256,) * 7, 1), np.arange(7), np.arange(7), np.zeros(7), np.ones(7),
        num_ctas=7, dispatch="queue",
    )  # fmt: skip
    program = priced(queue, early)
    assert program.bytes[program.is_kind(Phase.RAMP)].tolist() == [65_536] * 5 + [0, 0]
    assert program.dram_bytes == pytest.approx(grid.total_tokens * 256)


# -- a pace of one's own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stages", "first_ns"),
    [("pipelined", {"stages": 2}, 1024.0), ("single_buffered", {}, 512.0)],
)
def test_ctas_queue_for_what_a_loop_keeps_busy(
    name: str, stages: dict[str, float], first_ns: float
) -> None:
    """A tile takes 10,000 alone, and keeps its SM busy for 4000 of that. CTAs of 2 tiles.

        one      nobody before it                                       10,000
        two      one before it for 4000 / 10,000 of the time: 1600      11,600
        three    2 * (4000 + 1600) / 11,600 before it: 3862.069         13,862.069

    The first tile takes 1024, its K 512: n CTAs of an SM share its loads. With three on SM 0 and two on
    SM 1 each of an SM ends at 992 + n * first + 2 tiles, whatever the other does.
    """
    numbers = {**stages, "chain_s": 10_000 * NS, "busy_s": 4000 * NS}
    instance = toy_instance(LoopNumbers(name, tuple(numbers.items())))
    tiles = {1: 10_000.0, 2: 11_600.0, 3: 10_000 + 4000 * 2 * 5600 / 11_600}
    ends = {n: 992 + n * first_ns + 2 * tile_ns for n, tile_ns in tiles.items()}
    for ctas, beside in ((1, [1]), (2, [1, 1]), (3, [2, 1, 2]), (5, [3, 2, 3, 2, 3])):
        grid = grid_of((512,) * ctas, 1).with_slots(2, 3)
        result = run(FlashAttention2()(grid, toy(2)), toy(2), instance)
        wanted = np.array([ends[n] for n in beside])
        assert result.cta_end / 1000 == pytest.approx(wanted, abs=0.002)


def test_a_busy_sm_does_no_more_than_it_has_time_for() -> None:
    """9000 of 10,000 busy: two CTAs take 10,000 + 9000 * 0.9 = 18,100 for a tile each, above 18,000."""
    instance = toy_instance(pipelined(2, chain_s=10_000 * NS, busy_s=9000 * NS))
    grid = grid_of((512,) * 2, 1).with_slots(1, 2)
    result = run(FlashAttention2()(grid, toy(1)), toy(1), instance)
    assert ns(result.cta_end) == [992 + 2 * 1024 + 2 * 18_100] * 2


# -- rounds, and what comes once ------------------------------------------------------------------


def test_partials_come_in_rounds() -> None:
    """After 150 and the log-sum-exps, 100: a round of partials takes 350, or a latency if that is more.

    Five splits, one or two at a time, are 5 rounds or 3. A row without partials costs nothing.
    """
    splits = np.array([0, 1, 5])
    for in_flight, round_ns, took in (
        (1, 350, [0, 150 + 100 + 350, 150 + 100 + 5 * 350]),
        (2, 350, [0, 150 + 100 + 350, 150 + 100 + 3 * 350]),
        (2, 60, [0, 150 + 100 + 100, 150 + 100 + 3 * 100]),
    ):
        numbers = {"splits_in_flight": in_flight, "round_s": round_ns * NS, "overhead_s": 150 * NS}
        combine = toy_instance(combine=numbers).combine
        found = combine_latency_s(toy(), combine, splits)  # type: ignore[arg-type]
        assert found == pytest.approx(np.array(took) * NS)


def test_a_combine_kernel_takes_its_rounds() -> None:
    """A row of two partials: 200 + 100 + 2 * 350 + 520 B in 8.125 + 128 B in 2."""
    zero = np.zeros(2, dtype=np.int64)
    schedule = Schedule(
        grid_of((512,), 1), np.arange(2), zero, np.arange(2), np.arange(2) + 1, num_ctas=2,
        combine="kernel",
    )  # fmt: skip
    result = run(schedule, instance=toy_instance(combine={"rows_per_cta": 1, "round_s": 350 * NS}))
    assert ns((result.cta_end - result.cta_begin)[2]) == 1010.125


def test_kernels_before_the_last_merge_maxima() -> None:
    """Each takes 200 + 150 + 100 and a gap; from three splits on there is one before the last."""
    numbers = {"overhead_s": 150 * NS, "launches": ((1, 1), (3, 2))}
    combine = toy_instance(combine=numbers).combine
    assert isinstance(combine, CombineNumbers)
    assert [combine.launches_for(splits) for splits in (0, 1, 2, 3, 9)] == [1, 1, 1, 2, 2]
    gap, two = (combine_gap_s(toy(), "graph", combine, launches) for launches in (1, 2))
    assert two - gap == pytest.approx(450 * NS + gap)


def test_a_cta_pays_once_before_its_first_segment() -> None:
    """80 more for each CTA of a grid, 4760 and then 9520; of a queue for the first wave alone.

    There the second items come by an atomic: 4760 + 4680 - 200 + 60 = 9300. A CTA of two segments pays
    as one of one does, and one without KV tiles, 200 otherwise, pays too.
    """
    fixed = toy_instance(ctas={"overhead_s": 80 * NS, "empty": "return"})
    seven, numbers = grid_of((256,) * 7, 1), np.arange(7)
    for dispatch, end in (("grid", 9520.0), ("queue", 9300.0)):
        schedule = Schedule(
            seven, numbers, numbers, np.zeros(7), np.ones(7), num_ctas=7, dispatch=dispatch
        )
        assert ns(run(schedule, instance=fixed).cta_end) == [4760.0] * 5 + [end] * 2
    zero = np.zeros(2, dtype=np.int64)
    both = Schedule(
        grid_of((256, 256), 1), zero, np.arange(2), zero, zero + 1, num_ctas=2, num_empty_ctas=1
    )
    assert ns(run(both, instance=fixed).cta_end) == [200 + 80 + 2 * (1300 + 3176 + 4), 280.0]


# -- an entry for calls that are not split --------------------------------------------------------

TWO_ENTRIES = """
name: two_entries
description: a kernel whose host has another entry for calls that it does not split
unsplit_entry: true
partitioner: {name: flash_decoding, options: {sms_factor: 2}}
q_dtypes: [bfloat16]
kv_dtypes: [bfloat16]
pack_gqa: always
tile_order: backward
partial_dtype: float32
loops: {single_buffered: {}}
tiles:
  - {head_dim: 64, tile_rows: 64, tile_tokens: 128, threads: 128, registers_per_thread: {sm_90: 128},
     only: {split: false}, start: {overhead_s: 1.0e-6}}
  - {head_dim: 64, tile_rows: 64, tile_tokens: 256, threads: 128, registers_per_thread: {sm_90: 128}}
compute: {mma_efficiency: 1.0, softmax_fma_per_score: 5}
combine:
  {threads: 128, registers_per_thread: 62, smem_bytes: 0, rows_per_cta: {1: 8}, splits_in_flight: 1}
sources:
  tiles: "assumed: a test"
  compute: "assumed: a test"
  combine: "assumed: a test"
"""


@pytest.fixture
def two_entries(tmp_path: Path) -> str:
    path = tmp_path / "two_entries.yaml"
    path.write_text(TWO_ENTRIES)
    return str(path)


def called(kernel: str, batch_size: int, context_len: int = 8192) -> Resolved:
    return resolve(
        leansim.point(
            device="h100_sxm", kernel=kernel, batch_size=batch_size, context_len=context_len,
            num_q_heads=8, num_kv_heads=8, head_dim=64,
        )
    )  # fmt: skip


def test_calls_that_are_not_split_run_an_entry_of_their_own(two_entries: str) -> None:
    """8 heads of 8192 tokens each: the heuristic aims at 264 CTAs, and leaves 0.8 of them as they are.

    26 requests are 208 CTAs, below 211.2, and split; 27 are 216, and are not. Asked about tiles of 256
    tokens, that is; the CTAs of the other entry then go through 64 tiles of 128.
    """
    for batch_size in (1, 8, 26, 27, 28, 100):
        item = called(two_entries, batch_size)
        asked = item.partitioner(item.grid, item.device)
        assert item.is_split == (batch_size <= 26)
        assert item.is_split == (item.schedule.combine == "kernel")
        assert (
            item.grid.tile_tokens == item.instance.shape.tile_tokens == (256 if item.is_split else 128)
        )
        assert item.instance.start.overhead_s == (0.0 if item.is_split else 1e-6)
        if item.is_split:
            assert asked.num_splits == item.schedule.num_splits
        else:
            assert item.schedule.stop.tolist() == [64] * (8 * batch_size)


def test_the_entry_that_runs_is_priced(two_entries: str) -> None:
    """A first K of 128 tokens, 16,384 B, after a start that is 1000 longer but for drift; or of 256.

    Else the starts are alike: softmax and PV of a tile hide all of its next K, with 128 tokens or 256.
    """
    found = {}
    for batch_size in (26, 27):
        item = called(two_entries, batch_size)
        program = lower(item.schedule, item.instance, item.device)
        ramp = program.is_kind(Phase.RAMP)
        found[batch_size] = set(program.bytes[ramp].tolist()), set(program.latency_ps[ramp].tolist())
        assert program.kv_bytes == pytest.approx(item.workload.kv_bytes)
    (split_bytes, (split_ps,)), (whole_bytes, (whole_ps,)) = found[26], found[27]
    assert (split_bytes, whole_bytes) == ({32_768}, {16_384})
    near = 1.0 - catalog.device("h100_sxm").latency_spread
    assert whole_ps - split_ps == pytest.approx(near * 1e6, abs=2)


def test_a_partitioner_that_never_splits_never_runs_the_other_entry(two_entries: str) -> None:
    for batch_size in (1, 100):
        item = called(f"{two_entries}+flash_attention_2", batch_size)
        assert not item.is_split
        assert item.instance.shape.tile_tokens == 128


@pytest.mark.parametrize("batch_size", [1, 26, 27, 100])
def test_no_schedule_of_either_entry_beats_the_bound(two_entries: str, batch_size: int) -> None:
    for context_len in (200, 8192):
        bench = Bench(called(two_entries, batch_size, context_len))
        bound = bench.bound().latency_s
        for partitioner in (bench.own, bench.splits(1), bench.splits(2), bench.splits(7)):
            assert bound <= bench.latency_s(partitioner)
