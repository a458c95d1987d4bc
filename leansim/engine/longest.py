"""How long a program can take at most, before any engine runs it: times are counted in 64 bits."""

from __future__ import annotations

import math

import numpy as np

from leansim.engine.program import MOST_PS, Program, out_of_range

_MOST = float(MOST_PS)
_NEGATIVE = 2**63  # and more, of whole numbers below 0 that are read without a sign
# The share of its offer or its peak that DRAM serves at least: at an exponent of 0.5, the least.
_LEAST_SERVED = 0.25
# Bytes/ps beyond which none is counted, so that sums of bytes are in range where those of times are.
_MOST_RATE = 1.0
# Every end is rounded up to a picosecond; a phase has a few.
_ROUNDING_PS = 4


def check_countable(program: Program) -> Program:
    """Return a program whose every time can be counted, so that engines need not look.

    Raises `OutOfRangeError` for the others.
    """
    # What overflowed comes out negative, which without a sign is more than can be counted.
    latency, size = (int(one.view(np.uint64).max()) for one in (program.latency_ps, program.bytes))
    phases = program.num_phases
    if _after_another(program, phases * latency, phases * size) < _MOST:
        return program  # nearly always, and sums take longer
    if max(latency, size) >= _NEGATIVE or not longest_ps(program) < _MOST:
        raise out_of_range()
    return program


def longest_ps(program: Program) -> float:
    """Time that no run of a program exceeds, ps; not finite where its numbers make none.

        launch + gaps + CTAs * dispatch + phases * most drift + latencies + bytes / least rate

    At each moment of a run a gap, the dispatcher, a latency or a transfer goes on: as if they did so one
    after the other.
    """
    latencies = float(program.latency_ps.sum(dtype=np.float64))
    return _after_another(program, latencies, float(program.bytes.sum(dtype=np.float64)))


def _after_another(program: Program, latencies_ps: float, moved: float) -> float:
    """The same for latencies and bytes that come to so much."""
    drift = 0 if program.drift_ps is None else int(program.drift_ps.max())
    fixed = (
        program.launch_ps
        + sum(launch.gap_ps for launch in program.launches)
        + program.num_ctas * program.dispatch_interval_ps
        + program.num_phases * (drift + _ROUNDING_PS)
    )
    return fixed + latencies_ps + moved / least_bytes_per_ps(program)


def least_bytes_per_ps(program: Program) -> float:
    """Rate at which bytes move at least while any do; NaN where a flow's numbers make none.

    The first to be full sets it: a transfer at its own pace beside others, an SM, L2, or DRAM, which
    serves a share of what is offered to it.
    """
    dram, l2 = _LEAST_SERVED * program.dram_bytes_per_ps, program.l2_bytes_per_ps
    if not (0.5 <= program.dram_saturation_exponent < math.inf and dram > 0.0 and l2 > 0.0):
        return math.nan
    least = _MOST_RATE
    for flow in program.flows:
        pace, work, offered = flow.max_bytes_per_ps, flow.sm_ps_per_byte, flow.offered_bytes_per_ps
        of_dram, of_l2, tensor = flow.dram_share, flow.l2_share, flow.tensor_ps_per_byte
        if not (0.0 < pace < _MOST and 0.0 <= work < _MOST and 0.0 <= tensor < _MOST):
            return math.nan
        if not (0.0 <= of_dram < _MOST and 0.0 <= of_l2 < _MOST and 0.0 <= offered < _MOST):
            return math.nan
        slowest = 1.0 / pace + sum(flow.waits_ps_per_byte)
        rate = 1.0 / (slowest + work)
        if of_l2:
            rate = min(l2 / of_l2, rate)
        if of_dram:
            rate = min(dram / of_dram, _LEAST_SERVED * offered, rate)
        if not rate > 0.0:
            return math.nan
        least = min(least, rate)
    return least
