"""Calls on the GPUs of a node: what is asked, what is pinned, and what each comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import leansim
from leansim.points.point import Point
from leansim.points.simulate import Simulation, simulate_each
from leansim.steps.step import Step, steps_of


@dataclass(frozen=True)
class Call:
    """Requests of equal contexts, their heads and contexts divided over GPUs that merge in some way."""

    device: str
    kernel: str
    model: str
    batch_size: int
    context_len: int
    tensor_parallel: int
    kv_ranks: int
    merge: str = "all_gather"

    @property
    def point(self) -> Point:
        """The call as a point, of one layer."""
        return leansim.point(
            device=self.device,
            node=f"{self.device}_x8",
            kernel=self.kernel,
            model=self.model,
            batch_size=self.batch_size,
            context_len=self.context_len,
            tensor_parallel=self.tensor_parallel,
            kv_ranks=self.kv_ranks,
            kv_rank_merge=self.merge,
            page_tokens=64,
        )  # type: ignore[arg-type]


Attention = Mapping[Call, Simulation]
Steps = Mapping[Call, Step]


def attention_of(calls: Iterable[Call]) -> dict[Call, Simulation]:
    """One layer's attention of each call, once. Raises what stood in the way of one."""
    distinct = list(dict.fromkeys(calls))
    found = {}
    for call, one in zip(distinct, simulate_each(call.point for call in distinct), strict=True):
        if isinstance(one, Exception):
            raise one
        found[call] = one
    return found


def steps(calls: Iterable[Call]) -> dict[Call, Step]:
    """The whole step of each call with 8-bit weights, once. Raises what stood in the way of one."""
    distinct = list(dict.fromkeys(calls))
    found = {}
    for call, (_, one) in zip(distinct, steps_of([c.point for c in distinct], "fp8"), strict=True):
        if isinstance(one, Exception):
            raise one
        found[call] = one
    return found


def pins(attention: Attention, whole: Steps) -> list[dict[str, Any]]:
    """What is pinned: each call, and the time of a layer's attention or of the step, ns."""
    layers = [
        {"of": "layer", **asdict(call), "time_ns": round(one.result.latency_s * 1e9)}
        for call, one in attention.items()
    ]
    return [
        *layers,
        *(
            {"of": "step", **asdict(call), "time_ns": round(one.seconds * 1e9)}
            for call, one in whole.items()
        ),
    ]


def call_of(row: Mapping[str, str]) -> Call:
    """The call of a pinned row."""
    names = ("device", "kernel", "model", "merge")
    numbers = ("batch_size", "context_len", "tensor_parallel", "kv_ranks")
    return Call(**{n: row[n] for n in names}, **{n: int(row[n]) for n in numbers})  # type: ignore[arg-type]
