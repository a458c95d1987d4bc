"""Reads JSON that may hold anything: deep nesting, endless numbers and halves of characters are told."""

from __future__ import annotations

import json
from typing import Any

from leansim.errors import ConfigError, Problem
from leansim.files.text import unprintable

MOST_DEEP = 64


def parse(text: str, source: str, line: int | None = None) -> Any:
    """Parse JSON. Raises `ConfigError` with its place; `line` is where a text of one line stands."""
    try:
        data = json.loads(text)
        if "\\u" in text or text.count("[") + text.count("{") > MOST_DEEP:
            _check(data, 0)
    except json.JSONDecodeError as error:
        at, column = line or error.lineno, error.colno
        problem = Problem("syntax", error.msg.lower(), "wanted valid JSON", at, column)
    except RecursionError:
        wanted = f"wanted at most {MOST_DEEP} levels"
        problem = Problem("syntax", "very deep nesting", wanted, line or 1, 1)
    except ValueError as error:
        found = str(error).partition(";")[0]
        problem = Problem("syntax", found, "wanted plain text and shorter numbers", line or 1, 1)
    else:
        return data
    raise ConfigError(source, [problem])


def value_of(text: str) -> Any:
    """What a cell means: JSON's numbers, lists, mappings, true, false and null; else the text itself."""
    try:
        return parse(text.lower() if text.lower() in ("true", "false", "null") else text, "cell")
    except ConfigError:
        return text


def _check(data: Any, depth: int) -> None:
    if depth > MOST_DEEP:
        raise RecursionError
    if isinstance(data, str):
        if found := unprintable(data):
            raise ValueError(found)
    elif isinstance(data, dict | list):
        for item in [*data, *data.values()] if isinstance(data, dict) else data:
            _check(item, depth + 1)
