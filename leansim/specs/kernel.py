"""What one CTA is: tile sizes, resources, tile loop, and the costs that belong to the code.

A kernel names its default partitioner but never schedules. A number may differ by architecture:
`{sm_80: ..., sm_90: ...}` wherever one stands. Files live in `configs/kernels`; what of a file applies
to a call on a device is an `instance.Instance`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from leansim.errors import suggestion
from leansim.specs.base import (
    Count,
    DType,
    Fraction,
    NotNegative,
    Positive,
    Share,
    SourcedSpec,
    Spec,
    Whole,
    WholeNumber,
    refuse_truth,
)
from leansim.specs.limits import Limit

EmptyCtas = Literal["return", "look", "write", "prepare"]
CombineStart = Literal["launch", "pdl", "grid_sync"]
_T = TypeVar("_T")
# A number, or one for each architecture: on those not named it has its default.
ByArch: TypeAlias = _T | dict[str, _T]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PartitionerSpec(Spec):
    """A partitioner by registered name, with its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


PartitionerChoice = Annotated[PartitionerSpec, BeforeValidator(_named)]


# A tile loop's numbers by name; what they are is the loop's own to say (`leansim.timing.loops`).
def _in_reach(value: float) -> float:
    if not 0 <= value <= 1e18:
        raise ValueError("wanted a number from 0 to 1e18")
    return value


_OneNumber = Annotated[int | float, BeforeValidator(refuse_truth), AfterValidator(_in_reach)]
LoopNumbers = dict[str, _OneNumber | dict[str, _OneNumber]]


class Only(Spec):
    """What a compiled instance is restricted to; what is not named is not restricted.

    `max_query_len` bounds the new tokens of a request, `max_rows` the query rows of one request and
    counted head, `max_context_len` the longest context the call is told about; `groups` lists the
    query heads per KV head. `split` says whether the host splits the call: an unsplit one may go through
    an entry of its own.
    """

    archs: tuple[str, ...] | None = None
    kv_dtypes: tuple[DType, ...] | None = None
    window: bool | None = None
    max_query_len: Count | None = None
    max_rows: Count | None = None
    max_context_len: Count | None = None
    groups: tuple[Count, ...] | None = None
    split: bool | None = None


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
    for which CTAs that share the SM queue.
    """

    overhead_s: ByArch[NotNegative] = 0.0
    loads: WholeNumber = 0
    query: QueryReads | None = None
    q_tile_copies: WholeNumber = 0
    loading_s: ByArch[NotNegative] = 0.0
    split_clk: ByArch[NotNegative] = 0.0
    issue_clk: ByArch[NotNegative] = 0.0


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

    It reads `splits_in_flight` partials at a time, all their rows at once or `grain_bytes` of each, and
    computes for `once_clk` clocks and `clk` with each partial; where the rows are dealt to `warps`, a
    partial takes `row_clk` more for each row of a warp. Where it is `shared`, the CTAs of an output
    tile that have KV merge a part of its rows each, and of a call that may be split even the only one
    of them merges its own.
    """

    splits_in_flight: Count = 1
    grain_bytes: Count | None = None
    shared: bool = False
    once_clk: ByArch[NotNegative] = 0.0
    clk: ByArch[NotNegative] = 0.0
    row_clk: ByArch[NotNegative] = 0.0
    warps: Count = 1


class Combine(Spec):
    """The step that merges partials once all CTAs have written theirs.

    Each CTA merges `rows_per_cta` output rows (by the largest divisor of the head dim listed) and
    keeps `splits_in_flight` partial loads outstanding: 1 is a serial loop over the splits. With so many
    it takes `round_s` at least, however near they are, and `overhead_s` once. `start`
    says how it begins: as a `launch` of its own, as one that programmatic dependent launch (`pdl`)
    lets begin early where the device has it, or in the same kernel after a `grid_sync`.
    """

    threads: Count
    registers_per_thread: Count
    smem_bytes: WholeNumber
    rows_per_cta: dict[Whole, Count]
    splits_in_flight: Count
    start: CombineStart = "launch"
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
Overlay = dict[str, Any]
_LOOP: TypeAdapter[LoopNumbers] = TypeAdapter(LoopNumbers, config=ConfigDict(allow_inf_nan=False))


