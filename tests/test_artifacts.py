"""What a run leaves in its folder: tables, curves, and timelines that Perfetto can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import leansim
from leansim.files.strict_yaml import Document
from leansim.points.grid import build
from leansim.report.run import write_run
from leansim.results.perfetto import trace_events, write_trace
from leansim.sweeps.run import Run


def run(**changes: Any) -> Run:
    fields = {"name": "test", "device": "h100_sxm", "kernel": ["fa2", "lean"], "batch_size": 2}
    shape = {"context_len": 4000, "num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128}
    done: Run = leansim.run(build(Document("test", {**fields, **shape, **changes}, {})))
    return done


def test_a_run_has_a_curve_per_axis_and_speedups(tmp_path: Path) -> None:
    done = run(baseline="fa2", curve={"context_scale": [4, 0.5, 1], "batch_size": [1, 4]})
    names = {path.name for path in write_run(done, tmp_path)}
    for axis, values in (("context_scale", [4, 0.5, 1]), ("batch_size", [1, 4])):
        assert {f"curve_{axis}.csv", f"speedup_curve_{axis}.png"} <= names
        table = pd.read_csv(tmp_path / f"curve_{axis}.csv")
        assert list(dict.fromkeys(table[axis])) == values
        assert table["policy"].tolist() == ["fa2", "lean"] * len(values)
        assert (table["speedup"][table["policy"] == "fa2"] == 1).all()
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["speedup"].tolist() == [done.speedup(s) for s in done.simulations]


def test_a_run_without_another_kernel_draws_latency(tmp_path: Path) -> None:
    done = run(kernel="fa2", baseline="fa2", curve={"context_scale": [0.5, 1]})
    names = {path.name for path in write_run(done, tmp_path)}
    assert {"curve.csv", "latency_curve.png"} <= names
    assert "speedup_curve.png" not in names


def events_of(kernel: str, **changes: Any) -> list[dict[str, Any]]:
    (simulation,) = run(kernel=kernel, **changes).simulations
    return trace_events(simulation.result)


@pytest.mark.parametrize("kernel", ["fa2", "lean", "flash_decoding"])
def test_slices_take_time_and_do_not_overlap(kernel: str) -> None:
    slices = [event for event in events_of(kernel, batch_size=64) if event["ph"] == "X"]
    assert min(event["dur"] for event in slices) > 0
    assert all(int(event["ts"] * 1000) == round(event["ts"] * 1000) for event in slices)
    ends: dict[tuple[int, int], int] = {}
    for event in sorted(slices, key=lambda event: event["ts"]):
        begin = int(event["ts"] * 1000)  # as Perfetto reads it
        assert begin >= ends.get((event["pid"], event["tid"]), 0)
        ends[event["pid"], event["tid"]] = begin + int(event["dur"] * 1000)


def test_each_arrow_joins_the_write_of_a_peer_to_the_merge_of_its_host() -> None:
    events = events_of("lean")
    slices = [event for event in events if event["ph"] == "X"]
    arrows = {kind: [event for event in events if event["ph"] == kind] for kind in "sf"}
    starts = {event["id"]: event for event in arrows["s"]}
    assert len(starts) == len(arrows["s"]) == len(arrows["f"]) > 8
    assert {event["id"] for event in arrows["f"]} == set(starts)

    def around(event: dict[str, Any]) -> set[str]:
        thread = [s for s in slices if (s["pid"], s["tid"]) == (event["pid"], event["tid"])]
        return {s["name"] for s in thread if s["ts"] < event["ts"] < s["ts"] + s["dur"]}

    for event in arrows["f"]:
        start = starts[event["id"]]
        assert around(start) == {"write"}
        assert around(event) == {"merge"}
        assert event["ts"] > start["ts"]


def test_a_timeline_is_valid_json(tmp_path: Path) -> None:
    (simulation,) = run(kernel="lean").simulations
    write_trace(simulation.result, tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text(), parse_constant=pytest.fail)
    assert {"X", "M", "C", "s", "f"} == {event["ph"] for event in read["traceEvents"]}
    assert all(math.isfinite(event.get("ts", 0)) for event in read["traceEvents"])
