"""Sparse decode: reports come out as they are said to, pins hold, and the page's examples work."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from loading import modules_of

from leansim.points.grid import load
from leansim.points.point import point_from_row, resolve

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "experiments" / "sparse_decode"
MODULES = ("parts", "reported", "budgets", "ragged", "figures", "run")
RESULTS = (FOLDER / "RESULTS.md").read_text()


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, Any]]:
    """The experiment's modules, which no other test shall find under these names."""
    with modules_of(FOLDER, *MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def parts(here: dict[str, Any]) -> dict[str, Any]:
    """Every part but the budgets', by its title."""
    return {part.title: part for part in here["run"].others()}


@pytest.fixture(scope="module")
def curves(here: dict[str, Any]) -> Any:
    """Latency over budgets."""
    return here["budgets"].curves()


def table(parts: dict[str, Any], title: str, number: int = 0) -> pd.DataFrame:
    return parts[title].tables[number][1]


def test_what_is_published_is_what_is_simulated(parts: dict[str, Any], curves: Any) -> None:
    """Else run `python experiments/sparse_decode/run.py`, and say what moved and why."""
    pins: dict[str, dict[str, int]] = {}
    for row in csv.DictReader((FOLDER / "expected.csv").read_text().splitlines()):
        pins.setdefault(row["part"], {})[row["case"]] = int(row["latency_ns"])
    assert pins == {title: part.pins for title, part in parts.items() if part.pins} | {
        "Budgets": curves.times
    }
    assert sum(map(len, pins.values())) > 250
    for part in parts.values():
        assert part.written() in RESULTS
    assert str(ROOT) not in RESULTS


def test_waves_make_the_reported_staircase(parts: dict[str, Any]) -> None:
    """Times are within 13%; CTAs beyond 256 units double the wide tile's time, and not the narrow's."""
    rows = table(parts, "The staircase of waves")
    for row in rows.to_dict("records"):
        assert abs(float(row["off"].rstrip("%"))) <= 13, row
        assert float(row["simulated_us"]) == pytest.approx(row["reported_us"], rel=0.13)
    time = {(row.tile, row.queries): float(row.simulated_us) for row in rows.itertuples()}
    assert time[64, 128] > 1.9 * time[64, 64]
    assert time[32, 128] < 1.1 * time[32, 64]
    assert [time[64, n] < time[32, n] for n in (32, 64, 128, 256)] == [True, True, False, False]
    assert "4 of 4 sizes" in parts["The staircase of waves"].sentences[1]


def test_one_cta_gains_by_splits(parts: dict[str, Any]) -> None:
    """Both times, and the ratio, within 25% of what was reported for 16 to 32 splits."""
    rows = table(parts, "A grid of one CTA").set_index("splits")
    time = rows["simulated_us"].astype(float)
    assert time[1] == pytest.approx(213, rel=0.25)
    for count in (16, 32):
        assert time[count] == pytest.approx(28.7, rel=0.25)
        assert time[1] / time[count] == pytest.approx(213 / 28.7, rel=0.25)
        assert float(rows.loc[count, "4 queries_us"]) == pytest.approx(time[count], rel=0.02)
        assert float(rows.loc[count, "128 tokens_us"]) < time[count]
    assert float(rows.loc[16, "gain from DRAM"].rstrip("x")) == pytest.approx(213 / 28.7, rel=0.25)


def test_the_sign_flips_between_a_straggler_and_equal_lists(parts: dict[str, Any]) -> None:
    rows = table(parts, "The straggler").set_index(["lists", "tile"])
    for tile in (64, 32):
        assert rows.loc[("one of 5,000, 97 of 200", tile), "8 splits"].startswith("-")
    said = re.compile(r"([+-]\d+)% \(([+-]\d+)%\)")
    found = {
        tile: [
            (int(match[1]), int(match[2]))
            for cell in rows.xs(tile, level="tile").to_numpy().ravel()
            if (match := said.fullmatch(str(cell)))
        ]
        for tile in (64, 32)
    }
    apart = {tile: [abs(one - other) for one, other in pairs] for tile, pairs in found.items()}
    assert [len(pairs) for pairs in found.values()] == [17, 17]
    assert all((one > 0) == (other > 0) for one, other in found[64])
    assert sum(apart[64]) / 17 < 14
    assert max(apart[64]) <= 26
    assert rows.loc[("1,152 each", 64), "8 splits"] == "+5% (+5%)"


def test_the_dispersion_is_the_reports(here: dict[str, Any]) -> None:
    for median in here["reported"].GAINS:
        lens = here["reported"].dispersed(median)
        assert len(lens) == 98
        assert 1 <= min(lens) <= max(lens) <= 5000
        assert sorted(lens)[49] == pytest.approx(median, rel=0.25)


def test_imps_rule_by_hand(here: dict[str, Any]) -> None:
    """100 tokens are 7 pages; two waves on 170 SMs are 340 CTAs, 29 for each of 12 heads."""
    assert [here["reported"].imp_splits(told) for told in (100, 1700, 2051)] == [7, 29, 29]


def test_rules_split_by_what_they_are_told(parts: dict[str, Any]) -> None:
    rows = table(parts, "What the call is told", 1).set_index("kernel")
    splits = rows.map(lambda cell: int(cell.split()[0]))
    for kernel in ("flash_decoding", "fa3", "trtllm_xqa"):
        told = splits.loc[kernel]
        assert (
            told["100 tokens"]
            < told["told 2,051"]
            <= told["2,048 of 131,072"] + 1
            < told["told 131,072"]
        )
    assert len(set(rows.loc["sglang_triton", ["100 tokens", "told 2,051"]])) == 1


def test_a_bounded_memory_by_hand(here: dict[str, Any]) -> None:
    """100,000 tokens are 97 segments of 1,024 and 672 more."""
    assert here["budgets"].bounded_tokens(100_000, 32) == 97 * 32 + 672
    assert here["budgets"].bounded_tokens(1023, 32) == 1023
    assert here["budgets"].bounded_tokens(1024, 128) == 128


def test_budgets_cost_what_they_keep_and_choosing_what_there_is(
    curves: Any, here: dict[str, Any]
) -> None:
    budgets = here["budgets"]
    for batch in budgets.BATCHES:
        for context in budgets.CONTEXTS:
            for kind in ("quest", "sparsek"):
                times = [curves.of(batch, context, kind, budget) for budget in budgets.BUDGETS]
                assert times == sorted(times)
                assert times[0] < curves.of(batch, context, "dense")
        kept = [curves.of(batch, context, "sparsek", 1024) for context in budgets.CONTEXTS]
        assert len(set(kept)) == 1  # whatever the context
        chosen = [curves.of(batch, context, "quest", 1024) for context in budgets.CONTEXTS]
        assert chosen == sorted(set(chosen))
        assert chosen[0] > kept[0]


def test_the_break_even_is_where_the_curves_cross(here: dict[str, Any]) -> None:
    """And not before there is more than is kept."""
    budgets, parts = here["budgets"], here["parts"]
    worth = budgets.break_even().set_index("batch")
    for batch in (1, 64):
        for budget in budgets.BUDGETS:
            context = int(worth.loc[batch, str(budget)])
            before = budgets.TRIED[max(0, budgets.TRIED.index(context) - 1)]
            assert context > budget
            call = {"batch_size": batch, "context_len": context}
            both = parts.timed(
                {
                    "dense": parts.llama(**call),
                    "quest": parts.llama(**call, mask=budgets.quest(budget)),
                    "dense before": parts.llama(**call | {"context_len": before}),
                    "quest before": parts.llama(
                        **call | {"context_len": before}, mask=budgets.quest(budget)
                    ),
                }
            )
            assert both["quest"] < both["dense"]
            if before < context:
                assert both["quest before"] >= both["dense before"]
    assert (worth.loc[1].astype(int) >= worth.loc[64].astype(int)).all()


def test_lean_wins_where_lists_are_ragged(parts: dict[str, Any]) -> None:
    rows = table(parts, "Who wins on ragged lists")
    ragged = rows[rows["longest / mean"].astype(float) > 1.5]
    assert len(ragged) >= 5
    assert set(ragged["fastest"]) == {"lean_attention"}


def test_figures_are_drawn(curves: Any, here: dict[str, Any]) -> None:
    assert len(here["figures"].budget_figure(curves).axes) == len(here["budgets"].CONTEXTS)
    worth = pd.DataFrame([{"batch": 1, **dict.fromkeys(map(str, here["budgets"].BUDGETS), 4096)}])
    assert here["figures"].break_even_figure(worth).axes
    for name in ("budgets.png", "break_even.png"):
        assert (FOLDER / name).read_bytes().startswith(b"\x89PNG")


def test_the_pages_examples_ask_for_lists(tmp_path: Path) -> None:
    """docs/schedulers.md, "KV lists": the YAML and the CSV that it shows."""
    page = (ROOT / "docs" / "schedulers.md").read_text().partition("## KV lists")[2]
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "lists.yaml"
    path.write_text(text)
    found = [resolve(point).workload.mask for point in load(path).points()]
    assert len(found) == 2
    assert yaml.safe_load(text)["mask"]["selector"] == "quest"
    assert {mask.selector for mask in found} == {"quest"}  # type: ignore[union-attr]
    (lines,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (row,) = csv.DictReader(lines.splitlines())
    asked = resolve(point_from_row(row, "page")).workload
    assert asked.index_bytes == 8 * 131072 * 132
