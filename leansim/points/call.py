"""How attention is called: the fields of a point that say dtypes, pages, and what came before."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from leansim.specs.base import Count, DType, LaunchMode, Spec
from leansim.specs.workload import Cache


class CallFields(Spec):
    """The call itself, whichever requests it is for. A workload has all of it under the same names."""

    q_dtype: DType = Field("bfloat16", description="dtype of Q and of the output")
    kv_dtype: DType = Field("bfloat16", description="dtype of K and V")
    page_tokens: Count = Field(16, description="tokens per page of the KV cache")
    cache: Cache = Field("cold", description="whether KV is in L2 from a replay (warm)")
    launch: LaunchMode = Field("graph", description="how kernels are launched")


_NAMES = tuple(CallFields.model_fields)


def call_of(fields: CallFields) -> dict[str, Any]:
    """The call, by the names that a workload has for it."""
    return {name: getattr(fields, name) for name in _NAMES}
