"""vLLM's attention operators: its package's, or its extension module alone, and calls of them by name.

The modules `_vllm_fa2_C` and `_vllm_fa3_C` register operators when they are loaded and need nothing else
of vLLM. Arguments are given by the names of the operator's own schema, so one that a version adds with
a plain value, or has not yet, breaks no call.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    empty_like_queries,
    flat_queries,
    lengths,
    query_starts,
    scale_of,
    window_of,
)

# What an argument that nobody gave is, by the kind of its type.
_PLAIN = {"bool": False, "int": 0, "float": 0.0}
# Counts of which one is plain: context parallelism over a single rank.
_ONE = ("cp_world_size",)


def operators(name: str) -> Any:
    """`torch.ops.NAME`, its module loaded. Raises `ImportError` where there is none."""
    torch = import_module("torch")
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("found no package vllm")
    for folder in found.submodule_search_locations:
        for place in (Path(folder) / "vllm_flash_attn", Path(folder)):
            for file in sorted(place.glob(f"{name}*.so")):
                torch.ops.load_library(str(file))
                return getattr(torch.ops, name)
    raise ImportError(f"found no {name} in vllm")


def vllm_version() -> str:
    """As its distribution says."""
    return f"vllm {version('vllm')}"


def call_of(given: Inputs) -> dict[str, Any]:
    """What vLLM's operators take of a call, by the names that they have in common: `called` picks."""
    load, (left, right) = given.workload, window_of(given.workload)
    return {
        "q": flat_queries(given),
        "k": given.k,
        "v": given.v,
        "out": empty_like_queries(given).flatten(0, 1),
        "cu_seqlens_q": query_starts(given),
        "seqused_k": lengths(given),
        "max_seqlen_q": load.query_len,
        "max_seqlen_k": max(load.context_lens),
        "softmax_scale": scale_of(load),
        "is_causal": True,
        "window_size_left": left,
        "window_size_right": right,
    }


def called(operator: Any, given: Mapping[str, Any]) -> Any:
    """Call an operator with what its schema has of `given`; the rest is None, false, 0 or as it says."""
    return operator(*arguments(operator.default._schema, given))


def arguments(schema: Any, given: Mapping[str, Any]) -> list[Any]:
    """Values of a schema's arguments in order. Raises `TypeError` for one that cannot be left out."""
    values = []
    for argument in schema.arguments:
        kind = str(argument.type)
        if argument.name in given:
            values.append(given[argument.name])
        elif argument.has_default_value():
            values.append(argument.default_value)
        elif argument.name in _ONE:
            values.append(1)
        elif kind.startswith("Optional") or kind.endswith("?"):
            values.append(None)
        elif kind in _PLAIN:
            values.append(_PLAIN[kind])
        else:
            raise TypeError(f"{schema.name}: found no value for {argument.name} ({kind})")
    return values
