"""Shared prefixes as published: pins are what is simulated now, pages are what pins say, claims are met.

A change that moves the pins is a model change: run the experiment's `run.py` again, and say why.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from loading import EXPERIMENTS, modules_of

FOLDER = EXPERIMENTS / "shared_prefix"
EVERY = 40


@pytest.fixture(scope="module")
def run() -> Iterator[ModuleType]:
    """The experiment's script, with what it imports."""
    with modules_of(FOLDER, "run") as found:
        yield found["run"]


@pytest.fixture(scope="module")
def pinned(run: ModuleType) -> dict[Any, int]:  # noqa: ARG001
    """The pins: calls and ns."""
    from calls import call_of  # type: ignore[import-not-found]

    rows = csv.DictReader((FOLDER / "expected.csv").read_text().splitlines())
    return {call_of(row): int(row["time_ns"]) for row in rows}


def test_every_call_is_pinned(run: ModuleType, pinned: dict[Any, int]) -> None:
    assert list(pinned) == list(dict.fromkeys(run.calls()))


def test_pins_are_what_is_simulated(run: ModuleType, pinned: dict[Any, int]) -> None:
    some = list(pinned)[7::EVERY]
    assert {call.kernel for call in some} >= {"vllm_cascade", "vllm_cascade_split", "lean_cascade"}
    assert run.times_of(some) == {call: pinned[call] for call in some}


def test_results_are_what_the_pins_say(run: ModuleType, pinned: dict[Any, int]) -> None:
    assert run.results(pinned) == (FOLDER / "RESULTS.md").read_text()


def test_lean_cascade_wins_and_loses(run: ModuleType, pinned: dict[Any, int]) -> None:
    """It gains most with few requests and long prefixes, and loses with many and short suffixes."""
    split = run.split_prefix
    gains = {cell: split.gain(pinned, cell, split.LEAN) for cell in split.cells()}
    most, least = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    assert (most.batch_size, most.prefix_len) == (2, 131072)
    assert (least.batch_size, least.suffix_len) == (512, 128)
    assert gains[least] < 0.8
    assert gains[most] > 5.0


def test_nodes_lose_to_the_flattened_tree_as_claimed(run: ModuleType, pinned: dict[Any, int]) -> None:
    from dataclasses import replace

    deft = run.deft_ratios
    claims = run.claims()["deft"]
    rows = [(call, claimed) for call, claimed in deft.cells(claims) if "node" in claimed]
    assert len(rows) == len(claims["prompt_lens"])
    for call, claimed in rows:
        found = pinned[replace(call, kernel=deft.KERNELS["node"])] / pinned[call]
        assert found == pytest.approx(claimed["node"] / claimed["flatten"], rel=0.45)


@pytest.mark.parametrize(
    ("requests", "prefix", "heads", "taken"),
    [
        (64, 255, (32, 8), False),  # too short a prefix
        (7, 32768, (32, 8), False),  # too few requests
        (8, 256, (32, 32), True),  # heads are not grouped
        (8, 4096, (32, 8), False),  # 32 tiles in one round, against 2,048 over 108 SMs: 19
        (14, 4096, (32, 8), True),  # 14 x 8 x 32 = 3,584 tiles: 34
        (129, 4096, (64, 8), True),  # 64 heads x 2 = 128 CTAs, two rounds of 32: 64 against 306
        (13, 4096, (32, 8), False),  # 3,328 tiles: 31
    ],
)
def test_vllms_rule(
    run: ModuleType, requests: int, prefix: int, heads: tuple[int, int], taken: bool
) -> None:
    assert run.vllm_rule.uses_cascade(requests, prefix, *heads, num_sms=108) is taken


def made_up(folder: Path) -> Path:
    """A few rows as RelayAttention's, with round times."""
    folder.mkdir()
    pd.DataFrame(
        {"nreqs": [1, 8, 1, 8], "ctxlen": 128, "prefixlen": 1024, "relay": [False, False, True, True],
         "attn_usr": [55, 400, 8, 40], "attn_sys": [0, 0, 45, 50], "relay_fusion": [0, 0, 1, 1]}
    ).to_csv(folder / "relay_attention_NVIDIA-A40.csv", index=False)  # fmt: skip
    return folder


def test_made_up_rows_are_compared_by_launch(run: ModuleType, tmp_path: Path) -> None:
    data = made_up(tmp_path / "data")
    found = run.relay_rows.with_relay(data)
    assert found["measured_us"].tolist() == [54.0, 91.0]
    alone, shared = found.to_dict("records")
    assert alone["attn_sys_simulated"] == alone["relay_fusion_simulated"] == 0.0
    kernels = [shared[f"{name}_simulated"] for name in run.relay_rows.LAUNCHES]
    assert min(kernels) > 0.0
    assert sum(kernels) == pytest.approx(shared["simulated_us"])
    page = run.relay_rows.part(data).written
    assert "Over 2 rows the mean error is" in page
    assert "| 8 | 1 | 4.40x |" in page  # 400 us over 91


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = [sys.executable, str(FOLDER / "run.py"), "--data", str(tmp_path), "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found no relay_attention_NVIDIA-A40.csv" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_published_a40_page_meets_its_target() -> None:
    page = (FOLDER / "A40.md").read_text()
    (error,) = re.findall(r"Over 126 rows the mean error is ([\d.]+)%", page)
    assert float(error) <= 10.0
