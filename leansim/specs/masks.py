"""Masks by name: a generator of KV lists with its options, as a point writes it down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from leansim.errors import listing, suggestion
from leansim.specs.kv_list_file import CsrFile
from leansim.specs.kv_lists import (
    BlockDiagonal,
    Dilated,
    KvList,
    RandomBlocks,
    Strided,
    Tokens,
    TopK,
    VerticalSlash,
    WindowSink,
)
from leansim.specs.query_blocks import QueryBlocks

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)

GENERATORS: dict[str, type[Any]] = {
    "window_sink": WindowSink,
    "block_diagonal": BlockDiagonal,
    "dilated": Dilated,
    "strided": Strided,
    "random": RandomBlocks,
    "top_k": TopK,
    "vertical_slash": VerticalSlash,
    "csr": CsrFile,
}


def kv_list(value: Any) -> KvList:
    """Make a list from `name(option=value, ...)`, or from a mapping with `name` and its options.

    With the option `queries` there is a list for each so many new tokens. Raises `ValueError` naming
    what is wrong.
    """
    name, options = _parsed(value)
    queries = options.pop("queries", None)
    if name not in GENERATORS:
        hint = suggestion(name, GENERATORS)
        raise ValueError(f"no generator {name!r}; wanted one of {listing(GENERATORS)}{hint}")
    cls = GENERATORS[name]
    known = [*(field.name for field in fields(cls) if field.name != "digest"), "queries"]
    for option in options:
        if option not in known:
            hint = suggestion(option, known)
            raise ValueError(f"{name} has no option {option!r}; wanted {', '.join(known)}{hint}")
    made: KvList = _validated(name, cls, options)
    if queries is None:
        return made
    return QueryBlocks(made, _validated(f"{name}: queries", Tokens, queries))


def _validated(name: str, kind: Any, options: Any) -> Any:
    """Options as those of a list, or a number. Raises `ValueError`."""
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(map(str, first["loc"]))
        where = f"{name}: {option}" if option else name
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def list_text(value: Any) -> str:
    """A list as text that `kv_list` reads. Raises `ValueError` as that does."""
    kv_list(value)
    name, options = _parsed(value)
    return f"{name}({', '.join(f'{option}={given}' for option, given in options.items())})"


def _parsed(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Mapping):
        options = {str(key): option for key, option in value.items()}
        return str(options.pop("name", "")), options
    match = _CALL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("wanted a generator such as top_k(budget=2048, page=64)")
    options = {}
    for part in filter(None, (text.strip() for text in (match[2] or "").split(","))):
        option, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"found {part!r}, wanted option=value")
        options[option.strip()] = text.strip()
    return match[1], options
