"""What a table of measured latencies holds: which kernels, on what device, and what beside them.

A measured latency is the attention kernel's and that of everything else in the timed region, the
*harness*: a replay's floor, the append of the new token, copies that only some calls make. Each is
a named term here, so that none of it hides in a kernel's constants. Files live in `configs/tables`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from leansim.specs.base import (
    Count,
    DType,
    LaunchMode,
    NotNegative,
    Positive,
    SourcedSpec,
    Spec,
    Whole,
    WholeNumber,
    refuse_truth,
)
from leansim.specs.workload import Cache, Workload

Range = tuple[Count, Count]
IntLike = npt.NDArray[np.int64] | int


@dataclass(frozen=True)
class Calls:
    """Attention calls, as the harness sees them: `[n]` each, or numbers for a single call.

    `query_bytes` are the bytes of Q, `kv_token_bytes` those of K and V of the new tokens, `kv_bytes`
    those of all KV that is read.
    """

    kernel: npt.NDArray[np.str_] | str
    batch_size: IntLike
    num_kv_heads: IntLike
    group_size: IntLike
    query_bytes: IntLike
    kv_token_bytes: IntLike
    kv_bytes: IntLike = 0
    kv_dtype: npt.NDArray[np.str_] | str = "bfloat16"
    head_dim: IntLike = 128
    windowed: npt.NDArray[np.bool_] | bool = False

    @classmethod
    def of(cls, kernel: str, workload: Workload) -> Calls:
        """The call that a kernel makes for a workload."""
        new_tokens = workload.batch_size * workload.num_kv_heads * workload.query_len
        return cls(
            kernel,
            workload.batch_size,
            workload.num_kv_heads,
            workload.group_size,
            workload.q_bytes,
            new_tokens * workload.kv_bytes_per_token,
            workload.kv_bytes,
            workload.kv_dtype,
            workload.head_dim,
            workload.window is not None,
        )


class When(Spec):
    """Which calls a term belongs to: those within every limit that is named."""

    kernels: tuple[str, ...] | None = None
    kv_dtypes: tuple[DType, ...] | None = None
    head_dims: tuple[Count, ...] | None = None
    window: bool | None = None
    min_group_size: Count = 1
    min_batch_size: Count = 1
    min_kv_heads: Count = 1
    max_kv_heads: Count | None = None
    min_kv_bytes: WholeNumber = 0


class HarnessTerm(SourcedSpec):
    """One named part of a measured latency that is not the attention kernel.

    It takes `seconds` for each of the small kernels it `launches` and `per_request_s` for each request,
    and moves `query_bytes` times the call's Q and `kv_token_bytes` times the new tokens' K and V at
    `bytes_per_s`. What stays in L2 from one replay to the next moves at `cached_bytes_per_s` instead:
    all of it where the call touches no more than the first of `cached_until`, nothing from the second
    on, linear between. A call touches its KV, its Q and its output, and half of what is moved, which is
    written.
    """

    launches: Count = 1
    seconds: NotNegative = 0.0
    per_request_s: NotNegative = 0.0
    query_bytes: NotNegative = 0.0
    kv_token_bytes: NotNegative = 0.0
    bytes_per_s: Positive | None = None
    cached_bytes_per_s: Positive | None = None
    cached_until: tuple[Count, Count] | None = None
    when: When = When()

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names, conditions and counts of kernels, which the description spells out."""
        return super().unsourced() | {"when", "launches"}

    @model_validator(mode="after")
    def _bytes_have_a_pace(self) -> HarnessTerm:
        if (self.query_bytes or self.kv_token_bytes) and self.bytes_per_s is None:
            raise ValueError("wanted bytes_per_s beside query_bytes or kv_token_bytes")
        if (self.cached_bytes_per_s is None) != (self.cached_until is None):
            raise ValueError("wanted cached_bytes_per_s and cached_until together")
        if self.cached_until is not None and self.cached_until[0] >= self.cached_until[1]:
            raise ValueError("wanted cached_until as two rising numbers of bytes")
        return self

    def seconds_of(self, calls: Calls) -> Any:
        """Time of this term in each call, s: an array for arrays, a number for numbers."""
        taken = self.launches * self.seconds + self.per_request_s * calls.batch_size
        if self.bytes_per_s is not None:
            moved = self.query_bytes * calls.query_bytes + self.kv_token_bytes * calls.kv_token_bytes
            taken = taken + moved * self._seconds_per_byte(calls, moved)
        when = self.when
        there = (
            (np.asarray(calls.group_size) >= when.min_group_size)
            & (np.asarray(calls.batch_size) >= when.min_batch_size)
            & (np.asarray(calls.num_kv_heads) >= when.min_kv_heads)
            & (np.asarray(calls.kv_bytes) >= when.min_kv_bytes)
        )
        if when.max_kv_heads is not None:
            there &= np.asarray(calls.num_kv_heads) <= when.max_kv_heads
        if when.window is not None:
            there &= np.equal(calls.windowed, when.window)
        for values, named in (
            (calls.kernel, when.kernels),
            (calls.kv_dtype, when.kv_dtypes),
            (calls.head_dim, when.head_dims),
        ):
            if named is not None:
                there &= np.isin(values, named)
        return np.where(there, taken, 0.0)

    def _seconds_per_byte(self, calls: Calls, moved: Any) -> Any:
        assert self.bytes_per_s is not None
        if self.cached_bytes_per_s is None or self.cached_until is None:
            return 1.0 / self.bytes_per_s
        full, none = self.cached_until
        touched = calls.kv_bytes + 2.0 * calls.query_bytes + moved / 2.0
        kept = np.clip((none - touched) / (none - full), 0.0, 1.0)
        return kept / self.cached_bytes_per_s + (1.0 - kept) / self.bytes_per_s


