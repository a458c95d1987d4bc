"""Reads request lengths from serving traces and samples the batch a server would be decoding.

Answers "which context lengths are in flight together?". Ignores arrival times, prefix sharing
(hash_ids) and admission: every in-flight request is drawn independently.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from leansim.errors import (
    ConfigError,
    Problem,
    UnknownNameError,
    WorkloadError,
    listing,
    suggestion,
)
from leansim.files import strict_json
from leansim.files.text import is_file, nearest_file, read_text

Lengths = NDArray[np.int64]
Fields = dict[str, tuple[Any, int]]  # column name -> (value, its column in the line, from 1)
Rows = Iterator[tuple[int, Fields | Problem]]  # (line, what stands there)

BUILTIN_FOLDER = Path(__file__).parent.parent / "data" / "traces"
MOST_TOKENS = 2**40
MOST_PROBLEMS = 16
MOST_BYTES = 2**28
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Schema:
    """A known layout: the columns that hold input and output tokens (no output: in flight)."""

    name: str
    input_key: str
    output_key: str | None

    @property
    def keys(self) -> list[str]:
        """The columns that a file of this layout must have."""
        return [self.input_key] + ([self.output_key] if self.output_key else [])


SCHEMAS = (
    Schema("Azure 2023", "ContextTokens", "GeneratedTokens"),
    Schema("Mooncake", "input_length", "output_length"),
    Schema("BurstGPT", "Request tokens", "Response tokens"),
    Schema("Vidur", "num_prefill_tokens", "num_decode_tokens"),
    Schema("plain lengths", "context_len", None),
)


@dataclass(frozen=True, eq=False)
class Trace:
    """Lengths of requests, in tokens, as read-only arrays of one entry per request.

    With `in_flight`, `input_len` holds context lengths already sampled from a running server, and
    `output_len` is zero.
    """

    name: str
    source: str
    input_len: Lengths
    output_len: Lengths
    in_flight: bool = False

    def __len__(self) -> int:
        return len(self.input_len)


@cache
def builtin_traces() -> tuple[str, ...]:
    """Return the names of the samples that come with leansim."""
    return tuple(sorted(path.stem for path in BUILTIN_FOLDER.glob("*.csv")))


def find_trace(name_or_path: str | Path) -> Path:
    """Return the file of a built-in sample's name, or the path itself if such a file exists.

    Raises `UnknownNameError` for neither.
    """
    if str(name_or_path) in (names := builtin_traces()):
        return BUILTIN_FOLDER / f"{name_or_path}.csv"
    if is_file(path := Path(name_or_path)):
        return path
    no_file = f"there is no such file{nearest_file(path)}" if path.suffix else ""
    raise UnknownNameError("trace", str(name_or_path), names, no_file)


def read_trace(path: Path) -> Trace:
    """Read a trace, recognised by its column names or JSON keys (see `SCHEMAS`), not its file name.

    CSV has a header line; JSONL has one object a line. Lines that are blank or start with # are
    skipped. Other columns are ignored. Raises `ConfigError` with file, line and column for files
    that cannot be read or recognised, and for lengths that are no whole numbers of tokens. A file
    that has not changed is not read again.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return _read(path)  # and say what is wrong
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _read_once(path: Path, _modified: int, _size: int) -> Trace:
    return _read(path)


def _read(path: Path) -> Trace:
    lines = _lines(path)
    if not lines:
        _fail(path, "file", "no lines but comments", "wanted a header and at least one request")
    first_line, first = lines[0]
    if first.startswith("{"):
        columns, rows = _json_keys(path, first_line, first), _json_rows(lines)
    else:
        columns, rows = [name for name, _ in _fields(first)], _csv_rows(lines)
    schema = _recognised(path, columns, first_line)
    lengths = _lengths(path, schema, rows)
    if not len(lengths):
        _fail(path, "file", "a header and no rows", "wanted at least one request", first_line)
    if schema.output_key and not lengths[:, 1].any():
        wanted = "wanted at least one request with an output"
        _fail(path, schema.output_key, "0 in every row", wanted, first_line)
    input_len, output_len = lengths.T.copy()
    input_len.setflags(write=False)
    output_len.setflags(write=False)
    return Trace(path.stem, str(path), input_len, output_len, schema.output_key is None)


