"""FlashInfer's batch decode on tensor cores.

Signature: flashinfer 0.6.12 to 0.6.18, `BatchDecodeWithPagedKVCacheWrapper`; what this makes of it is in
flashinfer_wrapper.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import plain_decode
from leansim.gpu.libraries.flashinfer_wrapper import flashinfer_version, planned_decode
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class FlashinferTcDecode:
    """Paged; its plan is made on the host, outside the timed calls."""

    kernel: ClassVar[str] = "flashinfer_tc_decode"

    def version(self) -> str:
        """FlashInfer's."""
        return flashinfer_version()

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """Sixteen-bit KV of its own, one new token."""
        plain_decode("FlashInfer's batch decode", load, window=True, query_lens=False)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Plan for each buffer."""
        return planned_decode(given, tensor_cores=True)
