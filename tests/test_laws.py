"""Laws: what must hold of sharing and of the engine for any program, and closed forms."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leansim.engine import execute
from leansim.engine.sharing import Demand, level, loaded_capacity, shared_rates
from leansim.program import FlowKind, Launch, Phase, Program
from leansim.result import Result

SHARP = 64.0  # an exponent at which the loaded-throughput law is min(offer, peak) but near the peak
RELATIVE = 1e-9
PLENTY = 1e9
TIMES = ("begin", "ready", "moving", "end", "slot")


# -- programs, built by hand -----------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One phase: a fixed latency, then bytes of a flow, with the counters around them."""

    latency_ps: int = 0
    size: int = 0
    flow: int = 0
    wait: tuple[int, int] = (-1, 0)
    signal: int = -1
    kind: Phase = Phase.STREAM


Cta = Sequence[Step]


def kv(limit: float = 1.0, sm_cost: float = 0.0, dram_share: float = 1.0) -> FlowKind:
    return FlowKind("kv", limit, sm_cost, dram_share)


def program_of(
    launches: Sequence[Sequence[Cta]],
    flows: Sequence[FlowKind] = (kv(),),
    num_sms: int = 1,
    ctas_per_sm: int = 1,
    gap_ps: int = 0,
    interval_ps: int = 0,
    dram: float = PLENTY,
    l2: float = PLENTY,
    exponent: float = SHARP,
) -> Program:
    ctas = [cta for launch in launches for cta in launch]
    steps = [step for cta in ctas for step in cta]
    edges = np.cumsum([0, *(len(launch) for launch in launches)]).tolist()
    counters = [*(step.wait[0] for step in steps), *(step.signal for step in steps)]

    def column(values: Sequence[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return Program(
        launches=tuple(
            Launch(f"launch {i}", edges[i], edges[i + 1], ctas_per_sm, gap_ps if i else 0)
            for i in range(len(launches))
        ),
        flows=tuple(flows),
        phase_of_cta=np.cumsum([0, *(len(cta) for cta in ctas)]),
        kind=column([step.kind for step in steps]),
        latency_ps=column([step.latency_ps for step in steps]),
        bytes=column([step.size for step in steps]),
        flow=column([step.flow for step in steps]),
        wait_counter=column([step.wait[0] for step in steps]),
        wait_target=column([step.wait[1] for step in steps]),
        signal_counter=column([step.signal for step in steps]),
        segment=np.full(len(steps), -1),
        num_counters=max(counters) + 1,
        num_sms=num_sms,
        dispatch_interval_ps=interval_ps,
        launch_ps=0,
        dram_bytes_per_ps=dram,
        l2_bytes_per_ps=l2,
        dram_saturation_exponent=exponent,
    )


# -- sharing: closed forms -------------------------------------------------------------------------

sizes = st.integers(1, 10_000_000)
counts = st.integers(1, 300)
limits = st.floats(1e-4, 10.0)
shares = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])
demand_lists = st.lists(st.builds(Demand, counts, limits, shares), min_size=1, max_size=6)
peaks = st.floats(1e-2, 100.0)
exponents = st.floats(1.0, 8.0)


@settings(deadline=None)
@given(st.lists(st.tuples(limits, st.floats(1e-3, 300.0)), min_size=1, max_size=8), peaks)
def test_level_fills_the_capacity_or_nobody_is_held_back(
    wants: list[tuple[float, float]], capacity: float
) -> None:
    height = level(wants, capacity)
    taken = sum(weight * min(limit, height) for limit, weight in wants)
    if math.isinf(height):
        assert taken < capacity
    else:
        assert taken == pytest.approx(capacity, rel=RELATIVE)


@settings(deadline=None)
@given(st.floats(1e-6, 1e4), peaks, exponents)
def test_a_loaded_memory_gives_less_than_the_offer_and_than_the_peak(
    offered: float, peak: float, exponent: float
) -> None:
    """And never less than both would at an exponent of 1, the harmonic sum."""
    got = loaded_capacity(offered, peak, exponent)
    assert got <= min(offered, peak) * (1 + RELATIVE)
    assert got >= 1 / (1 / offered + 1 / peak) * (1 - RELATIVE)
    assert loaded_capacity(offered * 2, peak, exponent) >= got * (1 - RELATIVE)


