"""Measures the mechanisms that the time model rests on, one row of a CSV each.

Bandwidth against active SMs and bytes in flight, gaps between launches, turnover of CTAs, hand-over of
a flag, combine against splits, and what of a footprint stays in L2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.errors import GpuError
from leansim.gpu.launching import power_of_two
from leansim.gpu.machine import Machine
from leansim.gpu.timing import L2Flush, Timing, calls_for, timed
from leansim.gpu.toolkit import Toolkit
from leansim.silicon.own import MACHINE_COLUMNS
from leansim.specs.base import LaunchMode
from leansim.specs.device import Device

COLUMNS = (
    "measurement", "x", "x_unit", "series", "bytes", "gb_per_s", "median_us", "spread_us", "min_us",
    "samples", "calls", *MACHINE_COLUMNS,
)  # fmt: skip
_WAVES = (1, 2, 4, 8, 16, 32, 64, 128)
_SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)
_FLAG_ROUNDS = 1000
_MOST_LOOKS = 2**20
_INT32 = 4


@dataclass(frozen=True)
class Trial:
    """One row: what is called, and what it is called. `per_us` is what a call's time is divided by."""

    measurement: str
    x: float
    x_unit: str
    series: str
    call: Callable[[int], None]
    expected_us: float
    moved_bytes: int = 0
    launch: LaunchMode = "graph"
    cold: bool = False
    per: int = 1
    check: Callable[[], None] = lambda: None


