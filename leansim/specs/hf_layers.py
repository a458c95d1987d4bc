"""Which kind of attention each layer of a Hugging Face config has, and the heads that kinds have alone.

A list of layers counts first, as in the models' code, then lists of indices, then every n-th layer, then
the sliding window's own keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from leansim.specs.hf_keys import (
    ATTENDING,
    CHUNKED,
    EITHER,
    EVERY,
    FULL,
    INDICES,
    LAST_IS_FULL,
    LISTS,
    MIXED,
    OF_KIND,
    REPEATED,
    SLIDING,
)
from leansim.specs.hf_reader import Reader

_LINEAR = "linear_attn_config"
_NAS_REFUSED = ("sparsify", "unshifted_sink", "num_sink_tokens")
Own = tuple[tuple[str, int], ...]


def layer_kinds(reader: Reader, layers: int) -> list[str] | None:
    """The kind of each of so many layers: `full`, `sliding`, `chunked`, or the name of what is left out.

    None after a complaint.
    """
    before = len(reader.problems)
    kinds = next((found for found in _ways(reader, layers) if found is not None), None)
    if kinds is None and len(reader.problems) == before:
        kinds = _by_window(reader, layers)
    if kinds is None or len(reader.problems) > before:
        return None
    if reader.type in LAST_IS_FULL:
        kinds[-1] = FULL
    kinds = [_of_window(reader) if kind == EITHER else kind for kind in kinds]
    if not any(kind in ATTENDING for kind in kinds):
        reader.complain("layers", _counted(kinds), "wanted every layer, or some, to attend by softmax")
    return kinds


def _ways(reader: Reader, layers: int) -> Iterable[list[str] | None]:
    yield _listed(reader, layers)
    yield _blocks(reader, layers)
    yield _in_config(reader, layers)
    yield _by_index(reader, layers)
    yield _by_period(reader, layers)
    yield _by_rope(reader, layers)
    yield _every(reader, layers)


def _listed(reader: Reader, layers: int) -> list[str] | None:
    """From the keys that list one kind per layer."""
    found: dict[str, list[str]] = {}
    for key, words in LISTS.items():
        if not reader.has(key):
            continue
        listed = reader.config[key]
        if not isinstance(listed, list | str):
            reader.complain(key, listed, "wanted a list with one entry per layer")
            continue
        if key in REPEATED:
            listed = [listed[i % len(listed)] for i in range(layers)]
        unknown = [word for word in listed if not isinstance(word, str | int) or word not in words]
        if unknown:
            names = ", ".join(repr(word) for word in words)
            reader.complain(key, _counted(listed), f"wanted every layer to be one of: {names}")
        elif len(listed) not in (layers, layers + reader.extra_layers):
            reader.complain(key, f"{len(listed)} layers", f"wanted {layers}, as num_hidden_layers says")
        else:
            found[key] = [words[word] for word in listed[:layers]]
    if len(found) > 1:
        plain = [
            [_of_window(reader) if kind == EITHER else kind for kind in kinds]
            for kinds in found.values()
        ]
        if any(kinds != plain[0] for kinds in plain):
            told = "; ".join(f"{key}: {_counted(kinds)}" for key, kinds in found.items())
            reader.complain("layer lists", told, "wanted lists that agree")
    return next(iter(found.values()), None)


def _counted(words: Sequence[Any]) -> str:
    counts = Counter(word if isinstance(word, str | int) else repr(word) for word in words)
    return ", ".join(f"{count} x {word!r}" for word, count in counts.most_common())


def _blocks(reader: Reader, layers: int) -> list[str] | None:
    """From blocks of their own, as a search of architectures leaves them."""
    if not reader.has("block_configs"):
        return None
    attention = [block_attention(block) for block in reader.listed("block_configs")]
    for i, block in enumerate(attention):
        where, wanted = f"block_configs[{i}].attention", "wanted attention to all tokens, or a window"
        if block is None:
            reader.complain(where, "no such key", wanted)
            return None
        if odd := next((key for key in _NAS_REFUSED if block.get(key)), None):
            reader.complain(f"{where}.{odd}", block[odd], wanted)
            return None
    if len(attention) != layers:
        wanted = f"wanted {layers}, as num_hidden_layers says"
        reader.complain("block_configs", f"{len(attention)} blocks", wanted)
    kinds = []
    for block in attention:
        assert block is not None
        if block.get("no_op"):
            kinds.append("no attention")
        elif block.get("replace_with_linear"):
            kinds.append("matrix")
        else:
            kinds.append(SLIDING if block.get("window_length") else FULL)
    return kinds


def block_attention(block: Any) -> dict[str, Any] | None:
    """What one of `block_configs` says of attention; None if nothing."""
    attention = block.get("attention") if isinstance(block, dict) else None
    return attention if isinstance(attention, dict) and attention else None


def _in_config(reader: Reader, layers: int) -> list[str] | None:
    """From `linear_attn_config`, whose lists of layers begin at 1."""
    config = reader.config.get(_LINEAR)
    if not isinstance(config, dict) or not isinstance(config.get("full_attn_layers"), list):
        return None
    full = config["full_attn_layers"]
    return _chosen(reader, f"{_LINEAR}.full_attn_layers", full, layers, (FULL, "linear"), first=1)


def _by_index(reader: Reader, layers: int) -> list[str] | None:
    for key, kinds in INDICES.items():
        if reader.has(key):
            return _chosen(reader, key, reader.config[key], layers, kinds)
    return None


def _chosen(
    reader: Reader, key: str, indices: Any, layers: int, kinds: tuple[str, str], first: int = 0
) -> list[str] | None:
    """Layers at some indices are of the first kind, the others of the second."""
    right = isinstance(indices, list) and all(type(i) is int for i in indices)
    if not right or not all(first <= i < layers + first for i in indices):
        reader.complain(key, indices, f"wanted a list of layers from {first} to {layers + first - 1}")
        return None
    return [kinds[0] if i + first in indices else kinds[1] for i in range(layers)]


def _by_period(reader: Reader, layers: int) -> list[str] | None:
    """From a period and an offset, Jamba's way."""
    if not reader.has("attn_layer_period"):
        return None
    period, offset = reader.whole("attn_layer_period"), reader.config.get("attn_layer_offset", 0)
    if period is None:
        return None
    return [EITHER if i % period == offset else "mamba" for i in range(layers)]


