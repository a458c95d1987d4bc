"""Decode calls of this experiment: what is asked, how it is found, and what is pinned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import leansim
from leansim.points.point import Point, resolve
from leansim.points.simulate import Simulation, simulate
from leansim.specs import catalog
from leansim.study.bench import Bench
from leansim.study.oracle import best_per_request, best_uniform
from leansim.sweeps.spreading import spread

HERE = Path(__file__).resolve().parent
A100, H100 = "a100_sxm_80gb", "h100_sxm"
FA2, OLD, NEW = "fa2", "flash_decoding_2_5_6", "flash_decoding"
LEAN, ORT, UNCAPPED = "lean", "lean_ort", "lean_uncapped"
# Not kernels: the split counts that search finds on FlashDecoding's kernel, one for all or one each.
BEST, BEST_EACH = "best split count", "best count per request"
SEARCHED_ON = NEW
BUDGET = 60  # simulations of the search over counts per request
SHORT = {A100: "A100", H100: "H100", "h200_sxm": "H200"}
_TOGETHER = 16  # calls that a worker takes at a time


@dataclass(frozen=True)
class Call:
    """A batch of one new token for each request, under a kernel; its longest context is `context_len`.

    `ragged` is how the other contexts are drawn: see `lengths`. Kernels and models by name: those that
    leansim ships, or that this folder describes.
    """

    device: str
    kernel: str
    batch_size: int
    context_len: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int = 128
    ragged: str = ""
    seed: int = 0
    cache: str = "cold"
    dtype: str = "bfloat16"
    model: str = ""
    tensor_parallel: int = 1

    @property
    def point(self) -> Point:
        """The call as a point; of a pseudo-kernel, that of the kernel its search is on."""
        if self.model:
            of_model = {
                "model": described("models", self.model),
                "tensor_parallel": self.tensor_parallel,
            }
            heads: dict[str, Any] = of_model
        else:
            heads = {name: getattr(self, name) for name in ("num_q_heads", "num_kv_heads", "head_dim")}
        name = SEARCHED_ON if self.kernel in (BEST, BEST_EACH) else self.kernel
        return leansim.point(
            device=self.device, kernel=described("kernels", name), context_lens=lengths(self),
            q_dtype=self.dtype, kv_dtype=self.dtype, cache=self.cache, **heads,
        )  # type: ignore[arg-type]  # fmt: skip

    @property
    def output_tiles(self) -> int:
        """Requests times KV heads of a GPU: what an unsplit kernel has a CTA for."""
        return self.batch_size * self.num_kv_heads

    @property
    def fits(self) -> bool:
        """Whether the KV of this one layer fits the device's memory."""
        per_token = 2 * self.num_kv_heads * self.head_dim * 2
        held = sum(lengths(self)) * per_token
        return held <= catalog.device(self.device).dram_bytes

    @property
    def named(self) -> str:
        """Its batch and heads, in short."""
        each = f"{self.num_q_heads}/{self.num_kv_heads} heads of {self.head_dim}"
        return f"{self.batch_size} x {self.context_len:,}, {each}"

    def by(self, kernel: str) -> Call:
        """The same call under another kernel."""
        return replace(self, kernel=kernel)


@dataclass(frozen=True)
class Found:
    """What a call comes to: latency, ns; SM busy fraction; the most splits of a request; DRAM bytes."""

    latency_ns: int
    busy: float
    splits: int
    dram_bytes: int


Times = Mapping[Call, Found]


def described(folder: str, name: str) -> str:
    """The file of this name in a folder here; the name itself where there is none."""
    path = HERE / folder / f"{name}.yaml"
    return str(path) if path.is_file() else name


# -- contexts of a batch ---------------------------------------------------------------------------


def lengths(call: Call) -> tuple[int, ...]:
    """Contexts of the batch, the longest `context_len`.

    All alike; or, `mean r`, others so that the mean of all is r times the longest; or, `from r`, drawn
    evenly from r times the longest up to it, which SGLang calls a ratio of r.
    """
    if not call.ragged:
        return (call.context_len,) * call.batch_size
    how, ratio = call.ragged.split()
    draw = mean_ratio if how == "mean" else evenly_from
    return draw(call.batch_size, call.context_len, float(ratio), call.seed)


