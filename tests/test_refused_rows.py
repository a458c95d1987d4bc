"""Files of which some rows make no sense: the others are kept, and these are told with their line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import leansim
from leansim.cli.main import app
from leansim.errors import ConfigError, LeansimError
from leansim.points.point import point
from leansim.silicon.own import own_rows
from leansim.silicon.published import FILE_COLUMNS
from leansim.silicon.validate import refusals, validate_points
from leansim.specs import catalog

HEADER = "device,kernel,batch_size,num_q_heads,num_kv_heads,head_dim,context_len"
GOOD = ["h100_sxm,fa2,1,8,2,64,5000", "h100_sxm,lean,1,8,2,64,5000"]
WRONG = {
    "h100_sxm,leen,1,8,2,64,5": "did you mean 'lean'",
    "h100_sxm,fa2,1,8,3,64,5": "not a multiple",
    "x,fa2,1,8,2,64,0": "context_len: found 0",
    "h100_sxm,fa2,,8,2,64,5": "wanted batch_size",
    "h100_sxm,fa2,1,8,2,1024,5": "no tile for head_dim 1024",
    "h100_sxm,lean_aiter,1,8,2,64,5": "not built for",
}


def written(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def called(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("verb", ["predict", "plan"])
def test_good_rows_are_kept_and_the_others_say_why(tmp_path: Path, verb: str) -> None:
    file = written(tmp_path / "p.csv", HEADER, [GOOD[0], *WRONG, GOOD[1]])
    done = called(verb, file, "-o", tmp_path / "o.csv")
    assert done.exit_code == 1
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert [bool(row["num_ctas"]) for row in rows] == [True, *[False] * len(WRONG), True]
    assert [rows[0]["refused"], rows[-1]["refused"]] == ["", ""]
    for line, (row, reason) in enumerate(zip(rows[1:-1], WRONG.values(), strict=True), start=3):
        assert reason in row["refused"]
        assert f"refused: {file}:{line}: " in done.stderr
    assert "points into" in done.stderr
    alone = getattr(leansim, verb)(written(tmp_path / "g.csv", HEADER, GOOD)).records()
    assert [str(row["num_ctas"]) for row in alone] == [rows[0]["num_ctas"], rows[-1]["num_ctas"]]
    assert called(verb, tmp_path / "g.csv").exit_code == 0


@pytest.mark.parametrize("verb", ["predict", "plan"])
def test_strictly_one_row_is_too_many(tmp_path: Path, verb: str) -> None:
    file = written(tmp_path / "p.csv", HEADER, [*GOOD, *WRONG])
    with pytest.raises(ConfigError) as raised:
        getattr(leansim, verb)(file, strict=True)
    assert sorted({problem.line for problem in raised.value.problems}) == list(range(4, 10))
    done = called(verb, file, "-o", tmp_path / "o.csv", "--strict")
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "o.csv").exists()
    with pytest.raises(ConfigError):  # where there is nothing to keep
        getattr(leansim, verb)(written(tmp_path / "w.csv", HEADER, list(WRONG)))


def test_what_was_refused_can_be_tried_again(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "p.csv", HEADER, [*GOOD, "h100_sxm,leen,1,8,2,64,5"])
    first = leansim.predict(file).written("csv")
    (tmp_path / "again.csv").write_text(first.replace("leen", "lean"))
    again = leansim.predict(tmp_path / "again.csv")
    assert not again.refused
    assert [row["refused"] for row in again.records()] == ["", "", ""]
    assert "refused" not in capsys.readouterr().err


def test_points_from_python_are_refused_in_the_same_column() -> None:
    fields = {"device": "h100_sxm", "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    many = [point(**fields, kernel=name, batch_size=1, context_len=9) for name in ("fa2", "leen")]
    found = leansim.predict(many)
    assert isinstance(found[1], LeansimError)
    assert [bool(row["refused"]) for row in found.records()] == [False, True]


# Settings and columns of numbers


OVER = [("device.num_sms", "8"), ("kernel.start.overhead_s", "1e-5"), ("num_sms", "8"),
        ("head_dim", "128"), ("kernel", "flash_decoding"), ("num_splits", "3")]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OVER)
def test_a_setting_is_a_column_is_a_keyword(tmp_path: Path, key: str, value: str) -> None:
    kernel = "flash_decoding" if key == "num_splits" else "fa2"
    row = f"h100_sxm,{kernel},4,64,8,64,9000"
    file = written(tmp_path / "p.csv", HEADER, [row])
    set_ = leansim.predict(file, settings=[f"{key}={value}"]).records()
    plain = leansim.predict(file).records()
    assert set_[0]["latency_us"] != plain[0]["latency_us"]
    assert str(set_[0][key]) == value
    if key not in HEADER.split(","):
        wide = written(tmp_path / "w.csv", f"{HEADER},{key}", [f"{row},{value}", f"{row},"])
        both = leansim.predict(wide).records()
        assert [one["latency_us"] for one in both] == [set_[0]["latency_us"], plain[0]["latency_us"]]
    if "." in key:
        fields = dict(zip(HEADER.split(","), row.split(","), strict=True))
        (found,) = leansim.predict(point(**fields, overrides={key: value})).records()
        assert found["latency_us"] == set_[0]["latency_us"]
        assert found["extrapolated"] is set_[0]["extrapolated"] is True
    (planned,) = leansim.plan(file, settings=[f"{key}={value}"]).records()
    assert str(planned[key]) == value
    assert planned["num_ctas"] == set_[0]["num_ctas"]


def test_overrides_as_results_hold_them(tmp_path: Path) -> None:
    row = "h100_sxm,fa2,4,64,8,64,9000"
    cells = ['"{""device.num_sms"": 8}",', '"{""device.num_sms"": 8}",4', ",8"]
    wide = written(
        tmp_path / "w.csv", f"{HEADER},overrides,device.num_sms", [f"{row},{cell}" for cell in cells]
    )
    first, second, third = (one["latency_us"] for one in leansim.predict(wide).records())
    assert first == third != second


@pytest.mark.parametrize("verb", ["predict", "plan", "validate"])
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("device.num_smss=1", "did you mean 'num_sms'"),
        ("devise=x", "did you mean 'device'"),
        ("kernel.strat.overhead_s=1", "did you mean 'start'"),
        ("zzz=1", "wanted a column of points, device.<number> or kernel.<number>"),
        ("nonsense", "wanted key=value"),
        ("device.num_sms=no", "wanted true or false|no row that"),
    ],
)
def test_settings_that_mean_nothing(tmp_path: Path, verb: str, setting: str, complaint: str) -> None:
    file = written(tmp_path / "p.csv", f"{HEADER},measured_us", [f"{row},9" for row in GOOD])
    given = ("--points", file) if verb == "validate" else (file,)
    done = called(verb, *given, "--set", setting)
    assert isinstance(done.exception, LeansimError)
    with pytest.raises(LeansimError, match=complaint):
        raise done.exception


def test_a_misspelt_column_of_numbers_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", f"{HEADER},device.num_smss", [f"{row},66" for row in GOOD])
    with pytest.raises(ConfigError, match=r"column 8: found 'device\.num_smss'; .*'num_sms'"):
        leansim.predict(file)


def test_settings_change_what_is_validated(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", f"{HEADER},measured_us", ["h100_sxm,fa2,4,64,8,64,9000,90"])
    plain, fewer = (validate_points(file, settings=s) for s in ([], ["device.num_sms=4"]))
    assert fewer["kernel_s"][0] > plain["kernel_s"][0]
    data = Path(__file__).parent / "data" / "silicon"
    of_table = [
        leansim.validate("a100_sxm_vllm", sample=2, data=data, jobs=1, settings=s).table["kernel_s"]
        for s in ([], ["device.num_sms=4"])
    ]
    assert (of_table[1] > of_table[0]).all()
    with pytest.raises(ConfigError, match=r"found 'batch_size'; wanted device\.<number>"):
        leansim.validate("a100_sxm_vllm", sample=2, data=data, settings=["batch_size=1"])


@pytest.mark.parametrize("verb", ["run", "oracle", "splits", "explain", "predict"])
def test_every_verb_with_times_says_what_is_extrapolated(tmp_path: Path, verb: str) -> None:
    file = written(tmp_path / "p.csv", HEADER, GOOD)
    shape = [f"--{key.replace('_', '-')}={value}"
             for key, value in zip(HEADER.split(","), GOOD[0].split(","), strict=True)]  # fmt: skip
    budget = ["--budget=2"] if verb in ("oracle", "explain") else []
    done = called(verb, *([file] if verb == "predict" else [*shape, *budget]))
    assert done.exit_code == 0, done.output
    assert "extrapolated" in done.output


# Measurements


CELLS = {
    "0": "found '0'", "-0.01": "found '-0.01'", "inf": "found 'inf'", "NaN": "found 'NaN'",
    "fast": "found 'fast'", "true": "found 'true'", "": "found ''", "9" * 5000: "found '999",
    "1e-400": "found '1e-400'",
}  # fmt: skip


def test_times_that_are_none(tmp_path: Path) -> None:
    rows = [f"{GOOD[0]},20", *(f"{GOOD[0]},{cell}" for cell in CELLS)]
    file = written(tmp_path / "mine.csv", f"{HEADER},measured_us", rows)
    with pytest.raises(ConfigError) as raised:
        own_rows(file)
    assert [problem.line for problem in raised.value.problems] == list(range(3, 3 + len(CELLS)))
    done = called("validate", "--points", file, "-o", tmp_path / "out")
    assert done.exit_code == 1, done.output
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert [bool(why) for why in table["refused"]] == [False, *[True] * len(CELLS)]
    for line, (why, found) in enumerate(zip(table["refused"][1:], CELLS.values(), strict=True), 3):
        assert why.startswith(f"line {line}: measured_us: {found}")
        assert f"mine: 1 rows without a prediction: line {line}: " in done.output
    assert isinstance(called("validate", "--points", file, "--strict").exception, ConfigError)


TABLE_ROW = {
    "kernel_source": "vllm_flash_attn", "batch_size": "8", "num_heads": "32", "num_key_value_heads": "8",
    "head_dim": "128", "window_size": "0", "kv_cache_dtype": "bfloat16", "step": "4095",
    "latency": "0.1",
}  # fmt: skip
TABLE_CELLS = [
    ("latency", "0", "latency: found '0'; wanted greater than 0"),
    ("latency", "-0.01", "latency: found '-0.01'"),
    ("latency", "inf", "latency: found 'inf'; wanted a finite number"),
    ("latency", "NaN", "latency: found 'NaN'"),
    ("latency", "fast", "latency: found 'fast'; wanted a valid number"),
    ("latency", "true", "latency: found 'true'"),
    ("latency", "", "latency: found ''"),
    ("batch_size", "", "batch_size: found ''"),
    ("batch_size", "0", "batch_size: found '0'"),
    ("batch_size", "1.5", "batch_size: found '1.5'"),
    ("num_key_value_heads", "0", "num_key_value_heads: found '0'"),
    ("num_key_value_heads", "5", "a multiple of num_key_value_heads"),
    ("head_dim", "-64", "head_dim: found '-64'"),
    ("window_size", "-1", "window_size: found '-1'"),
    ("kv_cache_dtype", "bf16", "kv_cache_dtype: found 'bf16'"),
    ("step", "x", "step: found 'x'"),
    ("step", str(2**40), "bytes of KV; wanted at most"),
    ("kernel_source", "", "kernel_source: found ''"),
]


def table_file(folder: Path) -> Path:
    rows = [TABLE_ROW, *({**TABLE_ROW, name: cell} for name, cell, _ in TABLE_CELLS)]
    rows.append({**TABLE_ROW, "kernel_source": "another", "kv_cache_dtype": "int3"})
    lines = [",".join(row.values()) for row in rows]
    return written(folder / "a100_sxm_vllm.csv", ",".join(FILE_COLUMNS), lines)


def test_cells_of_tables_that_are_none(tmp_path: Path) -> None:
    """A row of another kernel is left out and not looked at."""
    file = table_file(tmp_path)
    with pytest.raises(ConfigError) as raised:
        leansim.validate(data=tmp_path, split="all", jobs=1, strict=True)
    for line, (_, _, complaint) in enumerate(TABLE_CELLS, start=3):
        (problem,) = [one for one in raised.value.problems if one.line == line]
        assert complaint in str(problem)
        assert f"{file}:{line}:" in str(raised.value)
    found = leansim.validate(data=tmp_path, split="all", jobs=1)
    assert len(found.table) == 1 + len(TABLE_CELLS)
    assert found.table["predicted_s"].notna().sum() == 1
    assert found.rows()[0]["rows"] == 1
    told = "\n".join(found.notes())
    for line, (_, _, complaint) in enumerate(TABLE_CELLS, start=3):
        assert f"line {line}: " in told
        assert complaint in told
    assert "1 rows left out: ran another" in told


def test_a_calibration_takes_no_file_with_wrong_cells(tmp_path: Path) -> None:
    from leansim.silicon.published import measured_rows

    table_file(tmp_path)
    with pytest.raises(ConfigError, match="latency: found '0'"):
        measured_rows(catalog.table("a100_sxm_vllm"), "fit", data=tmp_path)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1e-3, "are these milliseconds?"), (1e-6, "are these seconds?"), (1e3, "are these nanoseconds?"),
     (1.0, ""), (8.0, ""), (0.1, "")],
)  # fmt: skip
def test_times_in_another_unit_are_told(tmp_path: Path, factor: float, unit: str) -> None:
    true_us = [
        row["latency_us"] for row in leansim.predict(written(tmp_path / "p.csv", HEADER, GOOD)).records()
    ]
    rows = [f"{row},{us * factor}" for row, us in zip(GOOD, true_us, strict=True)]
    told = list(refusals(validate_points(written(tmp_path / "m.csv", f"{HEADER},measured_us", rows))))
    assert told == ([] if not unit else told)
    if unit:
        assert told[0].startswith("m: predictions are ")
        assert told[0].endswith(f"measured_us holds microseconds; {unit}")
