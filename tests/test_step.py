"""A whole decode step: matrices, small kernels, collectives, energy, and attention of all layers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hf_shapes import of
from hypothesis import given
from hypothesis import strategies as st

import leansim
from leansim.errors import LeansimError, WorkloadError
from leansim.specs import catalog
from leansim.specs.device import Matmul
from leansim.specs.hf_config import read_hf_config
from leansim.specs.model import Model
from leansim.specs.weights import Experts, Latent, Matrix, Weights
from leansim.steps.energy import energy
from leansim.steps.kernels import Spent, experts_touched, matmul, share, small_kernel
from leansim.steps.step import Step, Steps

H100 = catalog.device("h100_sxm")
SQUARE = Matrix("square", 1000, 2000, "columns")
ASKED: dict[str, Any] = {"device": "h100_sxm", "kernel": "flash_decoding", "model": "llama_3_8b"}
ASKED |= {"batch_size": 4, "context_len": 4096}


def step(**fields: Any) -> Step:
    return leansim.step(leansim.point(**(ASKED | fields)))[0]


# What published models weigh, in billions of parameters, norms and biases aside.
PARAMETERS = {
    **{
        "llama_2_7b": 6.738,
        "llama_2_70b": 68.98,
        "llama_3_8b": 8.030,
        "llama_3_70b": 70.55,
        "llama_3_405b": 405.85,
    },
    **{"mistral_7b": 7.241, "mixtral_8x7b": 46.70, "opt_66b": 66.16, "deepseek_v3": 671.0},
    **{"phi_3_medium": 13.96, "phi_3_mini": 3.821, "qwen_2_5_72b": 72.70, "qwen_2_5_7b": 7.615},
    **{"qwen_3_32b": 32.76, "qwen_3_8b": 8.190, "gemma_2b_v1": 3.030},  # Gemma ties 0.524 of them
}


def parameters(model: Model) -> int:
    weights = model.weights
    assert weights is not None
    total = 2 * weights.hidden_size * weights.vocab_size
    for some in model.kinds:
        shape = model.shape(some)
        heads = (shape["num_q_heads"], shape["num_kv_heads"], shape["head_dim"])
        values = shape["head_dim_v"] or shape["head_dim"]
        total += some.count * sum(m.rows * m.columns for m in weights.attention(*heads, values))
    for count, behind in weights.feed_forwards(model.num_layers):
        total += count * sum(m.rows * m.columns * m.experts for m in behind)
    return total


@pytest.mark.parametrize("name", catalog.names("model"))
def test_matrices_are_all_of_a_model(name: str) -> None:
    assert parameters(catalog.model(name)) / 1e9 == pytest.approx(PARAMETERS[name], rel=2e-3)


# Sizes of released models' config.json files, from public facts, and billions of parameters; norms,
# biases and other parts than the decoder aside.
RELEASED: dict[str, tuple[dict[str, Any], float]] = {
    "gpt-oss-120b": (
        of("gpt_oss", 36, 64, 8, 64, hidden_size=2880, vocab_size=201_088, intermediate_size=2880)
        | {"num_local_experts": 128, "num_experts_per_tok": 4},
        116.8,
    ),
    "Llama-4-Scout": (
        of("llama4_text", 48, 40, 8, 128, hidden_size=5120, vocab_size=202_048)
        | {"intermediate_size": 8192, "intermediate_size_mlp": 16_384, "num_local_experts": 16}
        | {"num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        107.8,
    ),
    "Llama-4-Maverick": (
        of("llama4_text", 48, 40, 8, 128, hidden_size=5120, vocab_size=202_048)
        | {"intermediate_size": 8192, "intermediate_size_mlp": 16_384, "num_local_experts": 128}
        | {"num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
        400.7,
    ),
    "Qwen3-30B-A3B": (
        of("qwen3_moe", 48, 32, 4, 128, hidden_size=2048, vocab_size=151_936, intermediate_size=6144)
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        30.5,
    ),
    "gemma-3-27b": (
        of("gemma3_text", 62, 32, 16, 128, hidden_size=5376, vocab_size=262_208)
        | {"intermediate_size": 21_504, "sliding_window": 1024, "sliding_window_pattern": 6},
        28.4,
    ),
    "phi-2": (
        of("phi", 32, 32, 32, 80, hidden_size=2560, vocab_size=51_200, intermediate_size=10_240),
        2.78,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_weights_of_released_models_are_read(name: str, tmp_path: Path) -> None:
    config, billions = RELEASED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parameters(read_hf_config(tmp_path / "config.json")) / 1e9 == pytest.approx(
        billions, rel=3e-3
    )


def test_a_matrix_by_hand() -> None:
    """4 MB of weights at half of 4 TB/s are 2 us, 20 rows' 80 MFLOP at a quarter of 160 TFLOP/s too.

    Inputs and outputs of 20 rows are 0.12 MB more, 0.06 us. With q = 1 both add up.
    """
    device = H100.model_copy(
        update={
            "dram_bandwidth_bytes_per_s": 4e12,
            "num_sms": 1,
            "sm_clock_hz": 1e9,
            "tensor_flop_per_clk_per_sm": {"bfloat16": 160_000},
            "matmul": Matmul(overhead_s=1e-6, dram_fraction=0.5, tensor_fraction=0.25, exponent=1),
        }
    )
    found = matmul(SQUARE, 20, device, "bfloat16")
    assert found.seconds == pytest.approx(1e-6 + 2.06e-6 + 2e-6)
    assert (found.dram_bytes, found.flop) == (4e6, 80e6)
    assert matmul(SQUARE, 20, device, "fp8").dram_bytes == 2e6


@given(tokens=st.integers(1, 4096), rows=st.integers(16, 20_000), columns=st.integers(16, 20_000))
def test_a_matrix_takes_no_less_than_either_bound_and_more_tokens_take_more(
    tokens: int, rows: int, columns: int
) -> None:
    matrix = Matrix("any", rows, columns, "none")
    one, two = (matmul(matrix, n, H100, "bfloat16") for n in (tokens, 2 * tokens))
    rate = H100.tensor_flop_per_s_per_sm("bfloat16")
    assert rate is not None
    assert one.seconds > one.dram_bytes / H100.dram_bandwidth_bytes_per_s
    assert one.seconds > one.flop / (rate * H100.num_sms)
    assert two.seconds > one.seconds


def test_experts_that_are_touched() -> None:
    """Two of eight: a token touches 2, many touch all; two tokens 8 (1 - (3/4)^2) = 3.5."""
    expert = replace(SQUARE, experts=8, per_token=2)
    assert experts_touched(expert, 1) == pytest.approx(2.0)
    assert experts_touched(expert, 2) == pytest.approx(3.5)
    assert experts_touched(expert, 1000) == pytest.approx(8.0)
    assert experts_touched(SQUARE, 7) == 1.0


def test_shares_of_gpus() -> None:
    assert share(SQUARE, 8) == replace(SQUARE, columns=250)
    assert share(replace(SQUARE, divided="rows"), 3) == replace(SQUARE, rows=334, divided="rows")
    whole = replace(SQUARE, divided="none")
    assert share(whole, 8) == whole


def test_a_small_kernel_by_hand() -> None:
    """Gap, CTA, two reads: 0.7 + 0.22 + 0.33 + 0.14 us and more on an H100, then bytes from L2."""
    empty, full = (small_kernel(size, H100, "graph").seconds for size in (0, 10_000_000))
    waits = H100.cta_launch_s + H100.dram_latency_s + H100.l2_latency_s
    assert empty == pytest.approx(H100.kernel_gap_s["graph"] + waits)
    assert full - empty == pytest.approx(1e7 / H100.l2_bandwidth_bytes_per_s)


def test_energy_by_hand() -> None:
    """A second of idle at 72 W, 1 TB at 122 pJ a byte; arithmetic at the full rate up to the limit."""
    rate = H100.tensor_flop_per_s_per_sm("bfloat16")
    assert rate is not None
    found = energy(Spent(1.0, 1e12, rate * H100.num_sms / 10), H100)
    assert found.low_j == pytest.approx(72 + 122)
    assert found.high_j == pytest.approx(72 + 122 + (700 - 72) / 10)
    most = energy(Spent(1.0, 1e13, 0.0), H100)
    assert most.low_j == most.high_j == H100.tdp_w


def test_a_step_is_the_sum_of_its_parts() -> None:
    found = step()
    (record,) = found.records()
    parts = ("attention_s", "linear_s", "small_s", "collective_s")
    assert record["step_s"] == pytest.approx(sum(record[part] for part in parts))
    alone = leansim.simulate(leansim.point(**ASKED)).metrics.latency_s
    assert record["attention_s"] == pytest.approx(32 * alone)
    assert record["collective_s"] == 0.0
    assert record["tokens_per_s"] == pytest.approx(4 / record["step_s"])
    assert record["weight_bytes_per_gpu"] == pytest.approx(2 * 8.030e9, rel=1e-3)
    assert record["kv_bytes_per_gpu"] == 4 * 4096 * 131_072
    assert record["fits"]
    # All weights but the embedding are read once, at 83.7% of 3.35 TB/s, and 129 matrices begin.
    floor = 2 * (8.030e9 - 4096 * 128_256) / (0.837 * 3.35e12)
    assert record["linear_s"] == pytest.approx(floor + 129 * H100.matmul.overhead_s, rel=0.01)


def test_gpus_divide_a_step_and_reduce_twice_in_each_layer() -> None:
    one, eight = step(), step(tensor_parallel=8, node="h100_sxm_x8")
    node = catalog.node("h100_sxm_x8")
    assert eight.weight_bytes == pytest.approx(one.weight_bytes / 8, rel=1e-3)
    reduced = node.collective_s("all_reduce", 8, 4 * 4096 * 2)
    gathered = node.collective_s("all_gather", 8, 4 * 128_256 * 2)
    assert eight.collective_s == pytest.approx(64 * reduced + gathered)
    assert one.linear_spent.dram_bytes == pytest.approx(8 * eight.linear_spent.dram_bytes, rel=1e-3)
    assert eight.energy.low_j > one.energy.low_j
    slower = node.collective_s("all_reduce", 8, 4 * 4096 * 2, "nccl") - reduced
    least = 64 * slower / eight.seconds  # and the logits, if NCCL's gathering is not the fastest
    assert 0.1 < least <= eight.nccl_longer < least + 0.01
    assert f"with NCCL's a step is {eight.nccl_longer:.0%} longer" in eight.notes()[0]
    assert one.nccl_longer == 0
    assert len(one.notes()) == 1


def test_ranks_divide_the_matrices_as_heads_do() -> None:
    by_heads = step(tensor_parallel=8, node="h100_sxm_x8")
    by_ranks = step(tensor_parallel=2, kv_ranks=4, node="h100_sxm_x8")
    assert by_ranks.weight_bytes == by_heads.weight_bytes
    assert by_ranks.point.kv_ranks * by_ranks.point.tensor_parallel == by_ranks.num_gpus == 8


def test_layers_of_every_kind_count_and_are_one_step(tmp_path: Path) -> None:
    config = {"model_type": "gpt_oss", "num_hidden_layers": 4, "num_attention_heads": 64}
    config |= {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "hidden_size": 2880}
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size": 201_088}
    config |= {"intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = {key: value for key, value in ASKED.items() if key != "model"}
    fields |= {"model_config": str(tmp_path / "config.json")}
    found = leansim.step(leansim.point(**fields))[0]
    assert [one.resolved.point.layers for one in found.attention] == ["full", "sliding"]
    each = [
        leansim.simulate(leansim.point(**fields, layers=kind)).metrics.latency_s
        for kind in ("full", "sliding")
    ]
    assert found.attention_spent.seconds == pytest.approx(2 * sum(each))
    assert found.model.weights == Weights(
        hidden_size=2880,
        vocab_size=201_088,
        intermediate_size=2880,
        experts=Experts(count=32, per_token=4, intermediate_size=2880),
    )
    picked = leansim.step([leansim.point(**fields, layers=kind) for kind in ("full", "sliding")])
    assert len(picked) == 1


def test_a_schedule_changes_the_whole_step() -> None:
    points = [leansim.point(**(ASKED | {"kernel": k, "batch_size": 1})) for k in ("fa2", "lean")]
    found = leansim.step(points)
    fa2, lean = found.records()
    assert fa2["speedup"] == 1.0
    assert lean["speedup"] == pytest.approx(fa2["step_s"] / lean["step_s"])
    assert 1.0 < lean["speedup"] < fa2["attention_s"] / lean["attention_s"]
    assert "speedup" in found.rows()[1]
    assert "speedup" not in Steps(found.answers[:1]).rows()[0]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model": None, "num_q_heads": 8, "num_kv_heads": 8, "head_dim": 64}, "wanted a model"),
        ({"tensor_parallel": 2}, "2 GPUs divide the model; wanted the node"),
        ({"kernel": "flash_mla"}, "flash_mla"),
    ],
)
def test_what_is_no_step_is_refused(fields: dict[str, Any], complaint: str) -> None:
    point = leansim.point(**{k: v for k, v in (ASKED | fields).items() if v is not None})
    with pytest.raises(LeansimError, match=complaint):
        leansim.step(point)
    both = leansim.step([point, leansim.point(**ASKED)])
    assert len(both) == 1
    assert complaint in both.refused[0]


def test_a_model_without_weights_and_a_dtype_that_is_none_are_refused(tmp_path: Path) -> None:
    text = catalog.spec_path("model", "llama_3_8b").read_text(encoding="utf-8")
    head, _, tail = text.partition("weights:\n")
    bare = head + tail[tail.index("sources:") :]
    (tmp_path / "bare.yaml").write_text(
        "\n".join(li for li in bare.splitlines() if "weights:" not in li)
    )
    with pytest.raises(WorkloadError, match="llama_3_8b says nothing of its weights"):
        step(model=str(tmp_path / "bare.yaml"))
    with pytest.raises(WorkloadError, match="did you mean 'bfloat16'"):
        leansim.step(leansim.point(**ASKED), weight_dtype="bf16")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "neither intermediate_size nor experts"),
        ({"experts": {"count": 2, "per_token": 3, "intermediate_size": 8}}, "per_token 3"),
        (
            {"experts": {"count": 4, "per_token": 2, "intermediate_size": 8, "dense_layers": 1}},
            "dense_layers without intermediate_size",
        ),
    ],
)
def test_weights_that_are_none(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Weights(hidden_size=64, vocab_size=100, **fields)


def test_latent_projections_without_a_rank_of_the_query() -> None:
    latent = Latent(kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
    weights = Weights(hidden_size=2048, vocab_size=9, intermediate_size=9, latent=latent)
    found = {m.name: (m.rows, m.columns) for m in weights.attention(16, 1, 576, 512)}
    assert found["q"] == (2048, 16 * 192)
    assert found["kv_a"] == (2048, 576)
    assert found["o"] == (16 * 128, 2048)


def test_the_verb_writes_a_table_and_the_share_of_attention(tmp_path: Path) -> None:
    flags = ["--device", "h100_sxm", "--kernel", "fa2,lean", "--model", "llama_3_8b"]
    flags += ["--batch-size", "1,8", "--context-len", "1k,8k"]
    command = [sys.executable, "-m", "leansim", "step", *flags, "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "J/token" in done.stdout
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 8
    assert (tmp_path / "attention_share.png").stat().st_size > 10_000
