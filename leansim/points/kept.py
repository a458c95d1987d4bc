"""Which tokens of its context each request attends to, and which it shares with others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from leansim.errors import WorkloadError
from leansim.points.travel import RankMerge
from leansim.specs.base import Count, Spec, TokenCount
from leansim.specs.kv_lists import KvList, Shard, TopK
from leansim.specs.masks import kv_list, list_text
from leansim.specs.prefixes import Prefixes, groups, tree_of, tree_text


class KeptFields(Spec):
    """All of the context, each request its own, unless these say otherwise.

    Each `prefix_group` requests in a row share their first `prefix_len` tokens, or `prefixes` says which
    share what; shared tokens count in the lengths. Of a context `kv_budget` tokens are kept, in pages,
    or those of a `mask`, or what the first of `kv_ranks` GPUs holds, which divide each context and merge
    their partials. What that takes is counted on a `node`.
    """

    prefix_len: TokenCount | None = Field(None, description="first tokens that requests share")
    prefix_group: Count | None = Field(
        None, description="requests in a row that share them; all by default"
    )
    prefixes: Annotated[str, BeforeValidator(tree_text)] | None = Field(
        None, description="a tree of shared prefixes: tokens, requests, prefixes"
    )
    kv_budget: TokenCount | None = Field(None, description="KV tokens kept per request, in pages")
    mask: Annotated[str, BeforeValidator(list_text)] | None = Field(
        None, description="KV tokens kept: a generator with its options, as top_k(budget=2048, page=64)"
    )
    kv_ranks: Count = Field(1, description="GPUs that each context is divided over")
    kv_rank_order: Literal["interleaved", "contiguous"] = Field(
        "interleaved", description="whether neighbouring tokens are on different GPUs"
    )
    kv_rank_merge: RankMerge = Field(
        "all_gather", description="how those GPUs merge, on a node (docs/model.md)"
    )


def reads_of(fields: KeptFields, batch_size: int, page_tokens: int) -> Prefixes | KvList | None:
    """What requests share or keep, if not each all of its own. Raises `WorkloadError`."""
    if fields.prefix_len is None and fields.prefix_group is not None:
        raise WorkloadError("workload: prefix_group shares prefix_len tokens; wanted prefix_len")
    found: dict[str, Prefixes | KvList] = {}
    if fields.prefix_len is not None:
        group = fields.prefix_group or batch_size
        found["prefix_len"] = Prefixes(groups(batch_size, fields.prefix_len, group))
    if fields.prefixes is not None:
        found["prefixes"] = Prefixes(tree_of(fields.prefixes))
    if fields.kv_budget is not None:
        found["kv_budget"] = TopK(fields.kv_budget, page_tokens)
    if fields.mask is not None:
        found["mask"] = kv_list(fields.mask)
    if fields.kv_ranks > 1:
        found["kv_ranks"] = Shard(0, fields.kv_ranks, fields.kv_rank_order == "interleaved")
    if len(found) > 1:
        raise WorkloadError(f"workload: found {' and '.join(found)}, wanted one of them")
    reads = next(iter(found.values()), None)
    return None if isinstance(reads, Prefixes) and not reads.tree else reads
