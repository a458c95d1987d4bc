"""Reads a Hugging Face config.json as a `Model`, and refuses by name what it does not understand.

One attention shape in all layers is understood: MHA, GQA, MQA, with or without one sliding window, or
MLA as it decodes. Ignores position encoding, MLPs, experts, quantisation, multi-token prediction.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leansim.errors import ConfigError, Problem, suggestion
from leansim.specs.model import Model

Kind = Literal["full", "sliding", "either"]

_BY_HAND = "wanted a model with one attention shape in all layers; write its shape in a YAML file"
_UNKNOWN = (
    "wanted only keys this reader understands: this one may change attention; if it does not, "
    "write the model's shape in a YAML file"
)
_MLA = "wanted plain KV heads: MLA is read only where kv_lora_rank and qk_rope_head_dim are both given"
_SPARSE = "wanted attention to every token of the context, or one sliding window: token selection"
_LINEAR = "wanted softmax attention in every layer: linear attention and state-space layers"
_TWO_SHAPES = "wanted one head shape: some layers have heads of their own"

REFUSED: dict[str, str] = {
    "index_topk": f"{_SPARSE} is not modelled",
    "sparse_attention_config": f"{_SPARSE} is not modelled",
    "compress_ratios": "wanted one KV entry per token: compressed KV caches are not modelled",
    "attention_chunk_size": "wanted no chunked attention: it mixes chunked and full layers",
    "interleaved_sliding_window": _BY_HAND,
    "global_head_dim": f"{_TWO_SHAPES} (global_head_dim)",
    "num_global_key_value_heads": f"{_TWO_SHAPES} (num_global_key_value_heads)",
    "swa_head_dim": f"{_TWO_SHAPES} (swa_*)",
    "swa_v_head_dim": f"{_TWO_SHAPES} (swa_*)",
    "swa_num_attention_heads": f"{_TWO_SHAPES} (swa_*)",
    "swa_num_key_value_heads": f"{_TWO_SHAPES} (swa_*)",
    "block_configs": "wanted the same heads in every layer: here each layer has its own block",
    "linear_attn_config": f"{_LINEAR} are not modelled",
    "linear_num_value_heads": f"{_LINEAR} are not modelled",
    "mamba_num_heads": f"{_LINEAR} are not modelled",
    "ssm_state_size": f"{_LINEAR} are not modelled",
    "attention_k_eq_v": "wanted keys and values stored apart: sharing them is not modelled",
    "num_kv_shared_layers": "wanted each layer to have its own KV cache",
    "multi_query": "wanted num_key_value_heads instead (Falcon's keys are not read)",
    "num_kv_heads": "wanted num_key_value_heads instead (Falcon's keys are not read)",
    "is_encoder_decoder": "wanted a decoder-only model",
}
"""Keys that change decode attention; any value but null, false, 0 or empty is refused."""

LATENT = ("kv_lora_rank", "qk_rope_head_dim", "q_lora_rank", "qk_nope_head_dim")
"""Keys of MLA; the first two together are the latent entry that a token leaves in the cache."""

PATTERNS: dict[str, dict[Any, Kind]] = {
    "layer_types": {"full_attention": "full", "sliding_attention": "sliding"},
    "layers_block_type": {"attention": "either"},
    "hybrid_layer_pattern": {0: "full", 1: "sliding"},
    "hybrid_override_pattern": {"*": "either"},
    "attn_type_list": {1: "either"},
}
"""Keys that list one kind per layer, and the kinds understood when all layers have the same.

"either" is softmax attention whose window, if any, is in `sliding_window`.
"""

INTERVALS = ("full_attention_interval", "sliding_window_pattern")
"""Keys that make every n-th layer a full-attention layer; only 1 leaves all layers alike."""

_MIXED_TYPES = (
    "cohere2 exaone4 gemma2 gemma3 gemma3_text gemma3n gemma3n_text gpt_neo gpt_oss llama4 "
    "llama4_text olmo3 recurrent_gemma"
)
MIXED_BY_TYPE = frozenset(_MIXED_TYPES.split())
"""Model types that mix layer kinds in their code even where config.json does not list them."""

_HARMLESS_KEYS = (
    "num_attention_heads num_key_value_heads head_dim v_head_dim sliding_window use_sliding_window "
    "max_window_layers attention_bias attention_dropout attention_probs_dropout_prob attn_pdrop "
    "attn_dropout attn_output_gate attention_output_gate attention_multiplier attention_out_bias "
    "attention_value_scale query_pre_attn_scalar attention_softmax_in_fp32 mlp_layer_types "
    "scale_attention_softmax_in_fp32 attn_implementation _attn_implementation "
    "_attn_implementation_autoset use_flash_attn use_flash_attention use_flash_attention_2 "
    "flash_attention attention_qkv_bias cross_attention_hidden_size"
)
HARMLESS = frozenset(_HARMLESS_KEYS.split())
"""Keys whose names look like attention's but leave the shape of decode attention alone."""

