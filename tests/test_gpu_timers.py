"""What timers add, measured on a stand-in for a GPU whose launches take a known time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from gpu_kit import Profile, interpreted, needs_triton
from gpu_stand_in import CALL_MS, stand_in

from leansim.errors import GpuError
from leansim.gpu import timers
from leansim.specs import catalog

CALL_US = CALL_MS * 1e3


class Read:
    """The reading kernel: takes a call's time and says what it was given."""

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.seen = cuda, set[tuple[int, int]]()

    def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., None]:
        def launch(part: Any, _sums: Any, blocks: int, **_: Any) -> None:
            assert part.numel() == blocks * 2048
            self.cuda.launched(lambda: self.seen.add((programs[0], part.data_ptr())))

        return launch


@needs_triton
def test_what_timers_add_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """`do_bench` shows 4 us more, the profiler 3 less, events around loops nothing."""
    tools = stand_in()
    cuda = tools.torch.cuda
    tools.torch.profiler = SimpleNamespace(
        profile=lambda **_: Profile(cuda, "read", 1, CALL_US - 3.0, CALL_US),
        ProfilerActivity=SimpleNamespace(CUDA="cuda"),
    )
    testing = SimpleNamespace(do_bench=lambda _: CALL_MS + 4e-3)
    object.__setattr__(tools, "triton", SimpleNamespace(testing=testing, __version__="0"))
    read = Read(cuda)
    object.__setattr__(tools, "micro_kernels", SimpleNamespace(read=read))
    monkeypatch.setattr(timers, "_POOL_BYTES", 2**25)
    monkeypatch.setattr(timers, "_SIZES", (2**14, 2**20))
    small = catalog.device("h200_sxm").model_copy(update={"l2_bytes": 2**16})
    rows = list(timers.rows(tools, small))
    assert {row["timer"] for row in rows} == set(timers.TIMERS)
    assert all(set(row) == set(timers.COLUMNS) for row in rows)
    assert all(row["call_us"] == pytest.approx(CALL_US) for row in rows)
    added = {"do_bench": 4.0, "profiler": -3.0, "cuda_events": 0.0, "eager": 0.0}
    for row in rows:
        if row["timer"] != "wall_clock":  # the host's own clock, which the stand-in does not turn
            assert row["added_us"] == pytest.approx(added[row["timer"]], abs=1e-3)
    parts = {place for _, place in read.seen}
    assert len(parts) > 20  # cold calls of the reference read apart


def test_measured_timers_have_files() -> None:
    assert set(timers.TIMERS) - {"wall_clock"} <= set(catalog.names("timer"))
    for name in set(timers.TIMERS) & set(catalog.names("timer")):
        cache, _ = timers.TIMERS[name]
        assert name == "profiler" or catalog.harness(name).cache == cache


@needs_triton
def test_the_interpreter_has_no_time() -> None:
    with pytest.raises(GpuError, match="the interpreter has no time"):
        next(timers.rows(interpreted(), catalog.device("h200_sxm")))
