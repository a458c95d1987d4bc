"""Rows as text: an aligned table, JSON, CSV or Markdown; and the sentences under a run's table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from leansim.api import Run
from leansim.numerics.invariance import Invariance
from leansim.numerics.verify import Verification
from leansim.points.point import Point
from leansim.points.simulate import Simulation

Row = Mapping[str, Any]


def render(rows: Sequence[Row], form: str, title: str = "") -> str:
    """Write rows in a format: `table`, `json`, `csv` or `md`."""
    if form == "json":
        return json.dumps([dict(row) for row in rows], indent=2, default=str)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if form == "md":
        lines = [columns, ["---"] * len(columns), *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(_numeric(row.get(column)) for row in rows) for column in columns]
    rule = "  ".join("-" * width for width in widths)
    body = [_line(line, widths, numeric) for line in (columns, *cells)]
    return "\n".join([*([title] if title else []), body[0], rule, *body[1:]])


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = zip(cells, widths, numeric, strict=True)
    return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in padded).rstrip()


def _numeric(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or str(value)[:1].isdigit()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_rows(run: Run) -> list[dict[str, Any]]:
    """One row per kernel and device: the numbers a person compares first."""
    rows = []
    for simulation in run.simulations:
        m, plan = simulation.metrics, simulation.row
        row = {
            "device": simulation.point.device,
            "kernel": simulation.point.policy,
            "latency_us": f"{m.latency_s * 1e6:.2f}",
            "speedup": None if (s := run.speedup(simulation)) is None else f"{s:.3f}",
            "ctas": plan["num_ctas"],
            "waves": f"{m.num_waves:.2f}",
            "splits": plan["num_splits"],
            "sm_busy": f"{m.sm_busy_fraction:.0%}",
            "dram": f"{m.dram_utilisation:.0%}",
            "of_roofline": f"{m.roofline_fraction:.0%}",
            "tail_us": f"{m.tail_s * 1e6:.1f}",
            "wait": f"{m.share_wait:.1%}",
            "combine": f"{m.share_combine + m.share_merge:.1%}",
            "idle": f"{m.share_idle:.0%}",
            "bound": m.bound,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def run_records(run: Run) -> list[dict[str, Any]]:
    """One flat record per kernel and device, for other programs: point, metrics, speedup."""
    return [
        {
            **s.point.model_dump(mode="json", by_alias=True, exclude_unset=True),
            **s.row,
            "speedup": run.speedup(s),
        }
        for s in run.simulations
    ]


def run_notes(run: Run) -> list[str]:
    """What the table does not say: the floor, who won and by how much, what the numbers rest on."""
    notes = []
    for device in dict.fromkeys(s.point.device for s in run.simulations):
        mine = [s for s in run.simulations if s.point.device == device]
        notes.append(_verdict(device, mine))
        spec = mine[0].resolved.device
        counts = ", ".join(f"{n} {label}" for label, n in spec.source_counts().items() if n)
        notes.append(f"  {device} rests on {counts} numbers (`leansim show {device}`).")
    if any(s.resolved.workload.kv_bytes > s.resolved.device.dram_bytes for s in run.simulations):
        notes.append("The KV cache of this batch does not fit in the memory of every device here.")
    notes.append("Modelled, not measured; docs/accuracy.md has the error against measured kernels.")
    return notes


def _verdict(device: str, simulations: Sequence[Simulation]) -> str:
    floor = simulations[0].metrics.roofline_s * 1e6
    ranked = sorted(simulations, key=lambda s: s.result.latency_s)
    best = ranked[0]
    text = f"{device}: floor {floor:.2f} us; fastest is {best.point.policy}"
    for other in ranked[1:]:
        ratio = other.result.latency_s / best.result.latency_s
        text += f"; {other.point.policy} takes {ratio:.2f}x its time"
    return text + "."


def verify_note(point: Point, verification: Verification, invariance: Invariance) -> str:
    """Say how far a verification went, and whether the batch changes how a request is cut."""
    cover = "exact" if verification.cover.exact else verification.cover.problem
    batch = "batch-invariant" if invariance.invariant else "not batch-invariant"
    if invariance.counterexample:
        batch += f": {invariance.counterexample}"
    return (
        f"{point.device} {point.policy}: cover {cover}; replayed {verification.replayed_tiles:,} of "
        f"{verification.cover.output_tiles:,} output tiles "
        f"({verification.replayed_patterns} of {verification.patterns} ways of cutting); {batch}"
    )
