"""Finds adapters: what calls one attention kernel of a library that may be installed.

An adapter is a frozen dataclass in a module of this package, or an entry point of the group
`leansim.libraries` in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

from leansim.errors import UnknownNameError
from leansim.gpu.inputs import Inputs
from leansim.plugins import Plugins, described
from leansim.specs.device import Device
from leansim.specs.workload import Workload

PLUGINS = Plugins(
    "library",
    "leansim.gpu.libraries",
    "leansim.libraries",
    ("kernel", "version", "check", "prepare"),
)


class Library(Protocol):
    """Calls one kernel of a library. Implementations are frozen dataclasses; nothing is inherited.

    One whose kernel rounds more than leansim's own may say so in a class variable `rounding`: how many
    times their tolerance its output is held to (1.0).
    """

    kernel: ClassVar[str]
    """Which kernel of the catalog it is: what `predict` is to be held against."""

    def version(self) -> str:
        """The library and its version, as in `vllm 0.24.0`; any error says that it is not there."""
        ...  # pragma: no cover

    def check(self, load: Workload, device: Device) -> None:
        """Refuse a call that it cannot make, before anything is drawn. Raises a `LeansimError`."""

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:
        """Make ready to call on the KV of any buffer of `given`: metadata, workspaces, compilation.

        What it returns takes a buffer's number, enqueues one call on the current stream without waiting
        for the device, and returns the output, `[batch * query_len * num_q_heads, value_dim]` once
        reshaped. Nothing that a serving system does once a step, for all layers, belongs into a call.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class Installed:
    """Adapters whose library is here, by name, with its version; and of the others why it is not."""

    libraries: Mapping[str, Library]
    versions: Mapping[str, str]
    absent: Mapping[str, str]


@cache
def libraries() -> Mapping[str, type[Any]]:
    """Every adapter by name: those of this package, and those of entry points."""
    return PLUGINS.found()


def told() -> str:
    """Name every adapter, a line each with the kernel that it calls; nothing is looked for."""
    lines = (
        f"{name:24s} {library.kernel}: {(library.__doc__ or '').splitlines()[0]}"
        for name, library in libraries().items()
    )
    return "\n".join(lines)


def installed(only: Sequence[str] = ()) -> Installed:
    """Look for the libraries of all adapters, or of those named. Raises `UnknownNameError`."""
    known = libraries()
    for name in only:
        if name not in known:
            raise UnknownNameError(PLUGINS.kind, name, known, PLUGINS.hint(name))
    there: dict[str, Library] = {}
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name in only or known:
        library = known[name]()
        try:
            versions[name] = library.version()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # libraries fail to load in every way there is
            absent[name] = described(error).splitlines()[0]
            continue
        there[name] = library
    return Installed(there, versions, absent)
