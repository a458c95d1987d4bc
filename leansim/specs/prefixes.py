"""Which requests begin with the same tokens: a tree of shared prefixes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from leansim.arrays import IntArray
from leansim.specs.base import Spec, TokenCount, Whole

MOST_REQUESTS = 2**20
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


class Prefix(NamedTuple):
    """Tokens `[begin, end)` that some requests of a batch have in common; their numbers rise."""

    begin: int
    end: int
    requests: tuple[int, ...]


@dataclass(frozen=True)
class Prefixes:
    """What requests of a batch share: a tree of prefixes, those of a request one behind the other."""

    tree: tuple[Prefix, ...]

    @property
    def spared_tokens(self) -> int:
        """Tokens that need not be read again, as other requests have them."""
        return sum((one.end - one.begin) * (len(one.requests) - 1) for one in self.tree)

    def spared_from(self, first: IntArray) -> int:
        """The same where each request has its tokens from `first[request]` on alone."""
        begins = [np.clip(first[list(one.requests)], one.begin, one.end) for one in self.tree]
        kept = [one.end - begin for one, begin in zip(self.tree, begins, strict=True)]
        return sum(int(some.sum() - some.max()) for some in kept)


class SharedPages(Prefixes):
    """The same where each request reads its context for itself: they have the pages in common."""


def _requests(value: Any) -> Any:
    """Read request numbers: a list, or text such as `0-15` or `0-3, 8`."""
    if not isinstance(value, str):
        return value
    found: list[int] = []
    for part in value.replace(",", " ").split():
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or match[1]) >= MOST_REQUESTS:
            raise ValueError(f"found {part!r}, wanted request numbers such as 0-15 or 0-3, 8")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


class PrefixNode(Spec):
    """A prefix as it is written down: `tokens` behind those of the node it stands in."""

    tokens: TokenCount
    requests: Annotated[tuple[Whole, ...], BeforeValidator(_requests), Field(min_length=1)]
    prefixes: tuple[PrefixNode, ...] = ()


_TREE = TypeAdapter(tuple[PrefixNode, ...])


def tree_of(text: str) -> tuple[Prefix, ...]:
    """Every prefix of a tree written as JSON. Raises `ValueError`."""
    try:
        return flattened(_TREE.validate_json(text))
    except (ValidationError, RecursionError) as error:
        wanted = 'such as [{"tokens": 4096, "requests": "0-15"}]'
        raise ValueError(f"wanted nodes {wanted}: {_reason(error)}") from None


def tree_text(value: Any) -> str:
    """A tree as JSON, as flags, cells and YAML give it. Raises `ValueError` as `tree_of`."""
    text = value if isinstance(value, str) else json.dumps(value)
    tree_of(text)
    return text


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'found'}: {first['msg']}"


def flattened(nodes: Sequence[PrefixNode], begin: int = 0) -> tuple[Prefix, ...]:
    """Every prefix of a tree, a node before those that stand in it; one of a single request is none."""
    found: list[Prefix] = []
    for node in nodes:
        if len(node.requests) > 1:
            found.append(Prefix(begin, begin + node.tokens, tuple(sorted(node.requests))))
            found.extend(flattened(node.prefixes, begin + node.tokens))
    return tuple(found)


def groups(batch_size: int, tokens: int, group: int) -> tuple[Prefix, ...]:
    """Each `group` requests in a row share their first `tokens`; one that is left alone shares none."""
    firsts = range(0, batch_size, group)
    members = (range(first, min(first + group, batch_size)) for first in firsts)
    return tuple(Prefix(0, tokens, tuple(some)) for some in members if len(some) > 1)


def prefix_problems(prefixes: Sequence[Prefix], own: Sequence[int]) -> Iterator[str]:
    """What is wrong with prefixes of requests that may share at most `own` tokens each.

    A prefix begins at 0 or where another one ends that has all its requests, and those of a request
    follow one another.
    """
    of_request: dict[int, list[Prefix]] = {}
    for i, prefix in enumerate(prefixes):
        requests = prefix.requests
        if not 0 <= prefix.begin < prefix.end:
            yield f"prefixes[{i}] holds tokens [{prefix.begin}, {prefix.end}), wanted at least one"
        if not requests or any(a >= b for a, b in pairwise(requests)):
            yield f"prefixes[{i}] is of requests {list(requests[:8])}, wanted rising numbers"
        elif not 0 <= requests[0] <= requests[-1] < len(own):
            wrong = requests[0] if requests[0] < 0 else requests[-1]
            yield f"prefixes[{i}] is of request {wrong}, wanted 0 to {len(own) - 1}"
        else:
            for request in requests:
                of_request.setdefault(request, []).append(prefix)
    found: dict[str, list[int]] = {}
    for request, mine in of_request.items():
        mine.sort()
        for problem in _chain_problems(mine, own[request]):
            found.setdefault(problem, []).append(request)
    for problem, members in found.items():
        others = f" and {len(members) - 1} others" if len(members) > 1 else ""
        yield f"request {members[0]}{others}: {problem}"


def _chain_problems(chain: Sequence[Prefix], own: int) -> Iterator[str]:
    """What is wrong with the prefixes of one request, sorted."""
    expected = 0
    for above, below in pairwise((None, *chain)):
        assert below is not None
        if below.begin != expected:
            yield f"shares tokens from {below.begin}, wanted from {expected}"
        elif above is not None and not set(below.requests) <= set(above.requests):
            yield (
                f"prefix [{below.begin}, {below.end}) has requests that the one before it, "
                f"[{above.begin}, {above.end}), has not"
            )
        expected = below.end
    if expected > own:
        yield f"shares {expected} tokens, wanted at most {own}: new ones are its own"
