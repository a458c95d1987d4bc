"""MLA: workloads whose cache holds one latent key per token, the leading part of which is the value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels import tiled

import leansim
from leansim.errors import ConfigError, PairingError, WorkloadError
from leansim.numerics.reference import head_inputs, random_inputs
from leansim.numerics.verify import verify
from leansim.partitioners.registry import make
from leansim.points.keys import result_key
from leansim.points.point import point_from_row, resolve
from leansim.schedule.tiling import tile_grid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.hf_config import read_hf_config
from leansim.specs.instance import instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.model import Model
from leansim.specs.tile_choice import smem_bytes
from leansim.specs.workload import Workload
from leansim.timing.prices import Prices

LENS = (5000, 64, 333)
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "vocab_size": 129280,
    "intermediate_size": 18432,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
}


def latent(num_q_heads: int = 16, **more: Any) -> Workload:
    return Workload(LENS, num_q_heads, 1, 576, head_dim_v=512, latent_kv=True, **more)


def plain(**more: Any) -> Workload:
    """The same shape with a V of its own."""
    return Workload(LENS, 16, 1, 576, head_dim_v=512, **more)


def changed(kernel: Kernel, **changes: Any) -> Kernel:
    return kernel.model_copy(update=changes)


# -- what must be computed -------------------------------------------------------------------------


def test_a_token_of_a_latent_cache_is_its_key() -> None:
    """576 elements of 2 bytes; with V apart it would be 512 more. Work and output are the same."""
    assert latent().kv_bytes_per_token == 1152
    assert plain().kv_bytes_per_token == 1152 + 1024
    assert latent().kv_bytes == 1152 * sum(LENS)
    assert latent(kv_dtype="fp8").kv_bytes_per_token == 576
    assert (latent().flop, latent().o_bytes) == (plain().flop, plain().o_bytes)


def test_a_latent_workload_says_so() -> None:
    assert "16q/1kv heads, d=576 latent (V 512)" in latent().describe()
    assert "latent" not in plain().describe()


def test_a_value_is_no_longer_than_its_key() -> None:
    assert Workload((9,), 8, 1, 512, latent_kv=True).value_dim == 512
    with pytest.raises(WorkloadError, match="head_dim_v is 640, wanted at most head_dim 576"):
        replace(latent(), head_dim_v=640)


def test_results_of_the_two_are_kept_apart() -> None:
    device, kernel, partitioner = catalog.device("h100_sxm"), catalog.kernel("fa2"), make("flash_mla")
    keys = {result_key(device, kernel, load, partitioner) for load in (latent(), plain())}
    assert len(keys) == 2


# -- kernels ---------------------------------------------------------------------------------------


def test_a_latent_workload_needs_a_kernel_that_reads_it_and_the_reverse() -> None:
    device = catalog.device("h100_sxm")
    with pytest.raises(PairingError, match=r"'fa2' reads K and V of their own; .* latent KV cache"):
        tiled(latent(), catalog.kernel("fa2"), device)
    with pytest.raises(PairingError, match=r"'flash_mla' reads a latent KV cache .* wanted latent_kv"):
        tiled(plain(), catalog.kernel("flash_mla"), device)


def priced(kernel: Kernel, workload: Workload, device: Device) -> Prices:
    """Tiles of a kernel, where L2 has none of the KV."""
    instance = instance_of(kernel, device, workload)
    return Prices.of(tile_grid(workload, instance, device), instance, device)


@pytest.mark.parametrize("stages", [1, 2])
def test_shared_memory_holds_latent_keys_once(stages: int) -> None:
    """Q of 64 rows, then one tile of 64 tokens a stage, or two: 64 * 576 * 2 bytes each."""
    tile = catalog.kernel("flash_mla").tiles[0].model_copy(update={"smem_bytes": None})
    kernel = changed(catalog.kernel("flash_mla"), tiles=(tile,), loops={"pipelined": {"stages": stages}})
    assert smem_bytes(kernel, tile, latent()) == 73_728 * (1 + stages)
    assert smem_bytes(changed(kernel, latent_kv=False), tile, plain()) == 73_728 * (1 + 2 * stages)


@pytest.mark.parametrize(
    ("kernel", "device", "tokens"),
    [
        ("flash_mla", "h100_sxm", 64),
        ("flashinfer_mla", "h100_sxm", 64),
        ("flashinfer_mla", "a100_sxm_80gb", 32),
    ],
)
def test_one_cta_of_each_mla_kernel_fits(kernel: str, device: str, tokens: int) -> None:
    grid = tiled(latent(128), catalog.kernel(kernel), catalog.device(device))
    assert (grid.ctas_per_sm, grid.tile_rows, grid.tile_tokens) == (1, 64, tokens)
    assert (grid.heads, grid.row_blocks) == (1, 2)


def test_a_tile_is_priced_without_values() -> None:
    """A pipelined tile moves its keys only; tensor work is QK at 576 and PV at 512 as ever."""
    kernel, device = catalog.kernel("flash_mla"), catalog.device("h100_sxm")
    apart = changed(kernel, latent_kv=False)
    one, two = priced(kernel, latent(), device), priced(apart, plain(), device)
    assert (one.work.tile_bytes, two.work.tile_bytes) == (64 * 1152, 64 * (1152 + 1024))
    assert (one.work.qk_s, one.work.pv_s) == (two.work.qk_s, two.work.pv_s)
    assert one.tile.compute_s == two.tile.compute_s


def test_a_single_buffered_tile_waits_for_no_values() -> None:
    """`max(V load, QK) + max(K load, softmax + PV)` with a V load of nothing, not even a latency."""
    device = catalog.device("h100_sxm")
    kernel = changed(catalog.kernel("flash_mla"), loops={"single_buffered": {}})
    prices = priced(kernel, latent(), device)
    work, tile = prices.work, prices.tile
    k_s = device.dram_latency_s + work.tile_bytes / device.sm_load_bytes_per_s
    assert tile.tile_s == pytest.approx(work.qk_s + max(k_s, tile.compute_s - work.qk_s))


# -- numbers ---------------------------------------------------------------------------------------


def test_inputs_share_keys_and_values() -> None:
    _, k, v = head_inputs(latent(), request=1, kv_head=0, seed=3)
    assert v.shape == (64, 512)
    assert np.array_equal(v, k[:, :512])
    _, keys, values = random_inputs(latent(), seed=3)
    assert np.array_equal(values[1][:, 0], v)
    assert np.array_equal(keys[1][:, 0], k)


@pytest.mark.parametrize("query_len", [1, 2])
@pytest.mark.parametrize("kernel", ["flash_mla", "flashinfer_mla"])
def test_splits_of_a_latent_cache_are_exact(kernel: str, query_len: int) -> None:
    spec, device = catalog.kernel(kernel), catalog.device("h100_sxm")
    workload = Workload((700, 64, 333), 64, 1, 576, head_dim_v=512, latent_kv=True, query_len=query_len)
    schedule = make(spec.partitioner.name)(tiled(workload, spec, device), device)
    assert schedule.segments_of_tile.max() > 1
    verify(schedule, max_tokens=3000).raise_if_failed()


# -- points and models -----------------------------------------------------------------------------


def test_a_model_with_a_latent_cache_runs() -> None:
    """DeepSeek-V3 on 8 GPUs: 16 of its 128 heads and the whole latent cache on each."""
    point = leansim.point(
        device="h100_sxm",
        kernel="flash_mla",
        model="deepseek_v3",
        tensor_parallel=8,
        batch_size=4,
        context_len="8k",
    )
    resolved = resolve(point)
    workload = resolved.workload
    assert (workload.num_q_heads, workload.num_kv_heads) == (16, 1)
    assert (workload.head_dim, workload.value_dim, workload.latent_kv) == (576, 512, True)
    assert workload.kv_bytes == 4 * 8192 * 1152
    simulation = leansim.simulate(point)
    least_s = workload.kv_bytes / resolved.device.dram_bandwidth_bytes_per_s
    assert least_s < simulation.metrics.latency_s < 20 * least_s


def test_a_point_may_say_so_itself() -> None:
    fields = {"device": "h100_sxm", "kernel": "flash_mla", "batch_size": "2", "context_len": "4k"}
    shape = {"num_q_heads": "16", "num_kv_heads": "1", "head_dim": "576", "head_dim_v": "512"}
    point = point_from_row({**fields, **shape, "latent_kv": "true"}, "a row")
    assert resolve(point).workload.latent_kv is True
    assert resolve(point_from_row({**fields, **shape}, "a row")).workload.latent_kv is False
    model = point_from_row({**fields, "model": "deepseek_v3", "latent_kv": "false"}, "a row")
    assert resolve(model).workload.latent_kv is False


def read(tmp_path: Path, without: str = "", **changes: Any) -> Model:
    config = {key: value for key, value in (DEEPSEEK | changes).items() if key != without}
    path = tmp_path / "deepseek_v3.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return read_hf_config(path)


def test_hf_mla_is_read_as_it_decodes(tmp_path: Path) -> None:
    """One latent entry of 512 + 64 elements, whatever the heads it is projected to."""
    got = read(tmp_path)
    assert (got.num_layers, got.num_q_heads, got.num_kv_heads) == (61, 128, 1)
    assert (got.head_dim, got.head_dim_v, got.latent_kv) == (576, 512, True)
    assert got.sources["head_dim"].endswith("config.json key kv_lora_rank + qk_rope_head_dim")
    assert read(tmp_path, q_lora_rank=None).latent_kv, "V2 Lite projects its queries at once"


def test_the_shipped_model_is_what_its_config_says(tmp_path: Path) -> None:
    shipped, got = catalog.model("deepseek_v3"), read(tmp_path)
    apart = {"name", "description", "sources"}
    assert shipped.model_dump(exclude=apart) == got.model_dump(exclude=apart)
    assert shipped.divided(16).latent_kv


@pytest.mark.parametrize("without", ["kv_lora_rank", "qk_rope_head_dim"])
def test_hf_half_an_mla_config_is_refused(tmp_path: Path, without: str) -> None:
    with pytest.raises(ConfigError, match="wanted plain KV heads: MLA is read only where"):
        read(tmp_path, without=without)


def test_hf_sparse_mla_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index_topk: found 2048; wanted attention to every token"):
        read(tmp_path, index_topk=2048)
    with pytest.raises(ConfigError, match=r'kv_lora_rank: found "512"; wanted a whole number'):
        read(tmp_path, kv_lora_rank="512")
