"""Why one schedule is slower than another on the same kernel: what differs most, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.api import Simulation
from leansim.metrics import SHARES, time_shares

_MORE = 1.05  # a difference below 5% explains nothing


@dataclass(frozen=True)
class Facts:
    """What a simulation's schedule looks like, and where its slots' time goes.

    `sms_used` are SMs that get a CTA with work; `longest_cta` and `mean_cta` are KV tiles of CTAs that
    have any; `slot_s` divides the makespan over what slots spend it on, s (`metrics.SHARES`).
    """

    num_sms: int
    sms_used: int
    slots: int
    num_ctas: int
    busy_ctas: int
    splits: tuple[int, ...]
    longest_cta: int
    mean_cta: float
    latency_s: float
    slot_s: dict[str, float]

    @property
    def mean_splits(self) -> float:
        """Splits of a request, on average."""
        return float(np.mean(self.splits))

    @property
    def splits_text(self) -> str:
        """`1 split`, `8 splits`, or `1-5 splits`."""
        low, high = min(self.splits), max(self.splits)
        return f"{low} split{'s' * (low > 1)}" if low == high else f"{low}-{high} splits"

    @property
    def idle_share(self) -> float:
        """Share of slot time without a CTA."""
        return self.slot_s["idle"] / sum(self.slot_s.values())


def facts_of(simulation: Simulation) -> Facts:
    """Read the facts off a simulation."""
    schedule, result = simulation.schedule, simulation.result
    tiles = schedule.tiles_of_cta
    busy = np.flatnonzero(tiles > 0)
    launch = result.program.attention
    sms = np.unique(result.slot[launch.first_cta + busy] % schedule.grid.num_sms)
    shares = time_shares(result)
    return Facts(
        num_sms=schedule.grid.num_sms,
        sms_used=len(sms),
        slots=schedule.grid.slots,
        num_ctas=schedule.num_ctas,
        busy_ctas=len(busy),
        splits=tuple(schedule.splits_of_request.tolist()),
        longest_cta=int(tiles.max()),
        mean_cta=float(tiles[busy].mean()),
        latency_s=result.latency_s,
        slot_s={name: shares[name] * result.makespan_s for name in SHARES},
    )


def why_slower(slow: Facts, fast: Facts) -> str:
    """Say in words why one schedule takes longer than another of the same workload and kernel."""
    if _few_splits(slow, fast):
        return _too_few(slow, fast)
    overhead = [sum(facts.slot_s[name] for name in _OVERHEADS) for facts in (slow, fast)]
    if slow.mean_splits > _MORE * fast.mean_splits and overhead[0] > overhead[1]:
        return (
            f"too many splits ({slow.splits_text}, {fast.splits_text} at best): starting CTAs and merging "
            f"partials take {_us(overhead[0])} of a slot's time, {_us(overhead[1])} there"
        )
    if slow.longest_cta > _MORE * fast.longest_cta:
        return (
            f"uneven CTAs: the longest has {slow.longest_cta:,} KV tiles and the mean "
            f"{slow.mean_cta:,.0f}, {fast.longest_cta:,} at most there"
        )
    return _largest(slow, fast)


# Everything but streaming KV and having nothing to do.
_OVERHEADS = ("launch", "ramp", "write", "wait", "merge", "combine")
_WORDS = {
    "launch": "placing CTAs takes",
    "ramp": "starting runs takes",
    "stream": "streaming KV takes",
    "write": "writing results takes",
    "wait": "waiting for other CTAs' partials takes",
    "merge": "merging partials in the launch takes",
    "combine": "the combine kernel takes",
    "idle": "slots are idle for",
}


def _few_splits(slow: Facts, fast: Facts) -> bool:
    longer = slow.longest_cta > _MORE * fast.longest_cta
    return longer and max(slow.splits) < max(fast.splits) and slow.busy_ctas < fast.busy_ctas


def _too_few(slow: Facts, fast: Facts) -> str:
    empty = slow.num_sms - slow.sms_used
    where = f", {empty} of {slow.num_sms} SMs without one" if empty else ""
    what = "never split" if max(slow.splits) == 1 else f"too few splits ({slow.splits_text})"
    return (
        f"{what}: {slow.busy_ctas:,} CTAs{where}, up to {slow.longest_cta:,} KV tiles each and "
        f"{slow.idle_share:.0%} of slot time idle; {fast.splits_text} make it {fast.longest_cta:,}"
    )


def _largest(slow: Facts, fast: Facts) -> str:
    """The part of the slots' time that grew most."""
    grown = {name: slow.slot_s[name] - fast.slot_s[name] for name in SHARES}
    name = max(grown, key=lambda name: grown[name])
    return f"{_WORDS[name]} {_us(slow.slot_s[name])} of a slot's time, {_us(fast.slot_s[name])} there"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
