"""Times that 64 bits can hold: bounded before an engine runs; both engines answer or refuse alike."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Sketch, Step, kv, program_of, sketches
from test_engines import assert_agree, fixed

from leansim.engine import numba_engine, simpy_engine
from leansim.engine.longest import check_countable, longest_ps
from leansim.engine.program import MOST_PS, Program
from leansim.errors import LeansimError, OutOfRangeError
from leansim.points.point import point
from leansim.points.simulate import simulate
from leansim.specs import catalog
from leansim.specs.base import numbers

SHAPE = {"device": "h100_sxm", "num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128}
NO_CLOCK = "times no clock could count"


def outcome(fields: dict[str, Any], engine: Any) -> Any:
    """Makespan in ps, or what stands in the way."""
    try:
        simulation = simulate(point(**fields), engine)
    except LeansimError as error:
        return f"{type(error).__name__}: {error}"
    numbers = [value for value in simulation.row.values() if isinstance(value, int | float)]
    assert all(map(math.isfinite, numbers))
    return simulation.result.makespan_ps


def outcomes(overrides: dict[str, Any], **fields: Any) -> Any:
    """What both engines say, which is the same."""
    asked = {**SHAPE, "kernel": "fa2", "batch_size": 2, "context_len": 1024, **fields}
    said = [outcome({**asked, "overrides": overrides}, engine) for engine in ("simpy", "numba")]
    assert said[0] == said[1]
    return said[0]


def test_a_memory_far_below_its_offer_serves_its_peak() -> None:
    """2 x 1,024 tokens of 8 heads of 512 B are 8.4 MB: 9.35 ms at the 0.897 GB/s of long reads."""
    slow = {"device.dram_saturation_exponent": 100, "device.dram_bandwidth_bytes_per_s": 1e9}
    took_ps = outcomes(slow)
    assert took_ps == pytest.approx(2 * 1024 * 8 * 512 / 0.897e9 * 1e12, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        ({"device.cta_dispatch_interval_s": 1e6}, {}),
        ({"device.kernel_gap_s.graph": 6e5}, {"kernel": "flash_decoding"}),
        ({"device.fence_s": 1e6}, {"kernel": "lean"}),
        ({"device.flag_latency_s": 3e5}, {"kernel": "lean", "context_len": 65_536}),
        ({"device.cta_launch_s": 1e5}, {}),
        ({"device.dram_latency_s": 1e-320}, {}),
        ({"device.l2_bandwidth_bytes_per_s": 1e-3}, {}),
        ({"device.sm_clock_hz": 1e-3}, {}),
        ({"kernel.ctas.scan_s": 1e5}, {"kernel": "fa3_varlen", "batch_size": 300}),
        ({"device.exp_per_clk_per_sm": 1e-18}, {}),
    ],
    ids=str,
)
def test_what_no_clock_could_count_is_refused_by_both(
    overrides: dict[str, Any], fields: dict[str, Any]
) -> None:
    said = outcomes(overrides, **fields)  # most are no such unit: they never come to an engine
    assert said.endswith(NO_CLOCK) or "; wanted " in said


SLOW_DISPATCH = {"device.cta_dispatch_interval_s": 1.0}


def test_what_a_clock_can_count_is_counted_by_both() -> None:
    """320 CTAs on 264 slots: those of the second wave come when the dispatcher is through the first."""
    assert 264e12 <= outcomes(SLOW_DISPATCH, batch_size=40) < 320e12


def test_rates_that_divide_by_nothing_are_out_of_range() -> None:
    assert "out of range" in outcomes({"device.sm_load_bytes_per_clk": 1e300})


def test_slot_time_beyond_64_bits_adds_up() -> None:
    """Eleven hours on 264 slots: shares of the slots' time still sum to one."""
    asked = {**SHAPE, "kernel": "fa2", "batch_size": 5000, "context_len": 64}
    slow = simulate(point(**asked, overrides=SLOW_DISPATCH))
    assert slow.result.makespan_ps * slow.schedule.grid.slots > 2**63 > slow.result.makespan_ps
    shares = [value for name, value in slow.row.items() if name.startswith("share_")]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= 0.0


# -- any number of a device ------------------------------------------------------------------------


def _numbers() -> list[str]:
    counts = ("num_sms", "max_ctas_per_sm", "num_xcds")  # as many arrays, which memory could not hold
    paths = [way for way, _ in numbers(catalog.device("h100_sxm"))]
    return [f"device.{'.'.join(way)}" for way in paths if way[0] not in counts]


powers = st.sampled_from([-320, -300, -100, -30, -18, -12, -9, -6, -3, 0, 3, 6, 9, 12, 18, 30, 100, 300])


