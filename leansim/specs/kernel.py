"""What one CTA is: tile sizes, resources, tile loop, and the costs that belong to the code.

A kernel names its default partitioner but never schedules. A number may differ by architecture:
`{sm_80: ..., sm_90: ...}` wherever one stands. Files live in `configs/kernels`; what of a file applies
to a call on a device is an `instance.Instance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

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
    SourcedSpec,
    Spec,
    refuse_truth,
)
from leansim.specs.limits import Limit
from leansim.specs.mechanisms import MECHANISMS, Combine, Compute, Ctas, Merge, Start


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
    def context_limits(self) -> tuple[int, ...]:
        """Longest contexts that some instances are for, of which the call's own decides which runs."""
        limits = {tile.only.max_context_len for tile in self.tiles}
        return tuple(sorted(limit for limit in limits if limit is not None))

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
