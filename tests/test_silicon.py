"""Held against silicon: a committed sample of measured latencies, and the harness in them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import leansim
from leansim.errors import ConfigError, StoreError
from leansim.files.extras import pip_install
from leansim.files.strict_yaml import Document
from leansim.points.point import workload_of
from leansim.silicon import published
from leansim.silicon.other_tools import comparison_sample, errors_of_tools
from leansim.silicon.published import FILE_COLUMNS, measured_rows, table_rows
from leansim.silicon.rows import ROW_COLUMNS, SHAPE, calls_of, covered, digest
from leansim.silicon.validate import errors_of, ranking, validate, worst_rows
from leansim.specs import catalog
from leansim.specs.harness import Calls, HarnessTerm, MeasuredTable

DATA = Path(__file__).parent / "data" / "silicon"

# The most that the mean size of the error over the committed sample may be, by table and the
# `kernel_source` of its rows: over all rows, then where the measured latency is below 30 us, up to
# 300 us, and above: what it is, and 15% of that. None: the sample has fewer than five rows.
MOST_ERROR: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("a100_sxm_sglang", "flash_attention"): (0.042, 0.049, 0.041, 0.025),
    ("a100_sxm_vllm", "vllm_flash_attn"): (0.042, 0.035, 0.05, None),
    ("b200_sxm_sglang", "trtllm_mha"): (0.059, 0.061, 0.055, None),
    ("b200_sxm_vllm", "vllm_flashinfer_trtllmdecode"): (0.072, 0.068, None, None),
    ("h100_sxm_sglang", "fa3"): (0.05, 0.05, 0.055, None),
    ("h100_sxm_sglang", "triton"): (0.16, None, None, None),
    ("h100_sxm_trtllm", "torch_flow"): (0.065, 0.055, 0.08, None),
    ("h100_sxm_vllm", "vllm_flash_attn_fa3"): (0.075, 0.075, 0.075, None),
    ("h200_sxm_sglang", "fa3"): (0.08, 0.06, 0.125, None),
    ("h200_sxm_sglang", "triton"): (None, None, None, None),
    ("h200_sxm_trtllm", "torch_flow"): (0.065, 0.06, 0.065, None),
    ("h200_sxm_vllm", "vllm_flash_attn_fa3"): (0.075, 0.08, 0.06, None),
    ("l40s_vllm", "vllm_flash_attn_fa2"): (0.065, 0.05, 0.09, 0.115),
}
BANDS = ("all", "< 30 us", "30-300 us", "> 300 us")
FEW = 5


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return validate(table_rows((), "all", data=DATA), jobs=1)


def test_every_table_has_a_sample_and_bounds(sample: pd.DataFrame) -> None:
    assert sorted(path.stem for path in DATA.glob("*.csv")) == catalog.names("table")
    pairs = set(sample[["table", "kernel_source"]].itertuples(index=False, name=None))
    assert pairs == set(MOST_ERROR)


@pytest.mark.parametrize("pair", MOST_ERROR, ids="-".join)
def test_errors_stay_below_their_bounds(sample: pd.DataFrame, pair: tuple[str, str]) -> None:
    mine = sample[(sample["table"] == pair[0]) & (sample["kernel_source"] == pair[1])]
    mine = mine[mine["refused"] == ""]
    found = {band: mine.loc[mine["band"] == band, "error"].abs() for band in BANDS[1:]}
    found["all"] = mine["error"].abs()
    for band, most in zip(BANDS, MOST_ERROR[pair], strict=True):
        errors = found[band]
        if most is not None and len(errors) >= FEW:
            assert errors.mean() <= most, f"{pair}, {band}: {errors.mean():.1%} over {len(errors)} rows"


def test_few_rows_are_refused_and_by_the_kernel(sample: pd.DataFrame) -> None:
    """A kernel refuses what it is not built for: head dim 512, groups that another kernel takes."""
    refused = sample[sample["refused"] != ""]
    assert len(refused) < 0.1 * len(sample)
    assert refused["refused"].str.match("PairingError|PartitionerError").all()


# The harness, by hand


def term(**numbers: object) -> HarnessTerm:
    names = ("seconds", "per_request_s", "query_bytes", "kv_token_bytes", "bytes_per_s")
    names += ("cached_bytes_per_s", "cached_until")
    sources = {name: "assumed: here" for name in names if name in numbers}
    return HarnessTerm.model_validate({"name": "x", "sources": sources, **numbers})


def test_a_term_by_hand() -> None:
    """8 requests, 32 q and 4 KV heads of 128 in bf16.

    Q is 8 * 32 * 128 * 2 = 65,536 B, the new token's K and V are 8 * 4 * 128 * 2 * 2 = 16,384 B. 4 Q
    and 2 K and V are 294,912 B, 0.294912 us at 1 TB/s.
    """
    workload = leansim.Workload.uniform(8, 100, num_q_heads=32, num_kv_heads=4, head_dim=128)
    calls = Calls.of("vllm_fa2", workload)
    assert (calls.query_bytes, calls.kv_token_bytes, calls.group_size) == (65_536, 16_384, 8)
    full = term(seconds=1e-6, per_request_s=5e-8, query_bytes=4, kv_token_bytes=2, bytes_per_s=1e12)
    assert full.seconds_of(calls) == pytest.approx(1e-6 + 8 * 5e-8 + 0.294912e-6)


def test_a_term_belongs_to_calls_that_reach_every_minimum() -> None:
    some = term(seconds=1e-6, when={"min_group_size": 2, "min_batch_size": 2, "min_kv_heads": 2})
    calls = Calls(
        kernel=np.array(["a"] * 4),
        batch_size=np.array([1, 2, 2, 2]),
        num_kv_heads=np.array([2, 1, 2, 2]),
        group_size=np.array([2, 2, 1, 2]),
        query_bytes=np.zeros(4, int),
        kv_token_bytes=np.zeros(4, int),
    )
    assert some.seconds_of(calls).tolist() == [0, 0, 0, 1e-6]
    named = term(seconds=1e-6, when={"kernels": ["b"]})
    assert named.seconds_of(calls).tolist() == [0, 0, 0, 0]


def test_a_term_moves_bytes_at_the_pace_of_l2_as_far_as_it_holds_them() -> None:
    """4 Q of 1,000 B are moved, half of that is written: with Q, the output and KV 4,000 B and more.

    At 4 B/us in DRAM 1 ms, at 40 in L2 0.1 ms, half way from 4,000 to 8,000 B the mean.
    """
    copied = term(query_bytes=4, bytes_per_s=4e6, cached_bytes_per_s=4e7, cached_until=(4000, 8000))
    zero = np.zeros(3, int)
    calls = Calls(
        kernel=np.array(["a"] * 3), batch_size=zero + 1, num_kv_heads=np.array([1, 1, 1]),
        group_size=zero + 2, query_bytes=zero + 1000, kv_token_bytes=zero,
        kv_bytes=np.array([0, 2000, 4000]),
    )  # fmt: skip
    assert copied.seconds_of(calls) == pytest.approx([1e-4, 5.5e-4, 1e-3])
    alone = term(seconds=1e-6, when={"max_kv_heads": 1})
    two = replace(calls, num_kv_heads=np.array([1, 2, 3]))
    assert alone.seconds_of(two).tolist() == [1e-6, 0, 0]
    for limits in ({"cached_until": (1, 2)}, {"cached_bytes_per_s": 1.0, "cached_until": (2, 2)}):
        with pytest.raises(ValueError, match="cached_until"):
            term(query_bytes=1, bytes_per_s=1.0, **limits)


def test_the_harness_of_rows_is_that_of_their_workloads() -> None:
    """Columns and workloads give the same calls, fp8 queries included."""
    rows = measured_rows(catalog.table("h100_sxm_sglang"), data=DATA)
    assert set(rows["q_dtype"]) == {"bfloat16", "fp8"}
    table, columns = catalog.table("h100_sxm_sglang"), calls_of(rows)
    for i, point in list(enumerate(rows["point"]))[::7]:
        calls = Calls.of(point.kernel, workload_of(point))
        for field in fields(Calls):
            assert getattr(calls, field.name) == getattr(columns, field.name)[i], field.name
        assert table.harness_s(calls) == pytest.approx(table.harness_s(columns)[i])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"harness": [{"name": "a", "query_bytes": 1, "sources": {"query_bytes": "assumed: x"}}]},
         "wanted bytes_per_s"),
        ({"harness": [{"name": "a"}, {"name": "a"}]}, "each harness term once"),
        ({"harness": [{"name": "a", "seconds": 1e-6}]}, "wanted a source"),
        ({"harness": [{"name": "a", "when": {"kernels": ["lean"]}}]}, "wanted kernels of this table"),
        ({"step_offset": 2}, "0 or 1"),
    ],
)  # fmt: skip
def test_mistakes_in_a_table_are_named(changes: dict[str, object], complaint: str) -> None:
    data = catalog.table("a100_sxm_vllm").model_dump(mode="python", exclude_unset=True)
    with pytest.raises(ConfigError, match=complaint):
        catalog.validate(MeasuredTable, Document("x", {**data, **changes}, {}))


# Reading


def test_rows_are_points_with_a_time() -> None:
    table = catalog.table("h100_sxm_sglang")
    rows = measured_rows(table, data=DATA)
    assert tuple(rows.columns) == ROW_COLUMNS
    assert (rows["context_len"] == rows["step"] + 1).all()
    assert rows.attrs["left_out"] == {}
    fp8 = rows[(rows["kv_dtype"] == "fp8")]
    assert (fp8["q_dtype"] == np.where(fp8["kernel"] == "sglang_fa3", "fp8", "bfloat16")).all()
    raw = pd.read_csv(DATA / "h100_sxm_sglang.csv")
    assert rows["measured_s"].sum() == pytest.approx(raw["latency"].sum() / 1e3)
    point = rows["point"].iloc[0]
    assert (point.cache, point.launch, point.page_tokens) == ("warm", "graph", 1)


def test_the_split_is_a_hash_of_the_row() -> None:
    """`sha256sum` of `8,32,8,128,0,bfloat16,1023` begins with c82a89cd and is 4 modulo 5: a test row."""
    assert f"{digest('8,32,8,128,0,bfloat16,1023'):x}".startswith("c82a89cd")
    assert digest("8,32,8,128,0,bfloat16,1023") % 5 == 4
    rows = table_rows((), "all", data=DATA)
    for row in rows.itertuples():
        shape = ",".join(str(getattr(row, name)) for name in SHAPE)
        assert row.fit == (digest(shape) % 5 == 0)
    assert 0.1 < rows["fit"].mean() < 0.3
    test, fit = (table_rows((), split, data=DATA) for split in ("test", "fit"))
    assert len(test) + len(fit) == len(rows)
    assert not test["fit"].any() and fit["fit"].all()  # noqa: PT018


def test_a_larger_sample_holds_the_smaller_one() -> None:
    table = catalog.table("a100_sxm_vllm")
    few, more = (measured_rows(table, "test", n, DATA) for n in (10, 30))
    assert few.equals(more.iloc[:10])


def table_of(tmp_path: Path, text: str, **changes: object) -> MeasuredTable:
    (tmp_path / "t.csv").write_text(",".join(FILE_COLUMNS) + "\n" + text)
    spec = catalog.table("a100_sxm_vllm").model_dump(mode="python", exclude_unset=True)
    data = {**spec, "name": "t", **changes}
    return catalog.validate(MeasuredTable, Document("t", data, {}))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """One row of another kernel, one excluded, one faster than 2.039 TB/s, one twice: 10 and 20 us."""
    lines = [
        "other,1,8,8,128,0,bfloat16,15,0.01",
        "vllm_flash_attn,1,8,8,128,0,bfloat16,15,0.01",
        "vllm_flash_attn,64,64,8,128,0,bfloat16,8191,0.1",
        "vllm_flash_attn,1,8,4,128,0,bfloat16,15,0.01",
        "vllm_flash_attn,1,8,4,128,0,bfloat16,15,0.02",
    ]
    where = {"group_size": (1, 1), "step": 15}
    table = table_of(
        tmp_path, "\n".join(lines), bytes_check=True, exclude=[{"reason": "why", "where": where}]
    )
    rows = measured_rows(table, data=tmp_path)
    assert rows.attrs["left_out"] == {
        "ran other": 1,
        "why": 1,
        "faster than DRAM's datasheet bandwidth": 1,
    }
    assert rows["measured_s"].tolist() == pytest.approx([15e-6])


def test_missing_tables_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "installed", lambda: False)
    with pytest.raises(StoreError, match=re.escape(pip_install("silicon"))):
        measured_rows(catalog.table("a100_sxm_vllm"))
    with pytest.raises(StoreError, match="found no sample"):
        table_rows((), data=Path(__file__).parent)


@pytest.mark.skipif(not published.installed(), reason="wants the extra `silicon`")
@pytest.mark.parametrize("name", catalog.names("table"))
def test_descriptions_fit_the_installed_tables(name: str) -> None:
    table = catalog.table(name)
    rows = measured_rows(table)
    assert covered(rows) == table.validated
    ours = measured_rows(table, data=DATA)
    assert rows.iloc[: len(ours)][list(SHAPE)].equals(ours[list(SHAPE)])


# Judging


def made(**columns: object) -> pd.DataFrame:
    rows = {
        "table": "t", "device": "a100_sxm_80gb", "kernel": "k", "batch_size": 8, "num_q_heads": 8,
        "num_kv_heads": 8, "head_dim": 128, "window": 0, "kv_dtype": "bfloat16", "step": 1023,
        "refused": "", "num_splits": 1, "num_ctas": 1, "bound": "cta", **columns,
    }  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(split=np.where(frame["num_splits"] > 1, "split", "unsplit"))


def test_errors_by_hand() -> None:
    found = errors_of(pd.Series([-0.2, 0.1, 0.3, 0.0]))
    assert found["rows"] == 4
    assert found["bias"] == pytest.approx(0.05)
    assert found["mean"] == pytest.approx(0.15)
    assert found["median"] == pytest.approx(0.15)
    assert found["p90"] == pytest.approx(0.2 + 0.7 * 0.1)
    assert found["within_10"] == pytest.approx(0.5)


def test_ranking_by_hand() -> None:
    """One pair is right, one wrong, and two do not count.

    At 1,023 tokens split is measured faster, 50 to 100 us, and said to be. At 2,047 it is slower and
    said to be faster. At 4,095 times are 5% apart, at 8,191 there is no unsplit row.
    """
    steps = [1023, 1023, 2047, 2047, 4095, 4095, 8191]
    table = made(
        step=steps,
        num_q_heads=[64, 8] * 3 + [64],
        num_splits=[4, 1] * 3 + [4],
        measured_s=[50e-6, 100e-6, 200e-6, 100e-6, 100e-6, 105e-6, 1e-6],
        predicted_s=[60e-6, 90e-6, 90e-6, 100e-6, 1e-6, 2e-6, 1e-6],
    )
    (row,) = ranking(table).to_dict("records")
    assert (row["pairs"], row["right"], row["always_split"]) == (2, 0.5, 0.5)


def test_the_worst_row_is_the_one_furthest_off_by_ratio() -> None:
    table = made(step=[1, 2], measured_s=[1e-6, 1e-6], predicted_s=[0.3e-6, 2e-6], error=[-0.7, 1.0])
    assert worst_rows(table)["step"].tolist() == [1, 2]


def test_rows_beside_other_tools_are_test_rows_of_four_tables(sample: pd.DataFrame) -> None:
    like = comparison_sample(sample, 40)
    assert like.groupby("table").size().to_dict().keys() == {
        "a100_sxm_sglang", "a100_sxm_vllm", "h100_sxm_sglang", "h100_sxm_vllm",
    }  # fmt: skip
    assert not like["fit"].any()
    assert set(like["head_dim"]) <= {64, 128}
    assert set(like["window"]) == {0}


def test_every_number_of_another_tool_says_whose_it_is() -> None:
    tools = errors_of_tools()
    assert len({tool["tool"] for tool in tools}) == len(tools) == 10
    for tool in tools:
        assert tool["source"]
        shares = [float(tool[name]) for name in ("mean", "median", "p90", "within 10%", *BANDS[1:])]
        assert all(0 <= share <= 100 for share in shares)


def test_the_verb_prints_and_writes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "leansim",
        "validate",
        "--data",
        str(DATA),
        "--split",
        "all",
        "-j",
        "1",
    ]
    done = subprocess.run(
        [*command, "--sample", "12", "-o", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a100_sxm_vllm, vllm_fa2, by regime" in done.stdout
    assert "Worst rows" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert {"predictions.parquet", "errors.csv", "worst.csv", "ranking.csv", "comparison.csv"} <= names
    assert {"predicted_measured.png", "error_over_context_len.png", "error_over_batch_size.png"} <= names
    assert "![predicted measured](predicted_measured.png)" in (tmp_path / "RESULTS.md").read_text()
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == 12 * len(catalog.names("table"))


def test_numbers_taken_from_another_table_are_its_numbers() -> None:
    """What is the same in another table is not copied: it is there alone. What is put together holds."""
    evicted = {
        name: [term.seconds for term in catalog.table(name).harness if term.name == "evicted"]
        for name in catalog.names("table")
    }
    (fitted,) = evicted["h100_sxm_sglang"]
    assert {tuple(found) for found in evicted.values()} == {(fitted,), ()}
    assert [name for name, found in evicted.items() if not found] == ["a100_sxm_sglang", "a100_sxm_vllm"]
    terms = {
        name: {term.name: term for term in catalog.table(name).harness}
        for name in catalog.names("table")
    }
    for h in ("h100", "h200"):
        trtllm, sglang = terms[f"{h}_sxm_trtllm"], terms[f"{h}_sxm_sglang"]
        assert trtllm["preprocessing_8_bit"].seconds == trtllm["preprocessing"].seconds
        assert sglang["graph"].seconds == trtllm["base"].seconds
    h100, h200 = catalog.device("h100_sxm"), catalog.device("h200_sxm")
    assert h200.latency_spread == h100.latency_spread
