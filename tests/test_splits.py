"""Latency over split counts: what is varied, the knee, and what rules pick."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leansim.errors import LeansimError, PartitionerError
from leansim.partitioners.flash_decoding import num_splits_heuristic
from leansim.points.point import Point, point
from leansim.points.simulate import simulate
from leansim.report.study_figures import splits_figure
from leansim.study.splits import KNEE, split_curve

GQA: dict[str, Any] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}


def at(kernel: str, device: str = "h100_sxm", **fields: Any) -> Point:
    return point(device=device, kernel=kernel, **{**GQA, **fields})


def test_the_curve_is_what_the_counts_simulate_to() -> None:
    given = at("flash_decoding", batch_size=2, context_len=6000)
    curve = split_curve(given, ("flash_decoding", "lean"))
    assert curve.own, "flash_decoding takes a count"
    for count, latency in zip(curve.counts, curve.latencies_s, strict=True):
        options = {"name": "flash_decoding", "options": {"num_splits": count}}
        told = point(**{**given.model_dump(exclude_unset=True), "partitioner": options})
        assert simulate(told).result.latency_s == latency
    assert curve.best_s == min(curve.latencies_s)
    assert curve.latencies_s[curve.counts.index(curve.best)] == curve.best_s
    fewer = [c for c in curve.counts if c < curve.knee]
    assert all(curve.latencies_s[curve.counts.index(c)] > (1 + KNEE) * curve.best_s for c in fewer)
    assert curve.knee <= curve.best


def test_rules_pick_what_their_host_code_picks() -> None:
    curve = split_curve(at("fa2", batch_size=2, context_len=6000))
    assert not curve.own, "fa2's own rule never splits and takes no count"
    picks = {name: pick for pick in curve.picks for name in pick.used_by}
    tiles = -(-6000 // 128)
    assert picks["flash_decoding"].num_splits == num_splits_heuristic(16, tiles, 2 * 132)
    assert picks["flash_decoding_2_5_6"].num_splits == num_splits_heuristic(16, tiles, 132)
    assert picks["fa4"].num_splits == 132 // 16
    assert picks["flex_decoding"].num_splits == 132 // 16 * 2
    assert picks["fa2"].splits == (1, 1)
    assert {"fa3", "vllm_fa3", "flashinfer_decode", "sglang_triton", "lean"} <= set(picks)
    rows = {row["num_splits"]: row for row in curve.rows()}
    assert rows[1]["over_best"] == f"{curve.latencies_s[0] / curve.best_s:.3f}"
    assert "fa2" in rows[1]["picked_by"]
    assert rows[curve.best]["mark"].startswith("best")


def test_rules_that_refuse_are_named() -> None:
    curve = split_curve(at("fa3", batch_size=2, context_len="256k"))
    assert {"vllm_paged_v1", "flashinfer_batch"} <= {name for name, _ in curve.refused}
    assert all(why for _, why in curve.refused)
    assert not {name for name, _ in curve.refused} & {pick.name for pick in curve.picks}


def test_what_has_no_live_knob_is_cut_anyway() -> None:
    """Multi-head attention is never split by vLLM's FA2, and takes no count; splitting would help."""
    curve = split_curve(at("vllm_fa2", batch_size=1, context_len="16k", num_kv_heads=32), ("vllm_fa2",))
    assert not curve.own
    assert max(curve.picks[0].splits) == 1
    assert curve.picks[0].latency_s > 1.5 * curve.best_s


def test_counts_can_be_given_and_refused() -> None:
    given = at("flash_decoding", batch_size=1, context_len=4000)
    assert split_curve(given, ("fa2",), (1, 7, 3)).counts == (1, 3, 7)
    with pytest.raises(PartitionerError, match="num_splits"):
        split_curve(given, ("fa2",), (1, 129))
    longest = split_curve(at("flash_decoding", batch_size=1, context_len="64k"), ("fa2",))
    assert max(longest.counts) <= 128, "what FA2 can be told"
    with pytest.raises(LeansimError):
        split_curve(at("flash_mla", batch_size=1, context_len=4000))


def test_counts_of_a_bound_follow_the_kernel() -> None:
    """Told to FA3's varlen rule a count is a bound; the request's own count stays below it."""
    lens = (400, 9000, 30_000)
    curve = split_curve(at("vllm_fa3", context_lens=lens), ("vllm_fa3",))
    assert curve.own
    best = simulate(at("vllm_fa3", context_lens=lens))
    assert max(best.schedule.splits_of_request) < 32
    assert curve.best_s <= best.result.latency_s


def test_records_and_notes() -> None:
    curve = split_curve(at("fa2", batch_size=1, context_len=3000), ("lean",))
    records = curve.records()
    assert [r["kind"] for r in records].count("rule") == len(curve.picks)
    assert min(r["over_best"] for r in records if r["kind"] == "count") == 1.0
    assert f"{curve.best} splits are best" in curve.note()


def test_the_figure_has_a_panel_per_point_and_a_marker_per_rule() -> None:
    curves = [
        split_curve(at("fa2", device, batch_size=1, context_len=9000), ("lean", "fa3"))
        for device in ("a100_sxm_80gb", "h100_sxm")
    ]
    figure = splits_figure(curves, "splits")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 2
    for panel, curve in zip(panels, curves, strict=True):
        line = panel.lines[0]
        assert np.allclose(line.get_ydata(), np.array(curve.latencies_s) * 1e6)
        assert len(panel.lines) == 2 + len(curve.picks), "curve, knee, rules"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "fa2, fa2_prefill, triton_fa2",
        "lean, lean_prefill, triton_lean",
        "fa3, fa3_prefill",
    ]
