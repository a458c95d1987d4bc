"""What others measured of LeanAttention: ONNX Runtime's table, and where SGLang's loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from calls import H100, NEW, ORT, Call, Times, gain, us
from parts import Part, Rows, geometric_mean, tokens
from ragged import SPLIT_K, WORK_CENTRIC

from leansim.specs import catalog

Claims = Mapping[str, Any]
BATCHES = (1, 2, 4, 8, 16, 32)
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SHAPES = {
    "MHA": (32, 32),
    "Llama-3.1-8B": (32, 8),
    "Qwen2.5-7B": (28, 4),
    "Llama-3.1-70B on 8 GPUs": (8, 1),
}
SHOWN = (8192, 32768, 65536, 131072)


def ort_call(row: Claims) -> Call:
    """The call of a row of ONNX Runtime's table, by its FlashAttention: one KV, read again and again."""
    heads = row["heads"]
    return Call(
        H100,
        NEW,
        row["batch"],
        row["context"],
        heads,
        heads,
        row["head_dim"],
        cache="warm",
        dtype="float16",
    )


def concat_us(call: Call) -> float:
    """KV copied to a longer buffer: read once and written once at achievable DRAM bandwidth, us."""
    kv_bytes = 2 * call.batch_size * call.context_len * call.num_kv_heads * call.head_dim * 2
    return 2e6 * kv_bytes / catalog.device(call.device).achievable_dram_bytes_per_s


def sglang_call(shape: str, batch: int, context: int) -> Call:
    """A call of SGLang's Triton decode."""
    return Call(H100, SPLIT_K, batch, context, *SHAPES[shape])


def calls(claims: Claims) -> list[Call]:
    """Every call."""
    ort = [ort_call(row).by(kernel) for row in claims["onnxruntime"]["rows"] for kernel in (NEW, ORT)]
    grid = product(SHAPES, BATCHES, CONTEXTS)
    theirs = [sglang_call(*cell).by(kernel) for cell in grid for kernel in (SPLIT_K, WORK_CENTRIC)]
    return [*ort, *theirs]


def crossover(times: Times, shape: str, batch: int) -> int | None:
    """Least context from which on Lean is no slower; None where it is slower at the longest."""
    least = None
    for context in reversed(CONTEXTS):
        if _gain(times, shape, batch, context) < 1.0:
            break
        least = context
    return least


def _gain(times: Times, shape: str, batch: int, context: int) -> float:
    return gain(times, sglang_call(shape, batch, context), SPLIT_K, WORK_CENTRIC)


def part(times: Times, claims: Claims) -> Part:
    """Directions, and crossover contexts."""
    rows = claims["onnxruntime"]["rows"]
    sentences = (
        _of_onnxruntime(times, rows), _of_sglang(times, claims["sglang"]["peaks"]), _losses(times)
    )  # fmt: skip
    tables = (
        ("ONNX Runtime's table, H100: flash over lean", _ort_rows(times, rows)),
        ("SGLang: least context from which on Lean is no slower, simulated, H100", _crossovers(times)),
        ("SGLang: gain of Lean, one request; published on an MI355X (end to end, of code comments)",
         _gains(times, claims["sglang"])),
    )  # fmt: skip
    return Part("5. What others measured", sentences, tables)


def _of_onnxruntime(times: Times, rows: Sequence[Claims]) -> str:
    said = [row["flash"] / row["lean"] for row in rows]
    ours = [gain(times, ort_call(row), NEW, ORT) for row in rows]
    diluted = [_with_concat(times, row) for row in rows]
    both = list(zip(rows, said, ours, strict=True))
    wrong = [
        f"{row['batch']} x {row['context']} of {row['heads']} x {row['head_dim']}"
        for row, a, b in both
        if (a > 1.0) != (b > 1.0)
    ]
    return (
        "**ONNX Runtime** (PR #22352, H100): its FlashAttention over its LeanAttention, uniform "
        "batches of MHA. Its times have the copy of KV to a longer buffer in them (past and present "
        "are not shared), so only ratios compare, and they are drawn towards 1. Published they are "
        f"{min(said):.2f} to {max(said):.2f} (geometric mean {geometric_mean(said):.2f}); simulated, "
        f"attention alone, {min(ours):.2f} to {max(ours):.2f} ({geometric_mean(ours):.2f}); with the "
        f"copy's bytes added to both {min(diluted):.2f} to {max(diluted):.2f} "
        f"({geometric_mean(diluted):.2f}). Both say the same of which is faster in "
        f"{len(rows) - len(wrong)} of {len(rows)} rows, and both that little is to be gained with "
        f"equal lengths of up to 8k. The others are {' and '.join(wrong)}, where Lean was measured "
        "to be faster and is simulated to be slower."
    )