@lru_cache(maxsize=256)
def sample_in_flight(trace: Trace, batch_size: int, seed: int) -> Lengths:
    """Return the context lengths (tokens, each at least 1) of a batch of requests being decoded.

    Each is a decode step drawn evenly from all steps of all requests. So a request is drawn in
    proportion to its output length, the time that it is in flight, and its context is its input
    plus a whole number drawn evenly from 0 up to, not including, its output length. A trace that
    is already in flight is drawn from evenly. Draws are with replacement.

    `seed` is that of numpy's default generator: the same seed gives the same batch, which is kept for
    the next kernel that wants it, and cannot be written to. Raises
    `WorkloadError` for a batch size below 1, a negative seed, or a trace with no decode steps.
    """
    if batch_size < 1 or seed < 0:
        found = f"batch_size {batch_size}, seed {seed}"
        raise WorkloadError(f"trace sample: found {found}; wanted at least 1 and at least 0")
    rng = np.random.default_rng(seed)
    steps = np.ones_like(trace.output_len) if trace.in_flight else trace.output_len
    ends = np.cumsum(steps)
    if not len(ends) or ends[-1] < 1:
        raise WorkloadError(f"trace {trace.name}: found no decode step; wanted an output length")
    drawn = rng.integers(0, ends[-1], batch_size)
    request = np.searchsorted(ends, drawn, side="right")
    step = drawn - (ends[request] - steps[request])
    lens = np.maximum(1, trace.input_len[request] + step)
    lens.setflags(write=False)
    return lens


def derive_sample(trace: Trace, count: int, seed: int, comments: Sequence[str] = ()) -> str:
    """Return the text of a plain-lengths CSV of `count` in-flight contexts of `trace`.

    The built-in samples were written with it; `comments` become the # lines at the top.
    """
    header = [f"# {line}".rstrip() for line in comments]
    contexts = [str(context) for context in sample_in_flight(trace, count, seed)]
    return "\n".join([*header, "context_len", *contexts, ""])


