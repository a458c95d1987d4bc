"""Measurements of one's own held against predictions, and predictions that hold a measured harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import leansim
from leansim.errors import ConfigError, LeansimError, StoreError
from leansim.points.point import workload_of
from leansim.silicon.own import own_rows
from leansim.silicon.published import table_rows
from leansim.silicon.rows import ROW_COLUMNS, Harnesses
from leansim.silicon.validate import error_table, refusals, validate_points
from leansim.specs import catalog
from leansim.specs.harness import Calls
from leansim.sweeps.predict import Prediction, predict

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


def test_the_files_own_columns_are_carried_along(tmp_path: Path) -> None:
    """One that is called as a result, as the option `num_splits`, gives way to it."""
    rows = ["h100_sxm,fa2,1,8,8,64,8192,a,,40", "h100_sxm,flash_decoding,1,8,8,64,8192,b,3,10"]
    (tmp_path / "mine.csv").write_text("\n".join([f"{HEADER},id,num_splits,measured_us", *rows]))
    table = validate_points(tmp_path / "mine.csv")
    assert table["id"].tolist() == ["a", "b"]
    assert table["num_splits"].tolist() == [1, 3]
    assert table["measured_us"].tolist() == ["40", "10"]


def test_a_point_that_its_kernel_does_not_take_is_refused_and_the_rest_compared(tmp_path: Path) -> None:
    rows = ["h100_sxm,vllm_fa2,8,32,8,512,4096,180", "h100_sxm,lean,1,8,8,64,100,10"]
    (tmp_path / "mine.csv").write_text("\n".join([f"{HEADER},measured_us", *rows]))
    table = validate_points(tmp_path / "mine.csv")
    assert [bool(why) for why in table["refused"]] == [True, False]
    assert any("1 rows without a prediction" in sentence for sentence in refusals(table))
    (tmp_path / "none.csv").write_text("\n".join([f"{HEADER},measured_us", rows[0]]))
    with pytest.raises(StoreError, match="no row that can be predicted; the first: "):
        validate_points(tmp_path / "none.csv")


def test_one_row_has_one_harness_whatever_it_came_from(tmp_path: Path) -> None:
    """A file's own row with `table`, and the table's: the same call, bytes and harness."""
    columns = [*HEADER.split(","), "kv_dtype", "q_dtype", "cache", "launch"]
    theirs = table_rows(["h100_sxm_sglang"], "all", 60, DATA)
    theirs = theirs[theirs["window"] == 0].reset_index(drop=True)
    file = theirs[columns].assign(harness="table", page_tokens=1, measured_us=theirs["measured_s"] * 1e6)
    file.to_csv(tmp_path / "same.csv", index=False)
    ours = own_rows(tmp_path / "same.csv")
    assert tuple(ours.columns[: len(ROW_COLUMNS)]) == ROW_COLUMNS
    for name in set(ROW_COLUMNS) - {"table", "source", "kernel_source", "step", "fit", "measured_s"}:
        assert ours[name].tolist() == theirs[name].tolist(), name
    none = np.zeros(len(ours))  # a table's harness does not depend on the kernel's time
    assert Harnesses(ours).seconds(none).tolist() == Harnesses(theirs).seconds(none).tolist()


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
    assert isinstance(alone, Prediction)
    assert isinstance(whole, Prediction)
    table = catalog.table("a100_sxm_vllm")
    assert whole.harness_s == table.harness_s(Calls.of("vllm_fa2", workload_of(point)))
    assert whole.latency_s == alone.latency_s + whole.harness_s
    assert alone.harness_s == 0
    rows = ["a100_sxm_80gb,vllm_fa2,8,32,8,128,4096,table", "h100_sxm,lean,1,8,8,64,100,a100_sxm_vllm"]
    (tmp_path / "p.csv").write_text("\n".join([f"{HEADER},harness", *rows]))
    found = leansim.predict(tmp_path / "p.csv", jobs=1).records()
    assert float(found[0]["latency_us"]) == round(whole.latency_s * 1e6, 6)
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
    found = list(predict(rows["point"], jobs=1))
    beyond = {
        point.kernel
        for point, outcome in zip(rows["point"], found, strict=True)
        if isinstance(outcome, Prediction) and outcome.extrapolated
    }
    # SGLang runs it beyond its limit of query heads for a KV head, where another framework does not.
    assert beyond <= {"trtllm_gen"}


INSIDE = {
    "device": "a100_sxm_80gb",
    "context_len": 4096,
    "cache": "warm",
    "page_tokens": 64,
    **FA2,
}
OUTSIDE = [
    {**INSIDE, "context_len": 200_000, "batch_size": 1},
    {**INSIDE, "head_dim": 64},
    {**INSIDE, "window": 100},
    {**INSIDE, "query_len": 2},
    {**INSIDE, "kernel": "vllm_fa2+flash_attention_2"},
    {**INSIDE, "device": "a100_sxm_40gb"},
    {**INSIDE, "num_sms": 100},
    {**INSIDE, "batch_size": 2048, "context_len": 131_072},  # more KV than any row
    {**INSIDE, "cache": "cold"},
    {**INSIDE, "page_tokens": 16},
    {**INSIDE, "launch": "stream"},
    {**INSIDE, "batch_size": None, "context_len": None, "context_lens": [4096, 2048]},
    {**INSIDE, "overrides": {"device.num_sms": 100}},
]


@pytest.mark.parametrize("fields", OUTSIDE)
def test_points_outside_are(fields: dict[str, object]) -> None:
    (found,) = predict([leansim.point(**fields)])
    assert isinstance(found, Prediction), str(found)
    assert found.extrapolated is True


def test_notes_say_how_many_are_outside_and_what_the_times_rest_on(tmp_path: Path) -> None:
    rows = ["a100_sxm_80gb,vllm_fa2,8,32,8,128,4096,warm,64", "h100_sxm,lean,1,8,8,64,100,cold,16"]
    (tmp_path / "p.csv").write_text("\n".join([f"{HEADER},cache,page_tokens", *rows, rows[1]]))
    outside, rest = leansim.predict(tmp_path / "p.csv", jobs=1).notes()
    assert outside.startswith("2 of 3 points lie outside")
    assert rest.startswith("Times rest on: 1 measured (expected error ")
    assert ", 2 carried (expected error " in rest
