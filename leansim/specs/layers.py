"""Layers of a model whose attention is alike: how many, how far back they look, their own heads.

Ignores what stands between them, and layers without softmax attention; a `Model` counts those.
"""

from __future__ import annotations

from leansim.specs.base import Count, Spec, TokenCount, WholeNumber


class Layers(Spec):
    """Some layers of a model. Of heads, None is what the model says.

    `window` is the tokens that a sliding window keeps, `chunk` the length of the pieces that a context
    is cut into where a token sees its own piece alone (None: the whole context). `shared_kv` of them
    read the KV cache of another layer and have none of their own.
    """

    name: str
    count: Count
    window: TokenCount | None = None
    chunk: TokenCount | None = None
    shared_kv: WholeNumber = 0
    num_q_heads: Count | None = None
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    head_dim_v: Count | None = None

    @property
    def kind(self) -> str:
        """`full`, `sliding` or `chunked`: what the name begins with."""
        return self.name.partition("_")[0]

    def describe(self) -> str:
        """`18 x sliding (window 128)`."""
        way = f" (window {self.window:,})" if self.window else ""
        way = f" (chunks of {self.chunk:,})" if self.chunk else way
        return f"{self.count} x {self.name}{way}"
