"""Batch invariance: who has it, checked as `checking` does, and what the invariant choices cost."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.numerics.invariance import batch_invariance
from leansim.points.point import point, resolve
from leansim.points.simulate import simulate
from leansim.specs.kernel import PartitionerSpec
from leansim.study.invariance import invariance

GQA: dict[str, Any] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
GIVEN = point(device="h100_sxm", kernel="flash_decoding", context_lens=(9000, 1200, 3000), **GQA)


def test_findings_are_those_of_the_check() -> None:
    study = invariance(GIVEN, ("fa2", "lean", "vllm_paged_v2", "flashinfer_tc_decode"), seeds=2)
    found = {finding.label: finding for finding in (study.own, *study.rules)}
    assert {label: finding.invariant for label, finding in found.items()} == {
        "flash_decoding, triton_flash_decoding": False,
        "fa2, fa2_prefill, triton_fa2": True,
        "lean, lean_prefill, triton_lean": False,
        "relay, vllm_paged_v2": True,
        "flashinfer_cascade, flashinfer_tc_decode": False,
    }
    assert found["fa2, fa2_prefill, triton_fa2"].batches == 18, "nine batches a seed"
    assert found["lean, lean_prefill, triton_lean"].counterexample
    resolved = resolve(GIVEN)
    again = batch_invariance(
        resolved.partitioner, resolved.kernel, resolved.device, resolved.workload, seed=0
    )
    assert study.own.counterexample == again.counterexample


def test_invariant_choices_are_invariant_and_priced() -> None:
    study = invariance(GIVEN, ("fa2",), seeds=2)
    assert all(choice.invariant for choice in study.choices)
    assert [choice.name for choice in study.choices] == [
        "one split",
        *(f"splits of {size:,} tokens" for size in (256, 512, 1024, 2048, 4096, 8192)),
    ]
    default = simulate(GIVEN).result.latency_s
    assert study.own.latency_s == default
    for choice in study.choices:
        assert study.cost(choice) == pytest.approx(choice.latency_s / default)
    one = {"name": "flash_decoding", "options": {"num_splits": 1}}
    unsplit = simulate(GIVEN.model_copy(update={"partitioner": PartitionerSpec(**one)})).result.latency_s
    assert study.choices[0].latency_s == pytest.approx(unsplit, rel=0.02)
    assert study.best_choice.latency_s <= study.choices[0].latency_s
    assert f"({study.best_choice.label}) {study.cost(study.best_choice):.2f}x" in study.note()


def test_sizes_are_whole_tiles_shorter_than_the_longest() -> None:
    study = invariance(GIVEN, ("fa2",), seeds=1, sizes=(100, 200, 9000))
    assert [choice.name for choice in study.choices[1:]] == [
        "splits of 128 tokens",
        "splits of 256 tokens",
    ]


def test_a_kernel_without_a_second_one_is_only_left_unsplit() -> None:
    study = invariance(GIVEN.model_copy(update={"kernel": "lean"}), ("fa2",), seeds=1)
    assert [choice.name for choice in study.choices] == ["one split"]


def test_rules_that_refuse_are_named() -> None:
    fields = {"context_lens": (200_000,), **GQA}
    study = invariance(point(device="h100_sxm", kernel="fa3", **fields), ("vllm_paged_v1",), seeds=1)
    assert [name for name, _ in study.refused] == ["vllm_paged_v1"]
    rows, records = study.rows(), study.records()
    assert len(rows) == len(records) == 1 + len(study.choices)
    assert rows[0]["over_default"] == "1.000"
