"""Calls of a whole step: what is asked, what is pinned, and what each comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import leansim
from leansim.points.point import Point
from leansim.steps.kernels import Spent, matmul
from leansim.steps.step import Step, steps_of

# What TensorRT-LLM decodes with: the nearest of the catalogue.
TRTLLM = "trtllm_xqa"
NEAR = 0.15


@dataclass(frozen=True)
class Asked:
    """A batch of equal contexts of a model on GPUs that divide its heads; 16-bit weights."""

    device: str
    kernel: str
    model: str
    gpus: int
    batch_size: int
    context_len: int

    @property
    def point(self) -> Point:
        """The call as a point."""
        return leansim.point(
            device=self.device,
            node=f"{self.device}_x8" if self.gpus > 1 else None,
            kernel=self.kernel,
            model=self.model,
            tensor_parallel=self.gpus,
            batch_size=self.batch_size,
            context_len=self.context_len,
        )


Found = Mapping[Asked, Step]


def found(asked: Iterable[Asked]) -> dict[Asked, Step]:
    """The step of each, once. Raises what stood in the way of one."""
    distinct = list(dict.fromkeys(asked))
    steps = {}
    for one, (_, step) in zip(distinct, steps_of([one.point for one in distinct]), strict=True):
        if isinstance(step, Exception):
            raise step
        steps[one] = step
    return steps


def held_to_its_end(step: Step, grown: float) -> bool:
    """Whether memory holds a batch that grows to so many times its contexts; if not it takes turns."""
    call = step.attention[0].resolved
    return step.weight_bytes + call.held_bytes * grown <= 0.9 * call.device.dram_bytes


def errors_told(errors: Sequence[float]) -> dict[str, str]:
    """The mean of errors and of their sizes, and how many are near."""
    return {
        "bias": f"{mean(errors):+.0%}",
        "mean": f"{mean(map(abs, errors)):.0%}",
        "within_15": f"{mean(abs(error) <= NEAR for error in errors):.0%}",
    }


def prompt_s(step: Step, tokens: int) -> float:
    """Seconds of the matrices for so many tokens of a prompt at once: attention among them is left out.

    That is 2% of the FLOP of 2,048 tokens with 8 billion weights.
    """
    device, total = step.attention[0].resolved.device, Spent()
    for count, matrix in step.matrices:
        if matrix.name != "head":
            total += matmul(matrix, tokens, device, step.weight_dtype).times(count)
    return total.seconds


def pins(steps: Found) -> list[dict[str, Any]]:
    """What is pinned: each call and its step, in ns."""
    return [{**asdict(one), "step_ns": round(step.seconds * 1e9)} for one, step in steps.items()]


def asked_of(row: Mapping[str, str]) -> Asked:
    """The call of a pinned row."""
    names = {name: row[name] for name in ("device", "kernel", "model")}
    numbers = {name: int(row[name]) for name in ("gpus", "batch_size", "context_len")}
    return Asked(**names, **numbers)
