"""The experiment on whole decode steps: its pins, and what its README says of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import pytest
from loading import EXPERIMENTS, modules_of

FOLDER = EXPERIMENTS / "decode_step"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    with modules_of(FOLDER, "run") as found:
        yield found


def pinned() -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / "expected.csv").read_text().splitlines()))


def test_a_sample_of_the_pins(modules: dict[str, Any]) -> None:
    rows = pinned()
    steps = modules["run"].found([modules["steps"].asked_of(row) for row in rows[3::29]])
    for row, step in zip(rows[3::29], steps.values(), strict=True):
        assert step.seconds * 1e9 == pytest.approx(float(row["step_ns"]), abs=1)


def test_every_call_is_pinned(modules: dict[str, Any]) -> None:
    asked = [modules["steps"].asked_of(row) for row in pinned()]
    assert asked == list(dict.fromkeys(modules["run"].calls()))


def test_compiled_steps_of_70b_are_within_ten_percent() -> None:
    """gpt-fast's Llama-2-70B on 2, 4 and 8 A100s: 46.9, 26.3 and 16.0 ms."""
    times = {
        int(row["gpus"]): int(row["step_ns"]) * 1e-6
        for row in pinned()
        if (row["model"], row["kernel"]) == ("llama_2_70b", "flash_decoding")
    }
    assert times == pytest.approx({2: 46.9, 4: 26.31, 8: 16.0}, rel=0.10)


def test_what_is_left_over_of_vllms_steps_is_the_hosts(modules: dict[str, Any]) -> None:
    """With 64 requests and 128 tokens it is 5 to 7.5 ms on 1, 2 and 4 GPUs, whose steps are 8 to 3."""
    said = modules["run"].published()["generation"]
    steps = modules["run"].found(modules["run"].calls())
    left = {
        row["gpus"]: row["measured"] - row["simulated"]
        for row in modules["generation"].rows_of(steps, said)
        if (row["framework"], row["device"], row["model"]) == ("vLLM", "h100_sxm", "llama_3_8b")
        and (row["batch"], row["tokens"]) == (64, 128)
    }
    assert left.keys() == {1, 2, 4}
    assert all(5.0 < ms < 7.5 for ms in left.values())


@pytest.fixture(scope="module")
def batches(modules: dict[str, Any]) -> tuple[Any, Any]:
    """TensorRT-LLM 0.9's batches, and the steps that are simulated for them."""
    said = modules["run"].published()["static"]
    return modules["run"].found(modules["sizing"].calls(said)), said


def test_batches_of_llama_2_on_one_and_two_gpus_are_met(modules: dict[str, Any], batches: Any) -> None:
    """Nothing was fitted to them: 110 steps of 6.5 to 60 ms, at -7 to 0% in the mean."""
    steps, said = batches
    for (_, model, gpus), rows in modules["sizing"].groups(steps, said).items():
        if gpus < 4 and model != "mistral_7b":
            errors = modules["sizing"].errors(steps, rows, served=False)
            assert len(rows) > 20
            assert -0.08 < sum(errors) / len(errors) < 0.02
            assert sum(abs(error) <= 0.15 for error in errors) > 0.9 * len(errors)


def test_all_reduces_of_that_year_took_as_long_as_nccls(modules: dict[str, Any], batches: Any) -> None:
    """What a layer leaves over on 4 and 8 GPUs, beyond what it does on one: 11 and 20 us on H100s."""
    rows = [row for row in modules["sizing"].all_reduces(*batches) if row["gpus"] > 2]
    assert len(rows) == 4
    for row in rows:
        assert float(row["measured us"]) == pytest.approx(float(row["NCCL us"]), rel=0.2)
        assert float(row["simulated us"]) < 0.4 * float(row["measured us"])