class Replays(Spec):
    """How a latency is a mean of `count` replays of a call's graph, back to back between two events.

        latency = tick * ceil(t / tick) + events / count

    A replay takes t, the next begins at a tick of the GPU; `events_s` is what the events add to all of
    them together. Source: latencies below 60 us are whole multiples of 2.048 us and a constant in all 16
    tables of aiconfigurator-core of Blackwell cards, and in none of the twelve of older cards.
    """

    count: Count
    tick_s: Positive
    events_s: NotNegative = 0.0

    def latency_s(self, replay_s: Any) -> Any:
        """What is measured where a replay takes so long, s: an array for an array."""
        return self.tick_s * np.ceil(replay_s / self.tick_s) + self.events_s / self.count

    def span_s(self, measured_s: Any) -> tuple[Any, Any]:
        """Between what and what a replay took of which so much was measured, s; a tick at the least."""
        most_s = np.maximum(measured_s - self.events_s / self.count, self.tick_s)
        return most_s - self.tick_s, most_s


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class KernelSource(Spec):
    """The kernel that a `kernel_source` of the file ran.

    `fp8_query` says that Q was fp8 too where the KV cache was. `unseen_windows` are windows of the file
    that the kernel was not told of: it attended to everything, and such rows count as rows without.
    Only rows that `fits` may fit constants of kernels and devices; the others are there to test with,
    and fit nothing but their own harness.
    """

    name: str
    fits: bool = False
    fp8_query: bool = False
    unseen_windows: tuple[Count, ...] = ()


class Exclusion(Spec):
    """Rows left out and why, by columns or `group_size`: a value or `[first, last]` each."""

    reason: str = Field(min_length=1)
    where: dict[str, Whole | str | tuple[Whole, Whole]] = Field(min_length=1)


class Validated(Spec):
    """The range that a kernel's rows cover, first and last value of each, or the values seen.

    `kv_bytes` are of a whole call: no row holds the largest batch at the longest context.
    """

    head_dims: tuple[Count, ...]
    kv_dtypes: tuple[DType, ...]
    windows: tuple[bool, ...]
    batch_size: Range
    context_len: Range
    group_size: Range
    kv_bytes: Range

    def outside(self, workload: Workload, least: int, most: int) -> str:
        """Which range a workload with contexts from `least` to `most` is outside of, if any."""
        spans = (
            ("batch", self.batch_size, workload.batch_size, workload.batch_size),
            ("context", self.context_len, least, most),
            ("group", self.group_size, workload.group_size, workload.group_size),
            ("KV bytes", self.kv_bytes, workload.kv_bytes, workload.kv_bytes),
        )
        for name, (low, high), first, last in spans:
            if first < low or last > high:
                return f"{name} {'below' if first < low else 'above'} the range"
        return ""


class MeasuredTable(SourcedSpec):
    """One file of measured decode-attention latencies, and how to read it.

    `file` is a folder of the distribution's `systems/data`. `kernels` maps its `kernel_source` values
    to kernels; rows of others are left out. The kernel reads `step + step_offset` KV tokens. Calls are
    told of `told_context_len` tokens where no request is longer; without it, of the longest request.
    Where `replays` are given, a latency is theirs; else it is that of one.
    With `bytes_check`, rows whose KV cannot have come through DRAM in the time are left out.
    """

    file: str
    device: str
    kernels: dict[str, Annotated[KernelSource, BeforeValidator(_named)]] = Field(min_length=1)
    step_offset: Annotated[Literal[0, 1], BeforeValidator(refuse_truth)]
    page_tokens: Count
    told_context_len: Count | None = None
    q_dtype: DType = "bfloat16"
    launch: LaunchMode = "graph"
    cache: Cache = "warm"
    harness: tuple[HarnessTerm, ...]
    replays: Replays | None = None
    exclude: tuple[Exclusion, ...] = ()
    bytes_check: bool = False
    validated: dict[str, Validated] = Field(default_factory=dict)

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Names, and how the file is read; each term of the harness has sources of its own."""
        return super().unsourced() | {"file", "device", "kernels", "exclude", "validated"}

    @model_validator(mode="after")
    def _names_agree(self) -> MeasuredTable:
        terms = [term.name for term in self.harness]
        if twice := sorted({name for name in terms if terms.count(name) > 1}):
            raise ValueError(f"wanted each harness term once, found two of {twice[0]!r}")
        known = {source.name for source in self.kernels.values()}
        named = {name for term in self.harness for name in term.when.kernels or ()}
        if unknown := sorted((named | set(self.validated)) - known):
            raise ValueError(f"wanted kernels of this table, found {', '.join(unknown)}")
        return self

    def harness_s(self, calls: Calls, kernel_s: Any = 0.0) -> Any:
        """What a latency contains beside attention kernels of `kernel_s`, s: an array or a number."""
        beside_s = self.beside_s(calls)
        if self.replays is None:
            return beside_s
        return self.replays.latency_s(kernel_s + beside_s) - kernel_s

    def beside_s(self, calls: Calls) -> Any:
        """What one replay of a call does beside its attention kernels, s: an array or a number."""
        return total(term.seconds_of(calls) for term in self.harness)


def total(parts: Iterable[Any]) -> Any:
    """Sum arrays or numbers, 0.0 for none."""
    return sum(parts, start=np.float64(0.0))
