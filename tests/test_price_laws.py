"""Laws of prices, for every kernel of the catalogue: what a bound, a segment and an instance promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import kernels_and_a_few_devices, suited

from leansim.engine.program import Phase, Program
from leansim.errors import LeansimError, PairingError
from leansim.partitioners.per_request_splits import PerRequestSplits
from leansim.partitioners.registry import Partitioner, make, partitioners
from leansim.points.point import Point, Resolved
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import tile_grid
from leansim.specs import catalog
from leansim.specs.instance import instance_of
from leansim.specs.overrides import overridden
from leansim.specs.workload import Workload
from leansim.study.bench import Bench
from leansim.timing.lowering import lower

KERNELS = kernels_and_a_few_devices(1)
fixed = settings(deadline=None, derandomize=True, database=None)
SHORT, LONG = st.integers(1, 300), st.integers(301, 200_000)


@st.composite
def calls(draw: st.DrawFn, kernel: str, **fixed_shape: Any) -> Workload:
    """A call that the kernel may take: short and long contexts, alone and together."""
    spec = catalog.kernel(kernel)
    kv_heads = draw(st.sampled_from([1, 2, 8]))
    shape = {
        "num_kv_heads": kv_heads,
        "num_q_heads": kv_heads * draw(st.sampled_from([1, 4, 8])),
        "head_dim": draw(st.sampled_from([64, 128, 256])),
        "kv_dtype": draw(st.sampled_from(spec.kv_dtypes)),
        "window": draw(st.sampled_from([None, None, None, 128])),
        "cache": draw(st.sampled_from(["cold", "warm"])),
    }
    lens = draw(st.lists(st.one_of(SHORT, SHORT, LONG), min_size=1, max_size=12))
    lens *= draw(st.sampled_from([1, 1, 20]))
    return suited(Workload(tuple(lens), **(shape | fixed_shape)), kernel)


def resolved(kernel: str, device: str, load: Workload) -> Resolved:
    """The point of a call, without looking the call up again."""
    spec = catalog.kernel(kernel)
    plain = Point(device=device, kernel=kernel)
    own = make(spec.partitioner.name, spec.partitioner.options)
    return Resolved(plain, catalog.device(device), spec, load, own)


# -- no schedule beats the bound ---------------------------------------------------------------


def some_schedules(bench: Bench, counts: list[int]) -> list[Partitioner]:
    """The kernel's own, cuts of all requests alike and of each its own, and those of a few others."""
    ragged = tuple(counts[i % len(counts)] for i in range(bench.grid.batch_size))
    others = [make(name) for name in ("lean_attention", "flash_attention_2", "flash_decoding")]
    return [bench.own, *map(bench.splits, counts), bench.splits(ragged, longest_first=True), *others]


@pytest.mark.parametrize(("kernel", "device"), KERNELS)
def test_no_schedule_beats_the_bound(kernel: str, device: str) -> None:
    """Short contexts and long, split or not, merged in the launch or after it."""
    held = []

    @settings(fixed, max_examples=12)
    @given(calls(kernel), st.lists(st.integers(1, 64), min_size=1, max_size=3))
    def hold(load: Workload, counts: list[int]) -> None:
        bench = Bench(resolved(kernel, device, load))
        try:
            bound = bench.bound()
        except LeansimError:
            return
        for partitioner in some_schedules(bench, counts):
            try:
                latency_s = bench.latency_s(partitioner)
            except LeansimError:
                continue
            held.append(latency_s)
            assert bound.latency_s <= latency_s, f"{partitioner} on {load.describe()}: {bound}"

    hold()
    assert held, "not every call is refused"


