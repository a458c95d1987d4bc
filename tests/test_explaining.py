"""Explanations: every number in the paragraph is one that the run gives, computed here again."""

from __future__ import annotations

import re
from typing import Any

import pytest

from leansim.points.point import Point, point, resolve
from leansim.points.simulate import simulate
from leansim.study.bench import Bench
from leansim.study.explain import explain
from leansim.study.oracle import oracle

GQA: dict[str, Any] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
POINTS = [
    point(device="h100_sxm", kernel="fa2", batch_size=1, context_len="16k", **GQA),
    point(device="a100_sxm_80gb", kernel="vllm_fa2", trace="mooncake_conversation", batch_size=8, **GQA),
    point(device="h100_sxm", kernel="fa3", batch_size=64, context_len="4k", **GQA),
    point(device="h100_sxm", kernel="lean", context_lens=(5000, 200, 64), **GQA),
]


@pytest.mark.parametrize("given", POINTS, ids=lambda p: p.kernel)
def test_numbers_come_from_the_run(given: Point) -> None:
    said = explain(given, budget=60)
    simulation = simulate(given)
    metrics = simulation.metrics
    assert f": {metrics.latency_s * 1e6:.1f} us, " in said.text
    bound = Bench(resolve(given)).bound().latency_s
    assert f"{metrics.latency_s / bound:.2f}x the {bound * 1e6:.1f} us" in said.text
    busy = simulation.schedule.num_ctas - simulation.schedule.num_empty_ctas
    device = simulation.resolved.device
    assert f"{busy:,} CTAs on {device.num_sms} SMs" in said.text
    shares = {
        "idle": metrics.share_idle,
        "streaming KV": metrics.share_stream,
        "waiting for other CTAs' partials": metrics.share_wait,
    }
    for name, told in re.findall(
        r"(\d+)% (idle|streaming KV|waiting for other CTAs' partials)", said.text
    ):
        assert float(name) == pytest.approx(100 * shares[told], abs=0.51)
    assert f"DRAM runs at {metrics.dram_utilisation:.0%} of its peak" in said.text


@pytest.mark.parametrize("given", POINTS, ids=lambda p: p.kernel)
def test_help_and_rules_are_the_oracles(given: Point) -> None:
    said = explain(given, budget=60)
    found = oracle(given, budget=60)
    ratio = simulate(given).result.latency_s / found.found.latency_s
    if ratio >= 1.5:
        assert f"splits would be {ratio:.1f}x faster ({found.found.latency_s * 1e6:.1f} us)" in said.text
    elif ratio < 1.005:
        assert "No split count found is more than 0.5% faster." in said.text
    others = [p for p in found.ranked if p in found.policies and p is not found.own]
    first = others[0]
    assert f"{first.used_by[0]}" in said.text
    assert f"{first.cuts} ({first.latency_s * 1e6:.1f} us)" in said.text
    assert said.record()["fastest_s"] == found.best.latency_s


def test_where_lean_attention_loses_it_says_by_how_much_and_why() -> None:
    shape = {"num_q_heads": 16, "num_kv_heads": 16, "head_dim": 64}
    given = point(device="h100_sxm", kernel="lean", batch_size=1, context_len="1k", **shape)
    said = explain(given)
    best = said.oracle.found
    lost = said.simulation.result.latency_s / best.latency_s
    assert lost > 1.05
    told = f"{lost:.1f}x slower" if lost >= 1.5 else f"{lost - 1:.1%} slower"
    assert (
        f"LeanAttention loses here: {said.simulation.result.latency_s * 1e6:.1f} us, {told}" in said.text
    )
    assert f"than {best.cuts} splits; fewer splits (2, best {best.cuts})" in said.text
    assert said.lean is not None
    assert said.record()["lean_s"] == said.simulation.result.latency_s


def test_where_it_wins_it_says_so_too() -> None:
    said = explain(POINTS[1], budget=60)
    assert said.lean is not None
    ratio = said.oracle.found.latency_s / said.lean.result.latency_s
    assert ratio > 1.005
    assert f"{ratio - 1:.1%} faster than the best split counts" in said.text


def test_a_schedule_that_refuses_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "leansim.study.explain.LEAN", "vllm_paged_v1"
    )  # keeps all scores in shared memory
    said = explain(point(device="h100_sxm", kernel="fa2", batch_size=1, context_len="256k", **GQA))
    assert said.lean is None
    assert said.record()["lean_s"] is None
    assert "LeanAttention does not take this workload on this kernel." in said.text
