"""Says in a paragraph where a point's time goes and what would help; every number is the run's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from leansim.answers import Tabled
from leansim.engine.execute import Engine
from leansim.errors import LeansimError
from leansim.points.asked import call_columns, cautions, described
from leansim.points.point import Point, resolve
from leansim.points.simulate import Simulation
from leansim.results.metrics import SHARES
from leansim.study.bench import Bench
from leansim.study.oracle import BUDGET, Oracle, Policy, search
from leansim.study.reasons import Facts, facts_of, why_slower
from leansim.study.rules import Rule, chosen_rules, own_rule
from leansim.sweeps.compare import TIE

LEAN = "lean"  # the kernel whose rule is LeanAttention's
_MOST_GROUPS, _MOST_NAMES = 4, 2
_SHOWN_SHARE = 0.03
_SPENT = {
    "launch": "placing CTAs",
    "ramp": "starting segments",
    "stream": "streaming KV",
    "write": "writing results",
    "wait": "waiting for other CTAs' partials",
    "merge": "merging in the launch",
    "combine": "the combine kernel",
    "travel": "waiting for what travels between GPUs",
    "idle": "idle",
}
_LIMITS = {
    "bandwidth": "DRAM bandwidth is what limits it",
    "idle": "idle slots are what limits it",
    "wait": "waiting for partials is what limits it",
    "combine": "merging partials is what limits it",
    "travel": "what travels between GPUs is what limits it",
    "cta": "what one CTA can stream is what limits it",
    "overhead": "starting CTAs and segments is what limits it",
}


@dataclass(frozen=True, eq=False)
class Explanation(Tabled):
    """What was run, and what there is to say of it.

    `simulation` is the point's own, `oracle` what else was tried on its kernel, `lean` the simulation
    of LeanAttention's schedule on the same kernel, None where it refuses the workload.
    """

    simulation: Simulation
    oracle: Oracle
    facts: Facts
    lean: Simulation | None
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The paragraph."""
        return " ".join(self.sentences)

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """No tables: a paragraph says it."""
        return {}

    def notes(self) -> list[str]:
        """The paragraph, and what the times rest on."""
        return [self.text, *self.simulation.notes()]

    def records(self) -> list[dict[str, Any]]:
        """The record, alone."""
        return [self.record()]

    def record(self) -> dict[str, Any]:
        """The numbers that the paragraph rests on, in seconds and shares, for other programs."""
        metrics, facts = self.simulation.metrics, self.facts
        shares = {f"share_{name}": getattr(metrics, f"share_{name}") for name in SHARES}
        return {
            "device": self.simulation.point.device,
            "policy": self.simulation.point.policy,
            **call_columns(self.simulation.point, self.simulation.resolved.workload),
            "latency_s": metrics.latency_s,
            "roofline_s": metrics.roofline_s,
            "bound_s": self.oracle.bound.latency_s,
            "busy_ctas": facts.busy_ctas,
            "num_sms": facts.num_sms,
            "sms_used": facts.sms_used,
            "longest_cta_tiles": facts.longest_cta,
            "mean_cta_tiles": facts.mean_cta,
            "dram_utilisation": metrics.dram_utilisation,
            "limit": metrics.bound,
            **shares,
            "best_splits": self.oracle.found.cuts,
            "best_splits_s": self.oracle.found.latency_s,
            "fastest": self.oracle.best.label,
            "fastest_s": self.oracle.best.latency_s,
            "lean_s": None if self.lean is None else self.lean.result.latency_s,
            "text": self.text,
        }


def explain(
    point: Point, rules: Sequence[str] = (), budget: int = BUDGET, engine: Engine = "auto"
) -> Explanation:
    """Simulate a point, search its split counts, run split rules beside it, and say what came of it.

    `rules` and `budget` are as in `oracle`. Raises a `LeansimError` where the point makes no sense.
    """
    bench = Bench(resolve(point), engine)
    own = own_rule(bench.resolved)
    simulation = bench.simulation(own.partitioner)
    others = chosen_rules(bench.resolved, rules)
    run = (own, *(rule for rule in others if rule.partitioner != own.partitioner))
    found = search(bench, run, budget=budget)
    lean = _lean(bench)
    facts = facts_of(simulation)
    sentences = (
        _headline(simulation, found),
        _placing(simulation, facts),
        _spending(simulation),
        _helping(simulation, found),
        *_others(found, own),
        _about_lean(bench, found, lean),
        *cautions(bench.resolved),
    )
    return Explanation(simulation, found, facts, lean, sentences)


def _lean(bench: Bench) -> Simulation | None:
    (rule,) = chosen_rules(bench.resolved, (LEAN,))
    try:
        return bench.simulation(rule.partitioner)
    except LeansimError:
        return None


