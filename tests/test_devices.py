"""The shipped devices: loadable, sourced, and consistent with public figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from leansim.specs import catalog
from leansim.specs.device import Device

FOLDER = Path(__file__).parent.parent / "configs" / "devices"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {
    "a40",
    "a100_sxm_40gb",
    "a100_sxm_80gb",
    "b200_sxm",
    "h100_sxm",
    "h200_sxm",
    "l40s",
    "mi300x",
    "rtx_4090",
    "rtx_pro_6000",
    "rtx_pro_6000_server",
}

# (device, dtype, clock of the quoted figure in Hz, dense FLOP/s): datasheets, except B200, where
# SemiAnalysis counted 8153 and 16344 FLOP/clk on one SM.
PEAKS = [
    ("a100_sxm_40gb", "bfloat16", 1.41e9, 312e12),
    ("a100_sxm_80gb", "float16", 1.41e9, 312e12),
    ("h100_sxm", "bfloat16", 1.83e9, 989e12),
    ("h100_sxm", "fp8", 1.83e9, 1979e12),
    ("h200_sxm", "float16", 1.83e9, 989e12),
    ("l40s", "bfloat16", 2.52e9, 366e12),
    ("l40s", "fp8", 2.52e9, 733e12),
    ("a40", "bfloat16", 1.74e9, 149.7e12),
    ("rtx_4090", "bfloat16", 2.52e9, 165.2e12),
    ("rtx_4090", "fp8", 2.52e9, 330.3e12),
    ("rtx_pro_6000", "bfloat16", 2.617e9, 503.8e12),
    ("rtx_pro_6000", "fp8", 2.617e9, 1007.6e12),
    ("rtx_pro_6000_server", "bfloat16", 2.617e9, 503.8e12),
    ("rtx_pro_6000_server", "fp8", 2.617e9, 1007.6e12),
    ("mi300x", "float16", 2.1e9, 1307e12),
    ("mi300x", "fp8", 2.1e9, 2615e12),
    ("b200_sxm", "bfloat16", 1.965e9, 8153 * 148 * 1.965e9),
    ("b200_sxm", "fp8", 1.965e9, 16344 * 148 * 1.965e9),
]

# Range of measured long-read bandwidth, bytes/s, widened by 0.5% for rounding; of a card that nobody
# measured, the share of its datasheet that an L40 reads.
LONG_READ = {
    "a40": (641e9, 681e9),
    "a100_sxm_40gb": (1407e9, 1473e9),
    "a100_sxm_80gb": (1730e9, 1870e9),
    "b200_sxm": (6750e9, 7480e9),
    "h100_sxm": (3010e9, 3170e9),
    "h200_sxm": (4480e9, 4535e9),
    "l40s": (796e9, 846e9),
    "mi300x": (4199e9, 4300e9),
    "rtx_4090": (918e9, 924e9),
    "rtx_pro_6000": (1651e9, 1755e9),
    "rtx_pro_6000_server": (1472e9, 1564e9),
}

# Decode reads pages, and where its bandwidth is fitted it stays this close to long reads.
LEAST_OF_LONG_READS = 0.85

# Maximum read bandwidth held when the saturation exponents were fitted, bytes/s.
BEST_READ = {"a100_sxm_80gb": 1870e9, "l40s": 847e9, "mi300x": 4300e9}

# Unloaded latencies in SM clocks as published: near L2 hit, DRAM random chase, and their clock.
LATENCY_CLOCKS = {
    "a40": (250.4, 547, 1.74e9),
    "a100_sxm_40gb": (213, 574, 1.41e9),
    "a100_sxm_80gb": (211, 570, 1.41e9),
    "b200_sxm": (295, 835, 1.965e9),
    "h100_sxm": (272, 650, 1.98e9),
    "h200_sxm": (272, 650, 1.98e9),
    "l40s": (274, 628, 2.49e9),
    "mi300x": (213, 880, 2.092e9),
    "rtx_4090": (285, 568, 2.235e9),
    "rtx_pro_6000": (340, 662, 2.617e9),  # 130 ns, and an L40's 253 ns
    "rtx_pro_6000_server": (340, 662, 2.617e9),
}


@cache
def load(name: str) -> Device:
    return catalog.device(name)


def data(name: str) -> dict[str, Any]:
    """A device's keys as its file says them, with those of the file that it is based on."""
    return load(name).model_dump(mode="python", exclude_unset=True)


devices = pytest.mark.parametrize("name", sorted(EXPECTED))


def test_the_shipped_set() -> None:
    assert {path.stem for path in FILES} == EXPECTED


