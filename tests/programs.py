"""Programs built by hand, and strategies that draw them: shared by the tests of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from leansim.engine.program import FlowKind, Launch, Phase, Program

SHARP = 64.0  # an exponent at which the loaded-throughput law is min(offer, peak) but near the peak
PLENTY = 1e9
STORE = -1  # no flow: bytes whose time is in the latency


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


def kv(
    limit: float = 1.0,
    sm_cost: float = 0.0,
    dram_share: float = 1.0,
    l2_share: float = 1.0,
    offered: float | None = None,
) -> FlowKind:
    """Bytes that offer DRAM their pace, unless said otherwise."""
    return FlowKind("kv", limit, sm_cost, dram_share, l2_share, limit if offered is None else offered)


def program_of(
    launches: Sequence[Sequence[Cta]],
    flows: Sequence[FlowKind] = (kv(),),
    num_sms: int = 1,
    ctas_per_sm: int | Sequence[int] = 1,
    gap_ps: int = 0,
    interval_ps: int = 0,
    dram: float = PLENTY,
    l2: float = PLENTY,
    exponent: float = SHARP,
    drift: Sequence[int] | None = None,
) -> Program:
    """Lay launches of CTAs of steps out as a program.

    `ctas_per_sm` is one for all launches or each, `drift` what each SM adds to its RAMP phases.
    """
    ctas = [cta for launch in launches for cta in launch]
    steps = [step for cta in ctas for step in cta]
    edges = np.cumsum([0, *(len(launch) for launch in launches)]).tolist()
    counters = [*(step.wait[0] for step in steps), *(step.signal for step in steps)]
    fits = [ctas_per_sm] * len(launches) if isinstance(ctas_per_sm, int) else ctas_per_sm

    def column(values: Sequence[int], dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
        return np.array(values, dtype)

    return Program(
        launches=tuple(
            Launch(f"launch {i}", edges[i], edges[i + 1], fits[i], gap_ps if i else 0)
            for i in range(len(launches))
        ),
        flows=tuple(flows),
        phase_of_cta=np.cumsum([0, *(len(cta) for cta in ctas)]),
        kind=column([step.kind for step in steps], np.int8),
        latency_ps=column([step.latency_ps for step in steps]),
        bytes=column([step.size for step in steps]),
        flow=column([step.flow for step in steps], np.int8),
        wait_counter=column([step.wait[0] for step in steps], np.int32),
        wait_target=column([step.wait[1] for step in steps], np.int32),
        signal_counter=column([step.signal for step in steps], np.int32),
        num_counters=max(counters) + 1,
        num_sms=num_sms,
        dispatch_interval_ps=interval_ps,
        launch_ps=0,
        dram_bytes_per_ps=dram,
        l2_bytes_per_ps=l2,
        dram_saturation_exponent=exponent,
        drift_ps=None if drift is None else column(drift),
    )


@dataclass(frozen=True)
class Sketch:
    """A random program before it is laid out: what Hypothesis shows when a test fails."""

    launches: list[list[list[Step]]]
    flows: list[FlowKind]
    num_sms: int = 1
    ctas_per_sm: list[int] = field(default_factory=lambda: [1])
    gap_ps: int = 0
    interval_ps: int = 0
    dram: float = PLENTY
    l2: float = PLENTY
    exponent: float = SHARP
    drift: list[int] | None = None

    @property
    def program(self) -> Program:
        """The program itself."""
        return program_of(**vars(self))


# (DRAM, L2): what DRAM brings passes L2, masked bytes pass neither.
shares = st.sampled_from([(0.0, 0.0), (0.0, 0.7), (0.0, 1.0), (0.3, 0.3), (0.3, 1.0), (1.0, 1.0)])
flow_kinds = st.builds(
    lambda pace, work, share, offered: FlowKind("flow", pace, work, share[0], share[1], offered),
    st.sampled_from([0.03, 0.06, 0.12, 1.0]),
    st.sampled_from([0.0, 1.0, 8.0, 12.0, 40.0]),
    shares,
    st.sampled_from([0.0, 0.02, 0.06, 0.2, 5.0]),
)
# In classes, as the SMs of a device are.
drifts = st.sampled_from([0, 1, 500, 30_000])
# Round latencies and sizes, so that much happens at the same picosecond, and others.
latencies = st.one_of(st.sampled_from([0, 0, 1, 1000, 200_000]), st.integers(0, 2_000_000))
sizes = st.one_of(st.sampled_from([0, 0, 1, 260, 4096, 65_536]), st.integers(0, 300_000))


def steps(num_flows: int) -> st.SearchStrategy[Step]:
    """Phases that wait for nobody."""
    return st.builds(
        Step,
        latency_ps=latencies,
        size=sizes,
        flow=st.integers(STORE, num_flows - 1),
        kind=st.sampled_from(list(Phase)),
    )


@st.composite
def sketches(draw: st.DrawFn, max_ctas: int = 40) -> Sketch:
    """One to three launches on up to 6 SMs, in which some CTAs wait for others.

    CTAs wait only for CTAs placed before them, or for any where all are resident, and never in a
    circle: every program comes to an end. A CTA that has waited goes on for a picosecond at least
    before it ends, so that nothing placed at a picosecond frees another slot at the same.
    """
    flows = draw(st.lists(flow_kinds, min_size=1, max_size=3))
    num_sms = draw(st.integers(1, 6))
    launches: list[list[list[Step]]] = []
    fits = []
    counters = 0
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        fits.append(draw(st.integers(1, 4)))
        # A few kinds of CTAs, so that equal ones meet.
        kinds = draw(
            st.lists(st.lists(steps(len(flows)), min_size=1, max_size=4), min_size=1, max_size=5)
        )
        n = draw(st.integers(1, max_ctas))
        picks = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=n, max_size=n))
        ctas = [list(kinds[pick]) for pick in picks]
        # CTAs in the order in which they may wait for each other.
        order = list(range(n))
        if n <= num_sms * fits[-1]:
            order = draw(st.permutations(order))
        for _ in range(draw(st.integers(0, 3)) if n > 1 else 0):
            counters += _add_wait(draw, ctas, order, counters)
        launches.append(ctas)
    return Sketch(
        launches,
        flows,
        num_sms,
        fits,
        gap_ps=draw(st.sampled_from([0, 700_000])),
        interval_ps=draw(st.sampled_from([0, 610, 100_000])),
        dram=draw(st.sampled_from([0.02, 0.1, 0.5, 10.0])),
        l2=draw(st.sampled_from([0.05, 0.2, 10.0])),
        exponent=draw(st.sampled_from([1.9, 2.65, SHARP])),
        drift=draw(st.none() | st.lists(drifts, min_size=num_sms, max_size=num_sms)),
    )


def _add_wait(draw: st.DrawFn, ctas: list[list[Step]], order: list[int], counter: int) -> int:
    """Let some CTAs wait for some of those before them, with one counter; the counters used."""
    place = draw(st.integers(1, len(order) - 1))
    signals = 0
    peers = draw(_a_few(order[:place]))
    for peer in peers:
        at = draw(st.integers(0, len(ctas[peer]) - 1))
        if ctas[peer][at].signal < 0:
            ctas[peer][at] = replace(ctas[peer][at], signal=counter)
            signals += 1
    hosts = draw(_a_few(order[place:])) if signals else []
    for host in hosts:
        at = draw(st.integers(0, len(ctas[host]) - 1))
        step = ctas[host][at]
        if step.wait[0] < 0:
            wait = (counter, draw(st.integers(0, signals)))
            ctas[host][at] = replace(step, wait=wait, latency_ps=max(1, step.latency_ps))
    return 1


def _a_few(ctas: list[int]) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(ctas), min_size=1, max_size=4, unique=True)
