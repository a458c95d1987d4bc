"""Executes a call through an adapter, with the inputs, checks and times of leansim's own kernels.

Outputs that a library allocates itself are poisoned too: the block that it gave us, which the allocator
hands out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leansim.errors import GpuError, UnknownNameError
from leansim.gpu.execution import checked
from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.registry import Library
from leansim.gpu.measuring import Executed
from leansim.gpu.toolkit import Toolkit
from leansim.points.point import Resolved

ADAPTER, ROUNDING = "adapter", "rounding"
# What must not be read is a number that would show, and no NaN: servers' caches hold numbers there, and
# kernels may multiply them by weights of zero.
UNREAD = 1e3


class LibraryRunner:
    """Adapters, by the column `adapter` of a row."""

    # The pages that inputs are drawn in, and a contiguous copy for those that want one.
    unread, copies = UNREAD, 2

    def __init__(self, libraries: Mapping[str, Library]) -> None:
        """Of adapters whose libraries are there."""
        self.libraries = libraries

    def check(self, item: Resolved, row: Mapping[str, str]) -> None:
        """Refuse a call that the row's adapter cannot make. Raises a `LeansimError`."""
        library = self._of(row)
        if item.point.kernel != library.kernel:
            wanted = f"{row[ADAPTER]} calls {library.kernel!r}"
            raise GpuError(f"found kernel {item.point.kernel!r}; wanted {library.kernel!r}: {wanted}")
        library.check(item.workload, item.device)

    def execute(
        self, tools: Toolkit, item: Resolved, row: Mapping[str, str], inputs: Inputs
    ) -> Executed:
        """Have the adapter prepare the call."""
        return LibraryCall(tools, item, self._of(row), inputs)

    def _of(self, row: Mapping[str, str]) -> Library:
        name = row.get(ADAPTER, "")
        if name not in self.libraries:
            raise UnknownNameError("library", name, self.libraries)
        return self.libraries[name]


class LibraryCall:
    """A library's kernel on one batch, ready to be launched."""

    def __init__(self, tools: Toolkit, item: Resolved, library: Library, inputs: Inputs) -> None:
        """Prepare. Raises what the library raises."""
        self.tools, self.inputs, self.schedule = tools, inputs, item.schedule
        self.call, self.rounding = library.prepare(inputs, item.device), getattr(library, ROUNDING, 1.0)
        self.out: Any = None

    def launch(self, buffer: int = 0) -> None:
        """Enqueue one call on a buffer's KV."""
        self.out = None  # first, so that a library that allocates gets the same block again
        self.out = self.call(buffer)

    def poison(self) -> None:
        """NaN wherever a call has written, after a first one."""
        if self.out is None:
            self.launch()
        self.out.fill_(float("nan"))

    def check(self, buffer: int = 0) -> float:
        """Largest relative error of a row of the output just computed. Raises `GpuError`."""
        if not self.tools.interpreted:
            self.tools.torch.cuda.synchronize()
        load = self.inputs.workload
        found = self.out.reshape(-1, self.out.shape[-1])
        if found.shape != (wanted := (load.num_query_rows, load.value_dim)):
            raise GpuError(f"found an output of {tuple(self.out.shape)}; wanted {wanted} once reshaped")
        return checked(self.tools, self.inputs, found, buffer, self.rounding)

    def columns(self) -> dict[str, Any]:
        """Nothing that a measurement of leansim's own kernels does not have."""
        return {}