@devices
def test_file_loads_under_its_own_name(name: str) -> None:
    assert load(name).name == name


@devices
def test_every_number_is_counted_once(name: str) -> None:
    """A device's fields are numbers, and mappings of numbers."""
    contents = {k: v for k, v in data(name).items() if k not in Device.unsourced() and v is not None}
    wanted = sum(len(v) if isinstance(v, dict) else 1 for v in contents.values())
    assert sum(load(name).source_counts().values()) == wanted
    assert all(load(name).numbers_by_source().values()), "a source that others leave nothing to say"


@devices
def test_each_removed_source_is_missed(name: str) -> None:
    contents = data(name)
    for key in contents["sources"]:
        rest = {other: text for other, text in contents["sources"].items() if other != key}
        if key.partition(".")[0] in rest:  # what answers for the rest then answers for this too
            continue
        with pytest.raises(ValidationError, match=rf"none for: {key}\b"):
            Device.model_validate(contents | {"sources": rest})


def test_a_source_without_its_number_is_refused() -> None:
    contents = data("h100_sxm")
    extra = contents["sources"] | {"num_xcds": "datasheet: one die"}
    with pytest.raises(ValidationError, match=r"not here: num_xcds \(did you mean 'num_sms'\?\)"):
        Device.model_validate(contents | {"sources": extra})


@pytest.mark.parametrize("text", ["guessed: from a sibling", "measured", "measured: "])
def test_a_source_needs_a_known_label_and_a_reference(text: str) -> None:
    contents = data("h100_sxm")
    with pytest.raises(ValidationError, match=r"sources\.tdp_w\n.*wanted '<label>: reference'"):
        Device.model_validate(contents | {"sources": contents["sources"] | {"tdp_w": text}})


@devices
def test_sources_name_public_references_only(name: str) -> None:
    for key, text in load(name).sources.items():
        assert "shared/" not in text, key
        assert "/work" not in text, key
        assert len(text.partition(":")[2].split()) >= 3, key


def test_borrowed_parts_admit_it() -> None:
    """L40S and H200 stand on siblings; only what was read on the part itself may say so."""
    assert load("l40s").source_counts()["measured"] == 0
    h200 = load("h200_sxm").sources
    read = {key: text for key, text in h200.items() if text.startswith("measured")}
    assert read.keys() == {"kernel_gap_s", "l2_bandwidth_bytes_per_s"}
    for key, text in read.items():
        assert "experiments/own_gpus/h200" in text, f"{key}: read on the card itself"
    assert "fitted: by hand, between" in h200["dram_efficiency"]


@pytest.mark.parametrize(("name", "dtype", "clock_hz", "flop_per_s"), PEAKS)
def test_tensor_rate_gives_the_published_peak(
    name: str, dtype: str, clock_hz: float, flop_per_s: float
) -> None:
    device = load(name)
    rate = device.tensor_flop_per_s_per_sm(dtype)
    assert rate is not None
    peak = rate / device.sm_clock_hz * clock_hz * device.num_sms
    assert peak == pytest.approx(flop_per_s, rel=0.006)


def test_every_tensor_rate_but_the_fp16_twins_is_checked() -> None:
    checked = {(name, dtype) for name, dtype, _, _ in PEAKS}
    for name in EXPECTED - {"h200_sxm"}:
        rates = load(name).tensor_flop_per_clk_per_sm
        assert rates["float16"] == rates["bfloat16"]
        assert (name, "fp8") in checked or "fp8" not in rates
    assert load("h200_sxm").tensor_flop_per_clk_per_sm == (load("h100_sxm").tensor_flop_per_clk_per_sm)


def test_a100_has_no_fp8() -> None:
    assert load("a100_sxm_40gb").tensor_flop_per_s_per_sm("fp8") is None
    assert load("a100_sxm_80gb").tensor_flop_per_s_per_sm("fp8") is None


@devices
def test_long_reads_stay_in_the_measured_range(name: str) -> None:
    device = load(name)
    low, high = LONG_READ[name]
    if not device.sources["dram_efficiency"].startswith("measured"):
        low *= LEAST_OF_LONG_READS
    assert low / 1.005 <= device.achievable_dram_bytes_per_s <= high * 1.005


@devices
def test_latency_grows_with_distance(name: str) -> None:
    device = load(name)
    assert device.l2_latency_s < device.l2_far_latency_s < device.dram_latency_s


