"""Steps of Llama on one to eight GPUs as NVIDIA's course on sizing has them, beside simulated ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from steps import TRTLLM, Asked, Found, errors_told, held_to_its_end, prompt_s

from leansim.checkout.pages import Part, Rows
from leansim.specs import catalog
from leansim.steps.kernels import ACTIVATION_BYTES

# With so few requests neither arithmetic nor KV weighs much, and what is left over is each layer's.
FEW = 4

Blocks = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Timed:
    """A published row and the step half way through the tokens that come out."""

    asked: Asked
    tokens_in: int
    tokens_out: int
    seconds: float

    def fits(self, steps: Found) -> bool:
        """Whether the batch is held in memory until all tokens are out."""
        grown = (self.tokens_in + self.tokens_out) / self.asked.context_len
        return held_to_its_end(steps[self.asked], grown)

    def simulated_s(self, steps: Found, served: bool) -> float:
        """Seconds per token: a step and, where prompts come in between, the other requests' prompts."""
        step = steps[self.asked]
        others = (self.asked.batch_size - 1) / self.tokens_out if served else 0
        return step.seconds + others * prompt_s(step, self.tokens_in)

    def all_reduce_s(self, library: str | None = None) -> float:
        """Seconds of one of a layer's two all-reduces: the fastest that was measured, or a library's."""
        if self.asked.gpus == 1:
            return 0.0
        node, weights = catalog.node(f"{self.asked.device}_x8"), catalog.model(self.asked.model).weights
        assert weights is not None
        size = self.asked.batch_size * weights.hidden_size * ACTIVATION_BYTES
        return node.collective_s("all_reduce", self.asked.gpus, size, library)

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return catalog.model(self.asked.model).num_layers


def _timed(blocks: Blocks) -> Iterator[Timed]:
    for block in blocks:
        for size, into, out, ms in block["rows"]:
            place = block["device"], TRTLLM, block["model"], int(block["gpus"])
            yield Timed(Asked(*place, size, into + out // 2), into, out, ms * 1e-3)


def calls(*published: Blocks) -> list[Asked]:
    """Every step that the tables rest on."""
    return [one.asked for blocks in published for one in _timed(blocks)]


def groups(steps: Found, blocks: Blocks) -> dict[tuple[str, str, int], list[Timed]]:
    """The rows that fit in memory, by device, model and GPUs."""
    found: dict[tuple[str, str, int], list[Timed]] = {}
    for one in _timed(blocks):
        if one.fits(steps):
            key = (one.asked.device, one.asked.model, one.asked.gpus)
            found.setdefault(key, []).append(one)
    return found


def errors(steps: Found, rows: Sequence[Timed], served: bool, library: str | None = None) -> list[float]:
    """Of each row; with a library's all-reduces if one is named."""
    found = []
    for one in rows:
        more = one.all_reduce_s(library) - one.all_reduce_s() if library else 0
        simulated = one.simulated_s(steps, served) + 2 * one.layers * more
        found.append(simulated / one.seconds - 1)
    return found


def _summary(steps: Found, blocks: Blocks, served: bool) -> Rows:
    told: Rows = []
    for (device, model, gpus), rows in groups(steps, blocks).items():
        line = {"device": device, "model": model, "gpus": gpus, "rows": len(rows)}
        line |= errors_told(errors(steps, rows, served))
        if gpus > 1:
            with_nccl = errors_told(errors(steps, rows, served, "nccl"))
            line |= {f"{name}, NCCL": cell for name, cell in with_nccl.items()}
        told.append(line)
    return told


def all_reduces(steps: Found, blocks: Blocks) -> Rows:
    """What an all-reduce took, if a layer leaves over on several GPUs what it does on one, and that."""
    few: dict[str, dict[int, list[Timed]]] = {}
    for (device, _, gpus), rows in groups(steps, blocks).items():
        some = [one for one in rows if one.asked.batch_size <= FEW]
        few.setdefault(device, {}).setdefault(gpus, []).extend(some)
    told: Rows = []
    for device, by_gpus in few.items():
        left = {
            gpus: mean((one.seconds - steps[one.asked].seconds) / one.layers for one in rows)
            for gpus, rows in sorted(by_gpus.items())
        }
        for gpus in list(left)[1:]:
            rows = by_gpus[gpus]
            simulated = mean(one.all_reduce_s() for one in rows)
            told.append(
                {
                    "device": device,
                    "gpus": gpus,
                    "simulated us": f"{simulated * 1e6:.1f}",
                    "NCCL us": f"{mean(one.all_reduce_s('nccl') for one in rows) * 1e6:.1f}",
                    "measured us": f"{(simulated + (left[gpus] - left[1]) / 2) * 1e6:.1f}",
                }
            )
    return told


def _cells(steps: Found, blocks: Blocks, served: bool) -> Rows:
    """A row per GPUs, model and tokens; a column per requests: measured / simulated ms."""
    told: dict[tuple[Any, ...], dict[int, str]] = {}
    for place, rows in groups(steps, blocks).items():
        for one in rows:
            key = (*place, f"{one.tokens_in} / {one.tokens_out}")
            simulated = one.simulated_s(steps, served) * 1e3
            cells = told.setdefault(key, {})
            cells[one.asked.batch_size] = f"{one.seconds * 1e3:.1f} / {simulated:.1f}"
    sizes = sorted({size for cells in told.values() for size in cells})
    names = ("device", "model", "gpus", "tokens in / out")
    return [
        dict(zip(names, key, strict=True)) | {f"{size}": cells.get(size, "-") for size in sizes}
        for key, cells in told.items()
    ]


def part(steps: Found, static: Blocks, served: Blocks) -> Part:
    """TensorRT-LLM 0.9's batches and NIM's requests, beside the step that is simulated."""
    timed = groups(steps, static).values()
    alone = [e for rows in timed for e in errors(steps, rows, served=False)]
    nccl = [e for rows in timed for e in errors(steps, rows, served=False, library="nccl")]
    said = {"as simulated": errors_told(alone), "with NCCL's all-reduces": errors_told(nccl)}
    return Part(
        "TensorRT-LLM 0.9 and NIM on one to eight GPUs (NVIDIA's course on sizing, 2024)",
        (
            f"{len(alone)} steps of batches that fit in memory:",
            *(f"{of}, mean error {t['mean']}, {t['within_15']} within 15%;" for of, t in said.items()),
            "what a layer leaves over grows with the GPUs as if its all-reduces were NCCL's, though",
            "TensorRT-LLM's own, which take a third to a fifth of that in the tables, were switched on.",
        ),
        (
            ("Batches that start and end together", _summary(steps, static, served=False)),
            (f"One all-reduce, up to {FEW} requests", all_reduces(steps, static)),
            ("A steady number of requests (NIM)", _summary(steps, served, served=True)),
            (
                "H100, ms per token by requests, batches: measured / simulated",
                _cells(steps, [b for b in static if b["device"] == "h100_sxm"], served=False),
            ),
            ("The same, NIM", _cells(steps, served, served=True)),
        ),
    )
