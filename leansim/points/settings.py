"""Settings: `key=value` texts that are laid over the fields of a point, a run or a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from leansim.errors import ConfigError, Problem
from leansim.files.strict_yaml import scalar
from leansim.files.text import unprintable
from leansim.points.point import OVERRIDDEN

_COMMA = re.compile(r",(?![^()]*\))")  # that no parenthesis closes behind


def apply_settings(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Lay `key=value` over a mapping; `device.x` and `kernel.x` become overrides.

    A comma makes a list. Raises `ConfigError` for text without an equals sign.
    """
    for setting in settings:
        key, text = setting_of(setting)
        if key.startswith("partitioner."):
            option = key.rpartition(".")[2]
            wanted = f"wanted kernel.partitioner.options.{option}={text}"
            wanted += ", or num_splits" if "split" in option else ""
            raise ConfigError("command line", [Problem("--set", repr(setting), wanted)])
        value = parse_value(text)
        if key.startswith(OVERRIDDEN):
            given = data.get("overrides") or {}
            several = given if isinstance(given, list) else [given]
            data["overrides"] = [
                {**(one if isinstance(one, dict) else {}), key: value} for one in several
            ]
        else:
            data[key] = value
    return data


def overrides_of(settings: Sequence[str]) -> dict[str, Any]:
    """The overrides that settings come to. Raises `ConfigError` for one of another field."""
    laid = apply_settings({}, settings)
    (overrides,) = laid.pop("overrides", [{}])
    for key in laid:
        found, wanted = repr(key), "wanted device.<number> or kernel.<number>"
        raise ConfigError("command line", [Problem("--set", found, wanted)])
    return dict(overrides)


def setting_of(setting: str) -> tuple[str, str]:
    """Key and value of `key=value`, as texts. Raises `ConfigError` for another text."""
    key, equals, text = setting.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key or unprintable(key):
        raise ConfigError("command line", [Problem("--set", repr(setting), "wanted key=value")])
    return key, text.strip()


def parse_value(text: str) -> Any:
    """Read a value from the command line by YAML's rules; a comma makes a list, but in parentheses."""
    parts = [part.strip() for part in _COMMA.split(text)]
    if len(parts) > 1 and not text.startswith(("[", "{", '"', "'")):
        if "" in parts:
            problem = Problem("value", repr(text), "wanted something between and after commas")
            raise ConfigError("command line", [problem])
        return [scalar(part) for part in parts]
    return scalar(text)
