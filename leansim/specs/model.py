"""What a model asks of attention: layers of each kind, heads and head sizes, and its share on each GPU.

Answers "which heads does one GPU run, in which layers?". Ignores quantisation and what layers without
softmax attention do; what cannot be described is refused where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from leansim.errors import WorkloadError, suggestion
from leansim.specs.base import Count, SourcedSpec, TokenCount
from leansim.specs.layers import Layers
from leansim.specs.weights import Weights

HEADS = ("num_q_heads", "num_kv_heads", "head_dim", "head_dim_v")


class Model(SourcedSpec):
    """The attention shapes of one model's layers.

    `head_dim` is the elements of a key, `head_dim_v` of a value (None: as the key). With `latent_kv`
    a value is the leading part of its key, and the KV heads are the latent entries of a token: MLA as
    it decodes, one entry, its up-projections absorbed. `window` is the tokens a sliding window keeps
    (None: all). All layers are so, but where `layers` has those of each kind, and `left_out` how many
    others there are that have no softmax attention, by name. Contexts longer than
    `max_position_embeddings` are not what the model was made for. A decode step needs the `weights`,
    which are those of the whole model whatever its share of heads.
    """

    num_layers: Count
    num_q_heads: Count
    num_kv_heads: Count
    head_dim: Count
    head_dim_v: Count | None = None
    latent_kv: bool = False
    window: TokenCount | None = None
    layers: tuple[Layers, ...] = ()
    left_out: dict[str, Count] = Field(default_factory=dict)
    max_position_embeddings: TokenCount | None = None
    weights: Weights | None = None

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names and structure."""
        return super().unsourced() | {"latent_kv"}

    @model_validator(mode="after")
    def _q_heads_share_kv_heads_evenly(self) -> Model:
        for q_heads, kv_heads in self._heads():
            if q_heads % kv_heads:
                raise ValueError(
                    f"found num_q_heads {q_heads} with num_kv_heads {kv_heads}; "
                    "wanted num_q_heads to be a multiple of num_kv_heads"
                )
        return self

    @model_validator(mode="after")
    def _every_layer_is_of_one_kind(self) -> Model:
        if not self.layers and not self.left_out:
            return self
        names = [some.name for some in self.layers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"found layers {', '.join(names) or 'of no kind'}; wanted a name for each")
        counted = sum(some.count for some in self.layers) + sum(self.left_out.values())
        if counted != self.num_layers:
            raise ValueError(
                f"found {counted} layers in layers and left_out; wanted num_layers {self.num_layers}"
            )
        return self

    def _heads(self) -> Iterator[tuple[int, int]]:
        """Q and KV heads of each kind of layer."""
        yield self.num_q_heads, self.num_kv_heads
        for some in self.layers:
            yield some.num_q_heads or self.num_q_heads, some.num_kv_heads or self.num_kv_heads

    @property
    def group_size(self) -> int:
        """Q heads that read one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def value_head_dim(self) -> int:
        """Elements of a value: `head_dim_v`, or `head_dim` where none is given."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @property
    def kinds(self) -> tuple[Layers, ...]:
        """Layers of each kind; one kind where all are alike."""
        if self.layers:
            return self.layers
        name = "full" if self.window is None else "sliding"
        return (Layers(name=name, count=self.num_layers, window=self.window),)

    @property
    def num_attending(self) -> int:
        """Layers with softmax attention."""
        return sum(some.count for some in self.kinds)

    def named(self, name: str | None) -> list[Layers]:
        """Layers of a name, or of all names that begin with a kind; None: all.

        Raises `WorkloadError` where there are none.
        """
        kinds = self.kinds
        found = [some for some in kinds if name in (None, some.name)]
        found = found or [some for some in kinds if some.kind == name]
        if not found:
            names = [some.name for some in kinds]
            raise WorkloadError(
                f"layers: found {name!r}; wanted one of the kinds of {self.name}: {', '.join(names)}"
                f"{suggestion(str(name), names)}"
            )
        return found

    def only(self, name: str | None) -> Layers:
        """The layers of a name. Raises `WorkloadError` where it is not one kind that is meant."""
        found = self.named(name)
        if len(found) > 1:
            told = ", ".join(some.describe() for some in found)
            raise WorkloadError(
                f"layers: found {'nothing' if name is None else repr(name)} for {self.name}, which has "
                f"{told}; wanted one of them: {', '.join(some.name for some in found)}"
            )
        return found[0]

    def shape(self, some: Layers) -> dict[str, Any]:
        """Heads, head sizes and window of some layers, by the names that a workload has for them."""
        own = {name: getattr(some, name) for name in HEADS}
        shape = {name: getattr(self, name) if own[name] is None else own[name] for name in HEADS}
        if some.head_dim is not None and some.head_dim_v is None:
            shape["head_dim_v"] = None  # a value is as its key, not as the values of other layers
        return {**shape, "latent_kv": self.latent_kv, "window": some.window}

    def describe_layers(self) -> str:
        """`18 x full, 18 x sliding (window 128); left out: 36 x linear`."""
        told = ", ".join(some.describe() for some in self.kinds)
        left = ", ".join(f"{count} x {name}" for name, count in self.left_out.items())
        return told + (f"; left out: {left}" if left else "")

    def divided(self, tensor_parallel: int) -> Model:
        """Return the share of one of `tensor_parallel` GPUs; `self` stays as it is.

        Q heads are split evenly. KV heads are split evenly, or, with more GPUs than KV heads, each
        GPU keeps one and `tensor_parallel / num_kv_heads` GPUs hold the same one, as vLLM and
        SGLang do. Raises `WorkloadError` where heads do not divide.
        """
        shares = [_heads_per_gpu(self.name, *heads, tensor_parallel) for heads in self._heads()]
        if tensor_parallel == 1:
            return self
        note = f", divided over {tensor_parallel} GPUs"
        divided = {"num_q_heads", "num_kv_heads", *(["layers"] if self.layers else [])}
        sources = {key: s + (note if key in divided else "") for key, s in self.sources.items()}
        layers = tuple(
            some.model_copy(update={"num_q_heads": q_heads, "num_kv_heads": kv_heads})
            for some, (q_heads, kv_heads) in zip(self.layers, shares[1:], strict=True)
        )
        q_heads, kv_heads = shares[0]
        update = {"num_q_heads": q_heads, "num_kv_heads": kv_heads, "sources": sources}
        update |= {"layers": layers} if layers else {}
        return Model(**(self.model_dump(exclude_unset=True) | update))


def _heads_per_gpu(name: str, q_heads: int, kv_heads: int, tensor_parallel: int) -> tuple[int, int]:
    """Return (q heads, KV heads) of one GPU. Raises `WorkloadError` where they do not divide."""
    if tensor_parallel < 1:
        raise WorkloadError(f"tensor_parallel: found {tensor_parallel}; wanted at least 1")
    if q_heads % tensor_parallel:
        raise WorkloadError(
            f"tensor_parallel: found {tensor_parallel} for the {q_heads} q heads of "
            f"{name}; wanted a divisor of {q_heads}"
        )
    if kv_heads % tensor_parallel == 0:
        return q_heads // tensor_parallel, kv_heads // tensor_parallel
    if tensor_parallel % kv_heads == 0:
        return q_heads // tensor_parallel, 1
    raise WorkloadError(
        f"tensor_parallel: found {tensor_parallel} for the {kv_heads} KV heads of "
        f"{name}; wanted a divisor of {kv_heads} (KV heads split) or a multiple "
        "of it (KV heads replicated)"
    )