@devices
def test_latencies_match_the_published_cycles(name: str) -> None:
    device = load(name)
    l2_clocks, dram_clocks, clock_hz = LATENCY_CLOCKS[name]
    assert device.l2_latency_s * clock_hz == pytest.approx(l2_clocks, rel=0.02)
    assert device.dram_latency_s * clock_hz == pytest.approx(dram_clocks, rel=0.02)


@devices
def test_l2_feeds_faster_than_dram_and_slower_than_the_sms_can_take(name: str) -> None:
    device = load(name)
    assert device.l2_bandwidth_bytes_per_s > device.achievable_dram_bytes_per_s
    assert device.l2_bandwidth_bytes_per_s < device.sm_load_bytes_per_s * device.num_sms


@devices
def test_shared_memory_and_warps_fit(name: str) -> None:
    device = load(name)
    cta = device.smem_bytes_per_cta_max + device.smem_reserved_bytes_per_cta
    assert cta <= device.smem_bytes_per_sm
    assert device.max_warps_per_sm * device.warp_size == device.max_threads_per_sm
    assert device.max_ctas_per_sm <= device.max_warps_per_sm
    # The register file splits into whole granules in each bank.
    file = device.register_banks_per_sm * device.register_granule_per_warp
    assert device.registers_per_sm % file == 0
    # The granule is a whole number (at least 8) of registers per lane.
    assert device.register_granule_per_warp == 8 * device.warp_size


@devices
def test_streaming_stays_within_the_power_limit(name: str) -> None:
    device = load(name)
    stream = device.dram_energy_j_per_byte * device.achievable_dram_bytes_per_s
    assert device.idle_power_w + stream <= device.tdp_w


def test_power_matches_the_readings_it_was_fitted_on() -> None:
    """227 W at 1372 GB/s with 343 GFLOP/s of fp64 at 5.2 pJ/FLOP on the A100 40 GB."""
    device = load("a100_sxm_40gb")
    watts = device.idle_power_w + device.dram_energy_j_per_byte * 1372e9 + 343e9 * 5.2e-12
    assert watts == pytest.approx(227, rel=0.03)


@devices
def test_launch_modes(name: str) -> None:
    """A graph edge costs no more than a stream launch; overlap exists from sm_90 on only."""
    device = load(name)
    gaps = device.kernel_gap_s
    assert gaps["graph"] <= gaps["stream"]
    assert ("pdl" in gaps) == (device.arch in {"sm_90", "sm_100"})
    if "pdl" in gaps:
        assert gaps["pdl"] < gaps["graph"]


@pytest.mark.parametrize(
    ("name", "graph_s", "stream_s", "one_load_s"),
    [("a100_sxm_80gb", 1.34e-6, 2.62e-6, 0.658e-6), ("l40s", 0.94e-6, 1.64e-6, 0.443e-6)],
)
def test_gap_plus_one_cta_gives_the_measured_period(
    name: str, graph_s: float, stream_s: float, one_load_s: float
) -> None:
    gaps = load(name).kernel_gap_s
    assert gaps["graph"] + one_load_s == pytest.approx(graph_s, rel=0.02)
    assert gaps["stream"] + one_load_s == pytest.approx(stream_s, rel=0.02)


@pytest.mark.parametrize(
    ("name", "l0_s", "threads_per_sm", "bytes_per_s"),
    [
        ("a100_sxm_80gb", 692e-9, 128, 166e9),
        ("a100_sxm_80gb", 692e-9, 1024, 1119e9),
        ("a100_sxm_80gb", 692e-9, 2048, 1776e9),
        ("mi300x", 569e-9, 1024, 3098e9),
        ("mi300x", 569e-9, 2048, 4199e9),
        ("l40s", 455e-9, 256, 617e9),
        ("l40s", 455e-9, 512, 845e9),
    ],
)
def test_saturation_law_gives_the_fitted_points(
    name: str, l0_s: float, threads_per_sm: int, bytes_per_s: float
) -> None:
    """Read bandwidth with 8 bytes in flight per thread; L0 is the latency the same fit found."""
    device = load(name)
    q = device.dram_saturation_exponent
    best = BEST_READ[name]
    offered = 8 * threads_per_sm * device.num_sms / l0_s
    reached = offered / (1 + (offered / best) ** q) ** (1 / q)
    assert reached == pytest.approx(bytes_per_s, rel=0.09)


def test_only_mi300x_has_several_dies_with_private_l2() -> None:
    several = {name for name in EXPECTED if load(name).num_xcds > 1}
    assert several == {"mi300x"}
    device = load("mi300x")
    assert device.num_sms % device.num_xcds == 0
    assert device.l2_bytes == device.num_xcds * 4 * 1024**2
