"""Which requests are in the batch: the fields of a point that say how long each context is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from leansim.errors import WorkloadError
from leansim.specs.base import Count, Positive, Seed, Spec, TokenCount
from leansim.specs.traces import find_trace, read_trace, sample_in_flight
from leansim.specs.workload import lognormal_lens

MOST_REQUESTS = 2**20


def _split_lengths(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


Lengths = Annotated[tuple[TokenCount, ...], Field(min_length=1), BeforeValidator(_split_lengths)]


class BatchFields(Spec):
    """A batch, given in one of three ways.

    `batch_size` and `context_len` (with `context_len_cv`, lengths drawn from a log-normal of that mean
    and coefficient of variation), `context_lens`, or `trace` and `batch_size` (requests in flight, drawn
    with `seed`). `context_scale` multiplies every length.
    """

    batch_size: Annotated[Count, Field(le=MOST_REQUESTS)] | None = Field(
        None, description="requests in the batch"
    )
    context_len: TokenCount | None = Field(None, description="KV tokens of each request (32k, 1M)")
    context_len_cv: Annotated[Positive, Field(le=100)] | None = Field(
        None, description="log-normal spread of context_len"
    )
    context_lens: Lengths | None = Field(None, description="KV tokens of each request")
    trace: str | None = Field(None, description="a built-in trace or a trace file to draw requests from")
    seed: Seed = Field(0, description="seed of the drawn requests")
    context_scale: Annotated[Positive, Field(le=2**30)] = Field(
        1.0, description="multiplies every context length"
    )
    max_context_len: TokenCount | None = Field(None, description="longest context the call is told of")


def context_lens_of(batch: BatchFields) -> tuple[int, ...]:
    """KV tokens of each request. Raises `WorkloadError` for missing or contradictory fields."""
    if batch.context_len_cv is not None and batch.context_len is None:
        raise WorkloadError("workload: context_len_cv spreads context_len; wanted context_len")
    lens = _unscaled(batch)
    if batch.context_scale != 1.0:
        lens = [max(1, round(n * batch.context_scale)) for n in lens]
    return tuple(lens)


def _unscaled(batch: BatchFields) -> list[int]:
    """The lengths as they are given or drawn."""
    way = _way(batch)
    if batch.context_lens is not None:
        if batch.batch_size not in (None, len(batch.context_lens)):
            raise WorkloadError(
                f"workload: batch_size is {batch.batch_size}, "
                f"but context_lens has {len(batch.context_lens)} requests"
            )
        return list(batch.context_lens)
    if batch.batch_size is None:
        raise WorkloadError(f"workload: wanted batch_size beside {way}")
    if batch.trace is not None:
        trace = read_trace(find_trace(batch.trace))
        lens: list[int] = sample_in_flight(trace, batch.batch_size, batch.seed).tolist()
        return lens
    assert batch.context_len is not None
    if batch.context_len_cv is None:
        return [batch.context_len] * batch.batch_size
    return lognormal_lens(batch.context_len, batch.context_len_cv, batch.batch_size, batch.seed)


def _way(batch: BatchFields) -> str:
    """The one field that the lengths come from."""
    ways = {
        "context_len": batch.context_len,
        "context_lens": batch.context_lens,
        "trace": batch.trace,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise WorkloadError(
            f"workload: wanted one of context_len, context_lens and trace, found {found}"
        )
    return given[0]
