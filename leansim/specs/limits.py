"""Which calls a kernel takes, and what runs instead of it for others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import model_validator

from leansim.errors import PairingError, listing
from leansim.specs.base import Count, Source, Spec
from leansim.specs.workload import Workload

Quantity = Literal["group_size", "head_dim", "page_tokens"]
_WORDS: dict[str, str] = {
    "group_size": "{} query heads per KV head",
    "head_dim": "head dim {}",
    "page_tokens": "pages of {} tokens",
}


class Limit(Spec):
    """What a quantity of the calls that a kernel's host code gives it is: one of four.

    At `most` so much, at `least` so much, a `multiple_of`, or `one_of`. Other calls are refused;
    `instead` says what the host runs for them. Where another framework runs the kernel all the same,
    `kept_by` names it, and the calls are answered.
    """

    of: Quantity
    most: Count | None = None
    least: Count | None = None
    multiple_of: Count | None = None
    one_of: tuple[Count, ...] | None = None
    instead: str | None = None
    kept_by: str | None = None
    source: Source

    @model_validator(mode="after")
    def _says_one_thing(self) -> Limit:
        said = (self.most, self.least, self.multiple_of, self.one_of)
        if sum(x is not None for x in said) != 1:
            raise ValueError("wanted one of most, least, multiple_of and one_of")
        return self

    def holds(self, workload: Workload) -> bool:
        """Whether a call is within the limit."""
        value = getattr(workload, self.of)
        if self.most is not None:
            return bool(value <= self.most)
        if self.least is not None:
            return bool(value >= self.least)
        if self.multiple_of is not None:
            return bool(value % self.multiple_of == 0)
        return value in (self.one_of or ())

    def told(self, workload: Workload) -> str:
        """What a call asks for, and what there is."""
        value = getattr(workload, self.of)
        if self.one_of is not None:
            wanted = f"one of {listing(map(str, self.one_of))}"
        elif self.multiple_of is not None:
            nearest = -(-value // self.multiple_of) * self.multiple_of
            wanted = f"a multiple of {self.multiple_of}, such as {nearest}"
        elif self.least is not None:
            wanted = f"at least {self.least}"
        else:
            wanted = f"at most {self.most}"
        return f"{_WORDS[self.of].format(value)}, wanted {wanted}"


def refuse_beyond(limits: Iterable[Limit], workload: Workload, kernel: str) -> None:
    """Raise `PairingError` for a call beyond a limit, for which nobody runs the kernel."""
    for limit in limits:
        if limit.kept_by is None and not limit.holds(workload):
            runs = f"; {limit.instead} runs instead" if limit.instead else ""
            raise PairingError(f"kernel {kernel!r} has no instance for {limit.told(workload)}{runs}")


def instead(limits: Iterable[Limit], workload: Workload) -> str:
    """What runs for a call instead of a kernel that some run all the same; empty within the limits."""
    return "; ".join(
        f"{limit.told(workload)}: {limit.instead} runs instead, but for {limit.kept_by}"
        for limit in limits
        if limit.kept_by is not None and not limit.holds(workload)
    )
