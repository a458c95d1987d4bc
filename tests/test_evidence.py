"""What a point's times rest on, and that the files which say so are those of the experiments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import leansim
from leansim.points.grid import PointGrid, load
from leansim.points.point import resolve
from leansim.specs.evidence import (
    CLASSES,
    COLUMNS,
    MEASURED,
    Grounds,
    class_error,
    measurements,
    origin,
    told,
)
from leansim.specs.workload import Workload
from leansim.sweeps.sweep import sweep

ROOT = Path(__file__).resolve().parent.parent
# Inside what a published table covers.
CALL: dict[str, Any] = {
    "device": "a100_sxm_80gb", "kernel": "vllm_fa2", "batch_size": 8, "context_len": 4096,
    "cache": "warm", "page_tokens": 64, "num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128,
}  # fmt: skip
# Inside what was timed on our own card.
OWN = {**CALL, "device": "h200_sxm", "kernel": "vllm_fa3", "cache": "cold", "page_tokens": 16}
RAGGED = {"batch_size": None, "context_len": None, "context_lens": [512, 2048, 8192, 4096]}


def grounds(**fields: Any) -> Grounds:
    return resolve(leansim.point(**fields)).grounds


def test_the_files_are_those_of_the_experiments(tmp_path: Path) -> None:
    """Else run `python experiments/evidence/run.py`."""
    script = str(ROOT / "experiments" / "evidence" / "run.py")
    done = subprocess.run(
        [sys.executable, script, "-o", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for file in (MEASURED, CLASSES):
        assert (tmp_path / file.name).read_text() == file.read_text()
    page = (ROOT / "docs" / "accuracy.md").read_text()
    shown = page.partition("<!-- rings -->\n")[2].partition("<!-- /rings -->")[0]
    assert (tmp_path / "rings.md").read_text().strip() == shown.strip()


@pytest.mark.parametrize("fields", [CALL, OWN, {**OWN, **RAGGED}, {**OWN, "page_tokens": 64}])
def test_what_was_timed_is_measured(fields: dict[str, Any]) -> None:
    found = grounds(**fields)
    assert (found.evidence, found.extrapolated) == ("measured", False)
    assert found.expected_error in {one.mean_error for one in measurements()}


@pytest.mark.parametrize(
    ("fields", "evidence", "outside"),
    [
        ({**CALL, "device": "a100_sxm_40gb"}, "carried", "device a100_sxm_40gb"),
        ({**CALL, "cache": "cold"}, "carried", "cold cache"),
        ({**CALL, "page_tokens": 16}, "carried", "pages of 16"),
        ({**CALL, **RAGGED}, "carried", "ragged batch"),
        ({**CALL, "launch": "stream"}, "carried", "stream launches"),
        ({**CALL, "head_dim": 64}, "carried", "head dim 64"),
        ({**CALL, "window": 100}, "carried", "window"),
        ({**CALL, "query_len": 2}, "carried", "several new tokens or latent KV"),
        ({**CALL, "num_sms": 100}, "carried", "changed numbers"),
        ({**CALL, "overrides": {"device.num_sms": 100}}, "carried", "changed numbers"),
        ({**CALL, "kernel": "vllm_fa2+lean_attention"}, "carried", "another schedule"),
        ({**CALL, "kernel": "lean"}, "carried", "never timed"),
        ({**CALL, "kernel": "lean_aiter"}, "counted", "never timed"),
        ({**CALL, "kernel": "vllm_paged_v1", "page_tokens": 16}, "assumed", "never timed"),
        ({**CALL, "batch_size": 4096}, "measured", "batch above the range"),
        ({**CALL, "batch_size": 1, "context_len": 200_000}, "measured", "context above the range"),
        ({**CALL, "num_q_heads": 1024}, "measured", "group above the range"),
    ],
)
def test_what_was_not_is_extrapolated(fields: dict[str, Any], evidence: str, outside: str) -> None:
    found = grounds(**fields)
    assert (found.evidence, found.outside, found.extrapolated) == (evidence, outside, True)
    assert found.expected_error >= class_error("carried" if evidence == "measured" else found.evidence)


def test_a_kernel_is_no_better_elsewhere_than_where_it_was_timed() -> None:
    found = grounds(**{**CALL, "kernel": "trtllm_gen", "device": "b200_sxm", "cache": "cold"})
    errors = [one.mean_error for one in measurements() if one.kernel == "trtllm_gen"]
    assert (found.evidence, found.outside) == ("carried", "cold cache")
    assert found.expected_error == max(class_error("carried"), sum(errors) / len(errors))


def test_numbers_of_a_kernel_say_where_they_come_from() -> None:
    kernels = leansim.list("kernels")
    assert {origin(name) for name in kernels} == {"carried", "counted", "assumed"}
    fitted = {name for name in kernels if leansim.show(name).source_counts()["fitted"]}
    assert {name for name in kernels if origin(name) == "carried"} == fitted


def test_a_range_begins_at_the_shortest_request() -> None:
    ranges = next(one.ranges for one in measurements() if one.batch == "ragged")
    least, most = ranges.context_len
    lens = (least - 1, *[most] * (ranges.batch_size[0] - 1))
    load = Workload(lens, num_q_heads=32, num_kv_heads=8, head_dim=128)
    assert ranges.outside(load, least - 1, most) == "context below the range"


def test_results_of_all_kinds_have_the_same_columns(tmp_path: Path) -> None:
    point = leansim.point(**CALL)
    wanted = resolve(point).grounds.columns()
    assert tuple(wanted) == COLUMNS
    simulation = leansim.simulate(point)
    run = leansim.run(load_grid(tmp_path, **CALL))
    swept = sweep(load_grid(tmp_path, **CALL), tmp_path / "out", jobs=1)
    tables = (simulation.table, run.table, swept.table, leansim.predict(point).table)
    records = (*simulation.records(), *run.records())
    for row in (*(table.iloc[0].to_dict() for table in tables), *records):
        assert {name: row[name] for name in COLUMNS} == wanted
    for answer in (simulation, run):
        assert told([(point.policy, simulation.grounds)]) in answer.notes()
    assert "expected_error" in run.written("csv").splitlines()[0]


def load_grid(folder: Path, **fields: Any) -> PointGrid:
    path = folder / "run.yaml"
    path.write_text("name: one\n" + "\n".join(f"{name}: {value}" for name, value in fields.items()))
    return load(path)


def test_results_that_share_numbers_keep_their_own_grounds(tmp_path: Path) -> None:
    """A stored row serves points of other names: what it rests on is theirs."""
    grid = load_grid(tmp_path, **{**OWN, "kernel": "[triton_fa2, triton_fa2+flash_attention_2]"})
    swept = sweep(grid, tmp_path / "out", jobs=1)
    assert (swept.simulated, swept.reused) == (1, 1)
    assert list(swept.table["evidence"]) == ["measured", "carried"]
    assert list(swept.table["extrapolated"]) == [False, True]


def test_one_sentence_tells_them_by_kernel() -> None:
    found = [
        ("a", Grounds("measured", "", 0.04)),
        ("b", Grounds("carried", "never timed", 0.12)),
        ("c", Grounds("carried", "never timed", 0.12)),
        ("a", Grounds("measured", "", 0.04)),
    ]
    assert told(found) == (
        "Times rest on: a measured (expected error 4%); b, c carried (12%); "
        "extrapolated: b, c (never timed)."
    )
