"""What is known of the keys of Hugging Face config.json files: tables alone, no code.

What a type of model has where its file leaves a key out, words for kinds of layers, keys that are
refused by name, and keys that look like attention's and change nothing. From the configuration classes
of the models; ignores position encoding, MLPs, experts, quantisation, multi-token prediction.
"""

from __future__ import annotations

import re
from typing import Any

# -- kinds of layers ---------------------------------------------------------------------------

FULL, SLIDING, CHUNKED, EITHER = "full", "sliding", "chunked", "either"
ATTENDING = (FULL, SLIDING, CHUNKED)
"""Kinds with softmax attention; any other word for a layer names what is left out.

EITHER is softmax attention whose window, if there is one, is in `sliding_window`.
"""

_WORDS = {
    "full_attention": FULL,
    "attention": EITHER,
    "sliding_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "hybrid": FULL,  # attention beside a state of its own
    "hybrid_sliding": SLIDING,
    "linear_attention": "linear",
    "recurrent": "recurrent",
    "mamba": "mamba",
    "mamba2": "mamba",
    "conv": "conv",
    "moe": "mlp",
    "mlp": "mlp",
}
LISTS: dict[str, dict[Any, str]] = {
    "layer_types": {**_WORDS, "attention": FULL},
    "layers_block_type": _WORDS,
    "block_types": _WORDS,
    "hybrid_layer_pattern": {0: FULL, 1: SLIDING},
    "hybrid_override_pattern": {"*": EITHER, "M": "mamba", "-": "mlp", "E": "mlp"},
    "attn_type_list": {1: EITHER, 0: "linear"},
}
"""Keys that list one kind per layer, and what their words mean."""

REPEATED = frozenset({"block_types"})
"""Lists that begin anew until all layers have a kind; so does a text in `sliding_window_pattern`."""

INDICES: dict[str, tuple[str, str]] = {
    "full_attn_idxs": (FULL, "conv"),
    "attn_layer_indices": (FULL, "mamba"),
}
"""Keys that list which layers, from 0, are of one kind; the others are of another."""

EVERY: dict[str, str] = {
    "sliding_window_pattern": SLIDING,
    "_sliding_window_pattern": SLIDING,
    "layer_switch": SLIDING,
    "global_attn_every_n_layers": SLIDING,
    "full_attention_interval": "linear",
    "layer_group_size": "linear",
    "no_rope_layer_interval": CHUNKED,
}
"""Keys n that make every n-th layer a full one, and what the others are."""

# -- what the code of a type fills in ----------------------------------------------------------

