"""Laws: what must hold of the engine for any program, and closed forms of small ones."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import STORE, Sketch, Step, flow_kinds, kv, program_of, sketches

from leansim.engine.program import FlowKind, Program
from leansim.engine.result import Result
from leansim.engine.sharing import sm_limits
from leansim.engine.simpy_engine import execute

RELATIVE = 1e-9
TIMES = ("begin", "ready", "moving", "end", "slot")

sizes = st.integers(1, 10_000_000)
peaks = st.floats(1e-2, 100.0)
exponents = st.floats(1.0, 8.0)

# -- closed forms ----------------------------------------------------------------------------------


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
@given(a=sizes, b=sizes, c=sizes)
def test_an_sm_that_shares_does_not_hold_up_another(a: int, b: int, c: int) -> None:
    """As above on SM 0 (slots 0 and 2); the one on SM 1 has it to itself."""
    ctas = [[Step(size=a)], [Step(size=c)], [Step(size=b)]]
    flow = kv(limit=1.0, sm_cost=1.0, dram_share=0.0)
    result = execute(program_of([ctas], [flow], num_sms=2, ctas_per_sm=2))
    ends = [2 * min(a, b) if size == min(a, b) else a + b for size in (a, b)]
    assert result.slot.tolist() == [0, 1, 2]
    assert result.end.tolist() == pytest.approx([ends[0], c, ends[1]], rel=RELATIVE, abs=2)


@settings(deadline=None)
@given(sizes, sizes, st.floats(1.0, 50.0), st.floats(1.0, 50.0))
def test_kinds_of_one_sm_share_its_unit_at_one_level(a: int, b: int, v: float, w: float) -> None:
    """A byte of A costs the SM v ps, one of B w: each gets 1/(v + w) B/ps until one is done.

    The SM never rests, so the last is done when v*a + w*b ps of work are.
    """
    flows = [kv(limit=1.0, sm_cost=v, dram_share=0.0), kv(limit=1.0, sm_cost=w, dram_share=0.0)]
    ctas = [[Step(size=a, flow=0)], [Step(size=b, flow=1)]]
    result = execute(program_of([ctas], flows, ctas_per_sm=2))
    ends = [(v + w) * min(a, b) if size == min(a, b) else v * a + w * b for size in (a, b)]
    assert result.end.tolist() == pytest.approx(ends, rel=RELATIVE, abs=2 + v + w)


@settings(deadline=None)
@given(sizes, sizes, sizes)
def test_a_full_memory_holds_back_only_what_passes_it(a: int, b: int, c: int) -> None:
    """DRAM gives A its 0.01 B/ps, L2 gives A and B 0.03 between them: 0.02 for B. C passes neither."""
    flows = [kv(dram_share=1.0), kv(dram_share=0.0), kv(0.5, dram_share=0.0, l2_share=0.0)]
    ctas = [[Step(size=a, flow=0)], [Step(size=b, flow=1)], [Step(size=c, flow=2)]]
    result = execute(program_of([ctas], flows, num_sms=3, dram=0.01, l2=0.03))
    first = min(a / 0.01, b / 0.02)
    ends = [a / 0.01, b / 0.02 if b / 0.02 == first else first + (b - 0.02 * first) / 0.03, c / 0.5]
    assert result.end.tolist() == pytest.approx(ends, rel=RELATIVE, abs=2)


@settings(deadline=None)
@given(size=sizes, num_sms=st.integers(2, 6), offered=st.floats(0.001, 1.0), exponent=exponents)
def test_transfers_get_what_their_loads_in_flight_draw_from_dram(
    size: int, num_sms: int, offered: float, exponent: float
) -> None:
    """Offered n * o, a DRAM with a peak of 1 B/ps gives n * o / (1 + (n * o)^q)^(1/q).

    What the n could take, here 5 B/ps each, does not come into it.
    """
    flow = kv(limit=5.0, offered=offered)
    ctas = [[Step(size=size)] for _ in range(num_sms)]
    result = execute(program_of([ctas], [flow], num_sms=num_sms, dram=1.0, exponent=exponent))
    load = num_sms * offered
    reached = load / (1 + load**exponent) ** (1 / exponent)
    assert result.makespan_ps == pytest.approx(num_sms * size / reached, rel=1e-8, abs=2)


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
@given(
    n=st.integers(1, 40),
    num_sms=st.integers(1, 5),
    ctas_per_sm=st.integers(1, 3),
    interval=st.integers(0, 10**5),
    latency=st.integers(1, 10**6),
)
def test_equal_ctas_stay_in_step_at_the_rate_of_the_dispatcher(
    n: int, num_sms: int, ctas_per_sm: int, interval: int, latency: int
) -> None:
    """A burst fills all s slots at once and takes the dispatcher s intervals, its CTAs a latency.

    So round r begins at r times the longer of the two.
    """
    ctas = [[Step(latency_ps=latency)]] * n
    result = execute(program_of([ctas], num_sms=num_sms, ctas_per_sm=ctas_per_sm, interval_ps=interval))
    slots = num_sms * ctas_per_sm
    period = max(latency, slots * interval)
    assert result.cta_begin.tolist() == [c // slots * period for c in range(n)]
    assert result.slot.tolist() == [c % slots for c in range(n)]
    assert result.makespan_ps == (n - 1) // slots * period + latency


@settings(deadline=None)
@given(first=st.lists(st.integers(1, 10**4), min_size=1, max_size=6), interval=st.integers(1, 10**4))
def test_a_burst_is_owed_to_by_the_slots_that_fall_idle_after_it(
    first: list[int], interval: int
) -> None:
    """N CTAs begin together at 0; each slot's second waits for n intervals, and for those before.

    Slots that fall idle together are again filled together.
    """
    n = len(first)
    ctas = [[Step(latency_ps=t)] for t in first] + [[Step(latency_ps=10**6)]] * n
    result = execute(program_of([ctas], num_sms=n, interval_ps=interval))
    free, begins = n * interval, [0] * n
    for at, together in itertools.groupby(sorted(first)):
        count = len(list(together))
        begins += [max(at, free)] * count
        free = begins[-1] + count * interval
    assert result.cta_begin.tolist() == begins


# -- any program -----------------------------------------------------------------------------------


def of_flow(program: Program, values: Sequence[float], none: float) -> np.ndarray:
    """Value of each phase's flow; `none` for phases without (-1, the last)."""
    return np.array([*values, none])[program.flow]


