"""FlashMLA's dense decode: its own package's, or the copy that vLLM brings.

Signature: deepseek-ai/FlashMLA 9241ae3, `flash_mla_with_kvcache` and `get_mla_metadata`: metadata is
made in the first call and kept. vLLM 0.24 has the same under `vllm.third_party`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.errors import PairingError
from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    for_arch,
    lengths,
    page_tables,
    plain_decode,
    queries,
    scale_of,
    version_of,
)
from leansim.specs.device import Device
from leansim.specs.workload import Workload

PAGE_TOKENS = 64
# Where the interface is, and whose distribution says its version.
_PLACES = {"flash_mla": "flash-mla", "vllm.third_party.flashmla.flash_mla_interface": "vllm"}


@dataclass(frozen=True)
class FlashMla:
    """A latent cache in pages of 64 tokens; the metadata kernel runs once a step, outside the calls."""

    kernel: ClassVar[str] = "flash_mla"

    def version(self) -> str:
        """The package's, or vLLM's."""
        place = _place()
        return version_of(place, _PLACES[place], place)

    def check(self, load: Workload, device: Device) -> None:
        """Key width 576, value width 512, pages of 64 tokens, on Hopper."""
        plain_decode("FlashMLA", load, latent=True)
        for_arch("FlashMLA's dense decode", device, "sm_90")
        if load.page_tokens != PAGE_TOKENS:
            raise PairingError(
                f"FlashMLA has pages of {PAGE_TOKENS} tokens; found page_tokens {load.page_tokens}"
            )

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """One call, whose metadata the others take: lengths are the same for all buffers."""
        library, load = import_module(_place()), given.workload
        metadata, _ = library.get_mla_metadata()
        q, seen, tables = queries(given), lengths(given), page_tables(given)

        def call(buffer: int) -> Any:
            return library.flash_mla_with_kvcache(
                q,
                given.k,
                tables[buffer],
                seen,
                load.value_dim,
                metadata,
                softmax_scale=scale_of(load),
                causal=load.query_len > 1,
            )[0]

        call(0)
        return call


def _place() -> str:
    """The first of the places that can be imported. Raises what the first one raised."""
    missing: list[ImportError] = []
    for place in _PLACES:
        try:
            import_module(place)
        except ImportError as error:
            missing.append(error)
        else:
            return place
    raise missing[0]
