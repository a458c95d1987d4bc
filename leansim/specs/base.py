"""The base of every file-backed class: strict, frozen, and with a source for each number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from leansim.errors import listing, suggestion

_It = TypeVar("_It")

DType = Literal["float32", "float16", "bfloat16", "fp8"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}
DTYPES: tuple[str, ...] = get_args(DType)

# How kernels are issued: replayed in a CUDA graph, one by one, or with programmatic dependent launch.
LaunchMode = Literal["graph", "stream", "pdl"]

SourceLabel = Literal["datasheet", "measured", "counted", "fitted", "assumed"]
SOURCE_LABELS: tuple[str, ...] = get_args(SourceLabel)

Keys = tuple[str, ...]

_TOKENS = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kKmM]?)")
_MULTIPLIER = {"": 1, "k": 1024, "m": 1024**2}


def refuse_truth(value: Any) -> Any:
    """Refuse true and false where a number is wanted; Python takes them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("wanted a number, not true or false")
    return value


def parse_tokens(value: Any) -> Any:
    """Read a token count: 32768, "32k" (x1024) or "1M" (x1024 squared); other values pass through."""
    if not isinstance(value, str):
        return refuse_truth(value)
    match = _TOKENS.fullmatch(value.strip())
    if match is None:
        raise ValueError("wanted a token count such as 4096, 32k or 1M")
    tokens = float(match[1]) * _MULTIPLIER[match[2].lower()]
    if tokens != int(tokens):
        raise ValueError("wanted a whole number of tokens")
    return int(tokens)


_TOKEN_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": f"^{_TOKENS.pattern}$"},
    ]
}
TokenCount = Annotated[
    int, Field(ge=1, le=2**40), BeforeValidator(parse_tokens), WithJsonSchema(_TOKEN_SCHEMA)
]
# Every number of a record is one of these, so that none takes true for 1.
Number = Annotated[float, BeforeValidator(refuse_truth)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Whole = Annotated[int, BeforeValidator(refuse_truth)]
WholeNumber = Annotated[Whole, Field(ge=0, le=2**40)]
Count = Annotated[Whole, Field(ge=1, le=2**40)]
# A seed of numpy's generator that every format of results can hold.
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]


class Spec(BaseModel):
    """An immutable record; unknown keys are errors. Numbers may be text, as CSV and flags give them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=False,
        defer_build=True,  # to when one is first made: most commands make few kinds
    )  # fmt: skip


def numbers(value: Any) -> list[tuple[Keys, float]]:
    """Each number in a record, mapping or list behind its path: keys, without positions in lists.

    A nested record with sources of its own answers for its numbers itself.
    """
    found: list[tuple[Keys, float]] = []
    _collect(value, (), found)
    return found


def _collect(value: Any, way: Keys, found: list[tuple[Keys, float]]) -> None:
    # The frequent kinds come first: each override of a point comes by here.
    if isinstance(value, int | float):
        if not isinstance(value, bool):
            found.append((way, value))
    elif isinstance(value, tuple | list):
        for item in value:
            _collect(item, way, found)
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(item, (*way, str(key)), found)
    elif isinstance(value, Spec) and not (way and isinstance(value, SourcedSpec)):
        for key, item in value.__dict__.items():
            if key in value.model_fields_set:
                _collect(item, (*way, key), found)


def source_key(sources: Mapping[str, str], path: Keys) -> str | None:
    """The longest key of `sources` at or above a number, the number's source, or None."""
    keys = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((key for key in keys if key in sources), None)


def sourced_anew(sources: Mapping[str, str], path: str, text: str) -> dict[str, str]:
    """Sources once all numbers at or below `path` come from elsewhere."""
    kept = {key: old for key, old in sources.items() if not f"{key}.".startswith(f"{path}.")}
    return {**kept, path: text}


def _labelled(text: str) -> str:
    label, _, reference = text.partition(":")
    if label not in SOURCE_LABELS or not reference.strip():
        hint = "" if label in SOURCE_LABELS else suggestion(label, SOURCE_LABELS)
        raise ValueError(f"wanted '<label>: reference', label in {', '.join(SOURCE_LABELS)}{hint}")
    return text


Source = Annotated[str, AfterValidator(_labelled)]


class Same(Generic[_It]):
    """An object that equals itself alone, to keep what was worked out for it.

    Comparing all numbers of a device or kernel takes longer than most that is worked out.
    """

    __slots__ = ("it",)

    def __init__(self, it: _It) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


class SourcedSpec(Spec):
    """A record whose numbers each name where they come from.

    `sources` maps a key path (`combine`, `combine.overhead_s.sm_90`) to "<label>: <reference>", for all
    numbers below it that no longer path names. Positions in lists are no part of a path: `tiles.threads`
    are the threads of all tiles. Labels:

    - `datasheet`: its maker, or a document about it, says so;
    - `measured`: read off a clock or a meter;
    - `counted`: read in source or machine code, or worked out from what is;
    - `fitted`: chosen so that a prediction meets what was measured, by a calibration or by hand; the
      reference names the rows, which are no test of it any more;
    - `assumed`: carried over from something alike, or guessed.
    """

    name: str
    description: str = ""
    sources: dict[str, Source] = Field(default_factory=dict)

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Fields that are names or structure, not numbers, and so need no source."""
        return frozenset({"name", "description", "sources"})

    @classmethod
    def groups(cls) -> frozenset[str]:
        """Fields that a file lays over those of its base number by number."""
        return frozenset()

    @model_validator(mode="after")
    def _each_number_has_a_source(self) -> SourcedSpec:
        paths = dict.fromkeys(path for path, _ in self.said())
        missing = [path for path in paths if source_key(self.sources, path) is None]
        if missing:
            partly = {key.split(".")[0] for key in self.sources}
            names = sorted({".".join(path) if path[0] in partly else path[0] for path in missing})
            raise ValueError(f"wanted a source for each number, none for: {listing(names)}")
        known = {".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}
        if extra := sorted(set(self.sources) - known):
            hint = suggestion(extra[0], sorted(known))
            raise ValueError(f"sources for numbers that are not here: {listing(extra)}{hint}")
        return self

    def said(self) -> list[tuple[Keys, float]]:
        """Each number that is said here and needs a source, behind its path."""
        wanted = self.model_fields_set - self.unsourced()
        return numbers({key: value for key, value in self.__dict__.items() if key in wanted})

    def numbers_by_source(self) -> dict[str, list[tuple[Keys, float]]]:
        """Keys and value of the numbers that each source answers for, in the order of `sources`."""
        found: dict[str, list[tuple[Keys, float]]] = {key: [] for key in self.sources}
        for path, value in self.said():
            found[source_key(self.sources, path) or ""].append((path, value))
        return found

    def source_counts(self, but: frozenset[str] = frozenset()) -> dict[str, int]:
        """Return how many numbers carry each label, those of nested records included.

        Numbers of the fields `but` are left out.
        """
        counts = dict.fromkeys(SOURCE_LABELS, 0)
        for key, found in self.numbers_by_source().items():
            if key.partition(".")[0] not in but:
                counts[self.sources[key].partition(":")[0]] += len(found)
        for nested in self.nested():
            for label, count in nested.source_counts().items():
                counts[label] += count
        return counts

    def nested(self, field: str | None = None) -> list[SourcedSpec]:
        """Records in lists of this one, or in one of its lists, that have sources of their own."""
        lists = self.__dict__.values() if field is None else (self.__dict__[field],)
        items = (item for value in lists if isinstance(value, tuple) for item in value)
        return [item for item in items if isinstance(item, SourcedSpec)]
