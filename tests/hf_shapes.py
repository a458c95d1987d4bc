"""Attention keys of released models' config.json files, from public facts, and what they come to.

Only keys that say something of attention are here, some that must not matter among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Config = dict[str, Any]


class Shape(NamedTuple):
    """A config, how its layers are described, and (q heads, KV heads, head dim, V's) of each kind."""

    config: Config
    layers: str
    heads: tuple[tuple[int, int, int, int | None], ...]
    longest: int | None = None
    shared: int = 0


def of(kind: str, layers: int, q: int, kv: int, dim: int | None = None, **more: Any) -> Config:
    """A config of plain heads."""
    config = {"model_type": kind, "num_hidden_layers": layers, "num_attention_heads": q}
    config |= {"num_key_value_heads": kv, "attention_bias": False, "attention_dropout": 0.0}
    return {**config, **({"head_dim": dim} if dim else {}), **more}


def mla(kind: str, layers: int, q: int, **more: Any) -> Config:
    """A config of MLA heads with DeepSeek's latent entry."""
    sizes = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    return of(kind, layers, q, q, hidden_size=7168, **sizes, **more)


def every(n: int, layers: int, other: str, full: str = "full_attention") -> list[str]:
    """Every n-th layer a full one."""
    return [other if (i + 1) % n else full for i in range(layers)]


def at(full: list[int], layers: int, other: str, word: str = "full_attention") -> list[str]:
    """Full layers at some indices."""
    return [word if i in full else other for i in range(layers)]


S, L, M = "sliding_attention", "linear_attention", "mamba"
DELTA = {"linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_conv_kernel_dim": 4}
STATE = {"mamba_d_state": 128, "mamba_n_heads": 128, "mamba_expand": 2}
OP = {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False, "window_length": None}
NO_OP = {**OP, "n_heads_in_group": None, "no_op": True}
NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
MIMO = {"v_head_dim": 128, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8}
MIMO |= {"swa_head_dim": 192, "swa_v_head_dim": 128, "swa_rope_theta": 10000}
STEP = {"attention_type": S, "num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128}
LATENT = (1, 576, 512)

SHAPES: dict[str, Shape] = {
    "gpt-oss-120b": Shape(
        of("gpt_oss", 36, 64, 8, 64, sliding_window=128, layer_types=every(2, 36, S)),
        "18 x full, 18 x sliding (window 128)",
        ((64, 8, 64, None),) * 2,
    ),
    "gpt-oss-20b, no list": Shape(
        of("gpt_oss", 24, 64, 8, 64, sliding_window=128, max_position_embeddings=131072),
        "12 x full, 12 x sliding (window 128)",
        ((64, 8, 64, None),) * 2,
        131072,
    ),
    "gemma-2-9b": Shape(
        of("gemma2", 42, 16, 8, 256, sliding_window=4096, attn_logit_softcapping=50.0),
        "21 x full, 21 x sliding (window 4,096)",
        ((16, 8, 256, None),) * 2,
    ),
    "gemma-2-27b": Shape(
        of("gemma2", 46, 32, 16, 128, sliding_window=4096, query_pre_attn_scalar=144),
        "23 x full, 23 x sliding (window 4,096)",
        ((32, 16, 128, None),) * 2,
    ),
    "gemma-3-1b": Shape(
        of("gemma3_text", 26, 4, 1, 256, sliding_window=512, sliding_window_pattern=6),
        "4 x full, 22 x sliding (window 512)",
        ((4, 1, 256, None),) * 2,
        131072,
    ),
    "gemma-3-4b, heads left out": Shape(
        {
            "model_type": "gemma3",
            "vision_config": {"num_hidden_layers": 27, "num_attention_heads": 16},
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
        },
        "5 x full, 29 x sliding (window 1,024)",
        ((8, 4, 256, None),) * 2,
        131072,
    ),
    "gemma-3-12b, head_dim left out": Shape(
        {
            "model_type": "gemma3",
            "text_config": of("gemma3_text", 48, 16, 8, hidden_size=3840, sliding_window=1024),
        },
        "8 x full, 40 x sliding (window 1,024)",
        ((16, 8, 256, None),) * 2,
        131072,
    ),
    "gemma-3-27b, type of the part left out": Shape(
        {
            "model_type": "gemma3",
            "text_config": {
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "sliding_window": 1024,
            },
        },
        "10 x full, 52 x sliding (window 1,024)",
        ((32, 16, 128, None),) * 2,
        131072,
    ),
    "gemma-3n-E4B": Shape(
        {
            "model_type": "gemma3n",
            "text_config": of(
                "gemma3n_text",
                35,
                8,
                2,
                256,
                sliding_window=512,
                num_kv_shared_layers=15,
                layer_types=every(5, 35, S),
                max_position_embeddings=32768,
            ),
        },
        "7 x full, 28 x sliding (window 512)",
        ((8, 2, 256, None),) * 2,
        32768,
        15,
    ),
    "gemma-4-26B-A4B": Shape(
        {
            "model_type": "gemma4",
            "text_config": of(
                "gemma4_text",
                30,
                16,
                8,
                256,
                global_head_dim=512,
                num_global_key_value_heads=2,
                attention_k_eq_v=True,
                num_kv_shared_layers=0,
                use_bidirectional_attention="vision",
                sliding_window=1024,
                layer_types=every(6, 30, S),
            ),
        },
        "5 x full, 25 x sliding (window 1,024)",
        ((16, 2, 512, None), (16, 8, 256, None)),
    ),
    "Llama-4-Scout": Shape(
        {
            "model_type": "llama4",
            "text_config": of(
                "llama4_text",
                48,
                40,
                8,
                128,
                attention_chunk_size=8192,
                no_rope_layers=[],
                attn_temperature_tuning=4,
                max_position_embeddings=10485760,
            ),
        },
        "12 x full, 36 x chunked (chunks of 8,192)",
        ((40, 8, 128, None),) * 2,
        10485760,
    ),
    "Llama-4-Maverick, layers listed": Shape(
        of("llama4_text", 48, 40, 8, 128, no_rope_layers=[1, 1, 1, 0] * 12),
        "12 x full, 36 x chunked (chunks of 8,192)",
        ((40, 8, 128, None),) * 2,
    ),
    "Qwen3-Next-80B-A3B": Shape(
        of("qwen3_next", 48, 16, 2, 256, full_attention_interval=4, **DELTA),
        "12 x full; left out: 36 x linear",
        ((16, 2, 256, None),),
    ),
    "Qwen3.5-27B": Shape(
        {
            "model_type": "qwen3_5",
            "text_config": of(
                "qwen3_5_text",
                64,
                24,
                4,
                256,
                attn_output_gate=True,
                full_attention_interval=4,
                layer_types=every(4, 64, L),
                mamba_ssm_dtype="float32",
                mtp_num_hidden_layers=1,
                **DELTA,
            ),
        },
        "16 x full; left out: 48 x linear",
        ((24, 4, 256, None),),
    ),
    "Qwen2.5-7B": Shape(
        of("qwen2", 28, 28, 4, hidden_size=3584, sliding_window=131072, max_window_layers=28)
        | {"use_sliding_window": False},
        "28 x full",
        ((28, 4, 128, None),),
    ),
    "Qwen2 with its window switched on": Shape(
        of("qwen2", 28, 28, 4, hidden_size=3584, sliding_window=32768, max_window_layers=21)
        | {"use_sliding_window": True},
        "21 x full, 7 x sliding (window 32,768)",
        ((28, 4, 128, None),) * 2,
    ),
    "Qwen3-32B, head_dim left out": Shape(
        of("qwen3", 64, 64, 8, hidden_size=5120, use_sliding_window=False, sliding_window=None),
        "64 x full",
        ((64, 8, 128, None),),
    ),
    "Mistral-7B-v0.1": Shape(
        of("mistral", 32, 32, 8, hidden_size=4096, sliding_window=4096, max_position_embeddings=32768),
        "32 x sliding (window 4,096)",
        ((32, 8, 128, None),),
        32768,
    ),
    "Ministral-8B": Shape(
        of("mistral", 36, 32, 8, 128, hidden_size=4096, sliding_window=32768),
        "36 x sliding (window 32,768)",
        ((32, 8, 128, None),),
    ),
    "Mistral-Small-3.1-24B": Shape(
        {
            "model_type": "mistral3",
            "text_config": of("mistral", 40, 32, 8, 128, hidden_size=5120, sliding_window=None),
        },
        "40 x full",
        ((32, 8, 128, None),),
    ),
    "Phi-4-mini": Shape(
        of("phi3", 32, 24, 8, hidden_size=3072, full_attn_mod=1, sliding_window=262144),
        "32 x sliding (window 262,144)",
        ((24, 8, 128, None),),
    ),
    "Hunyuan-A13B": Shape(
        of("hunyuan_v1_moe", 32, 32, 8, 128, attention_head_dim=128, use_cla=False)
        | {"cla_share_factor": 2, "use_mla": False, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        "32 x full",
        ((32, 8, 128, None),),
    ),
    "Hunyuan-Large": Shape(
        of("hunyuan", 64, 80, 8, hidden_size=6400, attention_head_dim=80)
        | {"use_cla": True, "cla_share_factor": 2},
        "64 x full",
        ((80, 8, 80, None),),
        None,
        32,
    ),
    "DeepSeek-V2-Lite": Shape(
        mla("deepseek_v2", 27, 16, q_lora_rank=None), "27 x full", ((16, *LATENT),)
    ),
    "DeepSeek-V3": Shape(mla("deepseek_v3", 61, 128, q_lora_rank=1536), "61 x full", ((128, *LATENT),)),
    "Kimi-K2": Shape(mla("kimi_k2", 61, 64, q_lora_rank=1536), "61 x full", ((64, *LATENT),)),
    "Kimi-Linear-48B-A3B": Shape(
        mla("kimi_linear", 27, 32, head_dim=72, mla_use_nope=True, model_max_length=1048576)
        | {
            "linear_attn_config": {
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                "kda_layers": [i for i in range(1, 27) if i % 4],
                "head_dim": 128,
                "num_heads": 32,
            }
        },
        "7 x full; left out: 20 x linear",
        ((32, *LATENT),),
        1048576,
    ),
    "GLM-4.5": Shape(
        of("glm4_moe", 92, 96, 8, 128, hidden_size=5120), "92 x full", ((96, 8, 128, None),)
    ),
    "GLM-4.7-Flash": Shape(
        mla("glm4_moe_lite", 47, 20, q_lora_rank=768, qk_head_dim=256, num_nextn_predict_layers=1),
        "47 x full",
        ((20, *LATENT),),
    ),
    "MiniMax-Text-01": Shape(
        of("minimax_text_01", 80, 64, 8, 128, attn_type_list=([0] * 7 + [1]) * 10)
        | {"layernorm_linear_attention_alpha": 3.55, "layernorm_full_attention_beta": 1.0},
        "10 x full; left out: 70 x linear",
        ((64, 8, 128, None),),
    ),
    "MiniMax-M2": Shape(
        of("minimax_m2", 62, 48, 8, 128, attn_type_list=[1] * 62), "62 x full", ((48, 8, 128, None),)
    ),
    "Ring-mini-linear-2.0": Shape(
        of("bailing_moe_linear", 20, 16, 4, 128, layer_group_size=5, group_norm_size=4)
        | {"num_kv_heads_for_linear_attn": 16, "linear_silu": False},
        "4 x full; left out: 16 x linear",
        ((16, 4, 128, None),),
    ),
    "Ling, layers left over in the last group": Shape(
        mla("bailing_hybrid", 23, 32, layer_group_size=5),
        "7 x full; left out: 16 x linear",
        ((32, *LATENT),),
    ),
    "command-r7b": Shape(
        of("cohere2", 32, 32, 8, hidden_size=4096, sliding_window=4096, layer_switch=4)
        | {"order_of_interleaved_layers": "local_attn_first"},
        "8 x full, 24 x sliding (window 4,096)",
        ((32, 8, 128, None),) * 2,
    ),
    "EXAONE-4.0-32B": Shape(
        of("exaone4", 64, 40, 8, 128, sliding_window=4096, sliding_window_pattern="LLLG"),
        "16 x full, 48 x sliding (window 4,096)",
        ((40, 8, 128, None),) * 2,
    ),
    "EXAONE-4.0-1.2B": Shape(
        of("exaone4", 30, 32, 8, 64, sliding_window=None, sliding_window_pattern=None),
        "30 x full",
        ((32, 8, 64, None),),
    ),
    "EXAONE-3.5, layers by another name": Shape(
        {"model_type": "exaone", "num_layers": 32, "num_attention_heads": 32, "head_dim": 128}
        | {"num_key_value_heads": 8},
        "32 x full",
        ((32, 8, 128, None),),
    ),
    "Olmo-3-7B": Shape(
        of("olmo3", 32, 32, 32, hidden_size=4096, sliding_window=4096, layer_types=every(4, 32, S)),
        "8 x full, 24 x sliding (window 4,096)",
        ((32, 32, 128, None),) * 2,
    ),
    "SmolLM3-3B": Shape(
        of("smollm3", 36, 16, 4, hidden_size=2048, no_rope_layers=[1, 1, 1, 0] * 9)
        | {"no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None},
        "36 x full",
        ((16, 4, 128, None),),
    ),
    "Falcon-H1-34B": Shape(
        of("falcon_h1", 72, 20, 4, 128, attn_layer_indices=None, attention_in_multiplier=1.0, **STATE)
        | {"ssm_multipliers": [1.0], "mamba_use_mlp": True},
        "72 x full",
        ((20, 4, 128, None),),
    ),
    "Jamba-v0.1": Shape(
        of("jamba", 32, 32, 8, hidden_size=4096, attn_layer_period=8, attn_layer_offset=4, **STATE),
        "4 x full; left out: 28 x mamba",
        ((32, 8, 128, None),),
    ),
    "granite-4.0-h-small": Shape(
        of("granitemoehybrid", 40, 32, 8, hidden_size=4096, attention_multiplier=0.0078125, **STATE)
        | {"layer_types": at([5, 15, 25, 35], 40, M, "attention")},
        "4 x full; left out: 36 x mamba",
        ((32, 8, 128, None),),
    ),
    "Bamba-9B": Shape(
        of("bamba", 32, 32, 8, hidden_size=4096, attn_layer_indices=[9, 18, 27], **STATE),
        "3 x full; left out: 29 x mamba",
        ((32, 8, 128, None),),
    ),
    "Nemotron-3-Nano-30B": Shape(
        of("nemotron_h", 52, 32, 2, 128, hybrid_override_pattern=NANO, mamba_num_heads=64)
        | {"ssm_state_size": 128, "use_mamba_kernels": True, "sliding_window": None},
        "6 x full; left out: 23 x mamba, 23 x mlp",
        ((32, 2, 128, None),),
    ),
    "Nemotron-3, no number of layers": Shape(
        {
            "model_type": "nemotron_h",
            "num_attention_heads": 64,
            "num_key_value_heads": 2,
            "head_dim": 128,
        }
        | {"layers_block_type": ["mamba", "moe", "mamba", "attention", "moe"] * 4}
        | {"mtp_layers_block_type": ["attention", "moe"]},
        "4 x full; left out: 8 x mamba, 8 x mlp",
        ((64, 2, 128, None),),
    ),
    "Llama-3.3-Nemotron-Super-49B": Shape(
        of("nemotron-nas", 80, 64, 8, hidden_size=8192)
        | {"num_key_value_heads": None}
        | {"block_configs": [{"attention": OP}] * 49 + [{"attention": NO_OP}] * 31},
        "49 x full; left out: 31 x no attention",
        ((64, 8, 128, None),),
    ),
    "blocks with KV heads of their own": Shape(
        of("nemotron-nas", 4, 64, 8, hidden_size=8192)
        | {"num_key_value_heads": None}
        | {"block_configs": [{"attention": OP}, {"attention": {**OP, "n_heads_in_group": 16}}] * 2},
        "2 x full_8kv, 2 x full_4kv",
        ((64, 8, 128, None), (64, 4, 128, None)),
    ),
    "MiMo-V2-Flash": Shape(
        of("mimo_v2_flash", 48, 64, 4, 192, sliding_window=128, attention_chunk_size=128, **MIMO)
        | {"hybrid_layer_pattern": [0 if i == 0 or i % 6 == 5 else 1 for i in range(48)]}
        | {"add_swa_attention_sink_bias": True, "attention_value_scale": 0.707},
        "9 x full, 39 x sliding (window 128)",
        ((64, 4, 192, 128), (64, 8, 192, 128)),
    ),
    "Step-3.5-Flash": Shape(
        {"model_type": "step3p5", "num_hidden_layers": 45, "num_attention_heads": 64, "head_dim": 128}
        | {"num_attention_groups": 8, "sliding_window": 512, "attention_other_setting": STEP}
        | {"layer_types": at([*range(0, 45, 4)], 48, S), "num_nextn_predict_layers": 3},
        "12 x full, 33 x sliding (window 512)",
        ((64, 8, 128, None), (96, 8, 128, None)),
    ),
    "LFM2-1.2B": Shape(
        of("lfm2", 16, 32, 8, hidden_size=2048, full_attn_idxs=[2, 5, 8, 10, 12, 14], conv_L_cache=3),
        "6 x full; left out: 10 x conv",
        ((32, 8, 64, None),),
    ),
    "LFM2-2.6B, heads said twice": Shape(
        of("lfm2", 30, 32, 8, hidden_size=2048, num_heads=32)
        | {"layer_types": at([2, 5, 9, 13, 17, 21, 24, 27], 30, "conv")},
        "8 x full; left out: 22 x conv",
        ((32, 8, 64, None),),
    ),
    "ERNIE-4.5-0.3B": Shape(
        of("ernie4_5", 18, 16, 2, 128, hidden_size=1024, compression_ratio=1.0),
        "18 x full",
        ((16, 2, 128, None),),
    ),
    "Qwen-7B, of the first kind": Shape(
        {"model_type": "qwen", "num_hidden_layers": 32, "num_attention_heads": 32, "kv_channels": 128}
        | {"hidden_size": 4096, "attn_dropout_prob": 0.0, "use_flash_attn": "auto"},
        "32 x full",
        ((32, 32, 128, None),),
    ),
    "Qwen2.5-VL, flat": Shape(
        of("qwen2_5_vl", 28, 28, 4, hidden_size=3584, sliding_window=32768, max_window_layers=28)
        | {"use_sliding_window": False, "vision_config": {"num_heads": 16}},
        "28 x full",
        ((28, 4, 128, None),),
    ),
    "recurrentgemma-2b": Shape(
        of("recurrent_gemma", 26, 10, 1, hidden_size=2560, attention_window_size=2048)
        | {"block_types": ["recurrent", "recurrent", "attention"]},
        "8 x sliding (window 2,048); left out: 18 x recurrent",
        ((10, 1, 256, None),),
    ),
    "Zamba2-2.7B": Shape(
        of("zamba2", 54, 32, 32, hidden_size=2560, attention_head_dim=160, attention_hidden_size=5120)
        | {"layers_block_type": at([*range(6, 54, 6)], 54, M, "hybrid"), **STATE},
        "8 x full; left out: 46 x mamba",
        ((32, 32, 160, None),),
    ),
    "Trinity (afmoe)": Shape(
        of("afmoe", 32, 8, 2, 128, sliding_window=2048, global_attn_every_n_layers=4),
        "8 x full, 24 x sliding (window 2,048)",
        ((8, 2, 128, None),) * 2,
    ),
    "gpt2": Shape(
        {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
        | {"attn_pdrop": 0.1},
        "12 x full",
        ((12, 12, 64, None),),
        1024,
    ),
    "InternVL, its decoder in llm_config": Shape(
        {"llm_config": of("qwen2", 28, 28, 4, hidden_size=3584), "vision_config": {}},
        "28 x full",
        ((28, 4, 128, None),),
    ),
    "Qwen2.5-Omni, its decoder two parts deep": Shape(
        {"thinker_config": {"text_config": of("qwen2_5_omni_text", 28, 28, 4, hidden_size=3584)}},
        "28 x full",
        ((28, 4, 128, None),),
    ),
}

NAMED_REFUSALS: dict[str, tuple[Config, str]] = {
    "DeepSeek-V3.2": (mla("deepseek_v32", 61, 128, index_topk=2048, index_n_heads=64), "index_topk"),
    "DeepSeek-V3.2, index keys lost": (mla("deepseek_v32", 61, 128), "model_type"),
    "DeepSeek-V3.2, only its class left": (
        mla("deepseek_v3", 61, 128, architectures=["DeepseekV32ForCausalLM"]),
        "architectures",
    ),
    "GLM-5": (mla("glm_moe_dsa", 78, 64, index_topk=2048), "index_topk"),
    "GLM-5.2, by its list alone": (
        mla("glm_new", 78, 64, layer_types=["deepseek_sparse_attention"] * 78),
        "layer_types",
    ),
    "DeepSeek-V4": (
        of("deepseek_v4", 4, 64, 1, 512, compress_ratios=[0, 4, 128, 4], sliding_window=128),
        "compress_ratios",
    ),
    "MiniMax-M3": (
        of("minimax_m3", 60, 64, 4, 128, sparse_attention_config={"sparse_topk_blocks": 16}),
        "sparse_attention_config",
    ),
    "Falcon-7B": (of("falcon", 32, 71, 71, hidden_size=4544, multi_query=True), "multi_query"),
    "ChatGLM": (
        {"num_layers": 40, "num_attention_heads": 32, "hidden_size": 4096}
        | {"multi_query_attention": True, "multi_query_group_num": 2},
        "multi_query_attention",
    ),
    "MPT": (
        {"n_layers": 32, "n_heads": 32, "d_model": 4096, "attn_config": {"alibi": True}},
        "attn_config",
    ),
    "Baichuan-M1": (
        of("baichuan_m1", 40, 32, 2, hidden_size=5120, sliding_window=8192)
        | {"sliding_window_layers": [1, 3, 5]},
        "sliding_window_layers",
    ),
    "Longcat-Flash": (mla("longcat_flash", 28, 64, attention_method="MLA"), "attention_method"),
    "cohere2_moe, no list": (of("cohere2_moe", 40, 64, 8, 128, sliding_window=4096), "model_type"),
    "Nemotron-NAS, sinks": (
        of("nemotron-nas", 1, 64, 8, 128, block_configs=[{"attention": {**OP, "num_sink_tokens": 4}}]),
        "block_configs[0].attention.num_sink_tokens",
    ),
    "Zamba2, width lost": (
        of("zamba2", 2, 32, 32, hidden_size=2560, layers_block_type=["mamba", "hybrid"]),
        "attention_head_dim",
    ),
    "Llama-3.2-Vision": (
        {"text_config": of("mllama_text_model", 40, 32, 8, 128, cross_attention_layers=[3, 8])},
        "cross_attention_layers",
    ),
    "embedding model": (
        of("gemma3_text", 24, 3, 1, 256, use_bidirectional_attention=True),
        "use_bidirectional_attention",
    ),
}
