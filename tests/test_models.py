"""Model shapes: how heads divide, what ships, and what a Hugging Face config.json may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from leansim.errors import ConfigError, WorkloadError
from leansim.files import strict_yaml
from leansim.specs.hf_config import read_hf_config
from leansim.specs.model import Model

SHIPPED = sorted((Path(__file__).parents[1] / "configs" / "models").glob("*.yaml"))

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_scaling": None,
}


def model(**changes: Any) -> Model:
    shape = {"num_layers": 2, "num_q_heads": 64, "num_kv_heads": 8, "head_dim": 128} | changes
    sources = {key: "assumed: a test" for key, value in shape.items() if value is not None}
    return Model(name="toy", sources=sources, **shape)


def read(tmp_path: Path, without: str = "", **changes: Any) -> Model:
    config = {key: value for key, value in (LLAMA | changes).items() if key != without}
    return read_text(tmp_path, json.dumps(config))


def read_text(tmp_path: Path, text: str) -> Model:
    path = tmp_path / "toy_config.json"
    path.write_text(text, encoding="utf-8")
    return read_hf_config(path)


# Dividing over GPUs


@pytest.mark.parametrize(
    ("gpus", "q_heads", "kv_heads"),
    [(1, 64, 8), (2, 32, 4), (4, 16, 2), (8, 8, 1), (16, 4, 1), (32, 2, 1), (64, 1, 1)],
)
def test_heads_divide_and_kv_heads_are_replicated_beyond_their_number(
    gpus: int, q_heads: int, kv_heads: int
) -> None:
    """64 q and 8 KV heads: up to 8 GPUs split the KV heads, beyond that each keeps one."""
    share = model().divided(gpus)
    assert (share.num_q_heads, share.num_kv_heads) == (q_heads, kv_heads)
    assert (share.num_layers, share.head_dim) == (2, 128)


def test_replication_makes_the_group_smaller() -> None:
    """64 / 8 = 8 q heads read a KV head; on 16 GPUs, 64 / 16 = 4 read the GPU's copy."""
    assert model().group_size == 8
    assert model().divided(8).group_size == 8
    assert model().divided(16).group_size == 4


def test_dividing_leaves_the_model_alone_and_says_so_in_the_sources() -> None:
    whole = model(window=4096)
    share = whole.divided(4)
    assert whole == model(window=4096)
    assert share.window == 4096
    assert share.sources["num_q_heads"] == "assumed: a test, divided over 4 GPUs"
    assert share.sources["num_kv_heads"] == "assumed: a test, divided over 4 GPUs"
    assert share.sources["head_dim"] == "assumed: a test"
    assert whole.divided(1) == whole


@pytest.mark.parametrize(
    ("shape", "gpus", "text"),
    [
        ({}, 3, "found 3 for the 64 q heads of toy; wanted a divisor of 64"),
        ({}, 128, "found 128 for the 64 q heads of toy; wanted a divisor of 64"),
        ({}, 0, "found 0; wanted at least 1"),
        ({}, -2, "found -2; wanted at least 1"),
        # 40 q and 10 KV heads on 4 GPUs: 40 divides, 10 does not, and 4 is no multiple of 10
        ({"num_q_heads": 40, "num_kv_heads": 10}, 4, "found 4 for the 10 KV heads"),
        # 24 q and 6 KV heads on 8 GPUs: 24 divides, 8 > 6 but is no multiple of 6
        ({"num_q_heads": 24, "num_kv_heads": 6}, 8, "found 8 for the 6 KV heads"),
    ],
)
def test_heads_that_do_not_divide_are_refused(shape: dict[str, int], gpus: int, text: str) -> None:
    with pytest.raises(WorkloadError) as error:
        model(**shape).divided(gpus)
    assert text in str(error.value)


def test_value_heads_default_to_key_heads() -> None:
    assert model().value_head_dim == 128
    assert model(head_dim_v=64).value_head_dim == 64


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_kv_heads": 7}, "wanted num_q_heads to be a multiple of num_kv_heads"),
        ({"num_kv_heads": 0}, "greater than or equal to 1"),
        ({"head_dim": -1}, "greater than or equal to 1"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"heads": 3}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        model(**changes)


# The models that ship