def _of_a_loop(value: Overlay) -> Overlay:
    """The `name` of a loop and numbers of it. Raises `ValueError`."""
    said = {key: number for key, number in value.items() if key != "name"}
    name = {"name": str(value["name"])} if "name" in value else {}
    try:
        return {**name, **_LOOP.validate_python(said)}
    except ValidationError as error:
        items = error.errors(include_url=False)  # a value of another kind is the least of them
        first = min(items, key=lambda item: item["type"].endswith("_type"))
        raise ValueError(f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None


class Tile(Spec):
    """One compiled instance: its head dim, its tile, and what a CTA of it occupies.

    Without `smem_bytes` a CTA holds its Q tile and the loop's stages of K and V tiles (K alone of a
    latent cache). It takes `step_tokens` of KV at a time, where a partitioner's own number is not it;
    with `whole_pages` it loads pages beyond the end of a context too. `only` says when the kernel's host
    code takes this instance. What `compute` and the other mechanisms say lies over what the kernel says,
    number by number; `loop` lies over the kernel's loop of that `name`, or over its first.
    """

    head_dim: Count
    tile_rows: Count
    tile_tokens: Count
    threads: Count
    registers_per_thread: dict[str, Count]
    smem_bytes: Count | None = None
    step_tokens: Count | None = None
    whole_pages: bool = False
    only: Only = Only()

    loop: Annotated[Overlay, BeforeValidator(_named), AfterValidator(_of_a_loop)] = Field(
        default_factory=dict
    )
    compute: Overlay = Field(default_factory=dict)
    start: Overlay = Field(default_factory=dict)
    ctas: Overlay = Field(default_factory=dict)
    merge: Overlay = Field(default_factory=dict)
    combine: Overlay = Field(default_factory=dict)


class PrefixCall(Spec):
    """The launch for shared prefixes: its `kernel`, and its `partitioner` if it is not the kernel's."""

    kernel: str
    partitioner: PartitionerChoice | None = None


class Kernel(SourcedSpec):
    """How a CTA computes its tiles. Costs carry sources; structure is what the code is.

    `loops` are its tile loops by name, each with its numbers; a tile that names none runs the first.
    With `latent_kv` it reads a latent cache (MLA). With `quantises_query` an 8-bit cache is met by an
    8-bit query, whatever the call's own. KV tiles count from the first token of the context, or, where
    `window_tiles` are `shifted`, from the first token that a sliding window leaves visible.
    Calls that the host leaves in one take tiles of their own where there is an `unsplit_entry`
    (`Only.split`). One that `shares_prefixes` tiles the rows of all requests of a prefix together,
    in a launch before its own if there is a `prefix_call`; others read each request's context
    for itself. Calls beyond its `limits` are refused, or run another kernel.
    """

    partitioner: PartitionerChoice
    tiles: tuple[Tile, ...] = Field(min_length=1)
    q_dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...]
    pack_gqa: Literal["always", "single_query", "never"]
    tile_order: Literal["backward", "forward"]
    window_tiles: Literal["aligned", "shifted"] = "aligned"
    partial_dtype: DType
    latent_kv: bool = False
    quantises_query: bool = False
    unsplit_entry: bool = False
    shares_prefixes: bool = False
    prefix_call: PrefixCall | None = None
    limits: tuple[Limit, ...] = ()

    loops: dict[str, LoopNumbers] = Field(min_length=1)
    compute: Compute
    start: Start = Start()
    ctas: Ctas = Ctas()
    merge: Merge = Merge()
    combine: Combine | None = None

    @model_validator(mode="after")
    def _tiles_make_sense(self) -> Kernel:
        """What lies over a mechanism is of the mechanism."""
        for number, tile in enumerate(self.tiles):
            for name in MECHANISMS:
                if getattr(tile, name):
                    self._check(tile, name, number)
        return self

    def stages(self, tile: Tile) -> int:
        """K and V tiles that a CTA of a tile holds at one time: its loop's `stages`, else 1."""
        _, numbers = self.loop(tile)
        stages = numbers.get("stages", 1)
        assert not isinstance(stages, dict)
        return int(stages)

    def loop(self, tile: Tile) -> tuple[str, LoopNumbers]:
        """Name and numbers of the loop that a tile runs."""
        said = dict(tile.loop)
        name = str(said.pop("name", next(iter(self.loops))))
        return name, laid_over(self.loops.get(name, {}), said)

    def _check(self, tile: Tile, name: str, number: int) -> None:
        try:
            self.mechanism(tile, name)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, ("tiles", number, name, *first["loc"])))
            unknown = first["type"] == "extra_forbidden"
            hint = suggestion(str(first["loc"][-1]), MECHANISMS[name].model_fields) if unknown else ""
            raise ValueError(f"{place}: {first['msg']}{hint}") from None

    def mechanism(self, tile: Tile, name: str) -> Any:
        """What the kernel and then a tile of it say of one of `MECHANISMS`; None for no combine."""
        own, mine = getattr(self, name), getattr(tile, name)
        if not mine or own is None:
            return own
        below = own.model_dump(exclude_unset=True)
        return MECHANISMS[name].model_validate(laid_over(below, mine))

    @cached_property
    def asks_split(self) -> bool:
        """Whether it is a matter of the host splitting a call which instance runs."""
        return self.unsplit_entry and any(tile.only.split is False for tile in self.tiles)

    @cached_property
    def asks_context(self) -> bool:
        """Whether it is a matter of the context that a call is told of which instance runs."""
        return any(tile.only.max_context_len is not None for tile in self.tiles)

    def head_dim_for(self, head_dim: int) -> int:
        """Head dim of the narrowest instances that serve one; itself where none do."""
        return min((tile.head_dim for tile in self.tiles if tile.head_dim >= head_dim), default=head_dim)

    @property
    def archs(self) -> frozenset[str]:
        """Architectures that it is built for: those of some tile that it has a tensor rate on."""
        built = frozenset(arch for tile in self.tiles for arch in tile.registers_per_thread)
        rates = self.compute.mma_efficiency
        return built & rates.keys() if isinstance(rates, dict) else built

    @classmethod
    def groups(cls) -> frozenset[str]:
        """Mechanisms, but the combine kernel, which is another or the same."""
        return frozenset({"loops", "compute", "start", "ctas", "merge"})

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
            "partial_dtype",
            "latent_kv",
            "quantises_query",
            "unsplit_entry",
            "shares_prefixes",
            "prefix_call",
            "limits",
        }


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One description over another, number by number, and architecture by architecture."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged
