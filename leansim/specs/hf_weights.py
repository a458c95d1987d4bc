"""Reads what a Hugging Face config.json says of a model's weights, as far as it says all that is needed.

Nobody who asks of attention needs them, so that a config that does not say them is none to complain of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leansim.specs.hf_reader import Reader

# Types whose feed-forward has one matrix in, where others gate it with a second.
PLAIN = frozenset(
    {
        *("opt", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "bloom", "falcon", "mpt", "phi"),
        *("codegen", "starcoder2", "nemotron", "persimmon", "stablelm_alpha"),
    }
)
# Types with an expert beside the others that all tokens pass, which no key says.
SHARING = frozenset({"llama4"})
_WIDE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "inner_size")
_DENSE_WIDE = ("intermediate_size_mlp", *_WIDE)
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_EXPERT_WIDE = ("moe_intermediate_size", "expert_ffn_hidden_size")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_LATENT = {"kv_rank": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim"}


def weights_of(reader: Reader, num_layers: int) -> dict[str, Any] | None:
    """The fields of `Weights`, or None where the config leaves one of them open."""
    config = reader.config
    found: dict[str, Any] = {
        "hidden_size": _first(config, ("hidden_size", "d_model", "n_embd")),
        "vocab_size": _first(config, ("vocab_size",)),
    }
    if None in found.values():
        return None
    wide = _first(config, _DENSE_WIDE)
    experts = _experts(reader, num_layers)
    if wide is None and experts is None:
        return None
    latent = _latent(config) if reader.latent else None
    if reader.latent and latent is None:
        return None
    return {
        **found,
        **({} if wide is None else {"intermediate_size": wide}),
        **({"gated": False} if reader.type in PLAIN else {}),
        **({} if experts is None else {"experts": experts}),
        **({} if latent is None else {"latent": latent}),
    }


def _experts(reader: Reader, num_layers: int) -> dict[str, Any] | None:
    """A mixture, if there is one: without a width of their own, experts are as wide as a layer."""
    config = reader.config
    count, per_token = _first(config, _EXPERTS), _first(config, _PER_TOKEN)
    own = _first(config, (*_EXPERT_WIDE, *_WIDE))
    if count is None or per_token is None or own is None or per_token > count or count == 1:
        return None
    shared = _first(config, _SHARED) or (1 if reader.type in SHARING else 0)
    if (together := _first(config, ("shared_expert_intermediate_size",))) is not None:
        shared = max(1, round(together / own))
    dense = _dense_layers(config, num_layers)
    return {
        "count": count,
        "per_token": per_token,
        "intermediate_size": own,
        **({"shared": shared} if shared else {}),
        **({"dense_layers": dense} if dense and _first(config, _DENSE_WIDE) is not None else {}),
    }


def _dense_layers(config: Mapping[str, Any], num_layers: int) -> int:
    """Layers of a mixture without experts: the first few, those listed, or all but every n-th."""
    if (first := _first(config, ("first_k_dense_replace",))) is not None:
        return min(first, num_layers)
    listed = config.get("mlp_only_layers")
    if isinstance(listed, list) and listed:
        return len(listed)
    every = _first(config, ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq"))
    return num_layers - num_layers // every if every is not None and every > 1 else 0


def _latent(config: Mapping[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] = {name: _first(config, (key,)) for name, key in _LATENT.items()}
    found["v_dim"] = _first(config, ("v_head_dim",))
    if None in found.values():
        return None
    rank = _first(config, ("q_lora_rank",))
    return found if rank is None else {**found, "q_rank": rank}


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of some keys that is a whole number above 0."""
    values = (config.get(key) for key in keys)
    return next((v for v in values if type(v) is int and 0 < v <= 2**40), None)
