"""How many tokens of KV a decode step reads with each bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansim.files.strict_yaml import read

FACTS: dict[str, Any] = read(Path(__file__).resolve().parent / "memories.yaml").data


@dataclass(frozen=True)
class Memory:
    """A name, the tokens of KV that are left of a context, and fields of a point that read them."""

    name: str
    kept: Callable[[int], int]
    fields: Callable[[int], dict[str, Any]]


def uio_tokens(tokens: int, segment: int, memory: int) -> int:
    """`floor(n / l) m + n mod l`: whole segments of l tokens are m entries each, the rest is raw.

    100,000 tokens with l = 1,024 and m = 32: 97 segments are 3,104 entries, 672 tokens are left: 3,776.
    """
    return tokens // segment * memory + tokens % segment


def memories() -> list[Memory]:
    """Dense attention, and each memory of memories.yaml."""
    uio, longvq, sparsek = FACTS["uio"], FACTS["longvq"], FACTS["sparsek"]
    return [
        Memory("dense", lambda n: n, lambda n: {"context_len": n}),
        *(_uio(uio["segment"], memory) for memory in uio["memories"][::-1]),
        *(_longvq(codewords, longvq["window"]) for codewords in longvq["codewords"]),
        *(_sparsek(budget, sparsek["window"]) for budget in sparsek["budgets"]),
    ]


def _uio(segment: int, memory: int) -> Memory:
    """A shorter context: memory entries lie in the cache as tokens do."""

    def kept(tokens: int) -> int:
        return uio_tokens(tokens, segment, memory)

    return Memory(f"UIO {memory}/{segment}", kept, lambda n: {"context_len": kept(n)})


def _longvq(codewords: int, window: int) -> Memory:
    """Codewords and the window: no more than there are tokens, while the context is short."""

    def kept(tokens: int) -> int:
        return min(tokens, codewords + window)

    return Memory(f"LongVQ {codewords}+{window}", kept, lambda n: {"context_len": kept(n)})


def _sparsek(budget: int, window: int) -> Memory:
    """A list of single tokens, drawn; a kernel that gathers waits for the entries that name them."""
    mask = f"top_k(budget={budget}, page=1, window={window})"
    return Memory(
        f"SparseK {budget}+{window}",
        lambda n: min(n, budget + window),
        lambda n: {"context_len": n, "mask": mask},
    )
