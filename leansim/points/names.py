"""What a point may name: devices, nodes, kernels, loops, partitioners, models, traces and timers."""

from __future__ import annotations

import builtins
from typing import Any, Literal, get_args

from leansim.errors import ConfigError, UnknownNameError
from leansim.partitioners.registry import partitioners
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.model import Model
from leansim.specs.node import Node
from leansim.specs.traces import builtin_traces
from leansim.timing.loops.registry import loops

Things = Literal[
    "devices", "nodes", "kernels", "loops", "partitioners", "models", "traces", "timers"
]  # fmt: skip
THINGS: tuple[str, ...] = get_args(Things)


def list(what: Things) -> builtins.list[str]:
    """Name everything of a kind. Raises `UnknownNameError` for another kind."""
    if what == "partitioners":
        return builtins.list(partitioners())
    if what == "loops":
        return builtins.list(loops())
    if what == "traces":
        return builtins.list(builtin_traces())
    if what not in THINGS:
        raise UnknownNameError("list", what, THINGS)
    return catalog.names(what.removesuffix("s"))  # type: ignore[arg-type]


def show(name: str) -> Device | Kernel | Model | Node | type[Any]:
    """Find a device, node, kernel, model, partitioner or tile loop (its class), or load a YAML file.

    Numbers carry their sources in `.sources`. Raises `UnknownNameError`, or `ConfigError` for a file
    that is none of these.
    """
    if name.endswith((".yaml", ".yml")):
        return _show_file(name)
    if name in catalog.names("device"):
        return catalog.device(name)
    if name in catalog.names("kernel"):
        return catalog.kernel(name)
    if name in catalog.names("model"):
        return catalog.model(name)
    if name in catalog.names("node"):
        return catalog.node(name)
    classes = {**loops(), **partitioners()}
    if name in classes:
        return classes[name]
    kinds = ("device", "kernel", "model", "node")
    known = [*classes, *(n for kind in kinds for n in catalog.names(kind))]  # type: ignore[arg-type]
    raise UnknownNameError("name", name, known)


def _show_file(path: str) -> Device | Kernel | Model | Node:
    """Load a file as whatever it is; if it is nothing, complain as the thing it comes closest to."""
    errors = []
    for loader in (catalog.device, catalog.kernel, catalog.model, catalog.node):
        try:
            return loader(path)
        except ConfigError as error:
            errors.append(error)
    raise min(errors, key=lambda error: len(error.problems))
