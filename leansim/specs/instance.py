"""What runs: a kernel on a device for a call, resolved once to plain numbers.

Which compiled instance the kernel's host code takes, and what of the kernel's file applies to it.
Tiling reads its `shape`, lowering its prices; nothing is timed here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel

from leansim.errors import PairingError
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel, Tile
from leansim.specs.mechanisms import Combine, CombineStart, EmptyCtas
from leansim.specs.occupancy import occupancy
from leansim.specs.tile_choice import does_not_fit, is_packed, not_built, tile_for, tile_occupancy
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class TileShape:
    """How an instance cuts a workload, and where its CTAs can run.

    A tile has `tile_rows` query rows and `tile_tokens` KV tokens; a CTA takes `step_tokens` of KV at a
    time (0: what the partitioner says). Where the query heads of a group are `packed` into the rows
    of a tile, KV is read once for all of them. KV tiles that are `shifted` count from the first token
    that a window leaves visible. With `whole_pages` all of a page is loaded, beyond the end too.
    """

    kernel: str
    tile_rows: int
    tile_tokens: int
    ctas_per_sm: int
    step_tokens: int = 0
    packed: bool = True
    tile_order: Literal["backward", "forward"] = "backward"
    shifted: bool = False
    whole_pages: bool = False


@dataclass(frozen=True)
class LoopNumbers:
    """A tile loop by name, with its numbers: `leansim.timing.loops` makes the loop of them."""

    name: str
    numbers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ComputeNumbers:
    """What the scores of a KV tile take; see `mechanisms.Compute`.

    `softmax_fma_per_score` holds what a window adds. The instance computes `padding` columns beyond the
    call's head dim. It stalls for `stall_s` in each KV tile, for `first_stall_s` in the first of a
    segment.
    """

    mma_efficiency: float
    softmax_fma_per_score: float
    mask_fma_per_score: float = 0.0
    softmax_overlap: float = 0.0
    padding: int = 0
    stall_s: float = 0.0
    first_stall_s: float = 0.0


@dataclass(frozen=True)
class QueryAtOnce:
    """So many dependent `loads`, and then the whole of Q."""

    loads: int


@dataclass(frozen=True)
class QueryInParts:
    """Q in reads of `rows` rows, each waited for; see `mechanisms.QueryReads`."""

    rows: int
    clk: float
    beside_clk: float


@dataclass(frozen=True)
class StartNumbers:
    """What a segment takes before its tile loop; see `mechanisms.Start`."""

    overhead_s: float
    query: QueryAtOnce | QueryInParts
    q_tile_copies: int = 0
    loading_s: float = 0.0
    split_clk: float = 0.0
    issue_clk: float = 0.0
    queued_reads: int = 0


@dataclass(frozen=True)
class CtaNumbers:
    """What CTAs and the call around them cost; see `mechanisms.Ctas`.

    A CTA without KV tiles takes `empty_prologues` prologues and `empty_s`. The kernel `prepares_query`
    itself, so that Q comes from where the replay before has left it.
    """

    setup_kernels: int
    prepares_query: bool
    overhead_s: float
    empty: EmptyCtas
    empty_s: float
    empty_prologues: int
    scan_s: float
    scan_requests: int
    prefetches_items: bool


@dataclass(frozen=True)
class MergeNumbers:
    """How a CTA merges partials in the launch; see `mechanisms.Merge`.

    Infinite grains: all rows at once.
    """

    splits_in_flight: int
    grain_bytes: float
    shared: bool
    once_clk: float
    clk: float
    row_clk: float
    round_clk: float
    warps: int
    cluster_ctas: int


@dataclass(frozen=True)
class NoCombine:
    """The kernel has no combine kernel: whoever splits merges in the launch."""


@dataclass(frozen=True)
class CombineNumbers:
    """The kernel that merges partials after all others; see `mechanisms.Combine`."""

    ctas_per_sm: int
    rows_per_cta: int
    splits_in_flight: int
    start: CombineStart
    overhead_s: float
    round_s: float
    launches: tuple[tuple[int, int], ...] = ((1, 1),)

    def launches_for(self, splits: int) -> int:
        """Kernels that merging so many splits takes: entry of the largest number up to it, else 1."""
        return max([(0, 1), *(entry for entry in self.launches if entry[0] <= max(splits, 1))])[1]


@dataclass(frozen=True)
class Instance:
    """A kernel on a device for a call: plain numbers, all that timing needs to know of the kernel."""

    kernel: str
    shape: TileShape
    q_dtype: str
    partial_dtype: str
    loop: LoopNumbers
    compute: ComputeNumbers
    start: StartNumbers
    ctas: CtaNumbers
    merge: MergeNumbers
    combine: CombineNumbers | NoCombine


def instance_of(kernel: Kernel, device: Device, workload: Workload, split: bool = True) -> Instance:
    """Resolve a kernel on a device for a call, which its host may split or leave in one.

    Raises `PairingError` for a head dim, dtype, cache or architecture that the kernel is not built for,
    or where a CTA does not fit on an SM.
    """
    call = (split, *_call(workload, kernel.context_limits))
    return _resolved(_Asked(kernel, device, workload, call))


def _call(load: Workload, limits: tuple[int, ...]) -> tuple[Any, ...]:
    """All that an instance may depend on: of the batch, only which limits its context is within."""
    context = bisect_left(limits, load.call_context_len) if limits else 0
    return (
        load.num_q_heads, load.num_kv_heads, load.head_dim, load.value_dim, load.query_len,
        load.page_tokens, load.q_dtype, load.kv_dtype, load.latent_kv,
        load.window is None, load.is_local, context,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is resolved. Specs equal themselves alone, as comparing all numbers would cost more."""

    kernel: Kernel
    device: Device
    workload: Workload
    call: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Asked) and self.kernel is other.kernel
        return same and self.device is other.device and self.call == other.call  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((id(self.kernel), id(self.device), self.call))