def _of_sglang(times: Times, peaks: Sequence[Claims]) -> str:
    said = " and ".join(f"{row['gain']:.2f}x for {row['model']}" for row in peaks)
    ours = " and ".join(f"{_gain(times, row['model'], 1, 131072):.2f}x" for row in peaks)
    return (
        "**SGLang** (PR #33576, MI355X) measured Lean over its split decode of at most 8 splits. "
        "Simulated is the same pair of schedules on SGLang's Triton loop on an H100, so the GPU is "
        "another: an MI355X has 256 compute units for 132 SMs, so that more is left empty. What is "
        "compared is where the gain is and where it ends. At one request and 128k the kernel's "
        f"largest gain is published as {said}; simulated are {ours}. 8 splits of 4 and of 8 KV heads "
        "are 32 and 64 CTAs, fewer than there are SMs, and that is the gain. That the model with more "
        "KV heads gains more, as published, does not come out."
    )


def _losses(times: Times) -> str:
    lose = [cell for cell in product(SHAPES, BATCHES, CONTEXTS) if _gain(times, *cell) < 1.0]
    return (
        "**Where it loses.** SGLang says that Lean loses below a context that falls as requests are "
        "added: some 8k for MHA (kernel alone), 56k to 64k for GQA with one request (end to end), "
        "and that with one KV head per GPU (Llama-3.1-70B on 8) it is 4 times slower at 32k. **This "
        f"does not come out.** Simulated, Lean is slower in {len(lose)} of "
        f"{len(SHAPES) * len(BATCHES) * len(CONTEXTS)} cells only, at {_cells(lose)}, at worst "
        f"{min(_gain(times, *cell) for cell in lose):.2f}x; with one KV head at 32k it is "
        f"{_gain(times, 'Llama-3.1-70B on 8 GPUs', 1, 32768):.2f}x as fast, as 8 CTAs leave the GPU "
        "empty. That gains grow with context is all that is common. What SGLang's Lean pays beside "
        "attention (a schedule computed on the device at each call, flags between eight dies, a "
        "persistent grid whatever the work) is not in this model, and its split decode on an MI355X "
        "is not described here; which of the two it is cannot be told from here."
    )


def _cells(lose: Sequence[tuple[str, int, int]]) -> str:
    """Contexts and requests that cells lie between."""
    contexts = sorted({context for _, _, context in lose})
    return f"contexts of {' and '.join(map(tokens, contexts))}"


def _with_concat(times: Times, row: Claims) -> float:
    call = ort_call(row)
    flash, lean = (times[call.by(kernel)].latency_ns / 1e3 for kernel in (NEW, ORT))
    return (flash + concat_us(call)) / (lean + concat_us(call))


def _ort_rows(times: Times, rows: Sequence[Claims]) -> Rows:
    found: Rows = []
    for row in rows:
        call = ort_call(row)
        found.append(
            {
                "requests": row["batch"],
                "context": tokens(row["context"]),
                "heads": f"{row['heads']} x {row['head_dim']}",
                "published_us, with the copy": f"{row['flash']} / {row['lean']}",
                "published": f"{row['flash'] / row['lean']:.2f}",
                "simulated_us, without": f"{us(times[call])} / {us(times[call.by(ORT)])}",
                "simulated": f"{gain(times, call, NEW, ORT):.2f}",
                "with the copy's bytes": f"{_with_concat(times, row):.2f}",
            }
        )
    return found


def _crossovers(times: Times) -> Rows:
    def text(least: int | None) -> str:
        if least is None:
            return "none up to 128k"
        return "all, from 1k" if least == CONTEXTS[0] else tokens(least)

    return [
        {"heads": f"{heads[0]}/{heads[1]} ({shape})"}
        | {
            f"{batch} request{'s' * (batch > 1)}": text(crossover(times, shape, batch))
            for batch in BATCHES
        }
        for shape, heads in SHAPES.items()
    ]


def _gains(times: Times, claims: Claims) -> Rows:
    said = {(row["model"], row["context"]): row["gain"] for row in claims["crossovers"]}
    rows: Rows = []
    for shape, heads in SHAPES.items():
        row: dict[str, Any] = {"heads": f"{heads[0]}/{heads[1]} ({shape})"}
        for context in SHOWN:
            theirs = f" ({said[shape, context]:.2f})" if (shape, context) in said else ""
            row[f"{tokens(context)}: simulated (published)"] = (
                f"{_gain(times, shape, 1, context):.2f}{theirs}"
            )
        rows.append(row)
    return rows
