"""Describes what has a name, from a device to a tile loop, in text: every number with its source."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any

from leansim.answers import render
from leansim.partitioners.registry import partitioners
from leansim.points.names import Things, show
from leansim.points.names import list as names_of
from leansim.specs import catalog
from leansim.specs.base import SourcedSpec
from leansim.specs.traces import find_trace, read_trace

_LONG = 61  # characters of a value from which on it is cut, or told in parts


def listed(what: Things) -> str:
    """Name everything of a kind, a line each with what it is."""
    return "\n".join(f"{name:24s} {_about(what, name)}".rstrip() for name in names_of(what))


def _about(what: Things, name: str) -> str:
    if what == "traces":
        trace = read_trace(find_trace(name))
        return f"{len(trace.input_len):,} requests; {trace.source.splitlines()[0]}"
    if what == "partitioners":  # some have the name of their kernel
        return _first_line(partitioners()[name])
    thing = catalog.harness(name) if what == "timers" else show(name)
    return _first_line(thing) if isinstance(thing, type) else thing.description


def _first_line(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").split("\n", maxsplit=1)[0]


def described(name: str) -> str:
    """Describe a thing; a name that is a kernel's and its partitioner's describes both.

    Raises `UnknownNameError` for a name that nothing answers to.
    """
    harnesses = (*catalog.names("table"), *catalog.names("timer"))
    thing = catalog.harness(name) if name in harnesses else show(name)
    if isinstance(thing, type):
        return _class(name, thing, "option" if name in partitioners() else "number")
    text = _spec(thing)
    if name in partitioners():
        text += f"\n\npartitioner {_class(name, partitioners()[name], 'option')}"
    return text


def _class(name: str, cls: type[Any], field_word: str) -> str:
    """A class: what it says of itself, and its fields, which a YAML file sets."""
    rows = [
        {
            field_word: field.name,
            "default": "required" if field.default is dataclasses.MISSING else repr(field.default),
            "type": str(field.type),
        }
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return f"{name}: {inspect.getdoc(cls)}\n\n{render(rows, 'table') if rows else f'no {field_word}s'}"


def _spec(thing: SourcedSpec) -> str:
    counts = ", ".join(f"{n} {label}" for label, n in thing.source_counts().items() if n)
    table = render(list(_rows(thing)), "table")
    return f"{thing.name}: {thing.description}\n\n{table}\n\nnumbers: {counts}"


def _rows(thing: SourcedSpec, way: str = "") -> Iterator[dict[str, str]]:
    """A row for each thing that is structure, and one for each source, with what it answers for."""
    values = thing.model_dump(mode="json", exclude={"name", "description", "sources"})
    said = thing.model_dump(mode="json", exclude_defaults=True)  # of what is nested, that alone
    by_source = {key: found for key, found in thing.numbers_by_source().items() if found}
    for field, value in values.items():
        keys = [key for key in by_source if key.partition(".")[0] == field]
        if keys:
            whole = _shown(said.get(field, value)) if keys == [field] else "..."
            for key in keys:
                shown = _numbers(key, by_source[key]) if whole.endswith("...") else whole
                yield {"number": way + key, "value": shown, "source": thing.sources[key]}
        elif nested := thing.nested(field):
            for item in nested:
                yield from _rows(item, f"{way}{field}.{item.name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "source" in value[0]:
            for item in said[field]:
                source, of = item.pop("source"), item.pop("of")
                parts = (f"{key}: {part}" for key, part in item.items())
                yield {"number": f"{way}{field}.{of}", "value": ", ".join(parts), "source": source}
        elif value is not None and (not way or field in said):
            yield {"number": way + field, "value": _shown(said.get(field, value)), "source": ""}


def _numbers(key: str, found: Sequence[tuple[Sequence[str], float]]) -> str:
    """The numbers below a key: each, or their range if they are alike, or how many."""
    depth = key.count(".") + 1
    parts = [(".".join(path[depth:]), _shown(value)) for path, value in found]
    text = ", ".join(dict.fromkeys(f"{part}: {value}" if part else value for part, value in parts))
    if len(text) < _LONG:
        return text
    alike = depth > 1 and not any("." in part for part, _ in parts)
    values = [value for _, value in found]
    span = f", {_shown(min(values))} to {_shown(max(values))}" if alike else ""
    return f"{len(found)} numbers{span}"


def _shown(value: Any) -> str:
    if isinstance(value, float) and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.4g}"
    text = json.dumps(value)
    return text if len(text) < _LONG else text[: _LONG - 4] + "..."
