"""Which split rules are batch-invariant, checked exactly, and what invariance costs.

Invariant is a rule that cuts and merges a request alike alone and in every batch tried. What a
kernel may change besides the segments, such as its tile, is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leansim.answers import Tabled
from leansim.engine.execute import Engine
from leansim.errors import LeansimError
from leansim.numerics.invariance import batch_invariance
from leansim.partitioners.fixed_split_size import FixedSplitSize
from leansim.points.asked import asked, named
from leansim.points.point import Point, resolve
from leansim.study.bench import Bench
from leansim.study.rules import Rule, chosen_rules, own_rule

SEEDS = 4  # each of nine batches
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Finding:
    """A rule or an invariant choice: what the check found, and its latency on the point, s."""

    name: str
    label: str
    invariant: bool
    batches: int
    counterexample: str
    latency_s: float


@dataclass(frozen=True, eq=False)
class InvarianceStudy(Tabled):
    """Findings of a point: its own rule first, then others, then invariant choices."""

    point: Point
    own: Finding
    rules: tuple[Finding, ...]
    choices: tuple[Finding, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def best_choice(self) -> Finding:
        """The fastest of the invariant choices: no split, or a split size."""
        return min(self.choices, key=lambda finding: finding.latency_s)

    def cost(self, finding: Finding) -> float:
        """Latency over that of the point's own rule."""
        return finding.latency_s / self.own.latency_s

    def rows(self) -> list[dict[str, Any]]:
        """One row per finding, as tables show it."""
        return [
            {
                "rule": one.label,
                "invariant": "yes" if one.invariant else "no",
                "batches": one.batches,
                "latency_us": f"{one.latency_s * 1e6:.2f}",
                "over_default": f"{self.cost(one):.3f}",
                "counterexample": _shortened(one.counterexample) or None,
            }
            for one in (self.own, *self.rules, *self.choices)
        ]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per finding, in seconds."""
        point = {"device": self.point.device, "kernel": self.point.kernel}
        return [
            {
                **point,
                "rule": one.name,
                "label": one.label,
                "invariant": one.invariant,
                "batches": one.batches,
                "latency_s": one.latency_s,
                "over_default": self.cost(one),
                "counterexample": one.counterexample,
            }
            for one in (self.own, *self.rules, *self.choices)
        ]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """The rows under device and kernel."""
        return {", ".join([named(self.point), *asked(self.point)]): self.rows()}

    def notes(self) -> list[str]:
        """The note."""
        return [self.note()]

    def note(self) -> str:
        """What invariance costs here, in a sentence."""
        best = self.best_choice
        unsplit = next(one for one in self.choices if one.name == _UNSPLIT)
        own = "is" if self.own.invariant else "is not"
        return (
            f"{self.point.device} {self.point.policy}: its own rule {own} batch-invariant; never "
            f"splitting takes {self.cost(unsplit):.2f}x its time, the best invariant choice "
            f"({best.label}) {self.cost(best):.2f}x"
        )


_UNSPLIT = "one split"


def _shortened(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def invariance(
    point: Point,
    rules: Sequence[str] = (),
    seeds: int = SEEDS,
    sizes: Sequence[int] = SIZES,
    engine: Engine = "auto",
) -> InvarianceStudy:
    """Check split rules over many batches on the point's kernel, and time invariant choices.

    `rules` is as in `oracle`. Each of `seeds` tries the batch as it is, shuffled, doubled, and with
    other batch-mates (`numerics.invariance`) until one contradicts. The choices are no split
    and splits of `sizes` tokens. Raises a `LeansimError` where the point makes no sense.
    """
    bench = Bench(resolve(point), engine)
    own = own_rule(bench.resolved)
    findings, refused = [], []
    others = chosen_rules(bench.resolved, rules)
    for rule in others:
        if rule.partitioner == own.partitioner:
            continue
        try:
            findings.append(_finding(bench, rule, seeds))
        except LeansimError as error:
            refused.append((rule.name, str(error)))
    longest = max(bench.resolved.workload.context_lens)
    tile = bench.grid.tile_tokens
    useful = sorted({-(-size // tile) * tile for size in sizes if size < longest})
    choices = [Rule(_UNSPLIT, bench.splits(1))]
    if bench.resolved.kernel.combine is not None:
        choices += [Rule(f"splits of {size:,} tokens", FixedSplitSize(size)) for size in useful]
    return InvarianceStudy(
        point,
        _finding(bench, own, seeds),
        tuple(findings),
        tuple(_finding(bench, choice, seeds) for choice in choices),
        tuple(refused),
    )


def _finding(bench: Bench, rule: Rule, seeds: int) -> Finding:
    resolved, batches, counterexample = bench.resolved, 0, ""
    for seed in range(seeds):
        found = batch_invariance(
            rule.partitioner, resolved.kernel, resolved.device, resolved.workload, seed
        )
        batches += found.batches
        if not found.invariant:
            counterexample = found.counterexample
            break
    label = ", ".join(rule.used_by) or rule.name
    latency = bench.latency_s(rule.partitioner)
    return Finding(rule.name, label, not counterexample, batches, counterexample, latency)
