"""What a kernel's code costs, mechanism by mechanism: a kernel's file has one of each at most.

A number may differ by architecture: `{sm_80: ..., sm_90: ...}` wherever one stands.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field

from leansim.specs.base import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Share,
    Spec,
    Whole,
    WholeNumber,
)

EmptyCtas = Literal["return", "look", "write", "prepare"]
CombineStart = Literal["launch", "pdl", "grid_sync"]
_T = TypeVar("_T")
# A number, or one for each architecture: on those not named it has its default.
ByArch: TypeAlias = _T | dict[str, _T]


class Compute(Spec):
    """What the scores of a KV tile take.

    Tensor instructions reach `mma_efficiency` of the dense rate. A score costs one exp and
    `softmax_fma_per_score`, in a call with a window `window_fma_per_score` more; in a tile at an edge
    it is compared at `mask_fma_per_score`. Two warpgroups or more hide `softmax_overlap` of the softmax
    behind each other's tensor work.

    Where the compiler makes the tensor instructions of a warpgroup wait for each other, a KV tile has
    `tensor_waits` of `tensor_wait_s` over all warpgroups. Code that needs more registers than there are
    moves `spilled_bytes` to local memory and back for each KV tile, `first_spilled_bytes` for the first
    and all that comes once for an output tile, at `spill_bytes_per_s`.
    """

    mma_efficiency: ByArch[Fraction]
    softmax_fma_per_score: ByArch[Positive]
    window_fma_per_score: ByArch[NotNegative] = 0.0
    mask_fma_per_score: ByArch[NotNegative] = 0.0
    softmax_overlap: ByArch[Share] = 0.0
    tensor_waits: WholeNumber = 0
    tensor_wait_s: ByArch[NotNegative] = 0.0
    spilled_bytes: WholeNumber = 0
    first_spilled_bytes: WholeNumber = 0
    spill_bytes_per_s: ByArch[Positive] = math.inf


class QueryReads(Spec):
    """Loading warps that read a few `rows` of Q at a time and wait for each before the next.

    What they do with one read takes `clk` clocks. Others fetch the first KV tile `beside_clk` clocks
    longer than its reads take.
    """

    rows: Count
    clk: ByArch[NotNegative] = 0.0
    beside_clk: ByArch[NotNegative] = 0.0


class Start(Spec):
    """What a segment takes before its tile loop.

    A fixed `overhead_s`; `loads` dependent reads (sequence length, page table) and then Q, or the
    `query` in parts; the whole Q or O tile, masked rows too, passes through shared memory
    `q_tile_copies` times. Of that the first loads of KV are under way for `loading_s`. An instance built
    for splits issues for `split_clk` more. The SM's schedulers are busy for `issue_clk` clocks of it,
    for which CTAs that share the SM queue. `queued_reads` of a segment behind another one of its CTA
    come from DRAM, one after the other, behind the KV that all CTAs have asked for.
    """

    overhead_s: ByArch[NotNegative] = 0.0
    loads: WholeNumber = 0
    query: QueryReads | None = None
    q_tile_copies: WholeNumber = 0
    loading_s: ByArch[NotNegative] = 0.0
    split_clk: ByArch[NotNegative] = 0.0
    issue_clk: ByArch[NotNegative] = 0.0
    queued_reads: WholeNumber = 0


class Ctas(Spec):
    """What CTAs and the call around them cost beside segments.

    `setup_kernels` are small launches that must come before the attention kernel each time, such as
    zeroing flags or copying the query; one that is `self_contained` needs none, as it rotates the query
    and appends the new token itself. A CTA takes `overhead_s` once, before the first of its segments.
    `empty` is what a CTA without KV tiles does: `return` at once,
    `look` up that it has none, `write` an empty partial for the combine kernel, or `prepare` as if it
    had some; that takes it `empty_s`, where not as long as any prologue.

    A CTA that fetches its work from a queue needs `scan_s` for every `scan_requests` requests between
    one item and its next. A kernel that `prefetches_items` loads the first tiles of the next item of
    its queue while it finishes the last.
    """

    setup_kernels: Annotated[WholeNumber, Field(le=1024)] = 0
    self_contained: bool = False
    overhead_s: ByArch[NotNegative] = 0.0
    empty: EmptyCtas = "write"
    empty_s: ByArch[NotNegative] | None = None
    scan_s: ByArch[NotNegative] = 0.0
    scan_requests: Count = 1
    prefetches_items: bool = False


class Merge(Spec):
    """How a CTA merges partials in the launch.

    It reads `splits_in_flight` partials at a time, all their rows at once or `grain_bytes` of each one
    after the other, and computes for `once_clk` clocks and `clk` with each partial beside its reads, and
    for `round_clk` before it reads more; where the rows are dealt to `warps`, a
    partial takes `row_clk` more for each row of a warp. Where it is `shared`, the CTAs of an output
    tile that have KV merge a part of its rows each, and of a call that may be split even the only one
    of them merges its own. Up to `cluster_ctas` CTAs of an output tile run as a cluster, and merge
    through each other's shared memory.
    """

    splits_in_flight: Count = 1
    grain_bytes: Count | None = None
    shared: bool = False
    once_clk: ByArch[NotNegative] = 0.0
    clk: ByArch[NotNegative] = 0.0
    row_clk: ByArch[NotNegative] = 0.0
    round_clk: ByArch[NotNegative] = 0.0
    warps: Count = 1
    cluster_ctas: WholeNumber = 0


class Combine(Spec):
    """The step that merges partials once all CTAs have written theirs.

    Each CTA merges `rows_per_cta` output rows (by the largest divisor of the head dim listed) and
    keeps `splits_in_flight` partial loads outstanding: 1 is a serial loop over the splits. With so many
    it takes `round_s` at least, however near they are, and `overhead_s` once. `start`
    says how it begins: as a `launch` of its own, as one that programmatic dependent launch (`pdl`)
    lets begin early where the device has it, or in the same kernel after a `grid_sync`. `launches` says
    how many kernels it takes, by the fewest splits from which on: those before the last have maxima and
    sums, and no partials.
    """

    threads: Count
    registers_per_thread: Count
    smem_bytes: WholeNumber
    rows_per_cta: dict[Whole, Count] = Field(min_length=1)
    splits_in_flight: Count
    start: CombineStart = "launch"
    launches: dict[Whole, Count] = Field(default_factory=lambda: {1: 1}, min_length=1)
    overhead_s: ByArch[NotNegative] = 0.0
    round_s: ByArch[NotNegative] = 0.0

    def rows_for(self, head_dim: int) -> int:
        """Rows per CTA: the entry of the largest key that divides `head_dim`, key 1 last."""
        divisors = [key for key in self.rows_per_cta if head_dim % key == 0]
        return self.rows_per_cta[max(divisors)] if divisors else max(self.rows_per_cta.values())


# Mechanisms that a kernel describes and an instance of it may describe otherwise.
MECHANISMS: dict[str, type[Spec]] = {
    "compute": Compute, "start": Start, "ctas": Ctas, "merge": Merge, "combine": Combine,
}  # fmt: skip
