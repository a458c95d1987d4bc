"""Reads a Hugging Face config.json as a `Model`, and refuses by name what it does not understand.

MHA, GQA, MQA, or MLA as it decodes, over the whole context, a sliding window or chunks, in layers of
several kinds; layers without softmax attention are counted and left out. Ignores position encoding,
quantisation, multi-token prediction.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from leansim.errors import ConfigError, Problem
from leansim.files import strict_json
from leansim.files.strict_yaml import Document
from leansim.files.text import read_text
from leansim.specs.catalog import validate
from leansim.specs.hf_keys import (
    AGAIN,
    ATTENDING,
    BESIDE_STATE,
    CHUNKED,
    EVERY,
    FULL,
    HARMLESS,
    HARMLESS_WAY,
    INDICES,
    LATENT,
    LISTS,
    OF_KIND,
    ONE,
    ONLY_FOR_LISTS,
    REASONS,
    REFUSED,
    SLIDING,
    SPARSE,
    SPARSE_CODE,
    STATE,
    STATE_KEYS,
    SUSPECT,
    WIDE_HEADS,
)
from leansim.specs.hf_layers import Own, block_attention, layer_kinds, own_heads, shared
from leansim.specs.hf_reader import Reader, reader_of
from leansim.specs.hf_weights import weights_of
from leansim.specs.model import Model

_UNKNOWN = (
    "wanted only keys this reader understands: this one may change attention; if it does not, "
    "write the model's shape in a YAML file"
)
_MLA = "wanted plain KV heads: MLA is read only where kv_lora_rank and qk_rope_head_dim are both given"
_SPARSE = "wanted a model that attends to every token: this type selects tokens, which is not modelled"
PARTS = ("text_config", "thinker_config", "llm_config", "language_config")
"""Keys under which a model of several parts has its decoder."""


def read_hf_config(path: Path, name: str | None = None) -> Model:
    """Read a Hugging Face config.json; of a multi-modal model, its decoder's part (`text_config`).

    `name` becomes the model's name; without it, the file's stem does, or, for a file called
    config.json, its folder's name. Raises `ConfigError` with every key that is missing, malformed
    or not understood.
    """
    reader = reader_of(*_decoder_part(path))
    numbers = _numbers(reader)
    count = numbers.get("num_layers", (0, ""))[0]
    _refuse_known(reader)
    kinds = layer_kinds(reader, count) if count else None
    if kinds is not None:
        _refuse_unknown(reader, kinds)
    layers = _layers(reader, kinds or [], numbers)
    if reader.problems:
        raise ConfigError(str(path), reader.problems)
    if name is None:
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    sources = {key: f"datasheet: {path.name} config.json key {k}" for key, (_, k) in numbers.items()}
    values: dict[str, Any] = {key: value for key, (value, _) in numbers.items()}
    values |= {"latent_kv": True} if reader.latent else {}
    left_out = Counter(kind for kind in kinds or [] if kind not in ATTENDING)
    if len(layers) == 1 and not left_out and not {"shared_kv", "chunk"} & layers[0].keys():
        values |= _alike(layers[0], sources, path.name)
    else:
        said = f"datasheet: {path.name} config.json, the kinds of its layers"
        values["layers"], sources["layers"] = layers, said
        if left_out:
            values["left_out"], sources["left_out"] = dict(left_out), said
    if weights := weights_of(reader, count):
        values["weights"] = weights
        sources["weights"] = f"datasheet: {path.name} config.json, sizes of its layers and experts"
    return validate(Model, Document(str(path), {"name": name, "sources": sources, **values}, {}))


def _alike(some: dict[str, Any], sources: dict[str, str], file: str) -> dict[str, Any]:
    """What a model says whose layers are all of one kind."""
    given = {key: value for key, value in some.items() if key not in ("name", "count")}
    for name in given:
        key = "sliding_window" if name == "window" else "the heads of its layers"
        sources[name] = f"datasheet: {file} config.json key {key}"
    return given


def _decoder_part(path: Path) -> tuple[dict[str, Any], object]:
    """Return the dictionary that describes the decoder, and the type of the whole model.

    Raises `ConfigError`.
    """
    data = strict_json.parse(read_text(path, "wanted a readable config.json"), str(path))
    part, where = data, "(top level)"
    while isinstance(part, dict) and (inner := _part_of(part)):
        part, where = part[inner], inner
    if not isinstance(part, dict):
        problem = Problem(where, f"a {type(part).__name__}", "wanted a JSON object of model keys")
        raise ConfigError(str(path), [problem])
    if part is not data and data.get("is_encoder_decoder"):
        part = {**part, "is_encoder_decoder": True}
    return part, data.get("model_type")


def _part_of(config: dict[str, Any]) -> str | None:
    """The key under which the decoder is described, if it is not described here."""
    if PARTS[0] in config:
        return PARTS[0]
    here = "num_hidden_layers" in config or "num_attention_heads" in config
    return None if here else next((key for key in PARTS[1:] if key in config), None)


def _refuse_known(reader: Reader) -> None:
    """Complain about keys known to change attention whatever else a file says."""
    before = len(reader.problems)
    for key in filter(reader.has, REFUSED):
        reader.complain(key, reader.config[key], REFUSED[key])
    for key in filter(reader.has, () if reader.latent or _no_mla(reader) else LATENT):
        reader.complain(key, reader.config[key], _MLA)
    if len(reader.problems) == before:
        _refuse_by_type(reader)


def _refuse_unknown(reader: Reader, kinds: list[str]) -> None:
    """Complain about keys that layers of these kinds do not have, and about unknown look-alikes."""
    for key in filter(reader.has, REASONS.keys() - set(_understood(reader, kinds))):
        reader.complain(key, reader.config[key], REASONS[key])
    for key in filter(reader.has, sorted(ONE)):
        if reader.config[key] != 1:
            reader.complain(key, reader.config[key], "wanted 1: anything else may change attention")
    if reader.problems:
        return
    known = HARMLESS | LISTS.keys() | INDICES.keys() | EVERY.keys() | ONE | set(LATENT)
    known |= {key for key, same in AGAIN.items() if reader.config.get(key) == reader.config.get(same)}
    known |= set(_understood(reader, kinds)) | (ONLY_FOR_LISTS if _is_listed(reader) else set())
    for key in filter(reader.has, reader.config):
        understood = key in known or HARMLESS_WAY.search(key) or _goes_along(key, reader, kinds)
        if SUSPECT.search(key) and not understood:
            reader.complain(key, reader.config[key], _UNKNOWN)


def _goes_along(key: str, reader: Reader, kinds: list[str]) -> bool:
    """Whether a key is about layers that are left out, or goes with the heads of those that slide."""
    if key.startswith("swa_"):
        return len(set(kinds)) > 1 and SLIDING in kinds
    return bool(STATE.search(key)) and _has_state(reader, kinds)


def _understood(reader: Reader, kinds: list[str]) -> list[str]:
    """Keys of `REASONS` that are understood in this file."""
    found = list(STATE_KEYS) if _has_state(reader, kinds) else []
    if len(set(kinds)) > 1:
        found += [key for kind in kinds for key in OF_KIND.get(kind, {}).values()]
    if CHUNKED in kinds or _is_listed(reader):
        found.append("attention_chunk_size")
    if reader.type.startswith("gemma4"):
        # Keys and values come of one projection, but are cached apart: each has a norm of its own.
        found.append("attention_k_eq_v")
    if reader.config.get("use_bidirectional_attention") == "vision":
        found.append("use_bidirectional_attention")
    return found


def _is_listed(reader: Reader) -> bool:
    return any(reader.has(key) for key in LISTS)


def _has_state(reader: Reader, kinds: list[str]) -> bool:
    """Whether layers are known that keep a state instead of KV, or beside it."""
    return any(kind not in ATTENDING for kind in kinds) or reader.type in BESIDE_STATE


def _no_mla(reader: Reader) -> bool:
    return reader.config.get("use_mla") is False


def _refuse_by_type(reader: Reader) -> None:
    """Complain about a model that selects tokens though no key of this copy says so."""
    code = reader.config.get("architectures")
    classes = code if isinstance(code, list) else []
    if reader.type in SPARSE:
        reader.complain("model_type", reader.type, _SPARSE)
    elif found := next((c for c in classes if isinstance(c, str) and SPARSE_CODE.search(c)), None):
        reader.complain("architectures", found, _SPARSE)


# -- numbers -----------------------------------------------------------------------------------


def _numbers(reader: Reader) -> dict[str, tuple[int, str]]:
    """Return field -> (value, the key or keys it came from); what is wrong goes to `problems`."""
    q_heads = reader.whole("num_attention_heads")
    found: dict[str, tuple[int | None, str]] = {
        "num_layers": _num_layers(reader),
        "num_q_heads": (q_heads, _source(reader, "num_attention_heads")),
    }
    found |= _latent_entry(reader) if reader.latent else _kv_heads(reader, q_heads)
    longest = reader.config.get("max_position_embeddings")
    if type(longest) is int and longest >= 1:
        key = _source(reader, "max_position_embeddings")
        found["max_position_embeddings"] = (longest, key)
    return {key: (value, source) for key, (value, source) in found.items() if value is not None}


def _source(reader: Reader, key: str) -> str:
    return reader.source.get(key, key)


def _num_layers(reader: Reader) -> tuple[int | None, str]:
    """How many layers there are; where only a list of them says it, its length."""
    key = "num_hidden_layers"
    listed = next((name for name in LISTS if isinstance(reader.config.get(name), list)), None)
    if key not in reader.config and listed and reader.has(listed):
        return len(reader.config[listed]), f"{listed}, its length"
    return reader.whole(key), _source(reader, key)


def _kv_heads(reader: Reader, q_heads: int | None) -> dict[str, tuple[int | None, str]]:
    """Return the KV heads of MHA, GQA or MQA, and their head dims."""
    config, key = reader.config, "num_key_value_heads"
    kv_heads = q_heads
    source = f"num_attention_heads (no {key}: MHA)"
    by_layer = any(reader.has(name) for name in ("block_configs", "num_key_value_heads_per_layer"))
    if by_layer and config.get(key) is None:
        source = "num_attention_heads; each layer has KV heads of its own"
    elif key in config and config[key] is None:
        reader.complain(key, None, "wanted one number for all layers")
        kv_heads = None
    elif key in config:
        kv_heads, source = reader.whole(key), _source(reader, key)
    if q_heads and kv_heads and q_heads % kv_heads:
        reader.complain(key, kv_heads, f"wanted a divisor of num_attention_heads {q_heads}")
    head_dim = _head_dim(reader, q_heads)
    found = {"num_kv_heads": (kv_heads, source), "head_dim": head_dim}
    values = None if _no_mla(reader) else config.get("v_head_dim")
    if values is not None and values != head_dim[0]:
        found["head_dim_v"] = (reader.whole("v_head_dim"), "v_head_dim")
    return found


def _latent_entry(reader: Reader) -> dict[str, tuple[int | None, str]]:
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


def _head_dim(reader: Reader, q_heads: int | None) -> tuple[int | None, str]:
    """Return (elements of a key head, the key it came from)."""
    if reader.config.get("head_dim") is not None:
        return reader.whole("head_dim"), _source(reader, "head_dim")
    if reader.type in WIDE_HEADS:
        wanted = "wanted this key: heads of this type are not hidden_size / num_attention_heads wide"
        reader.complain("attention_head_dim", "no such key", wanted)
        return None, ""
    hidden = reader.whole("hidden_size")
    if hidden and q_heads and hidden % q_heads:
        wanted = f"wanted head_dim, or a multiple of num_attention_heads {q_heads}"
        reader.complain("hidden_size", hidden, wanted)
        return None, ""
    return (hidden // q_heads if hidden and q_heads else None), "hidden_size / num_attention_heads"


# -- layers ------------------------------------------------------------------------------------


def _layers(
    reader: Reader, kinds: list[str], numbers: dict[str, tuple[int, str]]
) -> tuple[dict[str, Any], ...]:
    """Layers that attend, those alike together, full ones first, by the names of `Layers`."""
    heads = own_heads(reader, kinds, numbers.get("num_q_heads", (None, ""))[0])
    windows = _windows(reader, kinds)
    shares = shared(reader, len(kinds))
    groups: dict[tuple[str, int | None, Own], list[bool]] = {}
    for kind, window, own, share in zip(kinds, windows, heads, shares, strict=True):
        if kind in ATTENDING:
            groups.setdefault((kind, window, own), []).append(share)
    ordered = sorted(groups, key=lambda group: ATTENDING.index(group[0]))
    names = _names(ordered)
    return tuple(
        dict(
            name=name,
            count=len(groups[group]),
            **({"window": group[1]} if group[0] == SLIDING else {}),
            **({"chunk": group[1]} if group[0] == CHUNKED else {}),
            **({"shared_kv": sum(groups[group])} if any(groups[group]) else {}),
            **dict(group[2]),
        )
        for name, group in zip(names, ordered, strict=True)
        if group[1] is not None or group[0] == FULL
    )


def _names(groups: list[tuple[str, int | None, Own]]) -> list[str]:
    """A name for each: its kind, and where several are of a kind, what they differ in."""
    counts = Counter(kind for kind, _, _ in groups)
    names = []
    for kind, window, own in groups:
        heads = dict(own)
        told = [f"{heads['num_kv_heads']}kv"] if "num_kv_heads" in heads else []
        told = [*([str(window)] if window else []), *told]
        names.append(kind if counts[kind] == 1 else "_".join([kind, *told]))
    return names


def _windows(reader: Reader, kinds: list[str]) -> list[int | None]:
    """How far each layer that does not see everything looks back."""
    several = reader.config.get("sliding_window")
    if reader.has("block_configs"):
        blocks = [block_attention(block) or {} for block in reader.listed("block_configs")]
        several = [block.get("window_length") for block in blocks]
    if isinstance(several, list) and SLIDING in kinds:
        pairs = list(zip(kinds, several, strict=False))
        mine = [window for kind, window in pairs if kind == SLIDING]
        if len(several) == len(kinds) and all(type(w) is int and w >= 1 for w in mine):
            return [window if kind == SLIDING else None for kind, window in pairs]
    keys = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}
    sizes = {kind: reader.whole(key) for kind, key in keys.items() if kind in kinds}
    return [sizes.get(kind) for kind in kinds]
