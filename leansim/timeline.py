"""A Result as a Perfetto trace: a process per SM, a thread per slot, arrows from peers to hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from leansim.program import Phase
from leansim.result import Result

_US_PER_PS = 1e-6


def trace_events(result: Result) -> list[dict[str, Any]]:
    """Return events in the Trace Event Format; times in microseconds."""
    program = result.program
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": sm, "args": {"name": f"SM {sm}"}}
        for sm in range(program.num_sms)
    ]
    for launch in program.launches:
        phases = result.launch_of(launch)
        for i in range(phases.start, phases.stop):
            events += _phase_events(result, i, launch.name)
    busy = _busy_slots(result)
    events += [
        {"ph": "C", "name": "busy slots", "pid": 0, "ts": at, "args": {"slots": n}} for at, n in busy
    ]
    return events


def _phase_events(result: Result, i: int, launch: str) -> list[dict[str, Any]]:
    program = result.program
    cta = int(result.cta_of_phase[i])
    sm, thread = int(result.slot[cta]) % program.num_sms, int(result.slot[cta]) // program.num_sms
    begin, ready, end = int(result.begin[i]), int(result.ready[i]), int(result.end[i])
    where = {"pid": sm, "tid": thread}
    args = {"cta": cta, "launch": launch, "bytes": int(program.bytes[i])}
    if program.segment[i] >= 0:
        args["segment"] = int(program.segment[i])
    name = Phase(int(program.kind[i])).name.lower()
    spans = [("wait", begin, ready), (name, ready, end)]
    events = [
        {
            "ph": "X",
            "name": n,
            "ts": a * _US_PER_PS,
            "dur": (b - a) * _US_PER_PS,
            "args": args,
            **where,
        }
        for n, a, b in spans
        if b > a
    ]
    counter = int(program.signal_counter[i])
    if counter >= 0:
        arrow = {"name": "partial", "cat": "partial", "id": counter, "ts": end * _US_PER_PS}
        events.append({"ph": "s", **arrow, **where})
    if int(program.wait_counter[i]) >= 0:
        arrow = {"name": "partial", "cat": "partial", "id": int(program.wait_counter[i])}
        events.append({"ph": "f", "bp": "e", **arrow, "ts": ready * _US_PER_PS, **where})
    return events


def _busy_slots(result: Result) -> list[tuple[float, int]]:
    times = np.r_[result.cta_begin, result.cta_end]
    steps = np.r_[np.ones(len(result.cta_begin)), -np.ones(len(result.cta_end))]
    at, where = np.unique(times, return_inverse=True)
    change = np.zeros(len(at))
    np.add.at(change, where, steps)
    busy = np.cumsum(change).astype(int)
    return [(int(t) * _US_PER_PS, int(n)) for t, n in zip(at, busy, strict=True)]


def write_trace(result: Result, path: Path) -> None:
    """Write a trace file that ui.perfetto.dev and chrome://tracing open."""
    path.write_text(json.dumps({"traceEvents": trace_events(result), "displayTimeUnit": "ns"}))