def test_sixteen_models_ship() -> None:
    assert len(SHIPPED) == 16


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_models_load_with_sources(path: Path) -> None:
    shipped = Model.model_validate(strict_yaml.read(path).data)
    assert shipped.name == path.stem
    assert shipped.num_q_heads % shipped.num_kv_heads == 0
    labels = {text.partition(":")[0] for text in shipped.sources.values()}
    assert labels == {"datasheet"}
    assert len(shipped.sources) >= 5
    assert shipped.weights is not None
    repositories = {text.split(",")[0] for text in shipped.sources.values()}
    assert len(repositories) == 1
    assert shipped.divided(2).num_q_heads * 2 == shipped.num_q_heads


@pytest.mark.parametrize(
    ("stem", "heads"),
    [
        ("llama_2_7b", (32, 32, 128)),
        ("llama_3_405b", (128, 8, 128)),
        ("qwen_2_5_7b", (28, 4, 128)),
        ("qwen_3_32b", (64, 8, 128)),
        ("phi_3_mini", (32, 32, 96)),
        ("phi_3_medium", (40, 10, 128)),
        ("gemma_2b_v1", (8, 1, 256)),
        ("opt_66b", (72, 72, 128)),
    ],
)
def test_shipped_heads(stem: str, heads: tuple[int, int, int]) -> None:
    path = next(path for path in SHIPPED if path.stem == stem)
    shipped = Model.model_validate(strict_yaml.read(path).data)
    assert (shipped.num_q_heads, shipped.num_kv_heads, shipped.head_dim) == heads


# Hugging Face configs that are understood


def test_hf_head_dim_is_worked_out_where_missing(tmp_path: Path) -> None:
    """4096 hidden elements over 32 heads: 128 a head."""
    got = read(tmp_path)
    assert (got.num_layers, got.num_q_heads, got.num_kv_heads, got.head_dim) == (32, 32, 8, 128)
    assert (got.head_dim_v, got.window) == (None, None)
    assert got.sources == {
        "max_position_embeddings": "datasheet: toy_config.json config.json key max_position_embeddings",
        "num_layers": "datasheet: toy_config.json config.json key num_hidden_layers",
        "num_q_heads": "datasheet: toy_config.json config.json key num_attention_heads",
        "num_kv_heads": "datasheet: toy_config.json config.json key num_key_value_heads",
        "head_dim": "datasheet: toy_config.json config.json key hidden_size / num_attention_heads",
    }


def test_hf_head_dim_given_need_not_match_hidden_size(tmp_path: Path) -> None:
    """Qwen3 32B: 64 heads of 128 on 5120 hidden elements, not 5120 / 64 = 80."""
    assert read(tmp_path, num_attention_heads=64, hidden_size=5120, head_dim=128).head_dim == 128
    assert read(tmp_path, head_dim=None).head_dim == 128


def test_hf_without_kv_heads_is_mha(tmp_path: Path) -> None:
    got = read(tmp_path, without="num_key_value_heads")
    assert got.num_kv_heads == 32
    assert got.sources["num_kv_heads"].endswith("(no num_key_value_heads: MHA)")


def test_hf_nested_text_config_is_the_part_read(tmp_path: Path) -> None:
    vision = {"num_attention_heads": 3, "num_hidden_layers": 5}
    config = {"model_type": "some_vl", "text_config": LLAMA, "vision_config": vision}
    got = read_text(tmp_path, json.dumps(config))
    assert (got.num_layers, got.num_q_heads) == (32, 32)


def test_hf_names(tmp_path: Path) -> None:
    """The file's stem, or the folder of a file called config.json, or the name asked for."""
    assert read(tmp_path).name == "toy_config"
    folder = tmp_path / "Llama-3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert read_hf_config(folder / "config.json").name == "Llama-3"
    assert read_hf_config(folder / "config.json", name="mine").name == "mine"


