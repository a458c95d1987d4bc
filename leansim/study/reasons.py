"""Why one schedule is slower than another on the same kernel: what grew most, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.engine.program import PS_PER_S, Phase
from leansim.engine.result import Result
from leansim.points.simulate import Simulation

PATH = ("before", "queue", "launch", "ramp", "stream", "wait", "merge", "write", "combine")
_MORE = 1.05  # split counts that differ by less are called the same


@dataclass(frozen=True)
class Facts:
    """What a simulation's schedule looks like, and how its latency adds up.

    `sms_used` are SMs that get a CTA with work; `longest_cta` and `mean_cta` are KV tiles of CTAs that
    have any. `path_s` divides the latency, s, along the CTA that ends the attention launch: what comes
    `before` that launch, the `queue` for a slot, the CTA's own phases, and the `combine` kernel after
    it with its gap. `last_cta` is that CTA's KV tiles, `merged` the most partials merged for a row.
    """

    num_sms: int
    sms_used: int
    slots: int
    num_ctas: int
    busy_ctas: int
    splits: tuple[int, ...]
    longest_cta: int
    mean_cta: float
    last_cta: int
    merged: int
    latency_s: float
    path_s: dict[str, float]

    @property
    def mean_splits(self) -> float:
        """Splits of a request, on average."""
        return float(np.mean(self.splits))

    @property
    def splits_text(self) -> str:
        """`1`, `8`, or `1-5`."""
        low, high = min(self.splits), max(self.splits)
        return str(low) if low == high else f"{low}-{high}"


def facts_of(simulation: Simulation) -> Facts:
    """Read the facts off a simulation."""
    schedule, result = simulation.schedule, simulation.result
    tiles = schedule.tiles_of_cta
    busy = np.flatnonzero(tiles > 0)
    launch = result.program.attention
    sms = np.unique(result.slot[launch.first_cta + busy] % schedule.grid.num_sms)
    last = int(np.argmax(result.cta_end[launch.first_cta : launch.last_cta]))
    assert schedule.partials is not None
    return Facts(
        num_sms=schedule.grid.num_sms,
        sms_used=len(sms),
        slots=schedule.grid.slots,
        num_ctas=schedule.num_ctas,
        busy_ctas=len(busy),
        splits=tuple(schedule.splits_of_request.tolist()),
        longest_cta=int(tiles.max()),
        mean_cta=float(tiles[busy].mean()),
        last_cta=int(tiles[last]),
        merged=int(schedule.partials.max()),
        latency_s=result.latency_s,
        path_s=_path_s(result, launch.first_cta + last),
    )


def _path_s(result: Result, cta: int) -> dict[str, float]:
    """Divide the latency along a CTA of the attention launch; sums to the latency if it ends last."""
    program = result.program
    index = program.launches.index(program.attention)
    placed = result.launch_begin[index] + program.attention.gap_ps
    path = dict.fromkeys(PATH, 0)
    path["before"] = program.launch_ps + placed
    path["queue"] = int(result.cta_begin[cta]) - placed
    path["combine"] = result.makespan_ps - result.launch_end[index]
    for i in range(int(program.phase_of_cta[cta]), int(program.phase_of_cta[cta + 1])):
        phase = Phase(int(program.kind[i]))
        begin, ready = int(result.begin[i]), int(result.ready[i])
        path["wait"] += ready - begin
        path[phase.name.lower()] += int(result.end[i]) - ready
    return {name: taken / PS_PER_S for name, taken in path.items()}


def why_slower(slow: Facts, fast: Facts) -> str:
    """Say why one schedule takes longer than another of the same workload on the same kernel."""
    queued = max(slow.path_s["queue"], fast.path_s["queue"]) > 0
    slow_s, fast_s = _told_s(slow, queued), _told_s(fast, queued)
    name = max(slow_s, key=lambda name: slow_s[name] - fast_s[name])
    times = f"{_us(slow_s[name])}, {_us(fast_s[name])} at best"
    queues = "waits for a slot and " if queued else ""
    merged = f"{fast.merged} of them {_us(fast_s[name])}" if fast.merged else "none"
    causes = {
        "queue": "",  # counted as streaming
        "before": f"what comes before the attention launch takes {times}",
        "launch": f"placing the CTA that ends last takes {times}",
        "ramp": f"the CTA that ends last starts its runs in {times}",
        "stream": (
            f"the CTA that ends last {queues}streams {slow.last_cta:,} KV tiles for "
            f"{_us(slow_s[name])}, {fast.last_cta:,} for {_us(fast_s[name])} at best"
        ),
        "wait": f"the CTA that ends last waits for others' partials for {times}",
        "merge": f"the CTA that ends last merges partials for {times}",
        "write": f"the CTA that ends last writes for {times}",
        "combine": (
            f"merging {slow.merged} partials in a second kernel takes {_us(slow_s[name])}, "
            f"{merged} at best"
        ),
    }
    return f"{_counts(slow, fast)}{causes[name]}"


def _told_s(facts: Facts, queued: bool) -> dict[str, float]:
    """The path with the queue for a slot counted as streaming: it is other CTAs' work.

    That includes the starts and writes of theirs, so that with a queue its own count there too.
    """
    path = dict(facts.path_s)
    for name in ("queue", "launch", "ramp", "write") if queued else ("queue",):
        path["stream"] += path[name]
        path[name] = 0.0
    return path


def _counts(slow: Facts, fast: Facts) -> str:
    """How the split counts differ, and what that leaves empty."""
    if max(slow.splits) == 1 < max(fast.splits):
        text = f"never split (best {fast.splits_text}): "
    elif slow.mean_splits * _MORE < fast.mean_splits:
        text = f"fewer splits ({slow.splits_text}, best {fast.splits_text}): "
    elif slow.mean_splits > _MORE * fast.mean_splits:
        text = f"more splits ({slow.splits_text}, best {fast.splits_text}): "
    else:
        return ""
    empty = slow.num_sms - slow.sms_used
    if empty and slow.mean_splits < fast.mean_splits:
        ctas = f"{slow.busy_ctas:,} CTAs leave" if slow.busy_ctas > 1 else "one CTA leaves"
        text += f"{ctas} {empty} of {slow.num_sms} SMs empty; "
    return text


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
