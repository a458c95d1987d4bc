"""Frozen split counts: regrets recomputed from the samples, and what is captured."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.errors import PartitionerError, WorkloadError
from leansim.points.point import Point, point
from leansim.points.simulate import simulate
from leansim.study.buckets import Bucket, buckets, sampled, usable_counts

GQA: dict[str, Any] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
COUNTS = (1, 4, 16, 64)


def at(kernel: str = "flash_decoding", device: str = "h100_sxm", **fields: Any) -> Point:
    return point(**{"device": device, "kernel": kernel, "trace": "azure_2023_conv", **GQA, **fields})


@pytest.fixture(scope="module")
def found() -> list[Bucket]:
    return [*buckets(at(), (1, 8), 5, COUNTS, jobs=1).buckets]


def test_regrets_are_over_the_best_count_of_each_batch(found: list[Bucket]) -> None:
    for bucket in found:
        best = [min(sample[str(c)] for c in COUNTS) for sample in bucket.samples]
        for one in bucket.counts:
            mine = [sample[one.choice] for sample in bucket.samples]
            regrets = [a / b for a, b in zip(mine, best, strict=True)]
            assert one.mean_regret == pytest.approx(sum(regrets) / 5)
            assert one.worst_regret == pytest.approx(max(regrets))
            assert one.mean_regret >= 1.0
        assert bucket.expected.mean_regret == min(one.mean_regret for one in bucket.counts)
        assert bucket.worst_case.worst_regret == min(one.worst_regret for one in bucket.counts)
        assert bucket.expected.worst_regret >= bucket.worst_case.worst_regret


def test_samples_are_the_traces_batches_at_the_captured_length(found: list[Bucket]) -> None:
    longest = found[0].max_context_len
    assert longest & (longest - 1) == 0, "a power of two"
    for seed, sample in enumerate(found[1].samples):
        told = {"name": "flash_decoding", "options": {"num_splits": 16}}
        frozen = at(batch_size=8, seed=seed, max_context_len=longest, partitioner=told)
        simulation = simulate(frozen)
        assert max(simulation.resolved.workload.context_lens) <= longest
        assert sample["16"] == simulation.result.latency_s
        assert sample["eager"] == simulate(at(batch_size=8, seed=seed)).result.latency_s
        captured = simulate(at(batch_size=8, seed=seed, max_context_len=longest))
        assert sample["captured"] == captured.result.latency_s
        assert captured.schedule.num_splits == found[1].captured.num_splits


def test_rows_and_records(found: list[Bucket]) -> None:
    rows = [bucket.row() for bucket in found]
    assert [row["bucket"] for row in rows] == [1, 8]
    assert rows[0]["freeze"] == found[0].expected.num_splits
    records = found[0].records()
    assert [record["choice"] for record in records] == [*map(str, COUNTS), "captured", "eager"]
    assert sum(record["best_expected"] for record in records) == 1


def test_processes_give_the_same(found: list[Bucket]) -> None:
    again = buckets(at(), (1, 8), 5, COUNTS, jobs=2).buckets
    assert [b.samples for b in again] == [b.samples for b in found]


def test_only_counts_that_can_be_told_are_tried() -> None:
    assert usable_counts(at(), 1, (1, 128, 129, 200)) == (1, 128)
    with pytest.raises(PartitionerError, match="can be told none"):
        usable_counts(at(), 1, (500,))
    with pytest.raises(PartitionerError, match="takes no number of splits"):
        buckets(at("lean"), (1,), 1)
    with pytest.raises(PartitionerError, match="takes no number of splits"):
        buckets(at("vllm_fa2", "a100_sxm_80gb", num_kv_heads=32), (1,), 1)


def test_a_trace_is_needed_and_must_fit() -> None:
    without = at().model_copy(update={"trace": None, "context_len": 1000})
    with pytest.raises(WorkloadError, match="no trace"):
        buckets(without, (1,), 1)
    with pytest.raises(WorkloadError, match="at least one"):
        buckets(at(), (), 1)
    with pytest.raises(WorkloadError, match="max_context_len is 64"):
        buckets(at(max_context_len=64), (4,), 1, jobs=1)


def test_a_longer_capture_moves_what_is_captured() -> None:
    """FA2's rule reads the captured length, and its borders follow it: most splits are then empty."""
    short, long = (sampled(at(batch_size=2, max_context_len=n), COUNTS) for n in ("8k", "128k"))
    assert short[0]["eager"] == long[0]["eager"]
    assert long[0]["16"] > short[0]["16"]