def test_hf_value_head_dim(tmp_path: Path) -> None:
    assert read(tmp_path, v_head_dim=128).head_dim_v is None
    got = read(tmp_path, head_dim=192, v_head_dim=128)
    assert (got.head_dim, got.head_dim_v) == (192, 128)


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        # Qwen: layers from max_window_layers on slide; without use_sliding_window none do
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 32}, None),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 0}, 4096),
        ({"sliding_window": 4096, "max_window_layers": 28}, None),
        # layer lists of one kind
        ({"layer_types": ["full_attention"] * 32, "sliding_window": 4096}, None),
        ({"layer_types": ["sliding_attention"] * 32, "sliding_window": 4096}, 4096),
        ({"hybrid_layer_pattern": [0] * 32, "sliding_window": 128}, None),
        ({"hybrid_layer_pattern": [1] * 32, "sliding_window": 128}, 128),
        ({"attn_type_list": [1] * 32}, None),
        ({"attn_type_list": [1] * 32, "sliding_window": 128}, 128),
        ({"layers_block_type": ["attention"] * 32}, None),
        ({"hybrid_override_pattern": "*" * 32}, None),
        ({"full_attention_interval": 1}, None),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 32}, None),
    ],
)
def test_hf_windows(tmp_path: Path, keys: dict[str, Any], window: int | None) -> None:
    got = read(tmp_path, **keys)
    assert got.window == window
    assert ("window" in got.sources) == (window is not None)


# Hugging Face configs that are refused, by name

HALF = ["sliding_attention", "full_attention"] * 16
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"kv_lora_rank": 512}, "kv_lora_rank: found 512; wanted plain KV heads: MLA"),
    ({"index_topk": 2048}, "index_topk: found 2048; wanted attention to every token"),
    ({"compress_ratios": [0, 4, 128]}, "compress_ratios: found [0, 4, 128]; wanted one KV entry"),
    ({"attention_chunk_size": 8192}, "attention_chunk_size: found 8192; wanted no chunked"),
    ({"global_head_dim": 512}, "global_head_dim: found 512; wanted one head shape"),
    ({"swa_num_key_value_heads": 8}, "swa_num_key_value_heads: found 8; wanted one head shape"),
    ({"swa_head_dim": 192}, "swa_head_dim: found 192; wanted one head shape"),
    ({"swa_rope_theta": 10000}, "swa_rope_theta: found 10000; wanted only keys this reader"),
    ({"linear_num_value_heads": 48}, "linear_num_value_heads: found 48; wanted softmax"),
    ({"linear_attn_config": {"a": 1}}, 'linear_attn_config: found {"a": 1}; wanted softmax'),
    ({"mamba_num_heads": 128}, "mamba_num_heads: found 128; wanted softmax"),
    ({"mamba_d_state": 16}, "mamba_d_state: found 16; wanted only keys this reader understands"),
    ({"sparse_attention_config": {"x": 1}}, "sparse_attention_config: found"),
    ({"block_configs": [{}]}, "block_configs[0].attention: found no such key; wanted attention"),
    ({"block_configs": [{"attention": {"no_op": True}}]}, "found 1 blocks; wanted 32, as num_hidden"),
    ({"num_key_value_heads": None}, "num_key_value_heads: found null; wanted one number"),
    ({"num_key_value_heads": 5}, "num_key_value_heads: found 5; wanted a divisor of"),
    ({"num_key_value_heads": [8, 4]}, "num_key_value_heads: found [8, 4]; wanted a whole number"),
    ({"multi_query": True}, "multi_query: found true; wanted num_key_value_heads instead"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder: found true; wanted a decoder-only model"),
    ({"window_attention_2030": 3}, "window_attention_2030: found 3; wanted only keys"),
    ({"layer_types": HALF}, "sliding_window: found no such key; wanted a whole number"),
    ({"layer_types": HALF[:30]}, "layer_types: found 30 layers; wanted 32, as num_hidden_layers says"),
    ({"layer_types": ["linear_attention"] * 32}, "found 32 x 'linear'; wanted every layer, or some"),
    ({"layer_types": ["indexed_attention"] * 32}, "found 32 x 'indexed_attention'; wanted every"),
    ({"layer_types": 7}, "layer_types: found 7; wanted a list with one entry per layer"),
    ({"layer_types": ["sliding_attention"] * 32}, "sliding_window: found"),
    ({"full_attention_interval": "4"}, 'full_attention_interval: found "4"; wanted a whole'),
    ({"sliding_window_pattern": "LXG", "sliding_window": 9}, 'sliding_window_pattern: found "LXG"'),
    ({"interleaved_sliding_window": 512}, "interleaved_sliding_window: found 512; wanted layer_types"),
    ({"hybrid_layer_pattern": [0, 1, 1]}, "hybrid_layer_pattern: found 3 layers; wanted 32"),
    ({"hybrid_override_pattern": "M-M*"}, "hybrid_override_pattern: found 4 layers; wanted 32"),
    ({"attn_type_list": [0] * 32}, "layers: found 32 x 'linear'; wanted every layer, or some"),
    ({"full_attn_mod": 2}, "full_attn_mod: found 2; wanted 1: anything else may change attention"),
    ({"model_type": "nemotron_h"}, 'model_type: found "nemotron_h"; wanted layer_types as well'),
    ({"model_type": "rwkv6", "attention_hidden_size": 4096}, 'model_type: found "rwkv6"; wanted layer'),
    ({"num_heads": 64}, "num_heads: found 64; wanted only keys this reader understands"),
    ({"compression_ratio": 4.0}, "compression_ratio: found 4.0; wanted 1: anything else may change"),
    (
        {"num_hidden_layers": 2**60},
        "num_hidden_layers: found 1152921504606846976; wanted at most 10,000",
    ),
    (
        {"max_position_embeddings": 2**70},
        "max_position_embeddings: found 1180591620717411303424; wanted",
    ),
    ({"model_type": "deepseek_v32"}, 'model_type: found "deepseek_v32"; wanted a model that attends'),
    ({"architectures": ["GlmMoeDsaForCausalLM"]}, 'architectures: found "GlmMoeDsaForCausalLM"'),
    ({"layer_types": HALF, "sliding_window": 9, "hybrid_layer_pattern": [0] * 32}, "lists that agree"),
    ({"attention_head_dim": 64, "head_dim": 128}, "attention_head_dim: found 64; wanted head_dim 128"),
    ({"sliding_window": [4096, None]}, "sliding_window: found [4096, null]; wanted a whole number"),
    ({"num_attention_heads": "32"}, 'num_attention_heads: found "32"; wanted a whole number'),
    ({"num_hidden_layers": True}, "num_hidden_layers: found true; wanted a whole number"),
    ({"head_dim": 128.0}, "head_dim: found 128.0; wanted a whole number of at least 1"),
    ({"head_dim": 0}, "head_dim: found 0; wanted a whole number of at least 1"),
    ({"hidden_size": 4097}, "hidden_size: found 4097; wanted head_dim, or a multiple of"),
]


