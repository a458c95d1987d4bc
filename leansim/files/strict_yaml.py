"""Reads YAML without YAML 1.1's traps and remembers where each key stood.

`1e9` is a number, `no` and `010` are refused instead of becoming False and 8, duplicate keys are
an error, and every value's line and column is kept so that a later complaint can point at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leansim.errors import ConfigError, Problem
from leansim.files.text import read_text, unprintable

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"

_DIGITS = r"[0-9](?:_?[0-9])*"  # an underscore stands between two digits, or is a slip
_INT = re.compile(rf"[-+]?(?=.{{1,32}}$){_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(\.{_DIGITS}|{_DIGITS}(\.({_DIGITS})?)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_NULLS = {"", "~", "null"}
_BOOLEANS = {"true": True, "false": False}
_OLD_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}
# More than any honest file has, and what can be read in seconds.
MOST_VALUES = 2**20
MOST_REPEATED = 10_000
MOST_DEEP = 64
# libyaml where it can be had: ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    return parse(read_text(path, "wanted a readable YAML file"), str(path))


def parse(text: str, source: str = "text") -> Document:
    """Parse YAML text. Raises `ConfigError` where it is not YAML at all, or more than a limit."""
    if found := unprintable(text):
        raise ConfigError(source, [Problem("syntax", found, "wanted plain text", 1, 1)])
    builder = _Builder(text)
    try:
        data = builder.document()
    except _NoDocumentError as error:
        raise ConfigError(source, [error.problem]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = str(error.problem or error.context).removeprefix("found ")
        raise ConfigError(source, [_problem("syntax", found, "wanted valid YAML", mark)]) from None
    except yaml.YAMLError as error:
        raise ConfigError(source, [_problem("syntax", str(error), "wanted valid YAML")]) from None
    builder.marks.setdefault((), (1, 1))  # of an empty file too
    return Document(source, data, builder.marks, tuple(builder.problems))


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
    if unprintable(text):
        complaint = "wanted plain text"
    if complaint:
        raise ConfigError(COMMAND_LINE, [Problem("value", repr(text), complaint)])
    return value


class _NoDocumentError(Exception):
    """What makes the rest of a text not worth reading."""

    def __init__(self, found: str, wanted: str, mark: Any) -> None:
        super().__init__(found)
        self.problem = _problem("syntax", found, wanted, mark)


def _problem(where: str, found: str, wanted: str, mark: Any = None) -> Problem:
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Problem(where, found, wanted, line, column)


class _Builder:
    """Turns the events of a parser into plain data, collecting marks and problems on the way.

    Nothing expands unseen: values are counted as they are made, those behind an alias too. What stands
    behind anchors is kept on a tape, which an alias plays again.
    """

    def __init__(self, text: str) -> None:
        self.marks: dict[KeyPath, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_LOADER))
        self.tape: list[yaml.Event] = []
        self.anchors: dict[str, tuple[int, int]] = {}  # where on the tape; to 0 while it is open
        self.recording, self.repeating = 0, 0
        self.values, self.repeated = 0, 0

    def document(self) -> Any:
        """The data of the one document."""
        next(self.events)  # the stream begins
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        data = self._value(self._next(), ())
        next(self.events)  # the document ends
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            raise _NoDocumentError("another document", "wanted one", event.start_mark)
        return data

    def _next(self) -> yaml.Event:
        event = next(self.events)
        if self.recording and not self.repeating:
            self.tape.append(event)
        return event

    def _value(self, event: Any, path: KeyPath) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._again(event, path)
        self._count(event, path)
        mark = event.start_mark
        self.marks[path] = (mark.line + 1, mark.column + 1)
        anchor = None if self.repeating else event.anchor
        if anchor is not None:
            self._open(anchor, event)
        value: Any
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._scalar(event, path)
        if anchor is not None:
            self.recording -= 1
            self.anchors[anchor] = (self.anchors[anchor][0], len(self.tape))
        return value

    def _count(self, event: Any, path: KeyPath) -> None:
        self.values += 1
        self.repeated += self.repeating > 0
        if self.values > MOST_VALUES:
            found, wanted = f"more than {MOST_VALUES:,} values", f"wanted at most {MOST_VALUES:,}"
        elif self.repeated > MOST_REPEATED:
            found, wanted = (
                "aliases that repeat more",
                f"wanted at most {MOST_REPEATED:,} values of them",
            )
        elif len(path) > MOST_DEEP:
            found, wanted = "very deep nesting", f"wanted at most {MOST_DEEP} levels"
        else:
            return
        raise _NoDocumentError(found, wanted, event.start_mark)

    def _open(self, anchor: str, event: yaml.Event) -> None:
        """Begin to keep what stands behind an anchor."""
        if anchor in self.anchors:
            raise _NoDocumentError(f"anchor {anchor!r} twice", "wanted it once", event.start_mark)
        if not self.recording:
            self.tape.append(event)
        self.recording += 1
        self.anchors[anchor] = (len(self.tape) - 1, 0)

    def _again(self, event: yaml.AliasEvent, path: KeyPath) -> Any:
        """What an anchor stands for, made once more."""
        start, stop = self.anchors.get(str(event.anchor), (0, -1))
        if stop < 0:
            found, wanted = f"undefined alias {event.anchor!r}", "wanted valid YAML"
            raise _NoDocumentError(found, wanted, event.start_mark)
        if stop == 0:
            found, wanted = "nesting without end", "wanted plain nesting"
            raise _NoDocumentError(found, wanted, event.start_mark)
        events, self.events = self.events, iter(self.tape[start:stop])
        self.repeating += 1
        value = self._value(next(self.events), path)
        self.repeating -= 1
        self.events = events
        return value

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key in data:
                self._complain(event, (*path, key), "a duplicate key", "wanted each key once")
            data[key] = self._value(self._next(), (*path, key))
        return data

    def _key(self, event: yaml.Event, path: KeyPath) -> str:
        named = event
        if isinstance(event, yaml.AliasEvent):
            start, stop = self.anchors.get(str(event.anchor), (0, 0))
            named = self.tape[start] if stop else event
        if not isinstance(named, yaml.ScalarEvent):
            found, wanted = (
                f"a list or mapping as a key of {dotted(path) or 'the file'}",
                "wanted a name",
            )
            raise _NoDocumentError(found, wanted, event.start_mark)
        if named is event and event.anchor is not None and not self.repeating:
            self._open(event.anchor, event)
            self.recording -= 1
            self.anchors[event.anchor] = (len(self.tape) - 1, len(self.tape))
        return str(named.value)

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        if event.style:  # quoted or block text is text
            value, complaint = event.value, "wanted plain text" if unprintable(event.value) else ""
        else:
            value, complaint = _plain_scalar(str(event.value))
        if complaint:
            self._complain(event, path, repr(str(event.value)), complaint)
        return value

    def _complain(self, event: yaml.Event, path: KeyPath, found: str, wanted: str) -> None:
        self.problems.append(_problem(dotted(path), found, wanted, event.start_mark))


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
