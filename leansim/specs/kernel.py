"""What one CTA is: tile sizes, resources, pipeline, and the costs that belong to the code.

A kernel names its default partitioner but never schedules. Files live in `configs/kernels`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from leansim.specs.base import Count, DType, Fraction, NotNegative, Positive, Share, SourcedSpec, Spec

EmptyCtas = Literal["return", "look", "write", "prepare"]
CombineStart = Literal["launch", "pdl", "grid_sync"]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PartitionerSpec(Spec):
    """A partitioner by registered name, with its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


PartitionerChoice = Annotated[PartitionerSpec, BeforeValidator(_named)]


class Only(Spec):
    """What a compiled instance is restricted to; what is not named is not restricted.

    `max_query_len` bounds the new tokens of a request, `max_rows` the query rows of one request and
    counted head, `max_context_len` the longest context the call is told about; `groups` lists the
    query heads per KV head.
    """

    archs: tuple[str, ...] | None = None
    kv_dtypes: tuple[DType, ...] | None = None
    window: bool | None = None
    max_query_len: Count | None = None
    max_rows: Count | None = None
    max_context_len: Count | None = None
    groups: tuple[Count, ...] | None = None


class Chain(Spec):
    """What a CTA that overlaps nothing does for the tokens it computes at a time.

    `clk` are those of its dependent instructions where memory answers at once, `issue_clk` those in
    which it keeps the schedulers from others, `pipe_clk` the SM's pipe of loads, stores and shuffles.
    It waits `kv_reads` times for KV, and `index_reads` times for where that is.
    """

    clk: Positive
    issue_clk: Positive
    pipe_clk: NotNegative = 0.0
    kv_reads: NotNegative
    index_reads: NotNegative


class QueryReads(Spec):
    """Loading warps that read a few `rows` of Q at a time and wait for each before the next.

    What they do with one read takes `clk` clocks. Others fetch the first KV tile `beside_clk` clocks
    longer than its reads take.
    """

    rows: Count
    clk: NotNegative = 0.0
    beside_clk: NotNegative = 0.0


class Merging(Spec):
    """What merging in the launch computes: `once_clk` clocks, and `clk` with each partial.

    Where the rows are dealt to `warps`, a partial takes `row_clk` more for each row of a warp.
    """

    clk: NotNegative
    once_clk: NotNegative = 0.0
    warps: Count = 1
    row_clk: NotNegative = 0.0


class Traits(Spec):
    """Where a compiled instance differs from the rest of its kernel.

    `mma_efficiency`, `segment_overhead_s`, `empty_ctas`, `kv_stages` and `combine_start` stand for the
    kernel's. An instance that `overlaps` computes the scores of one KV tile while another is in its
    softmax, as far as its kernel does. Where the compiler makes the tensor instructions of a warpgroup
    wait for each other, a KV tile has `tensor_waits` over all warpgroups. One that needs more registers
    than there are moves `spilled_bytes` to local memory and back for each KV tile,
    `first_spilled_bytes` for the first and all that comes once for an output tile. One that masks
    compares each score of the tiles at an edge, at `mask_fma_per_score`. One built for splits issues
    for `split_clk` more on each output tile.

    However fast its SM is, a CTA takes `tile_chain_s` from one KV tile to the next: what it does with
    one depends on itself. With a `chain` for the architecture it overlaps neither loading and computing
    nor one load and the next; it computes `computed_tokens` at a time, if not its KV tile, though a
    split may end inside. It takes `step_tokens` of KV at a time, where a partitioner's own number is not
    it. `query_reads` says that Q comes in several reads, `whole_pages` that pages are loaded beyond the
    end of a context too. Of a segment's fixed cost, the first loads are under way for `loading_s`, and
    the SM's schedulers are busy for `issue_clk` clocks, for which CTAs that share the SM queue.

    One that is `self_contained` needs no setup kernel, as it rotates the query and appends the new
    token itself. `merging` is what it computes for each partial that it merges, `idle_s` how long a CTA
    without KV tiles takes to find that out and to leave, with its partial if it writes one.
    """

    mma_efficiency: Fraction | None = None
    overlaps: bool = True
    tensor_waits: Annotated[int, Field(ge=0)] = 0
    spilled_bytes: Annotated[int, Field(ge=0)] = 0
    first_spilled_bytes: Annotated[int, Field(ge=0)] = 0
    mask_fma_per_score: NotNegative = 0.0
    split_clk: NotNegative = 0.0
    self_contained: bool = False
    whole_pages: bool = False
    query_reads: QueryReads | None = None
    segment_overhead_s: dict[str, NotNegative] = Field(default_factory=dict)
    tile_chain_s: dict[str, NotNegative] = Field(default_factory=dict)
    issue_clk: dict[str, NotNegative] = Field(default_factory=dict)
    idle_s: dict[str, NotNegative] = Field(default_factory=dict)
    loading_s: dict[str, NotNegative] = Field(default_factory=dict)
    merging: Merging | None = None
    empty_ctas: EmptyCtas | None = None
    kv_stages: Count | None = None
    step_tokens: Count | None = None
    chain: dict[str, Chain] = Field(default_factory=dict)
    computed_tokens: Count | None = None
    combine_start: CombineStart | None = None

    def padding(self, head_dim: int) -> int:  # noqa: ARG002 - unknown: as wide as the call
        """Columns that the instance computes beyond the call's head dim."""
        return 0