@settings(fixed, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(_numbers()), powers, min_size=1, max_size=2),
    st.sampled_from(["fa2", "lean", "fa3_varlen", "trtllm_xqa", "triton_lean", "flashinfer_batch"]),
    st.sampled_from([16, 5000]),
)
def test_any_numbers_of_a_device_are_answered_or_refused_by_both(
    changed: dict[str, int], kernel: str, context_len: int
) -> None:
    overrides = {key: 10.0**power for key, power in changed.items()}
    outcomes(overrides, kernel=kernel, context_len=context_len)


# -- any program -----------------------------------------------------------------------------------


def _offers(sketch: Sketch) -> bool:
    return all(flow.offered_bytes_per_ps or not flow.dram_share for flow in sketch.flows)


@settings(fixed, max_examples=150)
@given(sketches().filter(_offers), st.sampled_from([1, 10**7]))
def test_no_run_is_longer_than_the_longest(sketch: Sketch, longer: int) -> None:
    program = replace(sketch.program, bytes=sketch.program.bytes * longer)
    assert numba_engine.execute(program).makespan_ps <= longest_ps(program)


def test_the_longest_is_one_thing_after_the_other() -> None:
    """Two CTAs of a latency of 50 ps and 100 bytes at 0.5 bytes/ps, dispatched 7 ps apart.

    2 * (50 + 100 / 0.5 + 7) ps, and 4 for the rounding of each phase.
    """
    program = program_of([[[Step(50, 100)]] * 2], [kv(0.5, offered=5.0)], interval_ps=7)
    assert longest_ps(program) == 2 * (50 + 200 + 7 + 4)
    assert check_countable(program) is program


@pytest.mark.parametrize(
    "program",
    [
        program_of([[[Step(-1)]]]),
        program_of([[[Step(0, -1)]]]),
        program_of([[[Step(2**59)]] * 2]),
        program_of([[[Step(2**62)]] * 4]),  # the sum of which is 0 in 64 bits
        program_of([[[Step(0, 2**62)]] * 4], [kv(1e6)]),
        program_of([[[Step(1)]], [[Step(1)]]], gap_ps=2**60),
        program_of([[[Step(0, 1)]]], [kv(math.nan)]),
        program_of([[[Step(0, 1)]]], [kv(dram_share=math.nan)]),
        program_of([[[Step(0, 1)]]], [kv(offered=math.inf)]),
        program_of([[[Step(0, 1)]]], [kv(offered=0.0)]),
        program_of([[[Step(0, 1)]]], l2=math.nan),
        program_of([[[Step(0, 1)]]], exponent=math.inf),
    ],
)
def test_programs_beyond_the_clock_are_refused(program: Program) -> None:
    with pytest.raises(OutOfRangeError, match=NO_CLOCK):
        check_countable(program)


@pytest.mark.parametrize("engine", [simpy_engine, numba_engine])
@pytest.mark.parametrize("least", ["dram", "l2", "pace"])
def test_an_engine_that_stands_still_says_so(engine: Any, least: str) -> None:
    """Nobody has checked these programs, whose bytes never come."""
    flow = kv(1e-300 if least == "pace" else 1.0, offered=1.0)
    memory = {} if least == "pace" else {least: 1e-300}
    with pytest.raises(OutOfRangeError, match=NO_CLOCK):
        engine.execute(program_of([[[Step(5, 100)]]], [flow], **memory))


# -- in pieces -------------------------------------------------------------------------------------


@settings(fixed, max_examples=60)
@given(sketches(max_ctas=12), st.integers(0, 5))
def test_a_run_in_pieces_is_the_run(sketch: Sketch, moments: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_engine, "MOMENTS", moments)
        assert_agree(sketch.program)


def test_the_compiled_engine_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back to Python every so many moments, where an interruption is heard."""
    phases = 3 * numba_engine.MOMENTS
    one = program_of([[[Step(3, 8)]]])
    columns = ("kind", "latency_ps", "bytes", "flow", "wait_counter", "wait_target", "signal_counter")
    long = replace(
        one,
        phase_of_cta=np.array([0, phases]),
        **{name: np.tile(getattr(one, name), phases) for name in columns},
    )
    run, calls = numba_engine._execute, []

    def interrupted(*arguments: Any) -> bool:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return bool(run(*arguments))

    monkeypatch.setattr(numba_engine, "_execute", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            numba_engine.execute(long)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 3
    assert numba_engine.execute(long).makespan_ps == phases * 11
    assert longest_ps(long) < MOST_PS
