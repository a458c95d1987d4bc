"""Regret over a grid: cells, families of kernels, reasons, figures, and what a folder gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leansim.errors import LeansimError
from leansim.files.strict_yaml import Document
from leansim.points.grid import PointGrid, build
from leansim.points.simulate import simulate
from leansim.report.study_figures import regret_figure, regret_figures
from leansim.report.study_report import write_study
from leansim.specs import catalog
from leansim.study.regret import RegretMap, cell_rows, cells_of, family, regret
from leansim.sweeps.spreading import spread


def grid(**changes: Any) -> PointGrid:
    fields = {
        "name": "test",
        "device": ["a100_sxm_80gb", "h100_sxm"],
        "kernel": ["fa2", "flash_decoding", "lean", "fa3", "flash_mla"],
        "batch_size": [1, 6],
        "context_len": [1024, 20_000],
        "num_q_heads": 16,
        "num_kv_heads": 4,
        "head_dim": 128,
        **changes,
    }
    made: PointGrid = build(Document("test", fields, {}))
    return made


@pytest.fixture(scope="module")
def found() -> RegretMap:
    return regret(grid(), jobs=1)


def test_cells_hold_the_policies_of_one_workload() -> None:
    cells = list(cells_of(grid().points()))
    assert [len(cell) for cell in cells] == [5] * 8
    assert all(len({(p.device, p.batch_size, p.context_len) for p in cell}) == 1 for cell in cells)


def test_a_family_is_one_kernel_under_several_rules() -> None:
    names = ("fa2", "flash_decoding", "flash_decoding_2_5_6", "lean", "fa3")
    kernels = {name: family(catalog.kernel(name)) for name in names}
    assert kernels["flash_decoding"] == kernels["flash_decoding_2_5_6"]
    assert len(set(kernels.values())) == 4, "unsplit calls of FlashDecoding have an entry of their own"


def test_regret_is_over_the_best_of_the_kernel(found: RegretMap) -> None:
    table = found.table
    done = table[table["error"].isna()]
    assert (done["regret"] >= 1.0).all()
    assert (done["latency_s"] / done["oracle_s"]).tolist() == pytest.approx(done["regret"].tolist())
    assert (done["bound_s"] <= done["oracle_s"]).all()
    assert (done["over_fastest"] >= 1.0).all()
    keys = ["device", "batch_size", "context_len"]
    split = done[done["policy"].isin(["fa2", "flash_decoding"]) & (done["device"] == "a100_sxm_80gb")]
    assert (split.groupby(keys)["oracle_s"].nunique() == 1).all(), "alike where no entry is known"
    least = done.groupby(keys)["over_fastest"].min()
    assert ((least >= 1.0) & (least < 1.5)).all()
    for point, row in list(zip(grid().points(), table.to_dict("records"), strict=True))[3::7]:
        found_here = next(
            r
            for r in table.to_dict("records")
            if (r["device"], r["policy"], r["batch_size"], r["context_len"])
            == (point.device, point.policy, point.batch_size, point.context_len)
        )
        if found_here["error"] is None:
            assert found_here["latency_s"] == simulate(point).result.latency_s
        assert row["policy"] in ("fa2", "flash_decoding", "lean", "fa3", "flash_mla")


def test_what_is_lost_has_a_reason_and_what_is_refused_an_error(found: RegretMap) -> None:
    table = found.table
    done = table[table["error"].isna()]
    lost = done["regret"] > 1.005
    assert (done.loc[lost, "reason"].str.len() > 0).all()
    assert (done.loc[~lost, "reason"] == "").all()
    refused = table[table["error"].notna()]
    assert set(refused["policy"]) == {"flash_mla"}
    assert refused["error"].str.contains("latent").all()
    unsplit = done[(done["policy"] == "fa2") & (done["context_len"] == 20_000)]
    assert unsplit["reason"].str.startswith("never split").all()


def test_worst_cells_and_summary(found: RegretMap) -> None:
    worst = found.worst(5)
    assert worst["regret"].is_monotonic_decreasing
    assert worst["regret"].iloc[0] == found.table["regret"].max()
    rows = found.worst_rows(3)
    assert len(rows) == 3
    assert rows[0]["why"] == worst["reason"].iloc[0]
    assert "batch_size=1" in rows[0]["where"]
    summary = {(row["device"], row["policy"]): row for row in found.summary()}
    assert summary[("h100_sxm", "fa2")]["never_split"] == "100%"
    assert ("h100_sxm", "flash_mla") not in summary
    assert len(summary) == 8


def test_processes_give_the_same(found: RegretMap) -> None:
    seen: list[tuple[int, int]] = []
    again = regret(grid(), jobs=2, progress=lambda done, total: seen.append((done, total)))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert seen == [(i, 8) for i in range(9)]


def test_figures_and_folder(found: RegretMap, tmp_path: Path) -> None:
    figures = regret_figures(found)
    assert set(figures) == {f"regret_{name}" for name in ("fa2", "flash_decoding", "lean", "fa3")}
    table = found.table[found.table["error"].isna()]
    figure = regret_figure(table, "fa2", ("context_len", "batch_size"), "test")
    cells = [text.get_text() for axes in figure.axes for text in axes.texts]
    mine = table[table["policy"] == "fa2"]["regret"]
    assert sorted(cells) == sorted(f"{r:.2f}" if r < 10 else f"{r:.3g}" for r in mine)
    written = write_study(tmp_path / "out", found.config, found, figures)
    assert all(path.stat().st_size > 0 for path in written)
    read = pd.read_csv(tmp_path / "out" / "results.csv")
    assert read["regret"].tolist() == pytest.approx(found.table["regret"].tolist(), nan_ok=True)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Worst cells" in text
    assert text.endswith(f"- {found.notes()[-1]}\n")


def test_a_grid_that_no_kernel_takes_is_an_error() -> None:
    with pytest.raises(LeansimError, match="every point was refused"):
        regret(grid(kernel="flash_mla"), jobs=1)


def test_ragged_cells_are_searched_by_request() -> None:
    config = grid(kernel=["fa2", "lean"], context_len=None, trace="azure_2023_conv", batch_size=4)
    (cell, *_) = cells_of(config.points())
    rows = cell_rows(cell, budget=20)
    assert [row["policy"] for row in rows] == ["fa2", "lean"]
    assert all(row["regret"] >= 1.0 and row["requests"] == 4 for row in rows)


def test_items_are_spread_in_order() -> None:
    seen: list[int] = []
    assert list(spread(abs, [-3, 2, -1], 2, lambda done, _: seen.append(done))) == [3, 2, 1]
    assert seen == [0, 1, 2, 3]
    assert list(spread(abs, [], None)) == []
