"""Lays what one YAML file says over what another says that it names as its `base`.

A key replaces the base's, but that a `group` of keys is laid over the base's group key by key. Lists of
named items are merged item by item, and a single item may have a
`base` of its own: the item of its name in the same list of another file. Sources follow their numbers:
what replaces a number replaces its source too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leansim.errors import ConfigError, suggestion
from leansim.files.strict_yaml import Document, KeyPath

KEY = "base"


def based_on(data: Any) -> Iterator[tuple[KeyPath, str]]:
    """Where a file has a `base`, for all of it or for an item, and the name that it gives."""
    if not isinstance(data, dict):
        return
    if KEY in data:
        yield (KEY,), str(data[KEY])
    for key, items in data.items():
        for i, item in enumerate(items if _are_named(items) else ()):
            if KEY in item:
                yield (key, i, KEY), str(item[KEY])


def laid_over(
    document: Document, bases: Mapping[KeyPath, Any], groups: frozenset[str] = frozenset()
) -> Document:
    """A file with what it is based on: `bases` has the data of the file named at each place.

    Raises `ConfigError` for an item that its base does not have.
    """
    if not bases:
        return document
    merged = dict(document.data)
    for place, base in bases.items():
        if len(place) == 1:
            continue
        key, i = str(place[0]), int(place[1])
        items = list(merged[key])
        items[i] = _over(_item(document, place, base), items[i])
        merged[key] = items
    marks = dict(document.marks)
    if (whole := bases.get((KEY,))) is not None:
        for key in document.data:
            if (moved := _moved(document, key, whole.get(key))) is not None:
                marks = {
                    path: mark for path, mark in marks.items() if path[:1] != (key,) or len(path) == 1
                }
                marks |= moved
        merged = _over(whole, merged, groups)
    return Document(document.source, merged, marks, document.problems)


def _are_named(items: Any) -> bool:
    """Whether this is a list of mappings of which each has a name of its own."""
    if not (items and isinstance(items, list)):
        return False
    names = [str(item.get("name", "")) if isinstance(item, dict) else "" for item in items]
    return "" not in names and len(set(names)) == len(names)


def _by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(item["name"]): item for item in items}


def _item(document: Document, place: KeyPath, base: Mapping[str, Any]) -> dict[str, Any]:
    """What the base of the item at `place` has under its name."""
    key, i = str(place[0]), int(place[1])
    name = str(document.data[key][i]["name"])
    found = _by_name(base[key]) if _are_named(base.get(key)) else {}
    if name not in found:
        wanted = f"wanted a name that its base has in {key}{suggestion(name, found)}"
        raise ConfigError(document.source, [document.problem((key, i, "name"), repr(name), wanted)])
    return found[name]


def _over(
    base: Mapping[str, Any], own: Mapping[str, Any], groups: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """One record over another."""
    merged = {**base, **{key: value for key, value in own.items() if key != KEY}}
    both = {key for key in groups if isinstance(base.get(key), dict) and isinstance(own.get(key), dict)}
    merged |= {key: {**base[key], **own[key]} for key in both}
    for key, items in own.items():
        if _are_named(items) and _are_named(base.get(key)):
            theirs, mine = _by_name(base[key]), _by_name(items)
            merged[key] = [
                _over(theirs.get(name, {}), mine.get(name, {})) for name in {**theirs, **mine}
            ]
    sources = own.get("sources", {})
    if isinstance(sources, dict):
        old = base.get("sources")
        kept = {
            key: text
            for key, text in (old.items() if isinstance(old, dict) else ())
            if not _is_replaced(key.split("."), own, both)
        }
        if kept or sources:
            merged["sources"] = {**kept, **sources}
    return merged


def _is_replaced(path: list[str], own: Mapping[str, Any], groups: set[str]) -> bool:
    """Whether a record replaces what a source of its base answers for."""
    if path[0] not in groups:
        return path[0] in own
    return len(path) > 1 and path[1] in own[path[0]]


def _moved(document: Document, key: str, base: Any) -> dict[KeyPath, tuple[int, int]] | None:
    """Marks of a list's named items, at the places that they get in the base's; None if it has none."""
    own = document.data[key]
    if not (_are_named(base) and _are_named(own)):
        return None
    names = list({**_by_name(base), **_by_name(own)})
    at = [names.index(name) for name in _by_name(own)]
    return {
        (key, at[int(path[1])], *path[2:]): mark
        for path, mark in document.marks.items()
        if path[:1] == (key,) and len(path) > 1
    }