@lru_cache(maxsize=1024)
def _resolved(asked: _Asked) -> Instance:
    """Kept, as a sweep asks for few instances in many calls."""
    kernel, device, workload = asked.kernel, asked.device, asked.workload
    tile = tile_for(workload, kernel, device, asked.call[0])
    fit = tile_occupancy(tile, workload, kernel, device)
    if fit.ctas_per_sm == 0:
        raise does_not_fit(tile, fit, workload, kernel, device)
    chosen = _Chosen(kernel, tile, device)
    return Instance(
        kernel=kernel.name,
        shape=TileShape(
            kernel=kernel.name,
            tile_rows=tile.tile_rows,
            tile_tokens=tile.tile_tokens,
            ctas_per_sm=fit.ctas_per_sm,
            step_tokens=tile.step_tokens or 0,
            packed=is_packed(kernel, workload),
            tile_order=kernel.tile_order,
            shifted=kernel.window_tiles == "shifted",
            whole_pages=tile.whole_pages,
        ),
        q_dtype=_query_dtype(workload, kernel),
        partial_dtype=kernel.partial_dtype,
        loop=_loop(chosen),
        compute=_compute(chosen, bool(workload.window), workload.head_dim),
        start=_start(chosen),
        ctas=_ctas(chosen),
        merge=_merge(chosen),
        combine=_combine(chosen, workload.value_dim),
    )


@dataclass(frozen=True)
class _Chosen:
    """A tile of a kernel on a device."""

    kernel: Kernel
    tile: Tile
    device: Device

    def number(self, spec: BaseModel, name: str) -> Any:
        """A number as it is on the device. Raises `PairingError` where it has none there."""
        value = getattr(spec, name)
        if not isinstance(value, dict):
            return value
        if self.device.arch in value:
            return value[self.device.arch]
        field = type(spec).model_fields[name]
        if field.is_required():
            raise not_built(self.kernel, self.device, value)
        return field.get_default()

    def numbers(self, spec: BaseModel, *names: str) -> dict[str, Any]:
        """Several of them, by name."""
        return {name: self.number(spec, name) for name in names}


def _loop(chosen: _Chosen) -> LoopNumbers:
    loop, said = chosen.kernel.loop(chosen.tile)
    numbers = {}
    for name, value in said.items():
        if not isinstance(value, dict):
            numbers[name] = value
        elif chosen.device.arch in value:
            numbers[name] = value[chosen.device.arch]
    return LoopNumbers(loop, tuple(numbers.items()))