PLAIN = Traits()


class TileVariant(Traits):
    """One compiled instance: its head dim, its tile, and what a CTA of it occupies.

    Without `smem_bytes` a CTA holds its Q tile and `kv_stages` K and V tiles (K alone of a latent
    cache). `only` says when the kernel's host code takes this instance.
    """

    head_dim: Count
    tile_rows: Count
    tile_tokens: Count
    threads: Count
    registers_per_thread: dict[str, Count]
    smem_bytes: Count | None = None
    only: Only = Only()

    def padding(self, head_dim: int) -> int:
        """Columns that the instance computes beyond the call's head dim, though they are zeros."""
        return max(0, self.head_dim - head_dim)


class Combine(Spec):
    """The step that merges partials once all CTAs have written theirs.

    Each CTA merges `rows_per_cta` output rows (by the largest divisor of the head dim listed) and
    keeps `splits_in_flight` partial loads outstanding: 1 is a serial loop over the splits. `start`
    says how it begins: as a `launch` of its own, as one that programmatic dependent launch (`pdl`)
    lets begin early where the device has it, or in the same kernel after a `grid_sync`.
    """

    threads: Count
    registers_per_thread: Count
    smem_bytes: Annotated[int, Field(ge=0)]
    rows_per_cta: dict[int, Count]
    splits_in_flight: Count
    start: CombineStart = "launch"
    overhead_s: dict[str, NotNegative] = Field(default_factory=dict)

    def rows_for(self, head_dim: int) -> int:
        """Rows per CTA: the entry of the largest key that divides `head_dim`, key 1 last."""
        divisors = [key for key in self.rows_per_cta if head_dim % key == 0]
        return self.rows_per_cta[max(divisors)] if divisors else max(self.rows_per_cta.values())


class Kernel(SourcedSpec):
    """How a CTA computes its tiles. Costs carry sources; structure is what the code is.

    `setup_kernels` are small launches that must come before the attention kernel each time, such as
    zeroing flags or copying the query. `merge_splits_in_flight` is how many partials a CTA that
    merges in the launch reads at a time, all their rows at once or `merge_grain_bytes` of each. With
    `shared_merge` the CTAs of an output tile that have KV merge a part of its rows each, and of a call
    that may be split even the only one of them merges its own. `empty_ctas` is what a CTA without KV
    tiles does: `return` at once, `look` up that it has none, `write` an empty partial for the combine
    kernel, or `prepare` as if it had some.
    `batch_scan_s` is what a CTA that fetches its work needs for every 31 requests between one item and
    its next (one warp looks at 31 at a time). `q_tile_copies` counts how often the whole Q or O tile,
    masked rows too, passes through shared memory. A kernel that `prefetches_items` loads the first
    tiles of the next item of its queue while it finishes the last. With `latent_kv` it reads a
    latent cache (MLA). With `quantises_query` an 8-bit cache is met by an 8-bit query, whatever the
    call's own. Loading warps that transpose 8-bit values on their way move `transpose_bytes_per_s` of V.
    Instances whose tensor instructions wait for each other lose `tensor_wait_s` each time; those that
    spill registers move `spill_bytes_per_s` to local memory and back.
    A call with a window costs `window_fma_per_score` more for masking every score.
    KV tiles count from the first token of the context, or, where `window_tiles` are `shifted`, from the
    first token that a sliding window leaves visible.
    """

    partitioner: PartitionerChoice
    tiles: tuple[TileVariant, ...] = Field(min_length=1)
    q_dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...]
    pack_gqa: Literal["always", "single_query", "never"]
    tile_order: Literal["backward", "forward"]
    window_tiles: Literal["aligned", "shifted"] = "aligned"
    pipeline: Literal["single_buffered", "multi_stage"]
    kv_stages: Count
    partial_dtype: DType
    latent_kv: bool = False
    quantises_query: bool = False
    combine: Combine | None = None

    merge_splits_in_flight: Count = 1
    merge_grain_bytes: Count | None = None
    shared_merge: bool = False
    prefetches_items: bool = False
    empty_ctas: EmptyCtas = "write"
    setup_kernels: Annotated[int, Field(ge=0)] = 0
    mma_efficiency: dict[str, Fraction]
    softmax_fma_per_score: Positive
    window_fma_per_score: NotNegative = 0.0
    softmax_overlap: dict[str, Share] = Field(default_factory=dict)
    prologue_loads: Annotated[int, Field(ge=0)]
    q_tile_copies: Annotated[int, Field(ge=0)] = 0
    batch_scan_s: dict[str, NotNegative] = Field(default_factory=dict)
    segment_overhead_s: dict[str, NotNegative] = Field(default_factory=dict)
    transpose_bytes_per_s: dict[str, Positive] = Field(default_factory=dict)
    tensor_wait_s: dict[str, NotNegative] = Field(default_factory=dict)
    spill_bytes_per_s: dict[str, Positive] = Field(default_factory=dict)

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Everything that says what the code is rather than what it costs."""
        return super().unsourced() | {
            "partitioner",
            "q_dtypes",
            "kv_dtypes",
            "pack_gqa",
            "tile_order",
            "window_tiles",
            "pipeline",
            "partial_dtype",
            "latent_kv",
            "quantises_query",
            "empty_ctas",
            "prefetches_items",
            "shared_merge",
        }