def test_the_bound_holds_on_short_contexts_of_a_chain() -> None:
    """SGLang's Triton kernel, whose first tile is cheaper than its others by more than its prologue."""
    counted = 0
    for batch in (1, 4, 32, 128):
        for context in (1, 2, 17, 32, 64, 100, 256):
            for q_heads, kv_heads, head_dim in ((32, 8, 256), (8, 8, 64), (32, 8, 128)):
                load = Workload.uniform(
                    batch, context, num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim
                )
                bench = Bench(resolved("sglang_triton", "h100_sxm", load))
                bound = bench.bound().latency_s
                for partitioner in (bench.own, bench.splits(1), bench.splits(4)):
                    assert bound <= bench.latency_s(partitioner), (load.describe(), partitioner)
                    counted += 1
    assert counted == 4 * 7 * 3 * 3


@pytest.mark.parametrize("kernel", ["flash_decoding", "flashinfer_decode", "vllm_fa3"])
def test_the_bound_holds_where_all_costs_are_asked_for(kernel: str) -> None:
    """A pace of its own, an SM that is kept busy, CTAs with a fixed cost, and rounds of partials."""
    spec = catalog.kernel(kernel)
    loop = f"loops.{next(iter(spec.loops))}"
    costs = {f"{loop}.chain_s": 4e-6, f"{loop}.busy_s": 1.5e-6, "ctas.overhead_s": 5e-7}
    spec = overridden(spec, {**costs, "combine.round_s": 2e-6})
    own = make(spec.partitioner.name, spec.partitioner.options)
    for batch, context in ((1, 300), (1, 50_000), (7, 4000), (64, 700), (300, 2000)):
        load = Workload.uniform(batch, context, num_q_heads=8, num_kv_heads=2, head_dim=128)
        point = Point(device="h100_sxm", kernel=kernel)
        bench = Bench(Resolved(point, catalog.device("h100_sxm"), spec, load, own))
        bound = bench.bound().latency_s
        for partitioner in (own, bench.splits(1), bench.splits(5)):
            assert bound <= bench.latency_s(partitioner), (load.describe(), partitioner)


# -- a segment's price is its own --------------------------------------------------------------


def alone_ps(program: Program, schedule: Schedule, request: int) -> dict[str, list[float]]:
    """What each segment of a request takes with the SM and the memory to itself, by kind of phase."""
    pace = np.array([flow.max_bytes_per_ps for flow in program.flows])
    busy = np.array([flow.sm_ps_per_byte for flow in program.flows])
    moved_ps = program.bytes * np.maximum(1 / pace, busy)[program.flow] * (program.flow >= 0)
    taken_ps = program.latency_ps + moved_ps
    mine = schedule.grid.request[schedule.output_tile[program.segment]] == request
    mine &= program.segment >= 0
    return {
        kind.name: taken_ps[mine & program.is_kind(kind)].tolist()
        for kind in (Phase.RAMP, Phase.STREAM, Phase.MERGE, Phase.WRITE)
    }


def cut(load: Workload, kernel: str, device: str, splits: int) -> tuple[Program, Schedule]:
    """Each request in so many segments, whatever else is in the batch."""
    item = resolved(kernel, device, load)
    combine = "last" if item.kernel.combine is None else "kernel"
    item = replace(item, partitioner=PerRequestSplits(splits, "issue", combine))
    return lower(item.schedule, item.instance, item.device), item.schedule


@pytest.mark.parametrize(("kernel", "device"), KERNELS)
def test_the_price_of_a_segment_is_its_own(kernel: str, device: str) -> None:
    """As priced beside other requests, so alone: what is shared is shared when it runs.

    The caches are cold and KV is read once, for what L2 has kept is a matter of what else is read. CTAs
    that start together on an SM wait for its schedulers where the kernel says so: one CTA to an SM.
    """
    held = []
    few = {"cache": "cold", "num_q_heads": 2, "num_kv_heads": 2}

    @settings(fixed, max_examples=15)
    @given(
        calls(kernel, **few),
        st.one_of(SHORT, LONG),
        st.integers(1, 5),
        st.sampled_from([None, 128]),
    )
    def hold(others: Workload, context: int, splits: int, window: int | None) -> None:
        longest = max(context, *others.context_lens)
        told = {"max_context_len": longest, "window": window}
        beside = replace(others, context_lens=(context, *others.context_lens), **told)
        try:
            (one, of_one), (many, of_many) = (
                cut(load, kernel, device, splits)
                for load in (replace(beside, context_lens=(context,)), beside)
            )
        except LeansimError:
            return
        if of_one.num_splits != of_many.num_splits:  # as one call is built for splits and one is not
            return
        if instance_of(catalog.kernel(kernel), catalog.device(device), beside).start.issue_clk:
            return
        prices, same = alone_ps(one, of_one, 0), alone_ps(many, of_many, 0)
        for kind, taken in prices.items():
            # Bytes are whole: half of one moves in less than 100 ps.
            assert same[kind] == pytest.approx(taken, rel=1e-9, abs=100), (kind, beside.describe())
        held.append(prices)

    hold()
    assert held, "not every call is refused"


