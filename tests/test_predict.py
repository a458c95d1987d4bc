"""`predict` and the CSV of points behind it and `plan`."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

import leansim
from leansim.errors import ConfigError, LeansimError
from leansim.points.csv import read_points
from leansim.points.point import point
from leansim.sweeps.predict import Prediction, predict
from leansim.sweeps.predictions import PREDICTION_COLUMNS, prediction_row

SHAPE = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
HEADER = "device,kernel,batch_size,num_q_heads,num_kv_heads,head_dim,context_len"


def points(count: int) -> list[leansim.Point]:
    return [
        point(device="h100_sxm", kernel=kernel, batch_size=1 + i, context_len=100 * (1 + i), **SHAPE)
        for i in range(count)
        for kernel in ("fa2", "lean")
    ]


def test_a_prediction_is_the_simulation() -> None:
    for what, found in zip(points(3), predict(points(3)), strict=True):
        metrics = leansim.simulate(what).metrics
        assert isinstance(found, Prediction)
        assert found.latency_s == metrics.latency_s
        assert found.bound == metrics.bound
        assert found.sm_busy_fraction == pytest.approx(metrics.sm_busy_fraction)
        assert found.extrapolated is True
        cells = prediction_row(found)
        assert tuple(cells) == PREDICTION_COLUMNS
        assert cells["latency_us"] == pytest.approx(metrics.latency_s * 1e6, abs=1e-6)


def test_processes_change_nothing_and_keep_the_order() -> None:
    assert list(predict(points(200), jobs=2)) == list(predict(points(200), jobs=1))


def test_errors_cross_processes_in_their_place() -> None:
    many = points(200)
    many[137] = point(device="h100_sxm", kernel="leen", batch_size=1, context_len=1, **SHAPE)
    many[299] = point(device="h100_sxm", kernel="fa2", batch_size=1, **SHAPE)
    found = list(predict(many, jobs=2))
    wrong = [i for i, outcome in enumerate(found) if isinstance(outcome, LeansimError)]
    assert wrong == [137, 299]
    assert "did you mean 'lean'" in str(found[137])


def test_every_wrong_row_is_named(tmp_path: Path) -> None:
    rows = [
        "h100_sxm,leen,1,8,2,64,5",
        "h100_sxm,fa2,1,8,2,64,5",
        "",
        "h100_sxm,fa2,1,8,3,64,5",
        "x,fa2,1,8,2,64,0",
    ]
    (tmp_path / "p.csv").write_text("\n".join([HEADER, *rows]))
    for verb in (leansim.plan, leansim.predict):
        with pytest.raises(ConfigError) as raised:
            verb(tmp_path / "p.csv", strict=True)
        assert [problem.line for problem in raised.value.problems] == [2, 5, 6]


def test_columns_are_added_beside_those_given(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(f"\ufeffid, {HEADER}\r\na, h100_sxm,fa2,1,8,2,64,1k\r\n".encode())
    written = leansim.predict(tmp_path / "p.csv", jobs=1).written("csv")
    (row,) = csv.DictReader(written.splitlines())
    assert (row["id"], row["context_len"], row["num_splits"]) == ("a", "1k", "1")
    assert float(row["latency_us"]) > float(row["makespan_us"]) > 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no rows"),
        (HEADER + "\n", "no rows"),
        (HEADER + ",device\n" + "a," * 7 + "b\n", "'device' twice"),
        (HEADER + "\nh100_sxm,fa2\n", "fewer cells"),
        (HEADER.replace("kernel", "kernal") + "\n" + "a," * 6 + "a\n", "did you mean 'kernel'"),
    ],
)
def test_files_that_are_no_table_of_points(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_points(tmp_path / "p.csv")


def test_what_was_written_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results named like an option, as `num_splits`, are not taken for one."""
    rows = [
        HEADER,
        *(f"h100_sxm,{kernel},2,32,8,128,4096" for kernel in ("lean", "flash_decoding", "fa3_varlen")),
    ]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    for verb, names in ((leansim.predict, "abc"), (leansim.plan, "bde")):
        for given, made in itertools.pairwise(names):
            written = verb(tmp_path / f"{given}.csv").written("csv")
            (tmp_path / f"{made}.csv").write_text(written + "\n")
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "c.csv").read_text()
    assert (tmp_path / "d.csv").read_text() == (tmp_path / "e.csv").read_text()
    assert "carried along unread: num_splits, num_ctas, latency_us" in capsys.readouterr().err
