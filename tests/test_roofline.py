"""One floor, whoever asks: peak bandwidths, what L2 kept of a replay, and the dense rate."""

from __future__ import annotations

from typing import Any

import pytest
from kernels import kernels_and_a_few_devices, suited

from leansim.points.point import point, resolve
from leansim.points.simulate import simulate, simulate_each
from leansim.specs import catalog
from leansim.specs.workload import Workload
from leansim.study.bench import Bench
from leansim.study.explain import explain
from leansim.timing.roofline import roofline

WARM: dict[str, Any] = {
    "device": "h100_sxm", "kernel": "vllm_fa3", "model": "llama_3_8b", "batch_size": 8, "cache": "warm"
}  # fmt: skip
H100 = catalog.device("h100_sxm")


def test_a_warm_cache_beyond_l2_comes_from_dram() -> None:
    """8 x 4,096 tokens of 4 KB are 134 MB, of which 50 MiB of L2 keep nothing: 134 MB / 3.35 TB/s."""
    run = simulate(point(**WARM, context_len="4k"))
    assert run.metrics.roofline_s == pytest.approx(8 * 4096 * 4096 / 3.352e12, rel=1e-3)
    assert 0.7 < run.metrics.roofline_fraction < 1.0


def test_run_and_explain_have_one_floor() -> None:
    asked = point(**WARM, context_len="4k")
    said, run = explain(asked, budget=20).record(), simulate(asked)
    assert said["roofline_s"] == run.metrics.roofline_s
    assert said["roofline_s"] <= said["bound_s"] <= said["latency_s"]


def test_what_l2_keeps_comes_at_its_bandwidth() -> None:
    """Half a MiB per request fits: KV bytes / L2 bandwidth."""
    load = resolve(point(**WARM, context_len=512)).workload
    assert roofline(load, H100).memory_s == load.kv_bytes / H100.l2_bandwidth_bytes_per_s


def test_part_of_a_warm_cache_may_be_kept() -> None:
    few, some, many = (
        roofline(resolve(point(**WARM, context_len=n)).workload, H100).memory_s
        for n in (512, 1024, 2048)
    )
    load = resolve(point(**WARM, context_len=1024)).workload
    cold_s = load.kv_bytes / H100.dram_bandwidth_bytes_per_s
    assert few < some < cold_s < many


def test_a_slow_l2_is_a_floor_of_a_cold_cache_too() -> None:
    slow = H100.model_copy(update={"l2_bandwidth_bytes_per_s": 1e12})
    load = Workload((4096,), 8, 8, 128)
    assert roofline(load, slow).memory_s == load.kv_bytes / 1e12


def test_eight_bit_tensor_cores_count_where_the_cache_has_eight_bits() -> None:
    """A kernel may quantise the query: then its FLOP take half as long."""
    wide, narrow = (Workload((4096,), 64, 1, 128, query_len=64, kv_dtype=t) for t in ("bfloat16", "fp8"))
    assert roofline(narrow, H100).compute_s == pytest.approx(roofline(wide, H100).compute_s / 2)


@pytest.mark.parametrize("device", catalog.names("device"))
def test_more_context_never_has_a_lower_floor(device: str) -> None:
    loads = [Workload((n,) * 4, 8, 8, 128, cache="warm") for n in (2**k for k in range(4, 21))]
    floors = [roofline(load, catalog.device(device)).floor_s for load in loads]
    assert floors == sorted(floors)


@pytest.mark.parametrize(("kernel", "device"), kernels_and_a_few_devices(2))
def test_roofline_bound_and_latency_stand_in_order(kernel: str, device: str) -> None:
    """Cold and warm, in L2 and beyond it, of every kernel."""
    asked = []
    for cache in ("cold", "warm"):
        for batch, context_len in ((1, 8192), (16, 1500), (32, 8192)):
            load = suited(Workload((context_len,) * batch, 16, 2, 128, cache=cache), kernel)  # type: ignore[arg-type]
            shape = {name: getattr(load, name) for name in ("num_kv_heads", "head_dim", "latent_kv")}
            value = {"head_dim_v": load.head_dim_v} if load.latent_kv else {}
            asked.append(
                point(
                    device=device, kernel=kernel, batch_size=batch, context_len=context_len, cache=cache,
                    num_q_heads=16, **shape, **value,
                )
            )  # fmt: skip
    runs = [run for run in simulate_each(asked) if not isinstance(run, Exception)]
    assert runs
    for run in runs:
        bound_s = Bench(run.resolved).bound().latency_s
        assert run.metrics.roofline_s <= bound_s <= run.metrics.latency_s
