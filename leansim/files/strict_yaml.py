"""Reads YAML without YAML 1.1's traps and remembers where each key stood.

`1e9` is a number, `no` and `010` are refused instead of becoming False and 8, duplicate keys are
an error, and every value's line and column is kept so that a later complaint can point at it.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leansim.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"

_DIGITS = r"[0-9](?:_?[0-9])*"  # an underscore stands between two digits, or is a slip
_INT = re.compile(rf"[-+]?(?=.{{1,32}}$){_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(\.{_DIGITS}|{_DIGITS}(\.({_DIGITS})?)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_NULLS = {"", "~", "null"}
_BOOLEANS = {"true": True, "false": False}
_OLD_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}
_SHORT = 12_000  # characters: half as many brackets as fill 8 MB of stack


@dataclass(frozen=True)
class Document:
    """Parsed data, the (line, column) of each key path's value, and what was wrong with it.

    `problems` are duplicate keys and trap values; they wait here so that validation can report
    them together with its own. `typed` are the top-level keys that came from the command line.
    """

    source: str
    data: Any
    marks: dict[KeyPath, tuple[int, int]]
    problems: tuple[Problem, ...] = ()
    typed: frozenset[str] = frozenset()

    def problem(self, path: KeyPath, found: str, wanted: str) -> Problem:
        """Build a `Problem` at `path`, or at its nearest parent that exists in the file.

        A key that was `typed` on the command line has no place in the file, and what is in no file, a
        command line or the arguments of a call, has no lines.
        """
        where = dotted(path) or "(top level)"
        if path and path[0] in self.typed:
            on_it = self.source == COMMAND_LINE
            return Problem(where if on_it else f"{COMMAND_LINE}: {where}", found, wanted)
        known = path
        while known and known not in self.marks:
            known = known[:-1]
        return Problem(where, found, wanted, *self.marks.get(known, (None, None)))


def dotted(path: KeyPath) -> str:
    """Write a key path as `workload.context_lens[3]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read(path: Path) -> Document:
    """Read a YAML file. Raises `ConfigError` for unreadable files and broken YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        problem = Problem("file", reason.lower(), "wanted a readable YAML file")
        raise ConfigError(str(path), [problem]) from None
    except UnicodeDecodeError:
        problem = Problem("file", "bytes that are not UTF-8", "wanted a YAML text file")
        raise ConfigError(str(path), [problem]) from None
    return parse(text, str(path))


def parse(text: str, source: str = "text") -> Document:
    """Parse YAML text. Raises `ConfigError` only where it is not YAML at all."""
    try:
        root = _compose(text)
    except RecursionError:
        raise ConfigError(
            source, [Problem("syntax", "very deep nesting", "wanted less", 1, 1)]
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = Problem(
            "syntax",
            str(error.problem or error.context).removeprefix("found "),
            "wanted valid YAML",
            line,
            column,
        )
        raise ConfigError(source, [problem]) from None
    except yaml.YAMLError as error:
        raise ConfigError(source, [Problem("syntax", str(error), "wanted valid YAML", 1, 1)]) from None
    builder = _Builder()
    try:
        data = builder.build(root, ()) if root is not None else None
    except RecursionError:
        problem = Problem("syntax", "nesting without end, or too deep", "wanted plain nesting", 1, 1)
        raise ConfigError(source, [problem]) from None
    builder.marks.setdefault((), (1, 1))  # of an empty file too
    return Document(source, data, builder.marks, tuple(builder.problems))


def _compose(text: str) -> yaml.Node | None:
    """Compose YAML into nodes, by libyaml where it can: ten times as fast, and the same but for errors.

    It recurses on the machine's own stack, so it gets only what is too short to nest too deep.
    """
    if len(text) <= _SHORT and hasattr(yaml, "CSafeLoader"):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=yaml.CSafeLoader)
    return yaml.compose(text, Loader=yaml.SafeLoader)


def scalar(text: str) -> Any:
    """Read one plain scalar as the same rules read it in a file (for `--set key=value`)."""
    if text.strip().startswith(("[", "{", '"', "'")):
        try:
            document = parse(text, COMMAND_LINE)
            problems = document.problems
        except ConfigError as error:
            problems = error.problems
        if problems:
            told = [Problem("value", repr(text), f"{p.wanted}, not {p.found}") for p in problems]
            raise ConfigError(COMMAND_LINE, told)
        return document.data
    value, complaint = _plain_scalar(text)
    if complaint:
        raise ConfigError(COMMAND_LINE, [Problem("value", repr(text), complaint)])
    return value


class _Builder:
    """Turns a node tree into plain data, collecting marks and problems on the way."""

    def __init__(self) -> None:
        self.marks: dict[KeyPath, tuple[int, int]] = {}
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in data:
                self._complain(key_node, (*path, key), "a duplicate key", "wanted each key once")
            data[key] = self.build(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if getattr(node, "style", None):  # quoted or block text is text
            return node.value
        value, complaint = _plain_scalar(str(node.value))
        if complaint:
            self._complain(node, path, repr(str(node.value)), complaint)
        return value

    def _complain(self, node: yaml.Node, path: KeyPath, found: str, wanted: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(dotted(path), found, wanted, mark.line + 1, mark.column + 1))


def _plain_scalar(text: str) -> tuple[Any, str]:
    """Return (value, complaint); the complaint is empty when the scalar is unambiguous."""
    lowered = text.lower()
    value: Any = text
    complaint = ""
    if lowered in _NULLS:
        value = None
    elif lowered in _BOOLEANS:
        value = _BOOLEANS[lowered]
    elif lowered in _OLD_BOOLEANS:
        complaint = f"wanted true or false, or quotes around {text!r} if text is meant"
    elif _LEADING_ZERO.fullmatch(text):
        complaint = "wanted a number without a leading zero (YAML 1.1 reads it as octal)"
    elif _INT.fullmatch(text):
        value = int(text.replace("_", ""))
    elif _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
    return value, complaint