_GEMMA_3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
_GEMMA_4 = {"head_dim": 256, "global_head_dim": 512, "sliding_window_pattern": 6}
_EVERY_FOURTH_LINEAR = {"full_attention_interval": 4}
DEFAULTS: dict[str, dict[str, Any]] = {
    "afmoe": {"head_dim": 128, "sliding_window": 1024, "global_attn_every_n_layers": 4},
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "exaone_moe": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "gemma": {"head_dim": 256},
    "gemma2": {**_GEMMA_3, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma3": {
        **_GEMMA_3,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
    },
    "gemma3n": {
        **_GEMMA_3,
        "num_key_value_heads": 2,
        "sliding_window": 512,
        "sliding_window_pattern": 5,
        "num_kv_shared_layers": 15,
        "max_position_embeddings": 32768,
    },
    "gemma4": {**_GEMMA_4, "sliding_window": 512},
    "gemma4_unified": {**_GEMMA_4, "sliding_window": 1024},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
    "jamba": {"attn_layer_period": 8, "attn_layer_offset": 4},
    "llama4": {"head_dim": 128, "attention_chunk_size": 8192, "no_rope_layer_interval": 4},
    "olmo3": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "olmo_hybrid": _EVERY_FOURTH_LINEAR,
    "qwen3_next": {"head_dim": 256, **_EVERY_FOURTH_LINEAR},
    "qwen3_5": {"head_dim": 256, **_EVERY_FOURTH_LINEAR},
    "qwen3_5_moe": {"head_dim": 256, **_EVERY_FOURTH_LINEAR},
    "recurrent_gemma": {
        "sliding_window": 2048,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "vaultgemma": {"head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2},
}
_HEADS_OF_128 = (
    "ernie4_5 glm glm4 helium hy_v3 internlm3 iquestcoder minimax_m2 ministral3 molmo2 qwen3 "
    "qwen3_vl seed_oss solar_open"
)
DEFAULTS |= {name: {"head_dim": 128} for name in _HEADS_OF_128.split()}
"""By model type (`_text` at its end left out): what its code takes for keys that the file leaves out."""

LAST_IS_FULL = frozenset({"gemma4", "gemma4_unified"})
"""Types whose last layer is a full one whatever the pattern says."""

BESIDE_STATE = frozenset({"falcon_h1"})
"""Types whose layers all have full attention, beside a state-space part that is left out."""

_MIXED_TYPES = (
    "bailing_hybrid bailing_moe_linear bamba beam cohere2_moe cwm diffusion_gemma dory embedding_gemma2 "
    "flint gpt_neo granite_swa granitemoe_swa granitemoehybrid hymba inkling inkling2 jet_nemotron "
    "kimi_linear kolibri1 lfm2 lfm2_moe lfm3 mimo_v2 mimo_v2_flash minimax minimax_m1 minimax_text_01 "
    "ministral muse_glimmer muse_spark neomme nemotron-nas nemotron_h phi3small phi4flash plamo2 plamo3 "
    "step3p5 step3p7 zamba zamba2 zaya falcon_mamba mamba mamba2 retnet rwkv rwkv5 rwkv6 rwkv7 xlstm"
)
MIXED = frozenset(_MIXED_TYPES.split())
"""Types that have layers of other kinds in ways of their own: the file has to say which."""

WIDE_HEADS = frozenset({"zamba", "zamba2"})
"""Types whose heads are wider than hidden_size / num_attention_heads: the file has to say how wide."""

_SPARSE_TYPES = (
    "axk2 deepseek_v32 deepseek_v4 dots3_note glm5_next glm_moe_dsa hy_v4 minimax_m3 minimax_m3_vl "
    "qwen4_exp"
)
SPARSE = frozenset(_SPARSE_TYPES.split())
SPARSE_CODE = re.compile(
    r"^(DeepseekV32|DeepseekV4|GlmMoeDsa|MiniMaxM3|HYV4|Dots3Note|Glm5Next|Qwen4Exp)"
)
"""Types, and classes in `architectures`, that attend to selected tokens even if no key says so."""

# -- keys --------------------------------------------------------------------------------------

ALIASES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_attention_groups",),
    "hidden_size": ("n_embd", "d_model"),
    "head_dim": ("attention_head_dim", "kv_channels"),
    "sliding_window": ("sliding_window_size", "attention_window_size"),
    "max_position_embeddings": ("model_max_length", "n_positions", "max_sequence_length"),
}
"""Other names of keys, read where a file has the usual one not, or as null."""

LATENT = ("kv_lora_rank", "qk_rope_head_dim", "q_lora_rank", "qk_nope_head_dim")
"""Keys of MLA; the first two together are the latent entry that a token leaves in the cache."""

OF_KIND: dict[str, dict[str, str]] = {
    SLIDING: {
        "num_q_heads": "swa_num_attention_heads",
        "num_kv_heads": "swa_num_key_value_heads",
        "head_dim": "swa_head_dim",
        "head_dim_v": "swa_v_head_dim",
    },
    FULL: {"num_kv_heads": "num_global_key_value_heads", "head_dim": "global_head_dim"},
}
"""Keys that give layers of one kind heads of their own."""

_TOKENS = "wanted attention to every token of the context, or one sliding window: token selection"
_TWO_SHAPES = "wanted one head shape, or a key that lists the kind of each layer: some layers have"

REFUSED: dict[str, str] = {
    "index_topk": f"{_TOKENS} is not modelled",
    "sparse_attention_config": f"{_TOKENS} is not modelled",
    "compress_ratios": "wanted one KV entry per token: compressed KV caches are not modelled",
    "interleaved_sliding_window": "wanted layer_types: this key does not say which layers slide",
    "multi_query": "wanted num_key_value_heads instead (Falcon's keys are not read)",
    "num_kv_heads": "wanted num_key_value_heads instead (Falcon's keys are not read)",
    "is_encoder_decoder": "wanted a decoder-only model",
}
"""Keys that change decode attention; any value but null, false, 0 or empty is refused."""

ONE = frozenset({"full_attn_mod", "compression_ratio"})
"""Keys that change nothing where they are 1, and are refused otherwise."""

STATE = re.compile(r"(^|_)(mamba|ssm|linear)_")
STATE_KEYS = ("linear_attn_config", "linear_num_value_heads", "mamba_num_heads", "ssm_state_size")
"""Keys of layers without softmax attention: understood where it is known which layers those are."""

REASONS: dict[str, str] = {
    **dict.fromkeys(
        STATE_KEYS,
        "wanted softmax attention in every layer, or a key that lists the kind of each: linear "
        "attention and state-space layers are left out, not modelled",
    ),
    **{key: f"{_TWO_SHAPES} heads of their own" for keys in OF_KIND.values() for key in keys.values()},
    "attention_k_eq_v": "wanted keys and values stored apart: sharing them is not modelled",
    "attention_chunk_size": (
        "wanted no chunked attention, or no_rope_layers or layer_types as well: "
        "they say which layers are chunked"
    ),
    "use_bidirectional_attention": "wanted a decoder: attention to later tokens is not modelled",
}
"""Keys that are understood in some files only; why they are refused in the others."""

_HARMLESS_KEYS = (
    "num_attention_heads num_key_value_heads head_dim v_head_dim qk_head_dim sliding_window "
    "use_sliding_window max_window_layers attn_output_gate attention_output_gate mlp_layer_types "
    "attn_implementation _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal use_flash_attn use_flash_attention use_flash_attention_2 "
    "flash_attention attention_qkv_bias "
    "cross_attention_hidden_size output_attentions add_cross_attention attn_temperature_tuning "
    "attention_hidden_size use_shared_attention_adapter use_shared_attention_lora attn_res_block_size "
    "num_kv_shared_layers attn_layer_period attn_layer_offset linear_attn_config block_configs "
    "num_key_value_heads_per_layer attention_other_setting num_sliding_attention_heads cla_share_factor "
    "attn_rms_norm_eps attention_layernorm use_attention_sinks attention_sink_size"
)
HARMLESS = frozenset(_HARMLESS_KEYS.split()) | {name for names in ALIASES.values() for name in names}
HARMLESS_WAY = re.compile(
    r"^mtp_|^vision_|^audio_|_(bias|dropout|dropout_prob|pdrop|prob|scalar|scale|softcap|softcapping|"
    r"logit_cap|multipliers?|dtype|fp32|gate|norm|layernorm|factor|alpha|beta)$"
)
"""Keys whose names look like attention's but leave the shape of decode attention alone."""

AGAIN = {"num_heads": "num_attention_heads"}
"""Keys that may say again what another says, and mean something else where they do not."""

ONLY_FOR_LISTS = frozenset({"prefix_dense_sliding_window_pattern", "hybrid_layer_ids", "num_mem_blocks"})
"""Keys that say again what a list of layers says."""

SUSPECT = re.compile(
    r"attn|attention|window|layer_types?$|layers_type|block_type|_heads|heads_|head_dim|kv_|"
    r"mamba|ssm_|^linear_|lora_rank|^sparse_|^index_|indexer|compress|swa_|"
    r"layer_group|layer_pattern|layer_ids|_idxs$|^cla_|^local_"
)
"""Names that may change attention: refused where nothing here knows them."""