def _headline(simulation: Simulation, found: Oracle) -> str:
    point, latency = simulation.point, simulation.result.latency_s
    ratio = latency / found.bound.latency_s
    return (
        f"{point.policy} on {point.device}, {described(simulation.resolved)}{_layers(simulation)}: "
        f"{_us(latency)}, "
        f"{ratio:.2f}x the {_us(found.bound.latency_s)} that no schedule of this kernel can beat."
    )


def _layers(simulation: Simulation) -> str:
    """Which layers of how many, where the model's are not all alike."""
    share = simulation.resolved.share
    if share is None or not share.is_mixed:
        return ""
    return f" ({share.layers.describe()} of {share.model.num_layers} layers)"


def _placing(simulation: Simulation, facts: Facts) -> str:
    """CTAs against SMs, and how even they are."""
    each = simulation.schedule.grid.ctas_per_sm
    text = f"{facts.busy_ctas:,} CTAs on {facts.num_sms} SMs that hold {each} each"
    if facts.num_ctas > facts.busy_ctas:
        text = f"{text}, and {facts.num_ctas - facts.busy_ctas:,} without KV tiles"
    empty = facts.num_sms - facts.sms_used
    if empty:
        text += f": {empty / facts.num_sms:.0%} of the SMs never get one with work"
    else:
        text += f" are {simulation.schedule.num_waves:.2f} waves"
    if facts.longest_cta > 1.05 * facts.mean_cta:
        text += f"; the longest CTA has {facts.longest_cta:,} KV tiles, the mean {facts.mean_cta:,.0f}"
    return f"{text}."


def _spending(simulation: Simulation) -> str:
    """The largest shares of slot time, and the limit."""
    metrics = simulation.metrics
    shares = {name: getattr(metrics, f"share_{name}") for name in SHARES}
    largest = sorted(shares, key=lambda name: -shares[name])[:3]
    told = [f"{shares[name]:.0%} {_SPENT[name]}" for name in largest if shares[name] >= _SHOWN_SHARE]
    return (
        f"Slot time: {', '.join(told)}; DRAM runs at {metrics.dram_utilisation:.0%} of its peak; "
        f"{_LIMITS[metrics.bound]}."
    )


def _helping(simulation: Simulation, found: Oracle) -> str:
    latency, best = simulation.result.latency_s, found.found
    ratio = latency / best.latency_s
    if ratio < 1 + TIE:
        return f"No split count found is more than {TIE:.1%} faster."
    many = "no split" if max(best.splits) == 1 else _splits(best)
    return f"{many} would be {_faster(ratio)} ({_us(best.latency_s)})."


def _others(found: Oracle, own: Rule) -> Iterator[str]:
    """What other rules pick on these tiles, those that cut alike together."""
    groups: dict[tuple[str, str], list[Policy]] = {}
    for policy in found.ranked:
        if policy in found.policies and policy.partitioner != own.partitioner:
            groups.setdefault((policy.cuts, _us(policy.latency_s)), []).append(policy)
    if not groups:
        return
    told = []
    for (cuts, latency), members in list(groups.items())[:_MOST_GROUPS]:
        names = [name for member in members for name in (member.used_by or (member.name,))]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        verbs = ("do not split", "pick") if len(names) > 1 else ("does not split", "picks")
        picks = verbs[0] if cuts == "1" else f"{verbs[1]} {cuts}"
        told.append(f"{', '.join(names[:_MOST_NAMES])}{more} {picks} ({latency})")
    left = len(groups) - len(told)
    rest = f"; {left} other choices are slower" if left else ""
    yield f"Split rules on this kernel: {'; '.join(told)}{rest}."


def _about_lean(bench: Bench, found: Oracle, lean: Simulation | None) -> str:
    """How LeanAttention's schedule stands to the best split counts, and why it loses where it does."""
    if lean is None:
        return "LeanAttention does not take this workload on this kernel."
    best = found.found
    ratio = lean.result.latency_s / best.latency_s
    time = _us(lean.result.latency_s)
    if abs(ratio - 1) < TIE:
        return f"LeanAttention's equal shares take {time}, as long as the best split counts."
    if ratio < 1:
        told = f"{_faster(1 / ratio)} than the best split counts"
        first = found.best
        if first.latency_s < lean.result.latency_s * (1 - TIE):
            told += (
                f" in that order of CTAs, slower than {first.name} in its own ({_us(first.latency_s)})"
            )
        return f"LeanAttention's equal shares take {time}: {told}."
    reason = why_slower(facts_of(lean), facts_of(bench.simulation(best.partitioner)))
    return f"LeanAttention loses here: {time}, {_slower(ratio)} than {_splits(best)}; {reason}."


def _splits(policy: Policy) -> str:
    return f"{policy.cuts} split" + ("" if max(policy.splits) == 1 else "s")


def _faster(ratio: float) -> str:
    return f"{ratio:.1f}x faster" if ratio >= 1.5 else f"{ratio - 1:.1%} faster"


def _slower(ratio: float) -> str:
    return f"{ratio:.1f}x slower" if ratio >= 1.5 else f"{ratio - 1:.1%} slower"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
