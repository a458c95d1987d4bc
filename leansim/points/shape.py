"""What each request computes: the fields of a point that say which heads attend with how many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from leansim.errors import LeansimError, WorkloadError
from leansim.specs import catalog
from leansim.specs.base import Count, Same, Spec, TokenCount
from leansim.specs.hf_config import read_hf_config
from leansim.specs.layers import Layers
from leansim.specs.model import Model

# What a model says of the shape; the fields of the same names say it otherwise.
_OF_MODEL = ("num_q_heads", "num_kv_heads", "head_dim", "head_dim_v", "window", "latent_kv")
_NEEDED = ("num_q_heads", "num_kv_heads", "head_dim")


class ShapeFields(Spec):
    """Heads, head dims, new tokens and window.

    By heads and head dim, by `model`, or by a Hugging Face `model_config` file; `tensor_parallel`
    divides a model, `layers` picks those of one kind.
    """

    model: str | None = Field(None, description="a model in configs/models")
    hf_config: str | None = Field(
        None, alias="model_config", description="path to a Hugging Face config.json"
    )
    layers: str | None = Field(
        None, description="layers of a model of several kinds: full, sliding, ... (all by default)"
    )
    tensor_parallel: Count = Field(1, description="GPUs the heads are divided over")
    num_q_heads: Count | None = Field(None, description="query heads")
    num_kv_heads: Count | None = Field(None, description="KV heads")
    head_dim: Count | None = Field(None, description="head dimension")
    head_dim_v: Count | None = Field(None, description="head dimension of V, if another")
    latent_kv: bool | None = Field(
        None, description="whether V is the leading part of K (MLA's latent KV cache)"
    )
    query_len: TokenCount = Field(1, description="new tokens per request")
    window: TokenCount | None = Field(None, description="sliding window")


@dataclass(frozen=True)
class Share:
    """What one GPU has of a model, and those of its layers that a point is about."""

    model: Model
    layers: Layers

    @property
    def is_mixed(self) -> bool:
        """Whether the point's are not all layers of the model."""
        return self.layers.count != self.model.num_layers


def share_of(fields: ShapeFields) -> Share | None:
    """The model that is named, if one is: its share on one GPU, and the layers that are meant.

    Raises a `LeansimError` where there is no such model, or no such layers, or layers of several kinds.
    """
    model = _model_of(fields)
    if model is not None:
        share = _divided(Same(model), fields.tensor_parallel)
        layers = share.only(fields.layers)
        if fields.window is not None:
            layers = layers.model_copy(update={"window": fields.window})
        return Share(share, layers)
    for name in ("tensor_parallel", "layers"):
        if getattr(fields, name) not in (1, None):
            what = "divides a model" if name == "tensor_parallel" else "picks among those of a model"
            raise WorkloadError(f"workload: {name} {what}; give model or model_config")
    return None


def given_of(fields: ShapeFields) -> dict[str, Any]:
    """What the fields themselves say of the shape, whatever a model says."""
    return {name: getattr(fields, name) for name in _OF_MODEL if getattr(fields, name) is not None}


def shape_of(fields: ShapeFields, share: Share | None) -> dict[str, Any]:
    """The shape, by the names that a workload has for it: the model's, with what the fields say on top.

    Raises `WorkloadError` for missing fields.
    """
    shape: dict[str, Any] = dict.fromkeys(_OF_MODEL)
    if share is not None:
        shape = share.model.shape(share.layers)
    shape |= given_of(fields)
    if missing := [name for name in _NEEDED if shape[name] is None]:
        raise WorkloadError(f"workload: wanted {', '.join(missing)}, or a model")
    return shape | {"latent_kv": bool(shape["latent_kv"]), "query_len": fields.query_len}


def kinds_of_layers(fields: ShapeFields) -> list[str | None]:
    """What `layers` may be so that points cover the kinds that are meant; as it is, where that is one.

    A model that cannot be read has none: whoever resolves the point says why.
    """
    if fields.model is None and fields.hf_config is None:
        return [fields.layers]
    try:
        model = _model_of(fields)
        found = model.named(fields.layers) if model is not None else []
    except LeansimError:
        return [fields.layers]
    return [some.name for some in found] if len(found) > 1 else [fields.layers]


def _model_of(fields: ShapeFields) -> Model | None:
    """The model that is named, if one is."""
    if fields.model is not None and fields.hf_config is not None:
        raise WorkloadError("workload: give model or model_config, not both")
    if fields.hf_config is not None:
        return _read(fields.hf_config)
    return catalog.model(fields.model) if fields.model is not None else None


def _read(path: str) -> Model:
    """A config.json, read anew where it was written to meanwhile: many points may name it."""
    try:
        modified = Path(path).stat().st_mtime_ns
    except (OSError, ValueError):
        return read_hf_config(Path(path))  # says why not
    return _read_at(path, modified)


@lru_cache(maxsize=64)
def _read_at(path: str, _modified: int) -> Model:
    return read_hf_config(Path(path))


@lru_cache(maxsize=256)
def _divided(same: Same[Model], tensor_parallel: int) -> Model:
    return same.it.divided(tensor_parallel)
