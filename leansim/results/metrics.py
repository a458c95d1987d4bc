"""Numbers read off a Result. One pure function each; `summarise` gathers them for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leansim.engine.program import Phase
from leansim.engine.result import Result
from leansim.schedule.schedule import Schedule
from leansim.specs.device import Device
from leansim.specs.workload import Workload
from leansim.timing.memory import query_row_bytes
from leansim.timing.roofline import roofline

SHARES = ("launch", "ramp", "stream", "write", "wait", "merge", "combine", "travel", "idle")


@dataclass(frozen=True)
class Metrics:
    """What one run of a schedule came to. Times in seconds, shares and utilisations 0 to 1.

    `sm_busy_fraction` is slot time with a CTA that is not waiting. The `share_*` fields divide the
    slot time of the makespan by what it was spent on and sum to 1: `launch` placing CTAs, `ramp` the
    fixed start of each segment, `stream` the KV loop and the index that lists are chosen by, `write`
    outputs and partials, `wait` for peers, `merge` in a host, `combine` in a second kernel, `travel`
    between GPUs, `idle` tails and the gap between kernels.
    `tail_s` is how long the attention launch went on after a slot that had work ran out of it.
    """

    latency_s: float
    makespan_s: float
    sm_busy_fraction: float
    dram_utilisation: float
    l2_utilisation: float
    tensor_utilisation: float
    num_waves: float
    wave_efficiency: float
    tail_s: float
    kv_bytes: int
    q_bytes: int
    o_bytes: int
    partial_bytes: int
    dram_bytes: float
    kv_bandwidth_bytes_per_s: float
    roofline_s: float
    roofline_fraction: float
    bound: str
    share_launch: float
    share_ramp: float
    share_stream: float
    share_write: float
    share_wait: float
    share_merge: float
    share_combine: float
    share_travel: float
    share_idle: float


def time_shares(result: Result) -> dict[str, float]:
    """Slot time of the makespan by what it was spent on; sums to 1.

    Each launch counts by its own slots, so a launch with many small CTAs weighs as its duration. While
    something travels no slot has anything else.
    """
    shares = dict.fromkeys(SHARES, 0.0)
    for index, launch in enumerate(result.program.launches):
        if launch.name == "travel":
            window = result.launch_end[index] - result.launch_begin[index]
            shares["travel"] += window / result.makespan_ps
            continue
        slots = result.program.slots(launch)
        for name, spent in result.spent_ps(launch).items():
            shares[name] += spent / slots / result.makespan_ps
    return shares


def tail_s(result: Result) -> float:
    """Time from when the first slot that ran a CTA of the attention launch has no more to its end."""
    launch = result.program.attention
    index = result.program.launches.index(launch)
    ctas = slice(launch.first_cta, launch.last_cta)
    last = np.zeros(result.program.slots(launch), dtype=np.int64)
    np.maximum.at(last, result.slot[ctas], result.cta_end[ctas])
    return float(result.launch_end[index] - last[last > 0].min()) * 1e-12


def partial_bytes(result: Result, workload: Workload, q_bytes: int) -> int:
    """Bytes of partials written and read: all traffic but that of K, V, Q, O and lists."""
    program = result.program
    of_kv = program.bytes_of(Phase.RAMP) + program.bytes_of(Phase.STREAM)
    return program.total_bytes - of_kv - q_bytes - workload.o_bytes - workload.list_bytes


def summarise(result: Result, schedules: Sequence[Schedule], device: Device) -> Metrics:
    """Compute every metric of a run of a schedule, or of several, launched one after the other.

    Waves are those of the last.
    """
    schedule = schedules[-1]
    workload = schedule.grid.asked
    makespan = result.makespan_s
    floor = roofline(workload, device)
    shares = time_shares(result)
    rows = sum(int(one.grid.rows[one.output_tile].sum()) for one in schedules)
    tokens = sum(one.grid.total_tokens for one in schedules)
    q_bytes = rows * query_row_bytes(workload)
    dram = result.dram_bytes
    return Metrics(
        latency_s=result.latency_s,
        makespan_s=makespan,
        sm_busy_fraction=1.0 - shares["idle"] - shares["wait"] - shares["travel"],
        dram_utilisation=dram / makespan / device.dram_bandwidth_bytes_per_s,
        l2_utilisation=result.l2_bytes / makespan / device.l2_bandwidth_bytes_per_s,
        tensor_utilisation=result.tensor_s / (device.num_sms * makespan),
        num_waves=schedule.num_waves,
        wave_efficiency=schedule.wave_efficiency,
        tail_s=tail_s(result),
        kv_bytes=tokens * workload.kv_bytes_per_token,
        q_bytes=q_bytes,
        o_bytes=workload.o_bytes,
        partial_bytes=partial_bytes(result, workload, q_bytes),
        dram_bytes=dram,
        kv_bandwidth_bytes_per_s=workload.kv_bytes / makespan,
        roofline_s=floor.floor_s,
        roofline_fraction=floor.floor_s / makespan,
        bound=limiting(shares, dram, result),
        **{f"share_{name}": shares[name] for name in SHARES},
    )


def limiting(shares: dict[str, float], dram_bytes: float, result: Result) -> str:
    """Say in a word what holds the run back.

    `bandwidth` when DRAM ran at 80% of what it can reach for this footprint, else the largest of
    `idle` slots, `wait`, `combine` (merging in either way), `travel`, and `cta` (what one CTA can
    stream).
    """
    reachable = result.program.dram_bytes_per_ps * 1e12
    if dram_bytes / result.makespan_s >= 0.8 * reachable:
        return "bandwidth"
    causes = {
        "idle": shares["idle"],
        "wait": shares["wait"],
        "combine": shares["combine"] + shares["merge"],
        "travel": shares["travel"],
        "cta": shares["stream"],
        "overhead": shares["launch"] + shares["ramp"] + shares["write"],
    }
    return max(causes, key=lambda cause: causes[cause])
