"""The base of every file-backed class: strict, frozen, and with a source for each number."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

DType = Literal["float32", "float16", "bfloat16", "fp8"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}
DTYPES: tuple[str, ...] = get_args(DType)

SourceLabel = Literal["datasheet", "measured", "fitted", "assumed"]
SOURCE_LABELS: tuple[str, ...] = get_args(SourceLabel)

_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
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
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**40), BeforeValidator(refuse_truth)]


class Spec(BaseModel):
    """An immutable record; unknown keys are errors. Numbers may be text, as CSV and flags give them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=False)


class SourcedSpec(Spec):
    """A record whose numbers each name where they come from.

    `sources` maps each numeric field to "<label>: <reference>", label one of datasheet, measured,
    fitted or assumed. The two key sets must match.
    """

    name: str
    description: str = ""
    sources: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        """Fields that are names or structure, not numbers, and so need no source."""
        return frozenset({"name", "description", "sources"})

    @model_validator(mode="after")
    def _each_number_has_a_source(self) -> SourcedSpec:
        numbers = {key for key in self.model_fields_set if getattr(self, key) is not None}
        numbers -= self.unsourced()
        if missing := sorted(numbers - set(self.sources)):
            raise ValueError(f"wanted a source for each number, none for: {', '.join(missing)}")
        if extra := sorted(set(self.sources) - numbers):
            raise ValueError(f"sources for numbers that are not here: {', '.join(extra)}")
        for key, text in self.sources.items():
            if text.split(":", 1)[0] not in SOURCE_LABELS or not text.partition(":")[2].strip():
                wanted = ", ".join(SOURCE_LABELS)
                raise ValueError(
                    f"source of {key} is {text!r}; wanted '<label>: reference', label in {wanted}"
                )
        return self

    def source_counts(self) -> dict[str, int]:
        """Return how many numbers carry each label."""
        labels = [text.split(":", 1)[0] for text in self.sources.values()]
        return {label: labels.count(label) for label in SOURCE_LABELS}
