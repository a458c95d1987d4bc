"""What a result depends on, hashed: the key that finished points are stored under.

Numbers count, not where they were written: the device's and kernel's values, the workload, the
partitioner with its options, and the source text of the time model. Of what another package adds, a
partitioner or a tile loop, its version and its source text count.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from array import array
from collections.abc import Mapping
from dataclasses import fields
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path

from leansim import __version__
from leansim.partitioners import registry as partitioners
from leansim.partitioners.registry import Partitioner
from leansim.specs.base import Same
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload
from leansim.timing.loops import registry as loops

_PACKAGE = __name__.partition(".")[0]
# Packages that turn a point into numbers, and the rest of what does.
MODEL = ("specs", "schedule", "partitioners", "timing", "engine", "results")
MODEL_FILES = tuple(
    f"points/{name}.py"
    for name in ("policy", "batch", "shape", "kept", "held", "travel", "call", "point", "simulate")
)
PLUGINS = (partitioners.PLUGINS, loops.PLUGINS)
_SHAPE = tuple(f.name for f in fields(Workload) if f.name not in ("context_lens", "label"))


def result_key(
    device: Device,
    kernel: Kernel,
    workload: Workload,
    partitioner: Partitioner,
    held_bytes: int | None = None,
    sent: str | None = None,
) -> str:
    """Key of a resolved point: equal for two points if their results must be equal.

    `held_bytes` is the KV of all layers of its model, if it has one, `sent` what travels on its node.
    """
    parts = [
        model_digest(),
        _digest(Same(device)),
        _digest(Same(kernel)),
        _loop_sources(Same(kernel)),
        repr([getattr(workload, name) for name in _SHAPE]),
        repr(partitioner),
        identity(type(partitioner)),
        *([] if held_bytes is None else [str(held_bytes)]),
        *([] if sent is None else [sent]),
    ]
    hashed = hashlib.sha256("\n".join(parts).encode())
    hashed.update(array("q", workload.context_lens).tobytes())
    return hashed.hexdigest()[:32]


def unresolved_key(text: str) -> str:
    """Key of a point that cannot be resolved, from its fields as text."""
    return "refused:" + hashlib.sha256(f"{model_digest()}\n{text}".encode()).hexdigest()[:32]


@cache
def model_digest() -> str:
    """Version of leansim and digest of every module a result passes through.

    The source counts because a model that is being worked on changes without a new version.
    """
    package = Path(__file__).parent.parent
    files = [file for name in MODEL for file in sorted((package / name).rglob("*.py"))]
    files += [package / name for name in MODEL_FILES]
    hashed = hashlib.sha256(__version__.encode())
    for file in files:
        hashed.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()


@lru_cache(maxsize=256)
def _digest(same: Same[Device] | Same[Kernel]) -> str:
    content = same.it.model_dump(mode="json", exclude={"sources", "description"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=256)
def _loop_sources(same: Same[Kernel]) -> str:
    """Where the tile loops of a kernel come from; one that does not exist comes from nowhere."""
    kernel, known = same.it, loops.loops()
    named = {*kernel.loops, *(kernel.loop(tile)[0] for tile in kernel.tiles)}
    return " ".join(identity(known[name]) for name in sorted(named & known.keys()))


@cache
def identity(cls: type[object]) -> str:
    """Where a partitioner or a tile loop is from: class, distribution, version, digest of its module.

    The source counts because a file that is still being written changes without a new version.
    """
    try:
        source = inspect.getsource(inspect.getmodule(cls) or cls)
    except (OSError, TypeError):
        source = ""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return f"{cls.__module__}:{cls.__qualname__} {_distribution(cls.__module__)} {digest}"


def _distribution(module: str) -> str:
    """Name and version of the distribution that a module belongs to, or nothing."""
    package = module.partition(".")[0]
    if package == _PACKAGE:
        return f"{_PACKAGE} {__version__}"
    for entry in _entries():  # first, for these know an editable installation too
        if re.match(rf"\s*{package}\b", entry.value) and entry.dist is not None:
            return f"{entry.dist.name} {entry.dist.version}"
    names = packages_distributions().get(package, [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(names))) or "no distribution"


def plugin_versions() -> Mapping[str, str]:
    """Version of each installed distribution that offers partitioners or tile loops."""
    offering = [entry.dist for entry in _entries() if entry.dist is not None]
    return {dist.name: dist.version for dist in offering}


def _entries() -> list[EntryPoint]:
    return [entry for kind in PLUGINS for entry in entry_points(group=kind.group)]