def dram_capacity(demands: Sequence[Demand], peak: float, exponent: float) -> float:
    return loaded_capacity(sum(d.count * d.limit * d.dram_share for d in demands), peak, exponent)


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks)
def test_rates_keep_within_every_limit(
    demands: list[Demand], dram: float, exponent: float, l2: float
) -> None:
    rates = shared_rates(demands, dram, exponent, l2)
    assert len(rates) == len(demands)
    for demand, rate in zip(demands, rates, strict=True):
        assert 0 < rate <= demand.limit
    pairs = list(zip(demands, rates, strict=True))
    from_dram = sum(d.count * d.dram_share * rate for d, rate in pairs)
    assert from_dram <= dram * (1 + RELATIVE)
    assert sum(d.count * rate for d, rate in pairs) <= l2 * (1 + RELATIVE)


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks)
def test_no_rate_can_rise_unless_a_smaller_or_equal_one_falls(
    demands: list[Demand], dram: float, exponent: float, l2: float
) -> None:
    """Max-min fair: each rate is at its own limit, or is the largest on some full memory it uses."""
    rates = shared_rates(demands, dram, exponent, l2)
    pairs = list(zip(demands, rates, strict=True))
    capacity = dram_capacity(demands, dram, exponent)
    from_dram = sum(d.count * d.dram_share * rate for d, rate in pairs)
    from_l2 = sum(d.count * rate for d, rate in pairs)
    most_dram = max((rate for d, rate in pairs if d.dram_share), default=0.0)
    for demand, rate in pairs:
        own = rate >= demand.limit * (1 - RELATIVE)
        by_dram = (
            demand.dram_share > 0
            and from_dram >= capacity * (1 - RELATIVE)
            and rate >= most_dram * (1 - RELATIVE)
        )
        by_l2 = from_l2 >= l2 * (1 - RELATIVE) and rate >= max(rates) * (1 - RELATIVE)
        assert own or by_dram or by_l2


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks, st.randoms(use_true_random=False))
def test_rates_do_not_depend_on_the_order_of_demands(
    demands: list[Demand], dram: float, exponent: float, l2: float, random: object
) -> None:
    rates = shared_rates(demands, dram, exponent, l2)
    order = list(range(len(demands)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = shared_rates([demands[i] for i in order], dram, exponent, l2)
    assert shuffled == pytest.approx([rates[i] for i in order], rel=RELATIVE)


# -- sharing: in the engine ------------------------------------------------------------------------


@settings(deadline=None)
@given(size=sizes, num_sms=st.integers(2, 6), peak=st.floats(0.01, 0.4))
def test_equal_transfers_share_equally(size: int, num_sms: int, peak: float) -> None:
    """Each of n wants 1 B/ps of a DRAM with less than n/2: all take n * size / peak."""
    ctas = [[Step(size=size)] for _ in range(num_sms)]
    result = execute(program_of([ctas], num_sms=num_sms, dram=peak))
    assert len(set(result.end.tolist())) == 1
    assert result.makespan_ps == pytest.approx(num_sms * size / peak, rel=RELATIVE, abs=2)


@settings(deadline=None)
@given(first=sizes, second=sizes, delay=st.integers(0, 20_000_000), peak=st.floats(0.01, 0.45))
def test_staggered_transfers_match_the_closed_form(
    first: int, second: int, delay: int, peak: float
) -> None:
    """Two transfers that each want 1 B/ps, with peak p < 1/2: the DRAM is full whoever runs.

    A (a bytes) begins at 0, B (b bytes) at d. Alone, A gets p. If a <= p*d they never meet: A ends
    at a/p, B at d + b/p. Else A has r = a - p*d left at d, and both go on at p/2. The one with less
    left ends at d + 2*min(r, b)/p, and the other at d + (r + b)/p, as no byte of bandwidth is lost.
    """
    late = [Step(latency_ps=delay, size=second)]
    result = execute(program_of([[[Step(size=first)], late]], num_sms=2, dram=peak))
    left = first - peak * delay
    if left <= 0:
        ends = [first / peak, delay + second / peak]
    else:
        shorter, both = delay + 2 * min(left, second) / peak, delay + (left + second) / peak
        ends = [shorter, both] if left <= second else [both, shorter]
    assert result.end.tolist() == pytest.approx(ends, rel=1e-8, abs=4)


@settings(deadline=None)
@given(sizes, sizes)
def test_transfers_on_one_sm_share_its_unit(a: int, b: int) -> None:
    """Each byte costs the SM 1 ps, so each of two CTAs gets 1/2 B/ps until one is done."""
    ctas = [[Step(size=a)], [Step(size=b)]]
    result = execute(program_of([ctas], [kv(limit=1.0, sm_cost=1.0, dram_share=0.0)], ctas_per_sm=2))
    ends = [2 * min(a, b) if size == min(a, b) else a + b for size in (a, b)]
    assert result.end.tolist() == pytest.approx(ends, rel=RELATIVE, abs=2)


@settings(deadline=None)
@given(sizes, sizes)
def test_a_transfer_from_l2_is_not_held_back_by_a_full_dram(a: int, b: int) -> None:
    flows = [kv(dram_share=1.0), kv(limit=0.5, dram_share=0.0)]
    ctas = [[Step(size=a, flow=0)], [Step(size=b, flow=1)]]
    result = execute(program_of([ctas], flows, num_sms=2, dram=0.01))
    assert result.end.tolist() == pytest.approx([a / 0.01, b / 0.5], rel=RELATIVE, abs=2)


@settings(deadline=None)
@given(
    n=st.integers(1, 40),
    num_sms=st.integers(1, 5),
    ctas_per_sm=st.integers(1, 3),
    latency=st.integers(0, 10**6),
    size=st.integers(1, 10**6),
)
def test_equal_ctas_on_equal_slots_take_whole_rounds(
    n: int, num_sms: int, ctas_per_sm: int, latency: int, size: int
) -> None:
    """Nothing shared, issued at once: ceil(n / slots) rounds, to the picosecond."""
    ctas = [[Step(latency_ps=latency, size=size)]] * n
    flow = kv(limit=1.0, dram_share=0.0)
    result = execute(program_of([ctas], [flow], num_sms=num_sms, ctas_per_sm=ctas_per_sm))
    slots = num_sms * ctas_per_sm
    assert result.makespan_ps == -(-n // slots) * (latency + size)
    assert result.cta_begin.tolist() == [c // slots * (latency + size) for c in range(n)]


@settings(deadline=None)
@given(n=st.integers(1, 12), interval=st.integers(1, 1000), latency=st.integers(20_000, 10**5))
def test_ctas_are_issued_one_interval_apart(n: int, interval: int, latency: int) -> None:
    ctas = [[Step(latency_ps=latency)]] * n
    result = execute(program_of([ctas], num_sms=n, interval_ps=interval))
    assert result.cta_begin.tolist() == [c * interval for c in range(n)]
    assert result.makespan_ps == (n - 1) * interval + latency


# -- any program -----------------------------------------------------------------------------------

FLOWS = (
    kv(limit=0.06, sm_cost=12.0, dram_share=1.0),
    kv(limit=0.03, sm_cost=8.0, dram_share=0.25),
    FlowKind("on_chip", 0.12, 8.0, 0.0),
)
steps = st.builds(
    Step,
    latency_ps=st.integers(0, 2_000_000),
    size=st.sampled_from([0, 0, 1, 260, 4096, 65_536, 300_000]),
    flow=st.integers(0, len(FLOWS) - 1),
    kind=st.sampled_from(list(Phase)),
)
launch_lists = st.lists(
    st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=12),
    min_size=1,
    max_size=2,
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """One or two launches of free CTAs, then, in the first, perhaps a host that waits for peers."""
    launches = draw(launch_lists)
    num_sms, ctas_per_sm = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    peers = draw(st.integers(0, num_sms * ctas_per_sm - 1))
    if peers:  # all resident: the launch holds the host and its peers only
        host = [*draw(st.lists(steps, max_size=2)), Step(wait=(0, peers), kind=Phase.MERGE)]
        last = draw(st.integers(1, 10**5))
        others = [[Step(latency_ps=last), draw(steps)] for _ in range(peers)]
        launches[0] = [host, *([*cta[:-1], replace(cta[-1], signal=0)] for cta in others)]
    return program_of(
        launches,
        FLOWS,
        num_sms=num_sms,
        ctas_per_sm=ctas_per_sm,
        gap_ps=draw(st.sampled_from([0, 700_000])),
        interval_ps=draw(st.sampled_from([0, 610])),
        dram=draw(st.sampled_from([0.02, 0.1, 10.0])),
        l2=draw(st.sampled_from([0.05, 0.2, 10.0])),
        exponent=draw(st.sampled_from([1.9, 2.65, SHARP])),
    )


def limits_of(program: Program) -> np.ndarray:
    """Most bytes per ps of each phase, alone on its SM."""
    alone = [min(f.max_bytes_per_ps, 1 / f.sm_ps_per_byte) for f in program.flows]
    return np.array(alone)[program.flow]


def issued_at(program: Program, launch: int, durations: list[int], now: int) -> list[int]:
    """When CTAs of known durations begin, dealt in order to the slot that is free first."""
    free, begins, issue = [now] * program.slots(program.launches[launch]), [], now
    for duration in durations:
        begins.append(max(heapq.heappop(free), issue))
        issue = begins[-1] + program.dispatch_interval_ps
        heapq.heappush(free, begins[-1] + duration)
    return begins


def assert_lawful(program: Program, result: Result) -> None:
    """The laws of every run, whatever the program."""
    # Phases in order, each CTA without a hole.
    assert (result.begin <= result.ready).all()
    assert np.array_equal(result.ready + program.latency_ps, result.moving)
    assert (result.moving <= result.end).all()
    inside = np.setdiff1d(np.arange(1, program.num_phases), program.phase_of_cta)
    assert np.array_equal(result.begin[inside], result.end[inside - 1])
    assert np.array_equal(result.begin[program.wait_counter < 0], result.ready[program.wait_counter < 0])
    # A transfer takes at least its bytes at the most its CTA and SM give; rounding is 2 ps.
    least = np.ceil(program.bytes / limits_of(program)) - 2
    assert (result.end - result.moving >= least).all()
    # All bytes served, no memory faster than its peak.
    assert result.bytes_served == program.bytes.sum()
    phases = np.diff([*result.launch_begin, result.makespan_ps]).sum()
    assert phases == result.makespan_ps
    slack = 2 * program.num_phases
    assert result.makespan_ps + slack >= program.dram_bytes / program.dram_bytes_per_ps
    assert result.makespan_ps + slack >= program.bytes.sum() / program.l2_bytes_per_ps
    sm_work = program.bytes * np.array([f.sm_ps_per_byte for f in program.flows])[program.flow]
    sm = np.bincount(result.slot[result.cta_of_phase] % program.num_sms, weights=sm_work)
    assert result.makespan_ps + slack >= sm.max()
    # Launches one after the other; none ends before its longest CTA.
    for i, launch in enumerate(program.launches):
        ctas = slice(launch.first_cta, launch.last_cta)
        begin, end = result.cta_begin[ctas], result.cta_end[ctas]
        assert result.launch_begin[i] == (result.launch_end[i - 1] if i else 0)
        assert result.launch_begin[i] + launch.gap_ps == begin.min()
        assert result.launch_end[i] == end.max()
        gaps = np.diff(np.sort(begin))
        assert (gaps >= program.dispatch_interval_ps).all()
        # CTAs go in order to the next free slot; on a slot there is one at a time.
        assert begin.tolist() == issued_at(program, i, (end - begin).tolist(), int(begin.min()))
        slot = result.slot[ctas]
        assert slot.min() >= 0
        assert slot.max() < program.slots(launch)
        order = np.lexsort((begin, slot))
        same = slot[order][1:] == slot[order][:-1]
        assert (begin[order][1:] >= end[order][:-1])[same].all()
        # Slot time is all accounted for.
        spent = result.spent_ps(launch)
        window = result.launch_end[i] - result.launch_begin[i]
        assert min(spent.values()) >= 0
        assert sum(spent.values()) == window * program.slots(launch)
        assert spent["idle"] == window * program.slots(launch) - int((end - begin).sum())
        waits = (result.ready - result.begin)[result.launch_of(launch)].sum()
        assert spent["wait"] == waits


@settings(max_examples=150, deadline=None)
@given(programs())
def test_every_run_is_lawful(program: Program) -> None:
    assert_lawful(program, execute(program))


@settings(max_examples=40, deadline=None)
@given(programs())
def test_runs_repeat_to_the_picosecond(program: Program) -> None:
    one, two = execute(program), execute(program)
    for name in TIMES:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.launch_begin, one.launch_end) == (two.launch_begin, two.launch_end)
    assert one.events == two.events


@settings(max_examples=60, deadline=None)
@given(programs())
def test_a_host_waits_for_the_last_of_its_peers(program: Program) -> None:
    """Not a picosecond longer: it goes on when it got there, or when the last peer signals."""
    result = execute(program)
    for phase in np.flatnonzero(program.wait_counter >= 0):
        counter = program.wait_counter[phase]
        signals = np.sort(result.end[program.signal_counter == counter])
        reached = signals[program.wait_target[phase] - 1]
        assert result.ready[phase] == max(result.begin[phase], reached)


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(2, 5))
def test_more_bandwidth_never_takes_longer_where_nobody_shares_an_sm(
    program: Program, factor: int
) -> None:
    """With a slot for each CTA on an SM of its own there is no order to upset.

    A picosecond of slack for each phase: a transfer ends on a whole one.
    """
    roomy = replace(
        program,
        num_sms=program.num_ctas,
        dispatch_interval_ps=0,
        launches=tuple(replace(launch, ctas_per_sm=1) for launch in program.launches),
    )
    faster = replace(
        roomy,
        dram_bytes_per_ps=roomy.dram_bytes_per_ps * factor,
        l2_bytes_per_ps=roomy.l2_bytes_per_ps * factor,
    )
    slow, fast = execute(roomy).makespan_ps, execute(faster).makespan_ps
    assert fast <= slow + 2 * program.num_phases
