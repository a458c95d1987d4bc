"""Inputs that are nearly right: a file of the project's own, with a few edits of its tree or text."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Path = tuple[Any, ...]

WORDS = (
    "fa2", "lean", "flash_decoding", "fa3", "h100_sxm", "a100_sxm_80gb", "llama_3_8b", "azure_2023_conv",
    "stream_k", "lean+flash_decoding", "float32", "bfloat16", "bf16", "fp8", "sm_90", "sm_80", "warm",
    "graph", "always", "pipelined", "serial_chain", "table", "name", "base", "options", "num_splits",
    "full_attention", "sliding_attention", "text_config", "device.num_sms", "kernel.start.overhead_s",
)  # fmt: skip
NUMBERS = (
    0, 1, 2, 3, 7, 64, 128, 1000, -1, 2**20, 2**31, 2**40, 2**53, 2**63 - 1, 2**63, 10**30,
    10**400, 0.0, 0.5, -0.0, 1.5, 1e-300, 1e-12, 1e9, 1e18, 1e300,
)  # fmt: skip
TEXTS = (
    "", " ", "true", "no", "null", "1__0", "010", "0x10", "1e400", "inf", "nan", "1k", "32k", "1M",
    "1 2 3", "1,2,3", "9" * 400, "9" * 5000, "a\0b", "../x", "/", "/dev/zero", "/dev/null",
    "n" * 5000, "=1+1",
    "a|b\nc", "\x1b[31m", "\ufeff", "\u2028", "{a: 1}", "[1, 2]", '{"a": [', "measured: x", "assumed:",
    "x.yaml", "config.json", "p.csv", "\u0663", "K" * 70, "datasheet: y",
)  # fmt: skip
VALUES = (*WORDS, *NUMBERS, *TEXTS, None, True, False)
NESTED = ([], {}, [[]], [{}], {"a": {}}, {"name": "fa2"}, [1, [2]], {"sm_90": 1}, [1] * 300)
SNIPPETS = (
    "\0", "\t", "---\n", "...\n", "&a ", "*a", "&a [*a, *a]", "!!python/object:os.system ", "? [", ": ",
    "- ", "[" * 200, "{a: " * 200, "<<: *a\n", "|\n", ">-\n", "%YAML 1.2\n", "#", "'", '"',
    '"\\ud800"', "\\u0000", "\r", "\r\n", "\ufeff", "\x85", "\x1b", ",", "\n", "\n\n",
    '"""', ";", "}", "]", "1e999", "9" * 5000,
)  # fmt: skip
RAW = (b"\xff", b"\xfe\xff", b"\xc3", b"\xed\xa0\x80", b"\0\0", b"\x80", b"\xef\xbb\xbf")

value = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(NESTED).map(copy.deepcopy),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
cell = st.one_of(st.sampled_from(VALUES), st.integers(-9, 99), st.text(max_size=6)).map(
    lambda found: "" if found is None else str(found)
)


def paths(tree: Any, path: Path = ()) -> list[Path]:
    """The path of every value of a tree, its own first."""
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        found += paths(item, (*path, key))
    return found


def edited_tree(draw: Draw, tree: Any) -> Any:
    """A tree with a few values changed, lost, doubled, renamed, nested or taken from elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(0, 4))):
        known = paths(tree)[1:]
        if not known:
            return draw(value)
        *way, last = draw(st.sampled_from(known))
        holder = tree
        for key in way:
            holder = holder[key]
        _edit(draw, holder, last, tree, known)
    return tree


def _edit(draw: Draw, holder: Any, key: Any, tree: Any, known: list[Path]) -> None:
    kind = draw(st.sampled_from(("value", "value", "lose", "add", "rename", "nest", "swap", "scale")))
    if kind == "value":
        holder[key] = draw(value)
    elif kind == "lose":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)))] = draw(value)
    elif kind == "add":
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "rename" and isinstance(holder, dict):
        holder[str(key)[:-1] + draw(st.sampled_from(("", "x", "\0", " ")))] = holder.pop(key)
    elif kind == "nest":
        holder[key] = draw(st.sampled_from(("list", "dict")))
        holder[key] = [copy.deepcopy(holder[key])] if holder[key] == "list" else {str(key): 1}
    elif kind == "swap":
        other = tree
        for part in draw(st.sampled_from(known)):
            other = other[part]
        holder[key] = copy.deepcopy(other)
    elif isinstance(holder[key], float) or (type(holder[key]) is int and abs(holder[key]) < 2**64):
        holder[key] = holder[key] * draw(st.sampled_from((-1, 0, 1000, 0.001, 10**9, 1e-9)))


def edited_text(draw: Draw, text: str) -> bytes:
    """A text with, now and then, something put in, cut out, doubled or cut off, and bytes of no text."""
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 2)))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 30)))
        kind = draw(st.sampled_from(("put", "put", "cut", "double", "end")))
        middle = {"put": draw(st.sampled_from(SNIPPETS)), "double": 2 * text[start:stop]}.get(kind, "")
        text = (
            text[:start] + middle + ("" if kind == "end" else text[start if kind == "put" else stop :])
        )
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.sampled_from(RAW)) + content[at:]
    return content


def yaml_of(draw: Draw, tree: Any) -> bytes:
    """Edited YAML."""
    tree = edited_tree(draw, tree)
    return edited_text(draw, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def json_of(draw: Draw, tree: Any) -> bytes:
    """Edited JSON."""
    return edited_text(
        draw, json.dumps(edited_tree(draw, tree), indent=draw(st.sampled_from((None, 1))))
    )


def csv_of(draw: Draw, rows: list[list[str]], columns: tuple[str, ...] = ()) -> bytes:
    """An edited CSV: cells, columns and rows changed, lost or doubled; `columns` may come to it."""
    rows = copy.deepcopy(rows)
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.integers(0, len(rows) - 1))
        at = draw(st.integers(0, max(0, len(rows[row]) - 1)))
        kind = draw(st.sampled_from(("cell", "cell", "cell", "lose", "row", "column")))
        if kind == "cell" and rows[row]:
            rows[row][at] = draw(cell)
        elif kind == "lose" and rows[row]:
            del rows[row][at]
        elif kind == "row":
            rows.insert(row, list(rows[row]))
        elif kind == "column":
            name = draw(st.one_of(st.sampled_from(columns or WORDS), st.sampled_from(WORDS)))
            rows = [[*line, draw(cell) if i else name] for i, line in enumerate(rows)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return edited_text(draw, text.getvalue())