_SUSPECT = re.compile(
    r"attn|attention|window|layer_types?$|layers_type|block_type|_heads|heads_|head_dim|kv_|"
    r"mamba|ssm_|^linear_|lora_rank|^sparse_|^index_|compress|swa_"
)


@dataclass
class _Reader:
    """One config's keys, and the problems found so far."""

    config: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def complain(self, key: str, found: object, wanted: str) -> None:
        text = found if isinstance(found, str) and " " in found else json.dumps(found)
        self.problems.append(Problem(key, text if len(text) < 80 else text[:77] + "...", wanted))

    def whole(self, key: str) -> int | None:
        """Return a whole number of at least 1, or None after complaining about it."""
        value = self.config.get(key)
        if key not in self.config:
            near = suggestion(key, self.config)
            self.complain(key, "no such key", f"wanted a whole number of at least 1{near}")
        elif type(value) is not int or value < 1:
            self.complain(key, value, "wanted a whole number of at least 1")
        else:
            return value
        return None

    def has(self, key: str) -> bool:
        """Whether the key says anything: present, and not null, false, 0 or empty."""
        return bool(self.config.get(key))

    @property
    def latent(self) -> bool:
        """Whether the KV cache is MLA's."""
        return all(self.has(key) for key in LATENT[:2])


def read_hf_config(path: Path, name: str | None = None) -> Model:
    """Read a Hugging Face config.json; of a multi-modal model, its nested `text_config`.

    `name` becomes the model's name; without it, the file's stem does, or, for a file called
    config.json, its folder's name. Raises `ConfigError` with every key that is missing, malformed
    or not understood.
    """
    reader = _Reader(_decoder_part(path))
    _refuse_unknown(reader)
    kinds = _layer_kinds(reader)
    numbers = _numbers(reader)
    if window := _window(reader, kinds):
        numbers["window"] = window
    if reader.problems:
        raise ConfigError(str(path), reader.problems)
    if name is None:
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    sources = {key: f"datasheet: {path.name} config.json key {k}" for key, (_, k) in numbers.items()}
    values: dict[str, Any] = {key: value for key, (value, _) in numbers.items()}
    values |= {"latent_kv": True} if reader.latent else {}
    return Model(name=name, sources=sources, **values)