@lru_cache(maxsize=4096)
def mean_ratio(batch: int, longest: int, ratio: float, seed: int) -> tuple[int, ...]:
    """One context is the longest; the others are longest * u^p, u uniform, p so that the mean is right.

    Raises `ValueError` for a mean that the longest alone exceeds.
    """
    if not 1.0 / batch < ratio <= 1.0:
        raise ValueError(f"found ratio {ratio}; wanted more than 1/{batch}, and at most 1")
    draws = np.random.default_rng(seed).uniform(size=batch - 1)
    wanted = (ratio * batch - 1.0) / (batch - 1)
    low, high = 0.0, 1e6  # of u^p, p = 1e6 leaves nothing
    for _ in range(100):
        power = (low + high) / 2
        low, high = (power, high) if np.mean(draws**power) > wanted else (low, power)
    others = np.maximum(1, np.rint(longest * draws**low)).astype(int).tolist()
    return (longest, *others)


@lru_cache(maxsize=4096)
def evenly_from(batch: int, longest: int, ratio: float, seed: int) -> tuple[int, ...]:
    """Drawn evenly from `ratio * longest` to `longest`, both included."""
    low = max(1, round(ratio * longest))
    lens: list[int] = np.random.default_rng(seed).integers(low, longest + 1, batch).tolist()
    return tuple(lens)


# -- simulating ------------------------------------------------------------------------------------


def found_of(call: Call) -> Found:
    """Simulate a call, or search its split counts."""
    done = _searched(call) if call.kernel in (BEST, BEST_EACH) else simulate(call.point)
    return Found(
        round(done.result.latency_s * 1e9),
        round(done.metrics.sm_busy_fraction, 4),
        int(done.schedule.splits_of_request.max()),
        round(done.metrics.dram_bytes),
    )


def _searched(call: Call) -> Simulation:
    bench = Bench(resolve(call.point))
    count = best_uniform(bench)
    each = call.kernel == BEST_EACH
    chosen = best_per_request(bench, count, None, BUDGET) if each else bench.splits(count)
    return bench.simulation(chosen)


def _all_found(calls: Sequence[Call]) -> list[Found]:
    return [found_of(call) for call in calls]


def times_of(calls: Iterable[Call], jobs: int | None = None) -> dict[Call, Found]:
    """Simulate calls, each once, over the cores. Raises what stands in the way of one."""
    distinct = list(dict.fromkeys(calls))
    some = [distinct[at : at + _TOGETHER] for at in range(0, len(distinct), _TOGETHER)]
    found = [one for part in spread(_all_found, some, jobs) for one in part]
    return dict(zip(distinct, found, strict=True))


# -- pins ------------------------------------------------------------------------------------------


def pins(times: Times) -> list[dict[str, Any]]:
    """What is pinned: each call and what it comes to."""
    return [{**asdict(call), **asdict(found)} for call, found in times.items()]


def pinned(rows: Iterable[Mapping[str, str]]) -> dict[Call, Found]:
    """Calls and what they come to, of rows of the pins."""
    kinds = {"int": int, "float": float, "str": str}

    def made(kind: Any, row: Mapping[str, str]) -> Any:
        fields = kind.__dataclass_fields__.values()
        return kind(**{field.name: kinds[field.type](row[field.name]) for field in fields})

    return {made(Call, row): made(Found, row) for row in rows}


def gain(times: Times, call: Call, over: str, by: str = LEAN) -> float:
    """Latency of a call under one kernel over that under another: above 1 the second is faster."""
    return times[call.by(over)].latency_ns / times[call.by(by)].latency_ns


def us(found: Found) -> str:
    """Its latency in microseconds."""
    time = found.latency_ns / 1e3
    return f"{time:,.0f}" if time >= 1000 else f"{time:.1f}"