@pytest.mark.parametrize(("keys", "text"), REFUSALS, ids=lambda part: str(part)[:40])
def test_hf_refusals_name_the_key(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, **keys)
    assert text in str(error.value)
    assert len(error.value.problems) == 1
    assert str(error.value).startswith(str(tmp_path / "toy_config.json"))


@pytest.mark.parametrize("key", ["kv_lora_rank", "index_topk", "attention_chunk_size", "swa_x"])
@pytest.mark.parametrize("value", [None, False, 0, [], {}])
def test_hf_keys_that_are_switched_off_are_fine(tmp_path: Path, key: str, value: Any) -> None:
    assert read(tmp_path, **{key: value}).num_q_heads == 32


def test_hf_missing_key_is_named_with_its_nearest_spelling(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, without="num_hidden_layers", num_hiden_layers=32)
    text = str(error.value)
    assert "num_hidden_layers: found no such key; wanted a whole number" in text
    assert "did you mean 'num_hiden_layers'?" in text


def test_hf_all_refusals_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, kv_lora_rank=512, index_topk=64, layer_types=HALF, head_dim="x")
    where = {problem.where for problem in error.value.problems}
    assert where == {"kv_lora_rank", "index_topk", "sliding_window", "head_dim"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "a" 1\n}', ":2:7: syntax: found expecting ':' delimiter; wanted valid JSON"),
        ("", ":1:1: syntax: found expecting value; wanted valid JSON"),
        ("[1, 2]", "(top level): found a list; wanted a JSON object of model keys"),
        ('{"text_config": null}', "text_config: found a NoneType; wanted a JSON object"),
    ],
)
def test_hf_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_text(tmp_path, text)
    assert message in str(error.value)


def test_hf_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file: found no such file or directory"):
        read_hf_config(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="bytes that are not UTF-8"):
        read_hf_config(tmp_path / "bytes.json")


def test_hf_encoder_decoder_around_a_text_config(tmp_path: Path) -> None:
    config = {"is_encoder_decoder": True, "text_config": LLAMA}
    with pytest.raises(ConfigError, match="wanted a decoder-only model"):
        read_text(tmp_path, json.dumps(config))
