"""Measurements of one's own held against predictions, and predictions that hold a measured harness."""

from __future__ import annotations

from pathlib import Path

import pytest

import leansim
from leansim.errors import ConfigError, LeansimError
from leansim.points.point import workload_of
from leansim.silicon.tables import points_of
from leansim.silicon.validate import error_table, table_rows, validate_points
from leansim.specs import catalog
from leansim.specs.harness import Calls
from leansim.sweeps.predict import predict

DATA = Path(__file__).parent / "data" / "silicon"
HEADER = "device,kernel,batch_size,num_q_heads,num_kv_heads,head_dim,context_len"
FLASHINFER = (
    "routine,median_time,std_time,backend,resolved_backend,page_size,batch_size,s_qo,s_kv,num_qo_heads,"
    "num_kv_heads,head_dim_qk,head_dim_vo,q_dtype,kv_dtype,random_actual_seq_len,no_cuda_graph"
)
DECODE = "BatchDecodeWithPagedKVCacheWrapper"


def test_points_with_a_time(tmp_path: Path) -> None:
    rows = ["a100_sxm_80gb,vllm_fa2,8,32,8,128,4096,table,180", "h100_sxm,lean,1,8,8,64,100,,10"]
    (tmp_path / "mine.csv").write_text("\n".join([f"{HEADER},harness,measured_us", *rows]))
    table = validate_points(tmp_path / "mine.csv")
    assert table["table"].tolist() == ["mine", "mine"]
    assert table["kernel"].tolist() == ["vllm_fa2", "lean"]
    assert table["measured_s"].tolist() == [180e-6, 10e-6]
    assert table["harness_s"].iloc[0] > 10e-6
    assert table["harness_s"].iloc[1] == 0
    assert (table["error"] == table["predicted_s"] / table["measured_s"] - 1).all()
    assert set(error_table(table)["kernel"]) == {"vllm_fa2", "lean"}


def test_what_flashinfers_benchmark_writes(tmp_path: Path) -> None:
    lines = [
        f"{DECODE},0.05,0,fa2,,16,8,1,4096,32,8,128,128,torch.bfloat16,torch.bfloat16,False,False",
        f"{DECODE},0.05,0,auto,fa2_tc,16,8,1,4096,32,8,128,128,torch.bfloat16,torch.bfloat16,False,True",
        f"{DECODE},0.05,0,cudnn,,16,8,1,4096,32,8,128,128,torch.bfloat16,torch.bfloat16,False,False",
        f"{DECODE},0.05,0,fa2,,16,8,1,4096,32,8,128,128,torch.bfloat16,torch.bfloat16,True,False",
        "BatchMLAPagedAttentionWrapper,0.05,0,fa2,,16,8,1,4096,128,1,,,,,False,False",
    ]
    (tmp_path / "fi.csv").write_text("\n".join([FLASHINFER, *lines]))
    table = validate_points(tmp_path / "fi.csv", "h100_sxm")
    assert table["kernel"].tolist() == ["flashinfer_decode", "flashinfer_tc_decode"]
    assert table["measured_s"].tolist() == pytest.approx([50e-6, 50e-6])
    assert table["l2"].tolist() == ["none", "none"]
    assert table.attrs["left_out"]["fi"] == {
        "backend cudnn": 1,
        "lengths drawn at random and not recorded": 1,
        "routine BatchMLAPagedAttentionWrapper": 1,
    }
    with pytest.raises(ConfigError, match="wanted --device"):
        validate_points(tmp_path / "fi.csv")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2", "missing here: device, measured_us"),
        (FLASHINFER.replace("median_", "mean_") + "\n" + ",".join("x" * 17), "missing here: median_"),
        (f"{HEADER},measured_us\nh100_sxm,lean,1,8,8,64,100,fast", "found 'fast'"),
        (f"{HEADER},measured_us\nh100_sxm,lean,1,8,8,64,100,-1", "wanted a time in microseconds"),
        (f"{HEADER},measured_us\nh100_sxm,leen,1,8,8,64,100,5", "did you mean 'lean'"),
    ],
)  # fmt: skip
def test_files_that_are_neither_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        validate_points(tmp_path / "p.csv", "h100_sxm")


# Predicting with a harness

FA2 = {"kernel": "vllm_fa2", "num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, "batch_size": 8}


def test_predictions_may_hold_the_harness(tmp_path: Path) -> None:
    point = leansim.point(device="a100_sxm_80gb", context_len=4096, **FA2)
    (alone,), (whole,) = predict([point]), predict([point], harness="table")
    assert isinstance(alone, dict)
    assert isinstance(whole, dict)
    table = catalog.table("a100_sxm_vllm")
    harness_us = table.harness_s(Calls.of("vllm_fa2", workload_of(point))) * 1e6
    assert whole["harness_us"] == pytest.approx(harness_us, abs=1e-6)
    assert whole["latency_us"] == pytest.approx(alone["latency_us"] + harness_us, abs=2e-6)
    assert alone["harness_us"] == 0
    rows = ["a100_sxm_80gb,vllm_fa2,8,32,8,128,4096,table", "h100_sxm,lean,1,8,8,64,100,a100_sxm_vllm"]
    (tmp_path / "p.csv").write_text("\n".join([f"{HEADER},harness", *rows]))
    found = leansim.predict(tmp_path / "p.csv", jobs=1).records()
    assert float(found[0]["latency_us"]) == whole["latency_us"]
    assert found[0]["harness"] == "table"
    assert float(found[1]["harness_us"]) > 5


def test_a_harness_that_nobody_measured_is_refused() -> None:
    point = leansim.point(device="h100_sxm", context_len=4096, **{**FA2, "kernel": "fa2"})
    (found,) = predict([point], harness="table")
    assert isinstance(found, LeansimError)
    assert "measured table of 'fa2 on h100_sxm'" in str(found)
    assert " on h100_sxm" in str(found)


def test_points_inside_the_measured_range_are_not_extrapolated() -> None:
    rows = table_rows((), "all", sample=20, data=DATA)
    found = list(predict(points_of(rows), jobs=1))
    assert not any(outcome["extrapolated"] for outcome in found if isinstance(outcome, dict))


INSIDE = {"device": "a100_sxm_80gb", "context_len": 4096, **FA2}
OUTSIDE = [
    {**INSIDE, "context_len": 200_000, "batch_size": 1},
    {**INSIDE, "head_dim": 64},
    {**INSIDE, "window": 100},
    {**INSIDE, "query_len": 2},
    {**INSIDE, "kernel": "vllm_fa2+flash_attention_2"},
    {**INSIDE, "device": "a100_sxm_40gb"},
    {**INSIDE, "num_sms": 100},
    {**INSIDE, "batch_size": 2048, "context_len": 131_072},  # more KV than any row
]


@pytest.mark.parametrize("fields", OUTSIDE)
def test_points_outside_are(fields: dict[str, object]) -> None:
    (found,) = predict([leansim.point(**fields)])
    assert isinstance(found, dict), str(found)
    assert found["extrapolated"] is True


def test_one_note_says_how_many_are_outside(tmp_path: Path) -> None:
    rows = ["a100_sxm_80gb,vllm_fa2,8,32,8,128,4096", "h100_sxm,lean,1,8,8,64,100"]
    (tmp_path / "p.csv").write_text("\n".join([HEADER, *rows, rows[1]]))
    (note,) = leansim.predict(tmp_path / "p.csv", jobs=1).notes()
    assert note.startswith("2 of 3 points lie outside")