def _decoder_part(path: Path) -> dict[str, Any]:
    """Return the dictionary that describes the decoder. Raises `ConfigError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        problem = Problem("file", reason, "wanted a readable config.json")
        raise ConfigError(str(path), [problem]) from None
    except UnicodeDecodeError:
        problem = Problem("file", "bytes that are not UTF-8", "wanted a JSON text file")
        raise ConfigError(str(path), [problem]) from None
    except json.JSONDecodeError as error:
        problem = Problem("syntax", error.msg.lower(), "wanted valid JSON", error.lineno, error.colno)
        raise ConfigError(str(path), [problem]) from None
    part = data.get("text_config", data) if isinstance(data, dict) else data
    if not isinstance(part, dict):
        where = "text_config" if isinstance(data, dict) else "(top level)"
        problem = Problem(where, f"a {type(part).__name__}", "wanted a JSON object of model keys")
        raise ConfigError(str(path), [problem])
    if part is not data and data.get("is_encoder_decoder"):
        part = {**part, "is_encoder_decoder": True}
    return part


def _refuse_unknown(reader: _Reader) -> None:
    """Complain about keys known to change attention; failing any, about unknown look-alikes."""
    for key in filter(reader.has, REFUSED):
        reader.complain(key, reader.config[key], REFUSED[key])
    for key in filter(reader.has, INTERVALS):
        if reader.config[key] != 1:
            reader.complain(key, reader.config[key], _BY_HAND)
    for key in filter(reader.has, () if reader.latent else LATENT):
        reader.complain(key, reader.config[key], _MLA)
    if reader.problems:
        return
    understood = HARMLESS | PATTERNS.keys() | set(INTERVALS) | set(LATENT)
    for key in filter(reader.has, reader.config):
        if key not in understood and _SUSPECT.search(key):
            reader.complain(key, reader.config[key], _UNKNOWN)


def _layer_kinds(reader: _Reader) -> set[Kind]:
    """Return the kind of attention that the layer lists give; empty where none says."""
    kinds: set[Kind] = set()
    for key, known in PATTERNS.items():
        if not reader.has(key):
            continue
        layers = reader.config[key]
        if not isinstance(layers, list | str):
            reader.complain(key, layers, "wanted a list with one entry per layer")
            continue
        counts = Counter(layer if isinstance(layer, str | int) else repr(layer) for layer in layers)
        found = ", ".join(f"{n} x {kind!r}" for kind, n in counts.most_common())
        if len(counts) > 1:
            reader.complain(key, found, _BY_HAND)
        elif (kind := known.get(next(iter(counts)))) is None:
            names = ", ".join(repr(k) for k in known)
            reader.complain(key, found, f"wanted every layer to be one of: {names}")
        elif kind != "either":
            kinds.add(kind)
    if not kinds and not reader.has("layer_types"):
        model_type = reader.config.get("model_type")
        if isinstance(model_type, str) and model_type in MIXED_BY_TYPE:
            wanted = "wanted layer_types as well: this type mixes kinds of attention by itself"
            reader.complain("model_type", model_type, wanted)
    if len(kinds) > 1:
        reader.complain("layer lists", "both full and sliding layers", _BY_HAND)
    return kinds


def _numbers(reader: _Reader) -> dict[str, tuple[int, str]]:
    """Return field -> (value, the key or keys it came from); what is wrong goes to `problems`."""
    q_heads = reader.whole("num_attention_heads")
    found: dict[str, tuple[int | None, str]] = {
        "num_layers": (reader.whole("num_hidden_layers"), "num_hidden_layers"),
        "num_q_heads": (q_heads, "num_attention_heads"),
    }
    found |= _latent_entry(reader) if reader.latent else _kv_heads(reader, q_heads)
    return {key: (value, source) for key, (value, source) in found.items() if value is not None}


def _kv_heads(reader: _Reader, q_heads: int | None) -> dict[str, tuple[int | None, str]]:
    """Return the KV heads of MHA, GQA or MQA, and their head dims."""
    config, key = reader.config, "num_key_value_heads"
    kv_heads = q_heads
    source = f"num_attention_heads (no {key}: MHA)"
    if key in config and config[key] is None:
        reader.complain(key, None, "wanted one number for all layers")
        kv_heads = None
    elif key in config:
        kv_heads, source = reader.whole(key), key
    if q_heads and kv_heads and q_heads % kv_heads:
        reader.complain(key, kv_heads, f"wanted a divisor of num_attention_heads {q_heads}")
    head_dim = _head_dim(reader, q_heads)
    found = {"num_kv_heads": (kv_heads, source), "head_dim": head_dim}
    if config.get("v_head_dim") is not None and config["v_head_dim"] != head_dim[0]:
        found["head_dim_v"] = (reader.whole("v_head_dim"), "v_head_dim")
    return found


def _latent_entry(reader: _Reader) -> dict[str, tuple[int | None, str]]:
    """Return MLA's heads as decode sees them: all q heads on one key, whose latent part is the value.

    `num_key_value_heads`, `head_dim` and `v_head_dim` say how heads are projected, not what is cached.
    """
    latent, rotary = (reader.whole(key) for key in LATENT[:2])
    width = latent + rotary if latent and rotary else None
    return {
        "num_kv_heads": (1, "kv_lora_rank: one latent entry per token"),
        "head_dim": (width, "kv_lora_rank + qk_rope_head_dim"),
        "head_dim_v": (latent, "kv_lora_rank"),
    }


def _head_dim(reader: _Reader, q_heads: int | None) -> tuple[int | None, str]:
    """Return (elements of a key head, the key it came from)."""
    if reader.config.get("head_dim") is not None:
        return reader.whole("head_dim"), "head_dim"
    hidden = reader.whole("hidden_size")
    if hidden and q_heads and hidden % q_heads:
        wanted = f"wanted head_dim, or a multiple of num_attention_heads {q_heads}"
        reader.complain("hidden_size", hidden, wanted)
        return None, ""
    return (hidden // q_heads if hidden and q_heads else None), "hidden_size / num_attention_heads"


def _window(reader: _Reader, kinds: set[Kind]) -> tuple[int, str] | None:
    """Return (tokens kept, key) if all layers slide, None if all are full; else complain."""
    config = reader.config
    first_sliding, layers = config.get("max_window_layers"), config.get("num_hidden_layers")
    if not kinds:
        if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
            return None
        if first_sliding is not None and not config.get("use_sliding_window"):
            return None  # Qwen, whose use_sliding_window is false where it is not given
        if isinstance(first_sliding, int) and isinstance(layers, int) and first_sliding > 0:
            if first_sliding < layers:
                found = f"{first_sliding} full layers of {layers}"
                reader.complain("max_window_layers", found, _BY_HAND)
            return None  # Qwen: layers below max_window_layers attend to everything
    elif "sliding" not in kinds:
        return None
    window = reader.whole("sliding_window")
    return None if window is None else (window, "sliding_window")
