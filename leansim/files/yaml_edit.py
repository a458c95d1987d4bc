"""Changes values in YAML text and leaves everything else as it stands: comments, order, layout."""

from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from leansim.files.strict_yaml import KeyPath, dotted, parse

_WIDTH = 100
# New keys of a file go before this one, which is last in every file.
_LAST_KEY = "sources"


def edited(text: str, changes: Mapping[KeyPath, Any]) -> str:
    """Return YAML text with the values at some key paths set; keys that are missing are added.

    A value is a number, a text, or lists and mappings of them. Raises `KeyError` for a path that
    leads through something that is neither a mapping nor a list.
    """
    wanted = copy.deepcopy(parse(text).data)
    for path, value in changes.items():
        text = _set(text, path, value)
        _put(wanted, path, value)
    found = parse(text).data
    assert found == wanted, "an edit of YAML changed more than it should"
    return text


def short(value: float) -> float:
    """A number to four significant digits, which is how fitted numbers are written."""
    return float(f"{value:.4g}")


def _put(data: Any, path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        data = data.setdefault(key, {}) if isinstance(data, dict) else data[key]
    data[path[-1]] = value


def _set(text: str, path: KeyPath, value: Any) -> str:
    node: yaml.Node = yaml.compose(text, Loader=yaml.SafeLoader)  # type: ignore[assignment]
    before: yaml.Node | None = None  # the key of `node`
    for depth, part in enumerate(path):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            before, node = None, node.value[part]
            continue
        if not isinstance(node, yaml.MappingNode):
            raise KeyError(dotted(path[: depth + 1]))
        found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        if found is None:
            nested = value
            for key in reversed(path[depth + 1 :]):
                nested = {str(key): nested}
            return _added(text, node, str(part), nested)
        before, node = found
    start, end = node.start_mark.index, _end(node)
    folds = node.start_mark.line < node.end_mark.line
    if before is not None and _is_block(node):  # a list or mapping over several lines
        start = before.end_mark.index
        return f"{text[:start]}: {_rendered(value)}{text[end:]}"
    return text[:start] + _rendered(value, node.start_mark.column if folds else None) + text[end:]


def _added(text: str, mapping: yaml.MappingNode, key: str, value: Any) -> str:
    """Add a key to a mapping, in its style."""
    pairs = mapping.value
    if mapping.flow_style:
        at = _end(pairs[-1][1]) if pairs else mapping.start_mark.index + 1
        comma = ", " if pairs else ""
        return f"{text[:at]}{comma}{key}: {_rendered(value)}{text[at:]}"
    if len(pairs) > 1 and pairs[-1][0].value == _LAST_KEY:
        pairs = pairs[:-1]
    column = pairs[0][0].start_mark.column
    at = text.find("\n", _end(pairs[-1][1]))
    at = len(text) if at < 0 else at
    return f"{text[:at]}\n{' ' * column}{key}: {_rendered(value)}{text[at:]}"


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _end(node: yaml.Node) -> int:
    """Where a node's text ends; YAML itself ends a block only at the next token."""
    if not _is_block(node) or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _rendered(value: Any, column: int | None = None) -> str:
    """A value as YAML in one line; a text that begins in a `column` is folded below it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_rendered(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_rendered(item) for item in value) + "]"
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=not value.isprintable())
        if column is None or "\\" in quoted or "  " in quoted:
            return quoted
        room = max(_WIDTH - column, 40)
        lines = textwrap.wrap(quoted, room, break_long_words=False, break_on_hyphens=False)
        return ("\n" + " " * (column + 1)).join(lines)
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value)


def _number(value: float) -> str:
    """A number with the fewest digits that give it back, with an exponent where it is far from 1."""
    plain = repr(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return plain
    digits, _, exponent = next(
        text for places in range(18) if float(text := f"{value:.{places}e}") == value
    ).partition("e")
    return f"{digits if '.' in digits else digits + '.0'}e{int(exponent)}"
