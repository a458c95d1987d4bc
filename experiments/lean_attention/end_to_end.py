"""A whole decode step and its energy: what Lean's attention is worth with all that is around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from calls import A100, FA2, H100, LEAN, NEW, OLD, SHORT, Call, Times
from parts import Part, Rows, geometric_mean, tokens

import leansim
from leansim.specs import catalog
from leansim.steps.energy import Energy, energy
from leansim.steps.kernels import Spent
from leansim.steps.step import Step, steps_of

KERNELS = (FA2, OLD, NEW, LEAN)
# Models and the GPUs that divide their heads.
MODELS = (("llama_2_7b", 1), ("llama_3_8b", 1), ("phi_3_medium", 1), ("opt_66b", 8), ("llama_3_70b", 8))
DEVICES, BATCHES = (A100, H100), (1, 4, 16)
CONTEXTS = tuple(2**n for n in range(10, 20))


@dataclass(frozen=True)
class Cell:
    """A model on some GPUs, and a batch; its calls are one GPU's attention of one layer."""

    device: str
    model: str
    gpus: int
    batch_size: int
    context_len: int

    def call(self, kernel: str) -> Call:
        """The attention of one layer."""
        of = catalog.model(self.model)
        heads = (of.num_q_heads // self.gpus, max(1, of.num_kv_heads // self.gpus))
        return Call(
            self.device, kernel, self.batch_size, self.context_len, *heads, head_dim=of.head_dim,
            model=self.model, tensor_parallel=self.gpus,
        )  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether KV of all layers fits beside the weights."""
        of, around = catalog.model(self.model), _around(self.device, self.model, self.gpus, 1)
        per_token = 2 * max(1, of.num_kv_heads // self.gpus) * of.head_dim * 2 * of.num_layers
        held = self.batch_size * self.context_len * per_token
        return held + around.weight_bytes <= catalog.device(self.device).dram_bytes


@cache
def _around(device: str, model: str, gpus: int, batch_size: int) -> Step:
    """A step, of which all but its attention is used: that does not depend on the context."""
    point = leansim.point(
        device=device, node=f"{device}_x8" if gpus > 1 else None, kernel=FA2, model=model,
        tensor_parallel=gpus, batch_size=batch_size, context_len=1024,
    )  # fmt: skip
    ((_, step),) = steps_of([point])
    if isinstance(step, Exception):
        raise step
    return step


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell that fits in memory."""
    grid = (
        Cell(device, model, gpus, size, context)
        for device in DEVICES
        for model, gpus in MODELS
        for size in BATCHES
        for context in CONTEXTS
    )
    return tuple(cell for cell in grid if cell.fits)


def calls() -> list[Call]:
    """The attention of every cell under every kernel."""
    return [cell.call(kernel) for cell in cells() for kernel in KERNELS]


def spent(times: Times, cell: Cell, kernel: str) -> Spent:
    """The whole step of one GPU: attention of all layers, and what is around it."""
    around = _around(cell.device, cell.model, cell.gpus, cell.batch_size)
    found, layers = times[cell.call(kernel)], catalog.model(cell.model).num_layers
    attention = Spent(found.latency_ns * 1e-9, float(found.dram_bytes)).times(layers)
    return attention + around.linear_spent + around.small_spent + Spent(around.collective_s)


def joules(times: Times, cell: Cell, kernel: str) -> Energy:
    """Energy of the step on one GPU."""
    return energy(spent(times, cell, kernel), catalog.device(cell.device))


def speedup(times: Times, cell: Cell, over: str) -> float:
    """Of the whole step under Lean over that under another kernel."""
    return spent(times, cell, over).seconds / spent(times, cell, LEAN).seconds


def share(times: Times, cell: Cell, kernel: str) -> float:
    """Attention's share of the step."""
    layers = catalog.model(cell.model).num_layers
    attention = times[cell.call(kernel)].latency_ns * 1e-9 * layers
    return attention / spent(times, cell, kernel).seconds


def saved(times: Times, cell: Cell, over: str) -> float:
    """Share of the energy per token that Lean spares over another kernel, by the lower bound."""
    return 1.0 - joules(times, cell, LEAN).low_j / joules(times, cell, over).low_j


def _groups() -> Iterator[tuple[str, str, int, list[Cell]]]:
    for device in DEVICES:
        for model, gpus in MODELS:
            mine = [cell for cell in cells() if (cell.device, cell.model) == (device, model)]
            yield device, model, gpus, mine


def _summary(times: Times) -> Rows:
    rows = []
    for device, model, gpus, mine in _groups():
        for over in KERNELS[:-1]:
            found = [speedup(times, cell, over) for cell in mine]
            alone = [
                times[cell.call(over)].latency_ns / times[cell.call(LEAN)].latency_ns for cell in mine
            ]
            rows.append(
                {
                    "device": SHORT[device],
                    "model": model,
                    "gpus": gpus,
                    "over": over,
                    "cells": len(mine),
                    "attention": f"{geometric_mean(alone):.2f}",
                    "step": f"{geometric_mean(found):.2f}",
                    "most": f"{max(found):.2f}",
                    "least": f"{min(found):.2f}",
                    "energy spared": f"{sum(saved(times, c, over) for c in mine) / len(mine):.0%}",
                    "at most": f"{max(saved(times, c, over) for c in mine):.0%}",
                }
            )
    return rows


def _by_context(times: Times) -> Rows:
    rows = []
    for device, model, gpus, mine in _groups():
        for size in (1, 16):
            line = {"device": SHORT[device], "model": model, "gpus": str(gpus), "requests": str(size)}
            for cell in (c for c in mine if c.batch_size == size):
                told = f"{speedup(times, cell, FA2):.2f} ({share(times, cell, LEAN):.0%})"
                line[tokens(cell.context_len)] = told
            rows.append(line)
    return rows


def part(times: Times) -> Part:
    """What is left of the speedup of attention in a step, and in its energy."""
    over = {kernel: [speedup(times, cell, kernel) for cell in cells()] for kernel in KERNELS[:-1]}
    spared = [saved(times, cell, FA2) for cell in cells()]
    few = [cell for cell in cells() if cell.batch_size == 1 and cell.context_len >= 2**15]
    lost = sum(gain < 1.0 for gain in over[NEW]) / len(over[NEW])
    sentences = (
        f"{len(cells())} batches of 1, 4 and 16 requests with contexts of 1k tokens and more that "
        "fit in memory beside 16-bit weights, on one GPU or eight; a step is attention of all "
        "layers, matrices, norms and all-reduces ([decode_step](../decode_step/README.md)). Over "
        f"unsplit FlashAttention-2 a step with Lean is {geometric_mean(over[FA2]):.2f}x as fast in "
        f"the geometric mean and at most {max(over[FA2]):.1f}x; over one request of 32k tokens and "
        f"more {geometric_mean(speedup(times, c, FA2) for c in few):.1f}x. Over FlashDecoding's "
        f"older heuristic it is {geometric_mean(over[OLD]):.3f}x, over the newer "
        f"{geometric_mean(over[NEW]):.3f}x. **It loses** to the newer heuristic in {lost:.0%} of "
        f"the batches, at worst {min(over[NEW]):.2f}x: a lost microsecond of attention is lost in "
        "each layer. Energy has a lower bound, idle power and bytes from DRAM, and an upper one, "
        "with the most for arithmetic that the power limit leaves; what is spared is told of the "
        "lower. All schedules read the same KV, so that a faster one spares idle power alone: "
        f"{sum(spared) / len(spared):.0%} in the mean over FlashAttention-2, at most "
        f"{max(spared):.0%}. The paper's end-to-end and energy figures could not be read.",
    )
    tables = (
        ("Lean's whole step over others', and the energy per token that it spares", _summary(times)),
        (
            "Speedup of the step over FlashAttention-2 (share of attention under Lean)",
            _by_context(times),
        ),
    )
    return Part("6. End to end, and energy", sentences, tables)