@pytest.mark.parametrize(("kernel", "short"), [("trtllm_decode", 300), ("sglang_triton", 40)])
def test_a_long_segment_owes_once_what_short_ones_owe_too(kernel: str, short: int) -> None:
    """131,072 tokens beside 127 short requests: 2.7 us of loading, or 1.5 us saved, and not the sum."""
    shape: dict[str, Any] = {"num_q_heads": 8, "num_kv_heads": 1, "head_dim": 256}
    told = {**shape, "max_context_len": 131_072}
    (one, of_one), (many, of_many) = (
        cut(Workload((131_072,) + (short,) * others, **told), kernel, "h100_sxm", 1)
        for others in (0, 127)
    )
    (alone,), (beside,) = (
        np.add(prices["RAMP"], prices["STREAM"])
        for prices in (alone_ps(one, of_one, 0), alone_ps(many, of_many, 0))
    )
    assert beside == pytest.approx(alone, rel=1e-9, abs=100)


# -- tiling and lowering have the same instance ------------------------------------------------


@pytest.mark.parametrize(("kernel", "device"), KERNELS)
def test_a_schedule_is_priced_by_the_instance_it_was_tiled_for(kernel: str, device: str) -> None:
    """By no other kernel's, and by none that cuts otherwise; on how many SMs is another question."""
    where, load = catalog.device(device), suited(Workload((7_000, 20_000), 8, 1, 128), kernel)
    item = resolved(kernel, device, load)
    schedule = item.schedule
    assert lower(schedule, item.instance, where).num_phases
    shape = item.instance.shape
    changes = {
        "kernel": "another", "tile_rows": shape.tile_rows + 1, "tile_tokens": shape.tile_tokens * 2,
        "packed": not shape.packed, "shifted": not shape.shifted, "whole_pages": not shape.whole_pages,
        "tile_order": "forward" if shape.tile_order == "backward" else "backward",
    }  # fmt: skip
    for name, value in changes.items():
        other = replace(item.instance, shape=replace(shape, **{name: value}))
        with pytest.raises(PairingError, match=f"tiles with {name} .*wanted those of the instance"):
            lower(schedule, other, where)
    for other_kernel in catalog.names("kernel"):
        try:
            other = instance_of(catalog.kernel(other_kernel), where, load)
        except PairingError:
            continue
        if other_kernel != kernel:
            with pytest.raises(PairingError, match="wanted those of the instance"):
                lower(schedule, other, where)
    few = tile_grid(load, item.instance, where).with_slots(1, 1)
    assert lower(make("flash_attention_2")(few, where), item.instance, where).num_sms == 1


def test_every_instance_is_plain_numbers() -> None:
    """No None, no table by architecture, nothing left to look up."""

    def leaves(value: Any) -> list[Any]:
        if hasattr(value, "__dataclass_fields__"):
            return [leaf for name in value.__dataclass_fields__ for leaf in leaves(getattr(value, name))]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple) else [value]

    for kernel, device in KERNELS:
        load = suited(Workload((700,), 8, 1, 128), kernel)
        item = instance_of(catalog.kernel(kernel), catalog.device(device), load)
        assert {type(leaf) for leaf in leaves(item)} <= {str, int, float, bool}
    assert len(partitioners()) > 20