class Micro:
    """The measurements on one device; interpreted, each is only run once, on small sizes."""

    def __init__(self, tools: Toolkit, device: Device) -> None:
        """`device` says how many SMs there are and how large L2 is."""
        self.tools, self.device, self.machine = tools, device, Machine(tools)
        self.small = tools.interpreted
        self.where = tools.where
        self.sms = 2 if self.small else device.num_sms
        size = 2**16 if self.small else 2**30
        values = np.arange(size // _INT32, dtype=np.int32)
        self.data = tools.torch.from_numpy(values).to(self.where)
        self.sums = tools.torch.zeros(16 * self.sms, dtype=tools.torch.int32, device=self.where)
        self.flush = None if self.small else L2Flush(tools, device.l2_bytes)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Measure everything: values of `COLUMNS`. Raises `GpuError` where a kernel is wrong."""
        for trials in (
            self._bandwidth, self._residency, self._launch_gap, self._turnover, self._hand_over,
            self._combine,
        ):  # fmt: skip
            for trial in trials():
                yield self._row(trial)

    def _row(self, trial: Trial) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"measurement": trial.measurement, "x": trial.x, "x_unit": trial.x_unit}
        row |= {"series": trial.series, "bytes": trial.moved_bytes}
        trial.call(0)
        if not self.small:
            timing = self._timed(trial)
            row |= {"median_us": round(timing.median_us, 4), **timing.columns()}
            if trial.moved_bytes:
                row["gb_per_s"] = round(trial.moved_bytes / timing.median_us / 1e3, 2)
        trial.check()
        return row | self.machine.columns()

    def _timed(self, trial: Trial) -> Timing:
        calls = 1 if trial.cold else calls_for(trial.expected_us)
        flush = self.flush if trial.cold else None
        found = timed(self.tools, trial.call, calls, trial.launch, flush, least_s=0.02)
        median, spread, least = (
            us / trial.per for us in (found.median_us, found.spread_us, found.min_us)
        )
        return Timing(median, spread, least, found.samples, found.calls)

    # -- reading -----------------------------------------------------------------------------------

    def _reading(self, ctas: int, block_bytes: int, size: int) -> Callable[[int], None]:
        """A call that reads the first `size` bytes with so many CTAs."""
        block = block_bytes // _INT32
        warps = 8 if block_bytes > 2**15 else 4

        def call(_: int) -> None:
            self.tools.micro_kernels.read[(ctas,)](
                self.data, self.sums, size // block_bytes, BLOCK=block, num_warps=warps
            )

        return call

    def _check_sum(self, ctas: int, size: int) -> Callable[[], None]:
        def check() -> None:
            torch = self.tools.torch
            wanted = int(self.data[: size // _INT32].sum(dtype=torch.int32).item())
            found = int(self.sums[:ctas].sum(dtype=torch.int32).item())
            if found != wanted:
                raise GpuError(f"the reading kernel added up to {found}; wanted {wanted}")

        return check

    def _bandwidth(self) -> Iterator[Trial]:
        """DRAM reads: a CTA on 1 to all SMs, then several on each, with 2 to 64 KiB in flight each."""
        shares = (1, 2, 4, 8, 16, 32, 64)
        ctas = sorted(
            {*(n for n in shares if n < self.sms), *(self.sms * n // 4 for n in (2, 3, 4, 8, 16))}
        )
        for block_bytes in (2**10,) if self.small else tuple(2**i for i in range(11, 17)):
            for count in ctas:
                most = self.data.numel() * _INT32
                size = min(most, count * 2**24) // block_bytes * block_bytes
                rate = min(self.device.dram_bandwidth_bytes_per_s, count * 4e10)
                yield Trial(
                    "read_bandwidth", count, "CTAs", f"{block_bytes} B in flight per CTA",
                    self._reading(count, block_bytes, size), size / rate * 1e6, size,
                    cold=size < 8 * self.device.l2_bytes, check=self._check_sum(count, size),
                )  # fmt: skip

    def _residency(self) -> Iterator[Trial]:
        """The same bytes read again and again, or evicted in between."""
        shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
        block_bytes, ctas = (2**10, 2) if self.small else (2**14, 2 * self.sms)
        most = self.data.numel() * _INT32
        for share in shares[:2] if self.small else shares:
            size = max(
                block_bytes, min(most, int(share * self.device.l2_bytes)) // block_bytes * block_bytes
            )
            for cold in (False, True):
                yield Trial(
                    "l2_residency", size, "B", "cold" if cold else "warm",
                    self._reading(ctas, block_bytes, size), 5 + size / 3e6, size, cold=cold,
                    check=self._check_sum(ctas, size),
                )  # fmt: skip

    # -- launching ---------------------------------------------------------------------------------

    def _nothing(self, ctas: int, warps: int) -> Callable[[int], None]:
        def call(_: int) -> None:
            self.tools.micro_kernels.nothing[(ctas,)](self.sums, num_warps=warps)

        return call

    def _launch_gap(self) -> Iterator[Trial]:
        """Time from one empty kernel to the next."""
        launches: tuple[LaunchMode, ...] = ("graph", "stream")
        for launch in launches:
            for ctas in (1, self.sms):
                yield Trial(
                    "launch_gap", ctas, "CTAs", launch, self._nothing(ctas, 4), 3.0, launch=launch
                )

    def _turnover(self) -> Iterator[Trial]:
        """Empty CTAs in more and more waves; with 1,024 threads two fit on an SM, with 128 sixteen."""
        for warps in (32, 4):
            per_sm = 64 // warps
            for waves in _WAVES[:2] if self.small else _WAVES:
                ctas = waves * per_sm * self.sms
                series = f"{warps * 32} threads, {per_sm} CTAs per SM"
                yield Trial(
                    "cta_turnover", waves, "waves", series, self._nothing(ctas, warps), 3.0 + waves
                )

    # -- handing over ------------------------------------------------------------------------------

    def _hand_over(self) -> Iterator[Trial]:
        """A flag back and forth between two CTAs on different SMs: the time of one way."""
        torch = self.tools.torch
        flags = torch.zeros(64, dtype=torch.int32, device=self.where)
        seen = torch.zeros(2, dtype=torch.int32, device=self.where)
        rounds, looks = (2, 2) if self.small else (_FLAG_ROUNDS, _MOST_LOOKS)

        def call(_: int) -> None:
            flags.zero_()
            self.tools.micro_kernels.hand_over[(2,)](flags, seen, rounds, looks, num_warps=4)

        def check() -> None:
            if not self.small and seen.tolist() != [rounds, rounds]:
                raise GpuError(f"found {seen.tolist()} turns of two CTAs; wanted {rounds} of each")

        yield Trial(
            "flag_hand_over",
            rounds,
            "rounds",
            "release to acquire",
            call,
            1e3,
            per=2 * rounds,
            check=check,
        )

    # -- combining ---------------------------------------------------------------------------------

    def _combine(self) -> Iterator[Trial]:
        """The combine kernel on equal partials, against splits; graph replay, so partials are in L2."""
        for rows in (2,) if self.small else (32, 1024):
            for splits in _SPLITS[:3] if self.small else _SPLITS:
                yield self._combining(rows, splits)

    def _combining(self, rows: int, splits: int, dim: int = 128) -> Trial:
        torch, slots = self.tools.torch, rows * splits
        floats = {"dtype": torch.float32, "device": self.where}
        partial_o = torch.randn(slots, 16, dim, **floats)
        partial_lse = torch.zeros(slots, 16, **floats)
        out = torch.full((rows, dim), float("nan"), dtype=torch.float16, device=self.where)
        row = np.arange(rows)
        table = np.stack((row * splits, np.full(rows, splits), 0 * row, row), axis=1).astype(np.int32)
        merged = torch.from_numpy(table).to(self.where)

        def call(_: int) -> None:
            self.tools.kernels.combine[(rows,)](
                partial_o, partial_lse, out, merged, None, VALUE_DIM=dim, BLOCK_V=power_of_two(dim),
                BLOCK_M=16, BLOCK_S=8, num_warps=1,
            )  # fmt: skip

        def check() -> None:
            wanted = partial_o[:, 0].view(rows, splits, dim).mean(1)
            if not torch.allclose(out.float(), wanted, atol=4e-3, rtol=4e-3):
                raise GpuError(f"the combine kernel is wrong for {rows} rows of {splits} partials")

        moved = slots * (dim + 1) * 4
        return Trial("combine", splits, "splits", f"{rows} rows", call, 4.0, moved, check=check)
