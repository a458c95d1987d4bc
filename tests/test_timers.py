"""Timers as harnesses: what `do_bench` and its like add to a call, in `predict` and `validate`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import leansim
from leansim.errors import ConfigError, UnknownNameError
from leansim.points.point import Point
from leansim.silicon.validate import validate_points
from leansim.specs import catalog
from leansim.specs.harness import Calls, MeasuredTable
from leansim.specs.timer import Timer

SHAPE = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
POINT = leansim.point(device="h200_sxm", kernel="vllm_fa3", batch_size=2, context_len="2k", **SHAPE)
CALLS = Calls("vllm_fa3", 2, 8, 4, 1, 1)
MEASURED = Path(__file__).resolve().parent.parent / "experiments/own_gpus/h200/timers.csv"
TIMERS = ("cuda_events", "do_bench", "eager", "nvbench", "profiler")


def latency_s(harness: str = "", point: Point = POINT) -> float:
    (found,) = leansim.predict(point, harness=harness)
    return float(found.latency_s)


def test_every_timer_is_there_with_its_sources() -> None:
    assert tuple(catalog.names("timer")) == TIMERS
    for name in TIMERS:
        timer = catalog.harness(name)
        assert isinstance(timer, Timer)
        assert {text.split(":")[0] for text in timer.sources.values()} <= {"measured", "assumed"}
    assert isinstance(catalog.harness("h200_sxm_vllm"), MeasuredTable)


def test_what_a_timer_shows_by_hand() -> None:
    """2 us added, at least 10 us: 1, 8 and 20 us become 10, 10 and 22; the kernels alone less 1 us."""
    timer = Timer(
        name="mine", launch="stream", cache="warm", added_s=2e-6, least_s=10e-6,
        sources={"added_s": "assumed: by hand", "least_s": "assumed: by hand"},
    )  # fmt: skip
    kernels = np.array([1e-6, 8e-6, 20e-6])
    np.testing.assert_allclose(kernels + timer.harness_s(CALLS, kernels), [10e-6, 10e-6, 22e-6])
    less = timer.model_copy(update={"added_s": 0.0, "omitted_s": 1e-6, "least_s": 0.0})
    np.testing.assert_allclose(kernels + less.harness_s(CALLS, kernels), [0.0, 7e-6, 19e-6], atol=1e-12)


def test_measured_timers_add_what_was_measured() -> None:
    """Beside a graph's calls on an H200: a stream's gap is longer, and small calls evict nothing."""
    rows = list(csv.DictReader(MEASURED.read_text().splitlines()))
    added = {(row["timer"], int(row["bytes"])): float(row["added_us"]) * 1e-6 for row in rows}
    gaps = catalog.device("h200_sxm").kernel_gap_s
    small = (
        np.mean([added["do_bench", size] for size in (2**14, 2**20)]) - gaps["stream"] + gaps["graph"]
    )
    bench, eager, profiler = (catalog.harness(name) for name in ("do_bench", "eager", "profiler"))
    assert bench.added_s == pytest.approx(small, abs=1e-7)  # type: ignore[union-attr]
    assert added["do_bench", 2**27] > added["do_bench", 2**24] > 2 * small
    # Of one call between two events the host's launch is added to long calls too.
    assert added["eager", 2**27] > added["cuda_events", 2**14] > eager.added_s  # type: ignore[union-attr]
    omitted = [-added["profiler", size] for size in (2**14, 2**20, 2**24, 2**27)]
    assert min(omitted) < profiler.omitted_s < max(omitted)  # type: ignore[union-attr]


def test_predict_with_a_timer() -> None:
    alone = latency_s()
    assert latency_s("do_bench") == pytest.approx(alone + catalog.harness("do_bench").added_s)  # type: ignore[union-attr]
    assert latency_s("profiler") < alone
    small = POINT.model_copy(update={"kernel": "triton_fa2", "context_len": 64})
    least = catalog.harness("eager").least_s  # type: ignore[union-attr]
    assert latency_s("", small) < least - catalog.harness("eager").added_s  # type: ignore[union-attr]
    assert latency_s("eager", small) == pytest.approx(least)
    large = POINT.model_copy(update={"context_len": 2**18})
    assert latency_s("eager", large) > least


def test_validate_compares_like_with_like(tmp_path: Path) -> None:
    """Times as `do_bench` and `eager` would show them, made by hand from the simulator's: no error."""
    points = tmp_path / "points.csv"
    rows = []
    for context in (64, 2048, 65536):
        alone = latency_s("", POINT.model_copy(update={"context_len": context}))
        shape = {
            "device": "h200_sxm",
            "kernel": "vllm_fa3",
            "batch_size": 2,
            "context_len": context,
            **SHAPE,
        }
        bench, eager = catalog.harness("do_bench"), catalog.harness("eager")
        assert isinstance(bench, Timer)
        assert isinstance(eager, Timer)
        shown = {"do_bench": alone + bench.added_s, "eager": max(alone + eager.added_s, eager.least_s)}
        rows += [
            {**shape, "harness": n, "measured_us": s * 1e6} for n, s in (*shown.items(), ("", alone))
        ]
    with points.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = validate_points(points)
    assert len(table) == 9
    assert table["error"].abs().max() < 1e-6
    assert set(table["harness"]) == {"do_bench", "eager", ""}


def test_a_timer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a folder of one's own is a harness; one without sources, and a wrong name, are told."""
    folder = tmp_path / "timers"
    folder.mkdir()
    text = "name: mine\nlaunch: graph\ncache: warm\nadded_s: 3.0e-6\n"
    (folder / "mine.yaml").write_text(text + 'sources: {added_s: "measured: mine.csv"}\n')
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path))
    assert latency_s("mine") == pytest.approx(latency_s() + 3e-6)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="wanted a source for each number"):
        catalog.harness("mine")
    with pytest.raises(UnknownNameError, match="did you mean 'do_bench'"):
        catalog.harness("do_bensh")
