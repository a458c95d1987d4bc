"""What a GPU is: the numbers the time model needs, each with its source.

Base units only (bytes, seconds, hertz, watts). Files live in `configs/devices`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from leansim.specs.base import (
    Count,
    Fraction,
    LaunchMode,
    NotNegative,
    Number,
    Positive,
    SourcedSpec,
    Spec,
    WholeNumber,
)

Vendor = Literal["nvidia", "amd"]


class Matmul(Spec):
    """What matrix multiplications of few rows reach on a GPU, those of a decode step.

    `overhead_s` of each, `dram_fraction` of the datasheet's bandwidth where it is bound by weights,
    `tensor_fraction` of the dense tensor rate where by arithmetic, and how sharply the one goes over
    into the other. Where a device's file does not say: about what an H100 does (assumed).
    """

    overhead_s: Positive = 3.5e-6
    dram_fraction: Fraction = 0.83
    tensor_fraction: Fraction = 0.78
    exponent: Annotated[Number, Field(ge=1, le=100)] = 2.5


class Clusters(Spec):
    """How CTAs of a cluster reach each other: a barrier takes `sync_s`, a read of another's `read_s`."""

    sync_s: Positive
    read_s: Positive


# What a decode step asks of a card around attention, which is not timed with it.
AROUND = frozenset({"matmul", "tdp_w", "idle_power_w", "dram_energy_j_per_byte"})


class Device(SourcedSpec):
    """One GPU. Every number's source stands under `sources` in its file."""

    vendor: Vendor
    arch: str
    num_sms: Count
    num_xcds: Count = 1
    sm_clock_hz: Positive

    warp_size: Count
    max_threads_per_sm: Count
    max_warps_per_sm: Count
    max_ctas_per_sm: Count
    registers_per_sm: Count
    register_banks_per_sm: Count
    register_granule_per_warp: Count
    smem_bytes_per_sm: Count
    smem_bytes_per_cta_max: Count
    smem_reserved_bytes_per_cta: WholeNumber

    dram_bytes: Count
    dram_bandwidth_bytes_per_s: Positive
    dram_efficiency: Fraction
    dram_latency_s: Positive
    dram_saturation_exponent: Annotated[Number, Field(ge=0.5, le=100)]

    l2_bytes: Count
    l2_partitions: Count
    l2_bandwidth_bytes_per_s: Positive
    l2_latency_s: Positive
    l2_far_latency_s: Positive
    l2_resident_fraction: Fraction
    l2_lost_fraction: Positive | None = None
    evicted_start_s: NotNegative = 0.0

    sm_load_bytes_per_clk: Positive
    tensor_flop_per_clk_per_sm: dict[Literal["bfloat16", "float16", "fp8"], Positive]
    exp_per_clk_per_sm: Positive
    fp32_fma_per_clk_per_sm: Positive

    cta_launch_s: Positive
    cta_dispatch_interval_s: Positive
    latency_spread: Annotated[Number, Field(ge=0, le=0.5)]
    kernel_gap_s: dict[LaunchMode, Positive]
    fence_s: Positive
    atomic_s: Positive
    flag_latency_s: Positive
    clusters: Clusters | None = None

    tdp_w: Positive
    idle_power_w: Positive
    dram_energy_j_per_byte: Positive
    matmul: Matmul = Matmul()

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names and structure."""
        return super().unsourced() | {"vendor", "arch"}

    @classmethod
    def groups(cls) -> frozenset[str]:
        """Numbers that a file changes one by one."""
        return frozenset({"clusters", "matmul"})

    @property
    def clk_s(self) -> float:
        """Seconds per SM clock."""
        return 1.0 / self.sm_clock_hz

    @property
    def sm_load_bytes_per_s(self) -> float:
        """The most one SM can load from L2, bytes/s."""
        return self.sm_load_bytes_per_clk * self.sm_clock_hz

    def tensor_flop_per_s_per_sm(self, dtype: str) -> float | None:
        """Dense tensor throughput of one SM in FLOP/s, or None where the dtype has no unit."""
        rates: dict[str, float] = dict(self.tensor_flop_per_clk_per_sm)  # type: ignore[arg-type]
        rate = rates.get(dtype)
        return None if rate is None else rate * self.sm_clock_hz

    @property
    def achievable_dram_bytes_per_s(self) -> float:
        """Bandwidth of long reads, bytes/s."""
        return self.dram_efficiency * self.dram_bandwidth_bytes_per_s
