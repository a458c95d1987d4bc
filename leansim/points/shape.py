"""What each request computes: the fields of a point that say which heads attend with how many tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from leansim.errors import WorkloadError
from leansim.specs import catalog
from leansim.specs.base import Count, Spec, TokenCount
from leansim.specs.hf_config import read_hf_config
from leansim.specs.model import Model

# What a model says of the shape; the fields of the same names say it otherwise.
_OF_MODEL = ("num_q_heads", "num_kv_heads", "head_dim", "head_dim_v", "window", "latent_kv")
_NEEDED = ("num_q_heads", "num_kv_heads", "head_dim")


class ShapeFields(Spec):
    """Heads, head dims, new tokens and window.

    By heads and head dim, by `model`, or by a Hugging Face `model_config` file; `tensor_parallel`
    divides a model.
    """

    model: str | None = Field(None, description="a model in configs/models")
    hf_config: str | None = Field(
        None, alias="model_config", description="path to a Hugging Face config.json"
    )
    tensor_parallel: Count = Field(1, description="GPUs the heads are divided over")
    num_q_heads: Count | None = Field(None, description="query heads")
    num_kv_heads: Count | None = Field(None, description="KV heads")
    head_dim: Count | None = Field(None, description="head dimension")
    head_dim_v: Count | None = Field(None, description="head dimension of V, if another")
    latent_kv: bool | None = Field(
        None, description="whether V is the leading part of K (MLA's latent KV cache)"
    )
    query_len: Count = Field(1, description="new tokens per request")
    window: TokenCount | None = Field(None, description="sliding window")


def shape_of(fields: ShapeFields) -> dict[str, Any]:
    """The shape, by the names that a workload has for it: the model's, with what the fields say on top.

    Raises `WorkloadError` for missing or contradictory fields.
    """
    shape: dict[str, Any] = dict.fromkeys(_OF_MODEL)
    model = _model_of(fields)
    if model is not None:
        share = model.divided(fields.tensor_parallel)
        shape |= {name: getattr(share, name) for name in shape}
    elif fields.tensor_parallel != 1:
        raise WorkloadError("workload: tensor_parallel divides a model; give model or model_config")
    shape |= {name: getattr(fields, name) for name in shape if getattr(fields, name) is not None}
    if missing := [name for name in _NEEDED if shape[name] is None]:
        raise WorkloadError(f"workload: wanted {', '.join(missing)}, or a model")
    return shape | {"latent_kv": bool(shape["latent_kv"]), "query_len": fields.query_len}


def _model_of(fields: ShapeFields) -> Model | None:
    """The model that is named, if one is."""
    if fields.model is not None and fields.hf_config is not None:
        raise WorkloadError("workload: give model or model_config, not both")
    if fields.hf_config is not None:
        return read_hf_config(Path(fields.hf_config))
    return catalog.model(fields.model) if fields.model is not None else None
