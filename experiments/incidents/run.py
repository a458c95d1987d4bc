"""Runs the incidents: RESULTS.md with claimed and simulated effects side by side, and the pins.

python experiments/incidents/run.py [-o FOLDER]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansim.answers import render
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import Document, read
from leansim.files.writing import write_whole
from leansim.points.point import Point, resolve
from leansim.points.simulate import Simulation
from leansim.specs.catalog import validate
from leansim.study.bench import Bench
from leansim.study.oracle import search
from leansim.study.reasons import facts_of, why_slower
from leansim.study.rules import own_rule

HERE = Path(__file__).resolve().parent
CLOSE = 1.6
PINS = ("id", "before_ns", "after_ns", "best_ns")


@dataclass(frozen=True, eq=False)
class Incident:
    """A report, its call before and after, and what came of them; `best_s` is the best split count's."""

    entry: dict[str, Any]
    before: Simulation
    after: Simulation
    best_s: float
    best_cuts: str

    @property
    def simulated(self) -> float:
        """Latency before over latency after."""
        return self.before.result.latency_s / self.after.result.latency_s

    @property
    def claimed(self) -> tuple[float, float] | None:
        """The report's ratio, if it has one."""
        low, high = self.entry.get("claimed") or (None, None)
        return None if low is None else (float(low), float(high))

    @property
    def verdict(self) -> str:
        """How the model stands to the report.

        Of a kernel: `size` if the logarithms of the two ratios are within a factor of `CLOSE`, else
        `direction`, or `not reproduced`. Of a decode step: attention alone must gain at least as much,
        else `less`, or `not reproduced`.
        """
        if self.claimed is None:
            return "no number"
        low, high = self.claimed
        if self.entry["of"] == "step":
            return "size" if self.simulated >= low else _direction(self.simulated, "less")
        near = low ** (1 / CLOSE) <= self.simulated <= high**CLOSE
        return "size" if near else _direction(self.simulated, "direction")

    @property
    def idle_sms(self) -> float:
        """Share of the SMs that get no CTA with work before."""
        facts = facts_of(self.before)
        return 1.0 - facts.sms_used / facts.num_sms

    def pins(self) -> dict[str, Any]:
        """What is pinned."""
        times = (self.before.result.latency_s, self.after.result.latency_s, self.best_s)
        rounded = [round(time * 1e9, 3) for time in times]
        return dict(zip(PINS, (self.entry["id"], *rounded), strict=True))


def _direction(ratio: float, name: str) -> str:
    return name if ratio > 1.03 else "not reproduced"


def incidents() -> list[dict[str, Any]]:
    """The reports of incidents.yaml."""
    entries: list[dict[str, Any]] = read(HERE / "incidents.yaml").data
    return entries


def point_of(entry: dict[str, Any], over: dict[str, Any]) -> Point:
    """A call with what is different about it."""
    return validate(Point, Document(entry["id"], {**entry["call"], **over}, {}))


def run_incident(entry: dict[str, Any]) -> Incident:
    """Simulate a report's two calls, and search the split counts of the one before."""
    bench = Bench(resolve(point_of(entry, entry["before"])))
    before = bench.simulation(bench.own)
    found = search(bench, [own_rule(bench.resolved)], budget=100)
    if entry["after"] == "best":
        after = bench.simulation(found.found.partitioner)
    else:
        other = Bench(resolve(point_of(entry, entry["after"])))
        after = other.simulation(other.own)
    return Incident(entry, before, after, found.found.latency_s, found.found.cuts)


def row(incident: Incident) -> dict[str, Any]:
    """One row of the table."""
    facts = facts_of(incident.before), facts_of(incident.after)
    low_high = incident.claimed
    claimed = "-" if low_high is None else "-".join(f"{x:.2f}x" for x in dict.fromkeys(low_high))
    cuts = [facts_of_one.splits_text for facts_of_one in facts]
    return {
        "incident": incident.entry["id"],
        "report": incident.entry["report"],
        "claimed": claimed if low_high is None else f"{claimed} of the {incident.entry['of']}",
        "simulated": f"{incident.simulated:.2f}x",
        "verdict": incident.verdict,
        "before_us": f"{incident.before.result.latency_s * 1e6:.1f}",
        "after_us": f"{incident.after.result.latency_s * 1e6:.1f}",
        "splits": f"{cuts[0]} -> {cuts[1]}",
        "SMs without a CTA before": f"{incident.idle_sms:.0%}",
        "best splits": f"{incident.best_cuts} ({incident.best_s * 1e6:.1f} us)",
    }


def told(incident: Incident) -> str:
    """What the report says, and why the model finds what it finds."""
    before, after = facts_of(incident.before), facts_of(incident.after)
    slower, faster = (before, after) if incident.simulated >= 1.0 else (after, before)
    which = "Before is slower" if incident.simulated >= 1.0 else "After is slower"
    says = f"- **{incident.entry['id']}** ({incident.entry['report']}): {incident.entry['says']}."
    return f"{says} {which}: {why_slower(slower, faster)}."


def main() -> None:
    """Run every incident, write the results and the pins."""
    out = parser_of(__doc__, HERE).parse_args().out
    found = [run_incident(entry) for entry in incidents()]
    write_whole(out / "expected.csv", render([incident.pins() for incident in found], "csv") + "\n")
    parts = [
        "# Results\n\nWritten by `run.py`; do not edit.",
        render([row(incident) for incident in found], "md"),
        "\n".join(told(incident) for incident in found),
    ]
    write_whole(out / "RESULTS.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