def limits_of(program: Program) -> np.ndarray:
    """Most bytes per ps of each phase, alone on its SM."""
    alone = [sm_limits((flow,), 1)[0][1, 0] for flow in program.flows]
    return of_flow(program, alone, math.inf)


def issued(program: Program, launch: int, durations: list[int], now: int) -> list[tuple[int, int]]:
    """(begin, slot) of CTAs of known durations.

    Slots that fall idle together are filled together, in order, once the dispatcher has made up for
    the CTAs before.
    """
    free = [(now, slot) for slot in range(program.slots(program.launches[launch]))]
    placed: list[tuple[int, int]] = []
    ready = now
    while len(placed) < len(durations):
        at = free[0][0]
        burst: list[int] = []
        while free and free[0][0] == at and len(placed) + len(burst) < len(durations):
            burst.append(heapq.heappop(free)[1])
        begin = max(at, ready)
        ready = begin + len(burst) * program.dispatch_interval_ps
        for slot in burst:
            heapq.heappush(free, (begin + durations[len(placed)], slot))
            placed.append((begin, slot))
    return placed


def assert_lawful(program: Program, result: Result) -> None:
    """The laws of every run, whatever the program."""
    # Phases in order, each CTA without a hole.
    assert (result.begin <= result.ready).all()
    assert (result.moving <= result.end).all()
    inside = np.setdiff1d(np.arange(1, program.num_phases), program.phase_of_cta)
    assert np.array_equal(result.begin[inside], result.end[inside - 1])
    assert np.array_equal(result.begin[program.wait_counter < 0], result.ready[program.wait_counter < 0])
    # What moves as no flow takes its latency and no more.
    still = (program.flow < 0) | (program.bytes == 0)
    assert np.array_equal(result.moving[still], result.end[still])
    # A transfer takes at least its bytes at the most its CTA and SM give; rounding is 2 ps.
    least = np.ceil(program.bytes / limits_of(program)) - 2
    assert (result.end - result.moving >= least).all()
    # All bytes served, no memory faster than its peak.
    assert result.bytes_served == program.shared_bytes
    assert list(result.served) == program.bytes_of_flow[1:].tolist()
    assert result.dram_bytes == program.dram_bytes
    phases = np.diff([*result.launch_begin, result.makespan_ps]).sum()
    assert phases == result.makespan_ps
    slack = 2 * program.num_phases
    assert result.makespan_ps + slack >= program.dram_bytes / program.dram_bytes_per_ps
    through_l2 = program.bytes * of_flow(program, [f.l2_share for f in program.flows], 0.0)
    assert result.makespan_ps + slack >= through_l2.sum() / program.l2_bytes_per_ps
    sm_work = program.bytes * of_flow(program, [f.sm_ps_per_byte for f in program.flows], 0.0)
    sm = np.bincount(result.slot[result.cta_of_phase] % program.num_sms, weights=sm_work)
    assert result.makespan_ps + slack >= sm.max()
    # Launches one after the other; none ends before its longest CTA.
    for i, launch in enumerate(program.launches):
        ctas = slice(launch.first_cta, launch.last_cta)
        begin, end = result.cta_begin[ctas], result.cta_end[ctas]
        assert result.launch_begin[i] == (result.launch_end[i - 1] if i else 0)
        assert result.launch_begin[i] + launch.gap_ps == begin.min()
        assert result.launch_end[i] == end.max()
        # The dispatcher's rate: a CTA begins after an interval for each of the bursts before.
        earlier = np.searchsorted(begin, begin, side="left")
        assert np.array_equal(begin, np.sort(begin))
        assert (begin >= begin.min() + earlier * program.dispatch_interval_ps).all()
        # CTAs go in order to the next free slots; on a slot there is one at a time.
        slot = result.slot[ctas]
        pairs = list(zip(begin.tolist(), slot.tolist(), strict=True))
        assert pairs == issued(program, i, (end - begin).tolist(), int(begin.min()))
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
@given(sketches())
def test_every_run_is_lawful(sketch: Sketch) -> None:
    assert_lawful(sketch.program, execute(sketch.program))


