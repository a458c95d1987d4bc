"""A Result as a Perfetto trace: a process per SM, a thread per slot, arrows from peers to hosts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from leansim.engine.program import Phase
from leansim.engine.result import Result
from leansim.files.writing import Content, write_whole

_PS_PER_NS = 1000  # what Perfetto resolves
_HALF_NS = 0.0005  # in microseconds


def trace_events(result: Result) -> list[dict[str, Any]]:
    """Return events in the Trace Event Format; times in microseconds, of whole nanoseconds.

    What takes no nanosecond has no slice, and no arrows.
    """
    program = result.program
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": sm, "args": {"name": f"SM {sm}"}}
        for sm in range(program.num_sms)
    ]
    for launch in program.launches:
        phases = result.launch_of(launch)
        for i in range(phases.start, phases.stop):
            events += _slices(result, i, launch.name)
    events += _arrows(result)
    events += [
        {"ph": "C", "name": "busy slots", "pid": 0, "ts": _us(at), "args": {"slots": n}}
        for at, n in _busy_slots(result)
    ]
    return events


def _us(ns: int) -> float:
    """Microseconds that a reader who multiplies by 1000 and cuts off gets the nanoseconds back from."""
    us = ns / 1000
    return us if int(us * 1000) == ns else math.nextafter(us, math.inf)


def _thread(result: Result, i: int) -> dict[str, int]:
    slot, num_sms = int(result.slot[result.cta_of_phase[i]]), result.program.num_sms
    return {"pid": slot % num_sms, "tid": slot // num_sms}


def _span(result: Result, i: int) -> tuple[int, int]:
    """A phase from when its wait is over to its end, in whole nanoseconds."""
    return int(result.ready[i]) // _PS_PER_NS, int(result.end[i]) // _PS_PER_NS


def _slices(result: Result, i: int, launch: str) -> list[dict[str, Any]]:
    program = result.program
    ready, end = _span(result, i)
    args = {"cta": int(result.cta_of_phase[i]), "launch": launch, "bytes": int(program.bytes[i])}
    if program.segment[i] >= 0:
        args["segment"] = int(program.segment[i])
    name = Phase(int(program.kind[i])).name.lower()
    spans = [("wait", int(result.begin[i]) // _PS_PER_NS, ready), (name, ready, end)]
    return [
        {"ph": "X", "name": n, "ts": _us(a), "dur": _us(b - a), "args": args, **_thread(result, i)}
        for n, a, b in spans
        if b > a
    ]


def _arrows(result: Result) -> list[dict[str, Any]]:
    """From the end of each phase that signals to the beginning of each that waited for it.

    Both ends lie within the slices they join: a nanosecond from the edge, half of one if there is no
    more.
    """
    program = result.program
    peers: dict[int, list[int]] = {}
    for i in np.flatnonzero(program.signal_counter >= 0):
        peers.setdefault(int(program.signal_counter[i]), []).append(int(i))
    events: list[dict[str, Any]] = []
    for host in np.flatnonzero(program.wait_counter >= 0).tolist():
        ready, host_end = _span(result, host)
        for peer in peers.get(int(program.wait_counter[host]), ()):
            peer_ready, end = _span(result, peer)
            if result.end[peer] > result.ready[host] or peer_ready == end or ready == host_end:
                continue
            arrow = {"name": "partial", "cat": "partial", "id": len(events) // 2}
            start = _us(end - 1) if end - peer_ready > 1 else _us(peer_ready) + _HALF_NS
            finish = _us(ready + 1) if host_end - ready > 1 else _us(ready) + _HALF_NS
            events.append({"ph": "s", **arrow, "ts": start, **_thread(result, peer)})
            events.append({"ph": "f", "bp": "e", **arrow, "ts": finish, **_thread(result, host)})
    return events


def _busy_slots(result: Result) -> list[tuple[int, int]]:
    """How many slots hold a CTA from each nanosecond at which that changes."""
    times = np.r_[result.cta_begin, result.cta_end] // _PS_PER_NS
    steps = np.r_[np.ones(len(result.cta_begin)), -np.ones(len(result.cta_end))]
    at, where = np.unique(times, return_inverse=True)
    change = np.zeros(len(at))
    np.add.at(change, where, steps)
    busy = np.cumsum(change).astype(int)
    return [(int(t), int(n)) for t, n in zip(at, busy, strict=True)]


def trace(result: Result) -> Content:
    """A trace file that ui.perfetto.dev and chrome://tracing open, made no sooner than it is written."""

    def written(file: BinaryIO) -> None:
        events = {"traceEvents": trace_events(result), "displayTimeUnit": "ns"}
        file.write(json.dumps(events).encode())

    return written


def write_trace(result: Result, path: Path) -> None:
    """Write a trace to a file."""
    write_whole(path, trace(result))