def _compute(chosen: _Chosen, windowed: bool, head_dim: int) -> ComputeNumbers:
    """What does not fit into registers moves, or tensor instructions wait: the longer counts.

    While one warpgroup waits another moves (assumed). Bytes and waits are those of compiled code
    (vllm-project/flash-attention hopper/utils.h, gemm: 8-bit output added up in two accumulators).
    """
    spec = chosen.kernel.mechanism(chosen.tile, "compute")
    fma = chosen.number(spec, "softmax_fma_per_score")
    fma += chosen.number(spec, "window_fma_per_score") if windowed else 0.0
    waits_s = spec.tensor_waits * chosen.number(spec, "tensor_wait_s")
    rate = chosen.number(spec, "spill_bytes_per_s")
    return ComputeNumbers(
        softmax_fma_per_score=fma,
        padding=max(0, chosen.tile.head_dim - head_dim),
        stall_s=max(waits_s, spec.spilled_bytes / rate),
        first_stall_s=max(waits_s, spec.first_spilled_bytes / rate),
        **chosen.numbers(spec, "mma_efficiency", "mask_fma_per_score", "softmax_overlap"),
    )


def _start(chosen: _Chosen) -> StartNumbers:
    spec = chosen.kernel.mechanism(chosen.tile, "start")
    query: QueryAtOnce | QueryInParts = QueryAtOnce(spec.loads)
    if spec.query is not None:
        query = QueryInParts(spec.query.rows, **chosen.numbers(spec.query, "clk", "beside_clk"))
    numbers = chosen.numbers(spec, "overhead_s", "loading_s", "split_clk", "issue_clk")
    return StartNumbers(
        query=query, q_tile_copies=spec.q_tile_copies, queued_reads=spec.queued_reads, **numbers
    )


def _ctas(chosen: _Chosen) -> CtaNumbers:
    spec = chosen.kernel.mechanism(chosen.tile, "ctas")
    empty_s = chosen.number(spec, "empty_s")
    as_a_prologue = empty_s is None and spec.empty in ("look", "prepare")
    return CtaNumbers(
        setup_kernels=0 if spec.self_contained else spec.setup_kernels,
        prepares_query=spec.self_contained,
        overhead_s=chosen.number(spec, "overhead_s"),
        empty=spec.empty,
        empty_s=empty_s or 0.0,
        empty_prologues=int(as_a_prologue),
        scan_s=chosen.number(spec, "scan_s"),
        scan_requests=spec.scan_requests,
        prefetches_items=spec.prefetches_items,
    )


def _merge(chosen: _Chosen) -> MergeNumbers:
    spec = chosen.kernel.mechanism(chosen.tile, "merge")
    return MergeNumbers(
        splits_in_flight=spec.splits_in_flight,
        grain_bytes=spec.grain_bytes or math.inf,
        shared=spec.shared,
        warps=spec.warps,
        cluster_ctas=spec.cluster_ctas,
        **chosen.numbers(spec, "once_clk", "clk", "row_clk", "round_clk"),
    )


def _combine(chosen: _Chosen, value_dim: int) -> CombineNumbers | NoCombine:
    spec: Combine | None = chosen.kernel.mechanism(chosen.tile, "combine")
    if spec is None:
        return NoCombine()
    fit = occupancy(chosen.device, spec.threads, spec.registers_per_thread, spec.smem_bytes)
    if fit.ctas_per_sm == 0:
        name = chosen.kernel.name
        raise PairingError(f"the combine kernel of {name!r} does not fit on {chosen.device.name!r}")
    return CombineNumbers(
        ctas_per_sm=fit.ctas_per_sm,
        rows_per_cta=spec.rows_for(value_dim),
        splits_in_flight=spec.splits_in_flight,
        start=spec.start,
        launches=tuple(sorted(spec.launches.items())),
        **chosen.numbers(spec, "overhead_s", "round_s"),
    )


def _query_dtype(workload: Workload, kernel: Kernel) -> str:
    """Element type of the query inside the kernel, and so of its tensor instructions."""
    eight_bit = workload.kv_dtype == "fp8" and kernel.quantises_query
    return "fp8" if eight_bit else workload.q_dtype
