"""Describes a device, kernel, model or partitioner in text: every number with its source."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

from leansim.partitioners.registry import partitioners
from leansim.points.names import Things, show
from leansim.points.names import list as names_of
from leansim.specs.traces import find_trace, read_trace
from leansim.tables import render


def listed(what: Things) -> str:
    """Name everything of a kind, a line each with what it is."""
    return "\n".join(f"{name:24s} {_about(what, name)}".rstrip() for name in names_of(what))


def _about(what: Things, name: str) -> str:
    if what == "traces":
        trace = read_trace(find_trace(name))
        return f"{len(trace.input_len):,} requests; {trace.source.splitlines()[0]}"
    if what == "partitioners":
        return _first_line(partitioners()[name])
    thing = show(name)
    return _first_line(thing) if isinstance(thing, type) else thing.description


def _first_line(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").split("\n", maxsplit=1)[0]


def described(name: str) -> str:
    """Describe a thing; a name that is a kernel's and its partitioner's describes both.

    Raises `UnknownNameError` for a name that nothing answers to.
    """
    thing = show(name)
    if isinstance(thing, type):
        return _partitioner(name, thing)
    text = _spec(thing)
    if name in partitioners():
        text += f"\n\npartitioner {_partitioner(name, partitioners()[name])}"
    return text


def _partitioner(name: str, cls: type[Any]) -> str:
    rows = [
        {
            "option": field.name,
            "default": "required" if field.default is dataclasses.MISSING else repr(field.default),
            "type": str(field.type),
        }
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return f"{name}: {inspect.getdoc(cls)}\n\n{render(rows, 'table') if rows else 'no options'}"


def _spec(thing: Any) -> str:
    values = thing.model_dump(mode="json", exclude={"name", "description", "sources"})
    said = thing.model_dump(mode="json", exclude_defaults=True)  # of what is nested, that alone
    rows = [
        {"number": key, "value": _shown(said.get(key, value)), "source": thing.sources.get(key, "")}
        for key, value in values.items()
        if value is not None
    ]
    counts = ", ".join(f"{n} {label}" for label, n in thing.source_counts().items() if n)
    return f"{thing.name}: {thing.description}\n\n{render(rows, 'table')}\n\n{counts}"


def _shown(value: Any) -> str:
    if isinstance(value, float) and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.4g}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
