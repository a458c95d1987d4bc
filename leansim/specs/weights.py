"""The weights of a model: how wide its layers are, its feed-forward, experts and vocabulary.

Answers "which matrices does a token pass in one layer?", as far as a decode step reads them. Ignores
biases, norms, position encoding, and quantisation's scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from leansim.specs.base import Count, Spec, WholeNumber

# How GPUs that divide a model divide a matrix: its columns, its rows, or not at all.
Divided = Literal["columns", "rows", "none"]


@dataclass(frozen=True)
class Matrix:
    """A matrix of `rows` inputs and `columns` outputs that a token is multiplied with.

    Of `experts` alike a token passes `per_token`.
    """

    name: str
    rows: int
    columns: int
    divided: Divided
    experts: int = 1
    per_token: int = 1


class Experts(Spec):
    """Experts of a mixture: how many, how many of them a token passes, and `shared` that all pass.

    `dense_layers` of the layers have a plain feed-forward instead.
    """

    count: Count
    per_token: Count
    intermediate_size: Count
    shared: WholeNumber = 0
    dense_layers: WholeNumber = 0

    @model_validator(mode="after")
    def _a_token_passes_some(self) -> Experts:
        if self.per_token > self.count:
            raise ValueError(f"found per_token {self.per_token}; wanted at most count {self.count}")
        return self


class Latent(Spec):
    """How MLA projects: ranks of the query (none: not compressed) and of the cache, parts of a head.

    A head is `nope_dim` elements without and `rope_dim` with a position, a value `v_dim`.
    """

    q_rank: Count | None = None
    kv_rank: Count
    nope_dim: Count
    rope_dim: Count
    v_dim: Count


class Weights(Spec):
    """Widths of a model. A `gated` feed-forward has two matrices in, and one out."""

    hidden_size: Count
    vocab_size: Count
    intermediate_size: Count | None = None
    gated: bool = True
    experts: Experts | None = None
    latent: Latent | None = None

    @model_validator(mode="after")
    def _there_is_a_feed_forward(self) -> Weights:
        if self.intermediate_size is None and self.experts is None:
            raise ValueError("found neither intermediate_size nor experts; wanted one of them")
        if self.intermediate_size is None and self.experts is not None and self.experts.dense_layers:
            raise ValueError("found dense_layers without intermediate_size; wanted how wide they are")
        return self

    def attention(self, q_heads: int, kv_heads: int, head_dim: int, value_dim: int) -> Iterator[Matrix]:
        """The projections of one layer, of all heads."""
        if self.latent is not None:
            yield from self._latent(self.latent, q_heads)
            return
        wide = q_heads * head_dim + kv_heads * (head_dim + value_dim)
        yield Matrix("qkv", self.hidden_size, wide, "columns")
        yield Matrix("o", q_heads * value_dim, self.hidden_size, "rows")

    def _latent(self, latent: Latent, q_heads: int) -> Iterator[Matrix]:
        """MLA's as it decodes: up-projections of keys and values are applied to Q and to the output."""
        hidden, heads = self.hidden_size, q_heads * (latent.nope_dim + latent.rope_dim)
        down = latent.kv_rank + latent.rope_dim
        if latent.q_rank is None:
            yield Matrix("q", hidden, heads, "columns")
            yield Matrix("kv_a", hidden, down, "none")
        else:
            yield Matrix("q_a_kv_a", hidden, latent.q_rank + down, "none")
            yield Matrix("q_b", latent.q_rank, heads, "columns")
        # A matrix for each head: counted by its bytes and FLOP as one.
        yield Matrix("k_up", latent.nope_dim, q_heads * latent.kv_rank, "columns")
        yield Matrix("v_up", latent.kv_rank, q_heads * latent.v_dim, "columns")
        yield Matrix("o", q_heads * latent.v_dim, hidden, "rows")

    def feed_forwards(self, num_layers: int) -> Iterator[tuple[int, list[Matrix]]]:
        """What stands behind attention: in how many of the layers, which matrices."""
        dense = num_layers if self.experts is None else min(self.experts.dense_layers, num_layers)
        if dense and self.intermediate_size is not None:
            yield dense, self._pair("mlp", self.intermediate_size)
        if self.experts is not None and num_layers > dense:
            yield num_layers - dense, self._mixture(self.experts)

    def _mixture(self, experts: Experts) -> list[Matrix]:
        wide = experts.intermediate_size
        shared = self._pair("shared", wide * experts.shared) if experts.shared else []
        return [
            Matrix("router", self.hidden_size, experts.count, "none"),
            *self._pair("experts", wide, experts.count, experts.per_token),
            *shared,
        ]

    def _pair(self, name: str, wide: int, experts: int = 1, per_token: int = 1) -> list[Matrix]:
        ways = 2 if self.gated else 1
        return [
            Matrix(f"{name}_in", self.hidden_size, ways * wide, "columns", experts, per_token),
            Matrix(f"{name}_out", wide, self.hidden_size, "rows", experts, per_token),
        ]

    @property
    def head(self) -> Matrix:
        """What makes logits of the last hidden state."""
        return Matrix("head", self.hidden_size, self.vocab_size, "columns")
