"""Programs that run one after the other, as one: each begins when all of the one before is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.result import Result


def joined(results: Sequence[Result]) -> Result:
    """What happened in all of several programs, each begun its own `launch_ps` after the one before.

    An engine finds nothing of one launch in flight when the next begins, so that they may be executed
    apart.
    """
    whole = results[0]
    for later in results[1:]:
        whole = _behind(whole, later)
    return whole


def _behind(first: Result, later: Result) -> Result:
    """Two results as one."""
    a, b = first.program, later.program
    gap_ps = b.launch_ps
    begun = first.makespan_ps + gap_ps
    launches = [
        replace(
            launch,
            first_cta=launch.first_cta + a.num_ctas,
            last_cta=launch.last_cta + a.num_ctas,
            gap_ps=launch.gap_ps if i else gap_ps,
        )
        for i, launch in enumerate(b.launches)
    ]
    columns: dict[str, Any] = {
        "kind": (a.kind, b.kind),
        "latency_ps": (first.moving - first.ready, later.moving - later.ready),  # with their SMs' drift
        "bytes": (a.bytes, b.bytes),
        "flow": (a.flow, np.where(b.flow < 0, b.flow, b.flow + len(a.flows)).astype(a.flow.dtype)),
        "wait_counter": (a.wait_counter, _moved(b.wait_counter, a.num_counters)),
        "wait_target": (a.wait_target, b.wait_target),
        "signal_counter": (a.signal_counter, _moved(b.signal_counter, a.num_counters)),
    }
    merged: dict[str, Any] = {name: np.concatenate(both) for name, both in columns.items()}
    program = replace(
        a,
        launches=(*a.launches, *launches),
        flows=(*a.flows, *b.flows),
        phase_of_cta=np.concatenate([a.phase_of_cta, b.phase_of_cta[1:] + a.num_phases]),
        num_counters=a.num_counters + b.num_counters,
        drift_ps=None,
        **merged,
    )
    times: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(later, name) + begun])
        for name in ("cta_begin", "end", "reached")
    }
    if program.num_counters:
        times["reached"] = np.concatenate([first.ready, later.ready + begun])
    begins = (first.makespan_ps, *(time + begun for time in later.launch_begin[1:]))
    return Result(
        program=program,
        **times,
        slot=np.concatenate([first.slot, later.slot]),
        launch_begin=(*first.launch_begin, *begins),
        launch_end=(*first.launch_end, *(time + begun for time in later.launch_end)),
        served=first.served + later.served,
    )


def _moved(counter: IntArray, by: int) -> IntArray:
    """Counters behind those of another program."""
    return np.where(counter < 0, counter, counter + by)
