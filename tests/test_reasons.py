"""Reasons rest on a path whose parts add up to the latency, and name the part that grew."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.points.point import Point, point
from leansim.points.simulate import simulate
from leansim.study.reasons import PATH, Facts, facts_of, why_slower

RAGGED = (100, 3000, 700, 17_000, 2500, 9000, 65)


def at(kernel: str, **fields: Any) -> Point:
    shape = {"num_q_heads": 16, "num_kv_heads": 4, "head_dim": 128, "context_lens": RAGGED}
    return point(**{"device": "h100_sxm", "kernel": kernel, **shape, **fields})


@pytest.mark.parametrize(
    "kernel",
    ["fa2", "flash_decoding", "lean", "lean_ort", "fa3_varlen", "flashinfer_batch", "trtllm_xqa"],
)
def test_the_path_adds_up_to_the_latency(kernel: str) -> None:
    simulation = simulate(at(kernel))
    facts = facts_of(simulation)
    assert set(facts.path_s) == set(PATH)
    assert min(facts.path_s.values()) >= 0.0
    assert sum(facts.path_s.values()) == pytest.approx(simulation.result.latency_s, rel=1e-9)
    assert facts.latency_s == simulation.result.latency_s
    assert facts.sms_used <= min(facts.num_sms, facts.busy_ctas)
    assert facts.busy_ctas + simulation.schedule.num_empty_ctas == facts.num_ctas


def test_an_unsplit_request_is_told_from_a_split_one() -> None:
    one = {"context_lens": None, "batch_size": 1, "context_len": 20_000}
    slow, fast = (facts_of(simulate(at(kernel, **one))) for kernel in ("fa2", "flash_decoding"))
    text = why_slower(slow, fast)
    assert text.startswith(f"never split (best {fast.splits_text}): 4 CTAs leave 128 of 132 SMs empty; ")
    assert f"streams {-(-20_000 // 128)} KV tiles for {slow.path_s['stream'] * 1e6:.1f} us" in text


def test_too_many_partials_are_told_from_long_runs() -> None:
    """One row with 128 partials, merged one after another by FA2's combine kernel."""
    one = {"context_lens": None, "batch_size": 1, "context_len": "16k", "num_kv_heads": 1}
    few, many = (
        facts_of(
            simulate(
                at("fa2", **one, partitioner={"name": "flash_decoding", "options": {"num_splits": n}})
            )
        )
        for n in (32, 128)
    )
    text = why_slower(many, few)
    assert text.startswith("more splits (128, best 32): merging 128 partials in a second kernel takes ")
    assert f"{many.path_s['combine'] * 1e6:.1f} us" in text


def test_the_part_that_grew_most_is_named() -> None:
    base = facts_of(simulate(at("fa2")))
    for name in PATH:
        grown: dict[str, Any] = {
            **base.__dict__,
            "path_s": {**base.path_s, name: base.path_s[name] + 1.0},
        }
        text = why_slower(Facts(**grown), base)
        told = "stream" if name == "queue" else name
        words = {
            "before": "before the attention launch",
            "launch": "placing",
            "ramp": "starts its runs",
            "stream": "KV tiles",
            "wait": "waits for others",
            "merge": "merges partials",
            "write": "writes",
            "combine": "second kernel",
        }
        assert words[told] in text
