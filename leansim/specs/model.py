"""What a model asks of attention: layers, heads and head sizes, and its share on each GPU.

Answers "which heads does one GPU run?". Ignores weights, MLPs, quantisation and every layer
whose attention differs from the others; such models are refused where they are read.
"""

from __future__ import annotations

from pydantic import model_validator

from leansim.errors import WorkloadError
from leansim.specs.base import Count, SourcedSpec, TokenCount


class Model(SourcedSpec):
    """The attention shape of one model, the same in all its layers.

    `head_dim` is the elements of a key, `head_dim_v` of a value (None: as the key). With `latent_kv`
    a value is the leading part of its key, and the KV heads are the latent entries of a token: MLA as
    it decodes, one entry, its up-projections absorbed. `window` is the tokens a sliding window keeps
    (None: all).
    """

    num_layers: Count
    num_q_heads: Count
    num_kv_heads: Count
    head_dim: Count
    head_dim_v: Count | None = None
    latent_kv: bool = False
    window: TokenCount | None = None

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names and structure."""
        return super().unsourced() | {"latent_kv"}

    @model_validator(mode="after")
    def _q_heads_share_kv_heads_evenly(self) -> Model:
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(
                f"found num_q_heads {self.num_q_heads} with num_kv_heads {self.num_kv_heads}; "
                "wanted num_q_heads to be a multiple of num_kv_heads"
            )
        return self

    @property
    def group_size(self) -> int:
        """Q heads that read one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def value_head_dim(self) -> int:
        """Elements of a value: `head_dim_v`, or `head_dim` where none is given."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    def divided(self, tensor_parallel: int) -> Model:
        """Return the share of one of `tensor_parallel` GPUs; `self` stays as it is.

        Q heads are split evenly. KV heads are split evenly, or, with more GPUs than KV heads, each
        GPU keeps one and `tensor_parallel / num_kv_heads` GPUs hold the same one, as vLLM and
        SGLang do. Raises `WorkloadError` where heads do not divide.
        """
        q_heads, kv_heads = _heads_per_gpu(self, tensor_parallel)
        if tensor_parallel == 1:
            return self
        note = f", divided over {tensor_parallel} GPUs"
        heads = ("num_q_heads", "num_kv_heads")
        sources = {key: s + (note if key in heads else "") for key, s in self.sources.items()}
        update = {"num_q_heads": q_heads, "num_kv_heads": kv_heads, "sources": sources}
        return Model(**(self.model_dump(exclude_unset=True) | update))


def _heads_per_gpu(model: Model, tensor_parallel: int) -> tuple[int, int]:
    """Return (q heads, KV heads) of one GPU. Raises `WorkloadError` where they do not divide."""
    if tensor_parallel < 1:
        raise WorkloadError(f"tensor_parallel: found {tensor_parallel}; wanted at least 1")
    if model.num_q_heads % tensor_parallel:
        raise WorkloadError(
            f"tensor_parallel: found {tensor_parallel} for the {model.num_q_heads} q heads of "
            f"{model.name}; wanted a divisor of {model.num_q_heads}"
        )
    if model.num_kv_heads % tensor_parallel == 0:
        return model.num_q_heads // tensor_parallel, model.num_kv_heads // tensor_parallel
    if tensor_parallel % model.num_kv_heads == 0:
        return model.num_q_heads // tensor_parallel, 1
    raise WorkloadError(
        f"tensor_parallel: found {tensor_parallel} for the {model.num_kv_heads} KV heads of "
        f"{model.name}; wanted a divisor of {model.num_kv_heads} (KV heads split) or a multiple "
        "of it (KV heads replicated)"
    )
