"""Steps and power of serving frameworks as LLM-Inference-Bench has them, beside simulated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steps import NEAR, TRTLLM, Asked, Found, errors_told, held_to_its_end, prompt_s

from leansim.checkout.pages import Part, Rows

# What each framework decodes with: its own kernels of 2024 are among neither catalogue nor source trees
# that can be read to the version, so that these are the nearest of the catalogue.
KERNELS = {"TensorRT-LLM": TRTLLM, "vLLM": "vllm_fa2"}
POWER_TOKENS = 1024


def _asked(block: Mapping[str, Any], batch_size: int, tokens: int) -> Asked:
    """The step half way through the tokens that come out: the prompt and half of them are context."""
    kernel = KERNELS[block["framework"]]
    gpus = int(block.get("gpus", 1))
    return Asked(block["device"], kernel, block["model"], gpus, batch_size, tokens + tokens // 2)


def calls(generation: Sequence[Mapping[str, Any]], power: Sequence[Mapping[str, Any]]) -> list[Asked]:
    """Every step that the tables rest on."""
    timed = [_asked(block, size, tokens) for block in generation for size, tokens, _ in block["rows"]]
    return [
        *timed,
        *(_asked(block, size, POWER_TOKENS) for block in power for size, *_ in block["rows"]),
    ]


def _ms(steps: Found, asked: Asked, tokens: int) -> float:
    """Milliseconds per token out: a step, and the prompt's share."""
    step = steps[asked]
    return (step.seconds + prompt_s(step, asked.batch_size * tokens) / tokens) * 1e3


def rows_of(steps: Found, generation: Sequence[Mapping[str, Any]]) -> Rows:
    """Each published row that fits in memory, and the simulated time."""
    found = []
    for block in generation:
        for size, tokens, measured in block["rows"]:
            asked = _asked(block, size, tokens)
            if not held_to_its_end(steps[asked], 4 / 3):
                continue
            simulated = _ms(steps, asked, tokens)
            names = {key: block[key] for key in ("device", "framework", "model", "gpus")}
            found.append(
                {**names, "batch": size, "tokens": tokens, "measured": measured, "simulated": simulated}
            )
    return found


def _summary(rows: Rows) -> Rows:
    """Errors by framework, device, model and GPUs."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        key = tuple(row[name] for name in ("framework", "device", "model", "gpus"))
        groups.setdefault(key, []).append(row)
    told = []
    for key, mine in groups.items():
        errors = [row["simulated"] / row["measured"] - 1 for row in mine]
        rest = [row["measured"] - row["simulated"] for row in mine]
        told.append(
            dict(
                zip(("framework", "device", "model", "gpus"), key, strict=True),
                rows=len(mine),
                **errors_told(errors),
                rest_ms=f"{min(rest):.1f} to {max(rest):.1f}",
            )
        )
    return told


def _cells(rows: Rows, device: str, model: str) -> Rows:
    """A row per framework, GPUs and batch: measured and simulated at each length."""
    told: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if (row["device"], row["model"]) != (device, model):
            continue
        key = (row["framework"], row["gpus"], row["batch"])
        line = told.setdefault(key, dict(zip(("framework", "gpus", "batch"), key, strict=True)))
        line[f"{row['tokens']}"] = f"{row['measured']:.1f} / {row['simulated']:.1f}"
    return list(told.values())


def _power(steps: Found, power: Sequence[Mapping[str, Any]]) -> Rows:
    told = []
    for block in power:
        for size, watts, ms in block["rows"]:
            step = steps[_asked(block, size, POWER_TOKENS)]
            joules = (step.energy.low_j, step.energy.high_j)
            told.append(
                {
                    **{key: block[key] for key in ("device", "framework")},
                    "batch": size,
                    "measured W": f"{watts:.0f}",
                    "simulated W": "-".join(f"{one / step.seconds:.0f}" for one in joules),
                    "measured J/token": f"{watts * ms * 1e-3 / size:.3g}",
                    "simulated J/token": "-".join(f"{one / size:.3g}" for one in joules),
                }
            )
    return told


def part(
    steps: Found, generation: Sequence[Mapping[str, Any]], power: Sequence[Mapping[str, Any]]
) -> Part:
    """What serving frameworks took, and what their steps are simulated to take."""
    rows = rows_of(steps, generation)
    errors = [abs(row["simulated"] / row["measured"] - 1) for row in rows]
    near = sum(error <= NEAR for error in errors) / len(errors)
    one = [row for row in rows if row["batch"] == 1]
    alone = [abs(row["simulated"] / row["measured"] - 1) for row in one]
    return Part(
        "Serving frameworks (LLM-Inference-Bench, 2024)",
        (
            f"{len(rows)} rows that fit in memory: mean error {sum(errors) / len(errors):.0%}, "
            f"{near:.0%} within {NEAR:.0%}; of single requests "
            f"{sum(alone) / len(alone):.0%}. The simulated step is nearly always the shorter.",
            "`rest_ms` is what it leaves over of a measured step: the host between steps, sampling,",
            "the frameworks' own kernels of that year. It grows with the batch in vLLM, which then",
            "scheduled and sampled on the host.",
        ),
        (
            ("Errors, and milliseconds left over", _summary(rows)),
            (
                "Llama-3-8B on H100, ms per token out by tokens in and out: measured / simulated",
                _cells(rows, "h100_sxm", "llama_3_8b"),
            ),
            ("Llama-3-70B on H100, the same", _cells(rows, "h100_sxm", "llama_3_70b")),
            (f"Power and energy, {POWER_TOKENS} tokens in and out", _power(steps, power)),
        ),
    )