def _by_rope(reader: Reader, layers: int) -> list[str] | None:
    """Layers with rotary positions are chunked, those without see everything: Llama 4's way."""
    if not (reader.has("no_rope_layers") and reader.has("attention_chunk_size")):
        return None
    rotary = reader.listed("no_rope_layers")
    if len(rotary) != layers or any(one not in (0, 1) for one in rotary):
        reader.complain("no_rope_layers", rotary, f"wanted 0 or 1 for each of {layers} layers")
        return None
    return [CHUNKED if one else FULL for one in rotary]


def _every(reader: Reader, layers: int) -> list[str] | None:
    """Every n-th layer is full, in the words of several families."""
    for key, other in EVERY.items():
        if not reader.has(key) or (other == CHUNKED and not reader.has("attention_chunk_size")):
            continue
        if other == SLIDING and not reader.sliding:
            return [FULL] * layers
        pattern = reader.config[key]
        if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
            kinds = [FULL if pattern[i % len(pattern)] == "G" else SLIDING for i in range(layers)]
            return [*kinds[:-1], FULL]
        every = reader.whole(key)
        if every is None:
            return None
        whole = layers // every * every if key == "layer_group_size" else layers
        return [FULL if (i + 1) % every == 0 or i >= whole else other for i in range(layers)]
    return None


def _by_window(reader: Reader, layers: int) -> list[str] | None:
    """All layers are alike, but that Qwen's slide from `max_window_layers` on."""
    if reader.type in MIXED:
        wanted = "wanted layer_types as well: this type has layers of several kinds by itself"
        reader.complain("model_type", reader.type, wanted)
        return None
    first = reader.config.get("max_window_layers")
    if not reader.sliding:
        return [FULL] * layers
    if isinstance(first, int) and first > 0:
        return [FULL if i < first else SLIDING for i in range(layers)]
    return [SLIDING] * layers


def _of_window(reader: Reader) -> str:
    return SLIDING if reader.sliding else FULL


# -- heads of their own ------------------------------------------------------------------------


def own_heads(reader: Reader, kinds: Sequence[str], q_heads: int | None) -> list[Own]:
    """What each layer has instead of the model's heads and head dims, by the names of `Model`."""
    by_kind = {kind: _of_kind(reader, kind) for kind in set(kinds)}
    found = [dict(by_kind[kind]) for kind in kinds]
    if reader.has("block_configs"):
        for i, block in enumerate(reader.listed("block_configs")[: len(found)]):
            group = (block_attention(block) or {}).get("n_heads_in_group")
            if kinds[i] in ATTENDING and q_heads is not None:
                key = f"block_configs[{i}].attention.n_heads_in_group"
                if (size := reader.counted(key, group)) is not None and q_heads % size:
                    reader.complain(key, size, f"wanted a divisor of num_attention_heads {q_heads}")
                elif size is not None:
                    found[i]["num_kv_heads"] = q_heads // size
    if reader.has("num_key_value_heads_per_layer"):
        key = "num_key_value_heads_per_layer"
        for i, heads in enumerate(reader.listed(key)[: len(found)]):
            if kinds[i] in ATTENDING:
                _put(reader, found[i], "num_kv_heads", f"{key}[{i}]", heads)
    return [tuple(sorted(own.items())) for own in found]


def _of_kind(reader: Reader, kind: str) -> dict[str, int]:
    own: dict[str, int] = {}
    for name, key in OF_KIND.get(kind, {}).items():
        if key == "num_global_key_value_heads" and not reader.has("attention_k_eq_v"):
            continue  # Gemma 4 reads it only together
        if reader.has(key):
            _put(reader, own, name, key, reader.config[key])
    if kind == SLIDING and isinstance(other := reader.config.get("attention_other_setting"), dict):
        keys = {"num_q_heads": "num_attention_heads", "num_kv_heads": "num_attention_groups"}
        for name, key in (keys | {"head_dim": "head_dim"}).items():
            if key in other:
                _put(reader, own, name, f"attention_other_setting.{key}", other[key])
    if kind == SLIDING and reader.has("num_sliding_attention_heads"):
        key = "num_sliding_attention_heads"
        _put(reader, own, "num_q_heads", key, reader.config[key])
    return own


def _put(reader: Reader, own: dict[str, int], name: str, key: str, value: Any) -> None:
    if (number := reader.counted(key, value)) is not None:
        own[name] = number


def shared(reader: Reader, layers: int) -> list[bool]:
    """Whether each layer reads the KV cache of an earlier one instead of its own."""
    last = reader.config.get("num_kv_shared_layers")
    if isinstance(last, int) and last > 0:
        return [i >= layers - last for i in range(layers)]
    if reader.has("use_cla"):
        every = reader.whole("cla_share_factor") or 1
        return [i % every != 0 for i in range(layers)]
    return [False] * layers