@settings(max_examples=40, deadline=None)
@given(sketches())
def test_runs_repeat_to_the_picosecond(sketch: Sketch) -> None:
    assert_same_run(execute(sketch.program), execute(sketch.program))


def assert_same_run(one: Result, two: Result) -> None:
    for name in TIMES:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.launch_begin, one.launch_end) == (two.launch_begin, two.launch_end)
    assert one.bytes_served == two.bytes_served


@settings(max_examples=60, deadline=None)
@given(sketches())
def test_a_host_waits_for_the_last_of_its_peers(sketch: Sketch) -> None:
    """Not a picosecond longer: it goes on when it got there, or when the last peer signals."""
    program = sketch.program
    result = execute(program)
    for phase in np.flatnonzero(program.wait_counter >= 0):
        signals = np.sort(result.end[program.signal_counter == program.wait_counter[phase]])
        target = program.wait_target[phase]
        reached = signals[target - 1] if target else 0
        assert result.ready[phase] == max(result.begin[phase], reached)


@settings(max_examples=60, deadline=None)
@given(sketches(), st.integers(0, 10))
def test_how_much_is_stored_takes_no_time_beyond_the_latency(sketch: Sketch, factor: int) -> None:
    """Nobody shares anything with a store."""
    program = sketch.program
    stored = np.where(program.flow == STORE, program.bytes * factor, program.bytes)
    assert_same_run(execute(program), execute(replace(program, bytes=stored)))


times = st.integers(0, 2_000_000)
single = st.builds(
    lambda before, size, after: [Step(before, size), Step(after, flow=STORE)], times, sizes, times
)
factors = st.floats(1.0, 5.0)


@settings(max_examples=100, deadline=None)
@given(
    ctas=st.lists(single, min_size=1, max_size=12),
    flow=flow_kinds,
    dram=peaks,
    l2=peaks,
    exponent=exponents,
    factor=st.tuples(factors, factors),
)
def test_more_bandwidth_never_takes_longer_where_each_moves_once(
    ctas: list[list[Step]],
    flow: FlowKind,
    dram: float,
    l2: float,
    exponent: float,
    factor: tuple[float, float],
) -> None:
    """Equal transfers on SMs of their own that begin when they begin, whoever is done.

    All that move get the same rate, and it falls with their number and rises with either memory's
    peak. So with more bandwidth no transfer is ever behind, fewer move at any time, and none ends
    later. (Not so with a second transfer after the first, or of another kind: what is done sooner
    makes room for what then holds up the last.) A picosecond of slack for each phase: a transfer
    ends on a whole one.
    """
    program = program_of(
        [ctas], [flow], num_sms=len(ctas), dram=dram / 10, l2=l2 / 10, exponent=exponent
    )
    faster = replace(
        program,
        dram_bytes_per_ps=program.dram_bytes_per_ps * factor[0],
        l2_bytes_per_ps=program.l2_bytes_per_ps * factor[1],
    )
    slow, fast = execute(program), execute(faster)
    assert (fast.end <= slow.end + 2 * program.num_phases).all()
