"""Pace curves: the fit finds what points were made with; calls, plans and rows are as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_kit import interpreted, needs_triton
from hypothesis import given
from hypothesis import strategies as st

from leansim.errors import GpuError, StoreError
from leansim.gpu import pace as measuring
from leansim.gpu.libraries.registry import Installed, libraries
from leansim.gpu.libraries.running import LibraryRunner
from leansim.gpu.measuring import Measurer, TritonRunner
from leansim.points.point import point_from_row, resolve
from leansim.silicon.own import MACHINE_COLUMNS
from leansim.silicon.pace import PacePoint, fit_pace, tile_s
from leansim.specs import catalog

H200 = catalog.device("h200_sxm")
TILE_BYTES = 64 * 512


def simulated(chain_s: float, busy_s: float, bytes_per_s: float, most: int = 3) -> list[PacePoint]:
    """Points that a kernel of those numbers would show on 132 SMs."""
    blank = [PacePoint(1, 1, TILE_BYTES, True, 1.0)]
    blank += [PacePoint(k, 132, TILE_BYTES, d, 1.0) for k in range(1, most + 1) for d in (False, True)]
    return [
        PacePoint(
            p.ctas_per_sm, p.sms, p.tile_bytes, p.from_dram, tile_s(p, chain_s, busy_s, bytes_per_s)
        )
        for p in blank
    ]


def test_two_ctas_by_hand() -> None:
    """Alone 2 us of which 1 us keeps the SM busy: a second finds half a CTA there, and waits 0.5 us.

    132 SMs with two such CTAs ask for 264 * 32,768 B in 2.5 us; at 1 TB/s those take 8.65 us.
    """
    point = PacePoint(2, 132, TILE_BYTES, True, 1.0)
    assert tile_s(point, 2e-6, 1e-6, None) == pytest.approx(2.5e-6)
    assert tile_s(point, 2e-6, 1e-6, 1e12) == pytest.approx(264 * TILE_BYTES / 1e12)
    assert tile_s(PacePoint(2, 132, TILE_BYTES, False, 1.0), 2e-6, 1e-6, 1e12) == pytest.approx(2.5e-6)


@given(
    chain=st.floats(3e-7, 5e-6),
    share=st.floats(0.2, 1.0),
    memory=st.floats(5e11, 5e12),
)
def test_the_numbers_that_made_the_points_are_found(chain: float, share: float, memory: float) -> None:
    """As far as the points show them: memory that no CTA ever waits for is not seen."""
    points = simulated(chain, share * chain, memory)
    found = fit_pace(points)
    assert found.error < 0.005
    if any(p.from_dram and tile_s(p, chain, share * chain, None) < 0.95 * p.tile_s for p in points):
        assert found.bytes_per_s == pytest.approx(memory, rel=0.03)
    assert found.chain_s == pytest.approx(chain, rel=0.03)
    assert found.busy_s == pytest.approx(share * chain, rel=0.1)


def test_noise_of_a_percent_moves_numbers_by_little() -> None:
    random = np.random.default_rng(5)
    points = [
        PacePoint(p.ctas_per_sm, p.sms, p.tile_bytes, p.from_dram, p.tile_s * random.normal(1.0, 0.01))
        for p in simulated(1.5e-6, 7e-7, 4e12)
    ]
    found = fit_pace(points)
    assert found.chain_s == pytest.approx(1.5e-6, rel=0.03)
    assert found.busy_s == pytest.approx(7e-7, rel=0.15)
    assert 0.0 < found.error < 0.02


def test_what_points_do_not_show() -> None:
    alone = [PacePoint(1, 132, TILE_BYTES, False, 2e-6)]
    found = fit_pace(alone)
    assert (found.busy_s, found.bytes_per_s) == (0.0, None)
    assert found.chain_s == pytest.approx(2e-6, rel=1e-3)
    with pytest.raises(StoreError, match="wanted one to see its chain"):
        fit_pace([PacePoint(2, 132, TILE_BYTES, False, 2e-6)])


# -- which calls -------------------------------------------------------------------------------


def plan(kernel: str, batch: int, length: int = 2048) -> Any:
    row = {"device": "h200_sxm", "kernel": kernel, "batch_size": str(batch), "context_len": str(length),
           "num_q_heads": "4", "num_kv_heads": "1", "head_dim": "128"}  # fmt: skip
    return resolve(point_from_row(row, "test")).schedule


@pytest.mark.parametrize(
    ("kernel", "batch", "found"),
    [
        ("triton_fa2", 1, (1, 1, 32)),  # a CTA of 2,048 / 64 tiles
        ("triton_fa2", 132, (1, 132, 32)),
        ("triton_fa2", 396, (3, 132, 32)),
        ("triton_fa2", 133, None),  # an SM with one more
        ("triton_fa2", 528, None),  # more than are resident
        ("flash_decoding", 264, (2, 132, 32)),
    ],
)
def test_plans_that_fill_sms_alike(kernel: str, batch: int, found: tuple[int, int, int] | None) -> None:
    assert measuring.evenly(plan(kernel, batch)) == found


class Clock:
    """Measures as a GPU would whose kernels have those numbers; starts and ends take 7 us."""

    def __init__(self, reads: str, device_numbers: tuple[float, float, float]) -> None:
        self.reads, self.numbers = reads, device_numbers

    def measure(self, row: Mapping[str, str], _source: str) -> dict[str, Any]:
        item = resolve(point_from_row(dict(row), "test"))
        dealt = measuring.evenly(item.schedule)
        assert dealt is not None
        ctas, sms, tiles = dealt
        size = item.schedule.grid.tile_tokens * item.workload.kv_bytes_per_token
        point = PacePoint(ctas, sms, size, self.reads == measuring.APART, 1.0)
        machine = dict.fromkeys(MACHINE_COLUMNS, "")
        return {"measured_us": 7.0 + tiles * tile_s(point, *self.numbers) * 1e6, **machine}


def test_a_curve_comes_to_what_made_it() -> None:
    """Through calls, plans, differences of two lengths and the fit; the file's numbers beside it."""
    truth = (1.6e-6, 6e-7, 4.2e12)
    clocks: Any = {reads: Clock(reads, truth) for reads in (measuring.SHARED, measuring.APART)}
    one = measuring.curve(clocks, H200, "triton_fa2", {}, (128, 4))
    assert not one.refused
    assert [(row["ctas_per_sm"], row["sms"]) for row in one.rows[::2]] == [
        (1, 1), (1, 132), (2, 132), (3, 132),
    ]  # fmt: skip
    assert all(set(row) == set(measuring.COLUMNS) for row in one.rows)
    found = fit_pace(measuring.points_of(one.rows))
    assert found.chain_s == pytest.approx(truth[0], rel=0.02)
    assert found.busy_s == pytest.approx(truth[1], rel=0.05)
    assert found.bytes_per_s == pytest.approx(truth[2], rel=0.02)
    (text,) = measuring.told(one, H200)
    assert "chain_s 1.6" in text
    assert "the file has chain_s 1.489e-06, busy_s 6.325e-07" in text