def _fail(path: Path, where: str, found: str, wanted: str, line: int = 1) -> NoReturn:
    raise ConfigError(str(path), [Problem(where, found, wanted, line, 1)])


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (line number, text) of all lines but blank ones and comments. Raises `ConfigError`."""
    text = read_text(path, "wanted a readable CSV or JSONL trace", MOST_BYTES)
    numbered = ((number, line.rstrip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _fields(line: str) -> list[tuple[str, int]]:
    """Return (text, column from 1) of the fields of a CSV line; columns suppose no quotes."""
    fields, column = [], 1
    try:
        texts = next(csv.reader([line]))
    except csv.Error:  # such as a field longer than the csv module takes
        texts = line.split(",")
    for text in texts:
        fields.append((text.strip(), column))
        column += len(text) + 1
    return fields


def _csv_rows(lines: Sequence[tuple[int, str]]) -> Rows:
    """Yield the rows under a header."""
    header = [name for name, _ in _fields(lines[0][1])]
    for number, line in lines[1:]:
        fields = _fields(line)
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            wanted = f"wanted {len(header)}, as in the header"
            yield number, Problem("row", f"{len(fields)} fields", wanted, number, 1)


def _json_rows(lines: Iterable[tuple[int, str]]) -> Rows:
    """Yield the objects of a JSONL file."""
    for number, line in lines:
        try:
            data = strict_json.parse(line, "line", number)
        except ConfigError as error:
            yield number, replace(error.problems[0], wanted="wanted one JSON object a line")
            continue
        if isinstance(data, dict):
            yield number, {key: (v, max(1, line.find(f'"{key}"') + 1)) for key, v in data.items()}
        else:
            found = f"a {type(data).__name__}"
            yield number, Problem("row", found, "wanted a JSON object", number, 1)


def _json_keys(path: Path, number: int, line: str) -> list[str]:
    """Return the keys of the first object of a JSONL file. Raises `ConfigError`."""
    _, fields = next(_json_rows([(number, line)]))
    if isinstance(fields, Problem):
        raise ConfigError(str(path), [fields])
    return list(fields)


def _recognised(path: Path, columns: list[str], line: int) -> Schema:
    """Return the layout whose columns are all here. Raises `ConfigError` for none, or several."""
    found = listing(repr(column[:40]) for column in columns)
    matches = [schema for schema in SCHEMAS if set(schema.keys) <= set(columns)]
    if len(matches) == 1 and all(columns.count(key) == 1 for key in matches[0].keys):
        return matches[0]
    if matches:
        names = ", ".join(schema.name for schema in matches)
        wanted = f"wanted each column once, of one layout only ({names})"
        _fail(path, "columns", found, wanted, line)
    nearest = max(SCHEMAS, key=lambda schema: _likeness(schema, columns))
    if _likeness(nearest, columns) < 0.5:
        layouts = "; ".join(f"{' and '.join(s.keys)} ({s.name})" for s in SCHEMAS)
        _fail(path, "columns", found, f"wanted one of: {layouts}", line)
    problems = []
    for key in (key for key in nearest.keys if key not in columns):
        near = _near(key, nearest, columns)
        text = f"{near!r}{suggestion(near, [key])}" if near else found
        wanted = f"wanted a column {key!r} ({nearest.name})"
        problems.append(Problem("columns", text, wanted, line, 1))
    raise ConfigError(str(path), problems)


def _near(key: str, schema: Schema, columns: list[str]) -> str | None:
    """Return the column that looks like a misspelling of `key`, if any."""
    others = [column for column in columns if column not in schema.keys]
    return next((column for column in others if suggestion(column, [key])), None)


def _likeness(schema: Schema, columns: list[str]) -> float:
    """Score how many of a layout's columns are here: 1 all, a misspelt one counting half."""
    exact = sum(key in columns for key in schema.keys)
    near = sum(_near(key, schema, columns) is not None for key in schema.keys if key not in columns)
    return (exact + near / 2) / len(schema.keys)


def _lengths(path: Path, schema: Schema, rows: Rows) -> Lengths:
    """Return [request, (input, output)] in tokens. Raises `ConfigError` with the first mistakes."""
    lengths: list[tuple[int, ...]] = []
    problems: list[Problem] = []
    for number, fields in rows:
        if isinstance(fields, Problem):
            problems.append(fields)
            continue
        row = [_tokens(key, fields, number) for key in schema.keys]
        bad = [value for value in row if isinstance(value, Problem)]
        good = [value for value in row if isinstance(value, int)]
        if not bad and not any(good):
            where, column = " + ".join(schema.keys), fields[schema.input_key][1]
            bad = [Problem(where, "0", "wanted at least 1 token", number, column)]
        problems += bad
        lengths.append((*good, 0)[:2])
    if len(problems) > MOST_PROBLEMS:
        more = len(problems) - MOST_PROBLEMS
        last = problems[-1].line
        rest = Problem("file", f"{more} more like these", "wanted none", last, 1)
        problems = [*problems[:MOST_PROBLEMS], rest]
    if problems:
        raise ConfigError(str(path), problems)
    return np.array(lengths, dtype=np.int64).reshape(-1, 2)


def _tokens(key: str, fields: Fields, line: int) -> int | Problem:
    """Return one length, or what is wrong with it."""
    if key not in fields:
        wanted = f"wanted it in every row{suggestion(key, fields)}"
        return Problem(key, "no such key", wanted, line, 1)
    value, column = fields[key]
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= MOST_TOKENS:
        wanted = f"wanted a whole number of tokens from 0 to {MOST_TOKENS}"
        return Problem(key, repr(value)[:60], wanted, line, column)
    return value
