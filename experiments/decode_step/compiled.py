"""Steps without a host between them: compiled models in CUDA graphs, as their authors timed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steps import NEAR, Asked, Found

from leansim.checkout.pages import Part, Rows

# Attention by PyTorch's math path reads KV in full, but is many kernels: FlashDecoding stands for it.
KERNEL = "flash_decoding"


def calls(blocks: Sequence[Mapping[str, Any]]) -> list[Asked]:
    """Every step that the table rests on."""
    return [asked for block in blocks for asked, _ in _rows(block)]


def _rows(block: Mapping[str, Any]) -> list[tuple[Asked, float]]:
    """Each published row as a call, and its milliseconds."""
    device, model = block["device"], block["model"]
    if "context_len" in block:  # tokens/s of one request, by GPUs
        return [
            (Asked(device, KERNEL, model, gpus, 1, block["context_len"]), 1e3 / rate)
            for gpus, rate in block["rows"]
        ]
    return [(Asked(device, KERNEL, model, 1, size, context), ms) for size, context, ms in block["rows"]]


def part(steps: Found, blocks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Part:
    """Published and simulated times of each."""
    rows: Rows = []
    errors = []
    for source, some in blocks.items():
        for block in some:
            for asked, ms in _rows(block):
                simulated = steps[asked].seconds * 1e3
                errors.append(simulated / ms - 1)
                rows.append(
                    {
                        "source": source,
                        "device": asked.device,
                        "model": asked.model,
                        "gpus": asked.gpus,
                        "batch": asked.batch_size,
                        "context": asked.context_len,
                        "measured ms": f"{ms:.2f}",
                        "simulated ms": f"{simulated:.2f}",
                        "error": f"{errors[-1]:+.0%}",
                    }
                )
    near = sum(abs(error) <= NEAR for error in errors)
    return Part(
        "Compiled steps (gpt-fast, bifurcated attention)",
        (
            f"{len(rows)} rows: mean error {sum(map(abs, errors)) / len(errors):.0%}, "
            f"{near} within 15%. gpt-fast's A100s were held to 330 W, and its GPUs linked by a cube",
            "mesh, where the tables of collectives are of NVSwitch. The math path of attention is",
            "several kernels that hand scores to each other through memory.",
        ),
        (("Milliseconds of a step", rows),),
    )