def test_splitting_kernels_have_the_points_that_their_plans_allow() -> None:
    clocks: Any = {measuring.SHARED: Clock(measuring.SHARED, (1e-6, 5e-7, 4e12))}
    one = measuring.curve(clocks, H200, "flash_decoding", {}, (128, 4))
    assert {row["ctas_per_sm"] for row in one.rows} <= {1, 2}
    none = measuring.curve(clocks, H200, "flash_mla", {}, (128, 4))
    assert not none.rows
    assert none.refused


def test_a_name_that_is_a_kernels_and_an_adapters_is_the_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`flashinfer_decode` is a file of the catalog, and no kernel that leansim runs itself."""
    both = ["flashinfer_decode", "vllm_flash_3"]
    assert both[0] in catalog.names("kernel")
    asked: list[list[str]] = []

    def find(names: list[str]) -> Installed:
        asked.append(names)
        return Installed({name: libraries()[name]() for name in names}, {}, {})

    monkeypatch.setattr(measuring, "installed", find)
    monkeypatch.setattr(measuring, "Measurer", lambda _tools, _seed, runner: runner)
    monkeypatch.setattr(measuring, "curve", lambda *given: given)
    tools: Any = SimpleNamespace(interpreted=False)
    found: list[Any] = list(measuring.curves(tools, H200, [both[0], "triton_fa2", both[1]]))
    assert asked == [both]
    said = [(kernel, more, type(runners[measuring.APART])) for runners, _, kernel, more, _ in found[::4]]
    assert said == [
        ("flashinfer_decode", {"adapter": "flashinfer_decode"}, LibraryRunner),
        ("triton_fa2", {}, TritonRunner),
        ("vllm_fa3", {"adapter": "vllm_flash_3"}, LibraryRunner),
    ]


@needs_triton
def test_requests_that_read_the_same_pages_are_checked_as_such() -> None:
    """The kernel reads the first request's KV for all, and so does the reference."""
    row = {"device": "h200_sxm", "kernel": "triton_fa2", "batch_size": "3", "context_len": "150",
           "num_q_heads": "4", "num_kv_heads": "1", "head_dim": "64"}  # fmt: skip
    tools, seen = interpreted(), list[Any]()

    class Watched(TritonRunner):
        def execute(self, *given: Any) -> Any:
            seen.append(given[3])
            return super().execute(*given)

    measurer = Measurer(tools, 3, measuring.SharedPages(Watched()))
    assert 0.0 < float(measurer.measure(row, "test")["row_error"]) < 1e-2
    (inputs,) = seen
    assert (inputs.page_table == inputs.page_table[:, :1]).all()
    assert not (measurer.last[3].page_table == inputs.page_table).all()  # type: ignore[index]


def test_the_interpreter_is_refused() -> None:
    tools: Any = SimpleNamespace(interpreted=True)
    with pytest.raises(GpuError, match="the interpreter has no time"):
        next(measuring.curves(tools, H200, ["triton_fa2"]))
