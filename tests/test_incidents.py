"""Published studies: incidents go the way they were reported, and pins are what is simulated now.

A change that moves the pins is a model change: run the experiment's `run.py` again, and say why.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from leansim.partitioners.sglang_triton import dynamic_splits
from leansim.points.grid import load
from leansim.points.simulate import simulate
from leansim.study.reasons import facts_of

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"run_{name}", EXPERIMENTS / name / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RUN = script("incidents")
ENTRIES = {entry["id"]: entry for entry in RUN.incidents()}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return {name: RUN.run_incident(entry) for name, entry in ENTRIES.items()}


def test_every_report_is_named_once_and_says_what_it_claims() -> None:
    assert len(ENTRIES) == len(RUN.incidents()) >= 12
    for entry in ENTRIES.values():
        assert entry["report"]
        assert entry["says"]
        assert ("claimed" in entry) == ("of" in entry)
        assert entry.get("of", "kernel") in ("kernel", "step")


def test_nothing_found_by_search_is_slower_than_before(found: dict[str, Any]) -> None:
    for incident in found.values():
        assert 0.0 < incident.best_s <= incident.before.result.latency_s
        if incident.entry["after"] == "best":
            assert incident.after.result.latency_s == incident.best_s


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("fa3_low_tile", 1.05),
        ("fa3_idle_sms", 1.2),
        ("xqa_collapse", 1.02),
        ("flashinfer_capacity", 1.05),
        ("vllm_frozen_32", 1.0),
        ("vllm_fa2_frozen_length", 1.5),
        ("vllm_fa2_mha", 2.0),
        ("vllm_triton_2d", 1.0),
        ("fa4_one_split", 2.0),
        ("fa3_forced_unsplit", 5.0),
    ],
)
def test_the_direction_is_the_reports(found: dict[str, Any], name: str, least: float) -> None:
    assert found[name].simulated > least


def test_idle_sms_are_those_of_the_reports(found: dict[str, Any]) -> None:
    assert found["fa3_idle_sms"].idle_sms > 0.9
    assert facts_of(found["vllm_frozen_32"].before).sms_used == 32
    assert facts_of(found["fa3_forced_unsplit"].before).busy_ctas == 4
    assert set(facts_of(found["flashinfer_capacity"].before).splits) == {1}


def test_sglang_asks_for_29_splits_of_256_tokens() -> None:
    splits = dynamic_splits(np.array([256]), work=8, num_sms=114, max_kv_splits=32)
    assert splits.tolist() == [29]


def test_multi_head_attention_is_not_split_and_grouped_heads_are(found: dict[str, Any]) -> None:
    incident = found["vllm_fa2_mha"]
    assert max(incident.before.schedule.splits_of_request) == 1
    assert max(incident.after.schedule.splits_of_request) > 1


def test_verdicts() -> None:
    class Ratio(RUN.Incident):  # type: ignore[misc, name-defined]
        simulated = 1.3

    def verdict(**entry: Any) -> str:
        text: str = Ratio(entry, None, None, 0.0, "").verdict
        return text

    assert verdict() == "no number"
    assert verdict(claimed=[1.2, 1.2], of="kernel") == "size"
    assert verdict(claimed=[1.5, 1.6], of="kernel") == "size"
    assert verdict(claimed=[1.1, 1.15], of="kernel") == "direction"
    assert verdict(claimed=[3.0, 3.0], of="kernel") == "direction"
    assert verdict(claimed=[1.3, 1.3], of="step") == "size"
    assert verdict(claimed=[2.0, 2.0], of="step") == "less"
    Ratio.simulated = 0.9
    assert verdict(claimed=[2.0, 2.0], of="step") == "not reproduced"


def test_incidents_are_pinned(found: dict[str, Any]) -> None:
    rows = csv.DictReader((EXPERIMENTS / "incidents" / "expected.csv").read_text().splitlines())
    pins = {row["id"]: row for row in rows}
    assert list(pins) == list(ENTRIES)
    for name, incident in found.items():
        for column, value in incident.pins().items():
            if column != "id":
                assert value == pytest.approx(float(pins[name][column]), abs=2e-3), (name, column)
    results = (EXPERIMENTS / "incidents" / "RESULTS.md").read_text()
    assert all(f"| {name} |" in results for name in ENTRIES)


def test_the_summaries_read_a_table() -> None:
    run = script("schedulers_on_traces")
    folder = EXPERIMENTS / "schedulers_on_traces"
    grid = load(folder / "sweep.yaml")
    assert (folder / "RESULTS.md").read_text().index("Where LeanAttention loses") < 200
    assert run.LEAN in {point.policy for point in grid.points()}
    assert {point.model for point in grid.points()} == set(run.KV_HEADS)
    for point in grid.points()[::97]:
        heads = simulate(point).resolved.workload.num_kv_heads
        assert heads == run.KV_HEADS[point.model]
