"""Eight A100s: heads divided over GPUs, nothing between them inside attention."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

from calls import A100, FA2, LEAN, NEW, OLD, Call, Times, described, gain, us
from parts import Part, Rows, geometric_mean, tokens

from leansim.specs import catalog

GPUS, KERNELS = 8, (FA2, OLD, NEW, LEAN)
MODELS = (
    "opt_30b", "heads_64_mha", "llama_3_70b", "opt_66b", "heads_96_mha", "heads_96_gqa", "heads_128_mha",
    "llama_3_405b",
)  # fmt: skip
BATCHES, CONTEXTS = (1, 8), (4096, 32768, 262144)
FIGURE = "eight_gpus.png"


def _heads(model: str) -> tuple[int, int]:
    found = catalog.model(described("models", model))
    return found.num_q_heads, found.num_kv_heads


def divided(model: str, batch: int, context: int, gpus: int = GPUS) -> Call:
    """The call of one of the GPUs, by the model's name."""
    q_heads, kv_heads = (heads // gpus for heads in _heads(model))
    return Call(A100, FA2, batch, context, q_heads, kv_heads, model=model, tensor_parallel=gpus)


def by_heads(call: Call) -> Call:
    """The same call with its heads given, and no model."""
    return replace(call, model="", tensor_parallel=1)


@cache
def cells() -> tuple[Call, ...]:
    """The unsplit call of one of eight GPUs, for each model, batch and context."""
    grid = product(MODELS, BATCHES, CONTEXTS)
    found = [divided(model, batch, context) for model, batch, context in grid]
    return tuple(call for call in found if call.fits)


def whole(call: Call) -> Call | None:
    """The same work on one GPU, where one layer's KV fits it."""
    one = divided(call.model, call.batch_size, call.context_len, 1)
    return one if one.fits else None


def calls() -> list[Call]:
    """Every call: of one of eight GPUs by model and by heads, and of one GPU alone."""
    found = [one for call in cells() for one in (call, by_heads(call), whole(call)) if one is not None]
    return [one.by(kernel) for one in found for kernel in KERNELS]


def same(times: Times) -> tuple[int, int]:
    """Calls by model that come to just what the same heads come to on one GPU, and all of them."""
    pairs = [(call.by(kernel), by_heads(call).by(kernel)) for call in cells() for kernel in KERNELS]
    return sum(times[one] == times[other] for one, other in pairs), len(pairs)


def scaling(times: Times, call: Call, kernel: str) -> float:
    """Time of a call on one GPU over that on eight."""
    one = whole(call)
    assert one is not None
    return times[one.by(kernel)].latency_ns / times[call.by(kernel)].latency_ns


def part(times: Times) -> Part:
    """That eight GPUs are one with an eighth of the heads, and what follows."""
    equal, pairs = same(times)
    scaled = [call for call in cells() if whole(call) is not None]
    long = [call for call in scaled if call.context_len >= 32768 and call.batch_size == 1]
    mean = {kernel: geometric_mean(scaling(times, call, kernel) for call in long) for kernel in KERNELS}
    few = [call for call in cells() if call.output_tiles == 1]
    lost = [call for call in cells() if gain(times, call, NEW) < 1.0]
    one = [(gain(times, call, FA2), gain(times, whole(call) or call, FA2)) for call in scaled]
    sentences = (
        "Tensor parallelism gives each GPU an eighth of the heads, and each attends for itself: no "
        "byte goes between GPUs inside attention. So a kernel's speedup on eight GPUs is its speedup "
        f"on one with an eighth of the heads. Checked: {equal} of {pairs} calls by `model` and "
        "`tensor_parallel: 8` come to the same time, busy fraction, splits and bytes as the same heads "
        "given outright. The collectives come after attention, in the decode step (end to end).",
        "Dividing heads leaves each GPU few output tiles, so Lean's speedup over FlashAttention-2 "
        f"grows: it is {geometric_mean(a for a, _ in one):.2f}x in the geometric mean on eight GPUs "
        f"where it is {geometric_mean(b for _, b in one):.2f}x on one. That is why the paper's "
        "figures for eight GPUs may be larger than for one; its values could not be read. The other "
        "side of it is how attention scales: with one request and 32k tokens or more, eight GPUs are "
        f"{mean[FA2]:.1f}x as fast as one unsplit, {mean[NEW]:.1f}x with FlashDecoding and "
        f"{mean[LEAN]:.1f}x with Lean.",
        f"**It loses** to FlashDecoding's newer heuristic in {len(lost)} of {len(cells())} calls on "
        "eight GPUs. With GQA of 8 KV heads each GPU has one, and one request is one output tile: "
        "there the cap of 32 CTAs and one host that merges in turn make Lean "
        f"{min(gain(times, c, NEW) for c in few):.2f}x to "
        f"{max(gain(times, c, NEW) for c in few):.2f}x the speed of FlashDecoding.",
    )
    tables = (
        ("One of eight A100s: Lean's time and speedups", _rows(times)),
        ("Eight A100s over one: how much faster the attention of a layer is", _scalings(times, scaled)),
    )
    shown = (("speedups on one and on eight GPUs", FIGURE),)
    return Part("4. Eight A100s", sentences, tables, figures=shown)


def _head(call: Call) -> dict[str, str]:
    q_heads, kv_heads = _heads(call.model)
    return {
        "heads": f"{q_heads}/{kv_heads} ({call.model})",
        "of a GPU": f"{call.num_q_heads}/{call.num_kv_heads}",
        "requests": str(call.batch_size),
        "context": tokens(call.context_len),
    }


def _rows(times: Times) -> Rows:
    return [
        _head(call)
        | {"lean_us": us(times[call.by(LEAN)])}
        | {f"over {kernel}": f"{gain(times, call, kernel):.2f}" for kernel in KERNELS[:-1]}
        for call in cells()
    ]


def _scalings(times: Times, scaled: list[Call]) -> Rows:
    return [
        _head(call) | {kernel: f"{scaling(times, call, kernel):.2f}" for kernel in KERNELS}
        for call in scaled
    ]
