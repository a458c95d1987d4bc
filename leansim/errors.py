"""What can go wrong, by name. Bad input raises one of these; `assert` is for impossible states."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class LeansimError(Exception):
    """Base of every error a user can cause; the command line prints it and exits with 2."""


class WorkloadError(LeansimError):
    """The workload contradicts itself: heads that do not divide, a zero length, an unknown dtype."""


class PairingError(LeansimError):
    """A kernel that cannot run this workload on this device (architecture, dtype, shared memory)."""


class ScheduleError(LeansimError):
    """A schedule that does not cover its tiles exactly once, or could never finish."""


class PartitionerError(LeansimError):
    """A partitioner that is unknown, badly configured, or refuses the workload."""


class FaultError(PartitionerError):
    """A partitioner that crashed, or gave something that is no schedule of its grid."""


class SetupError(LeansimError):
    """A file that is read whatever a point names is broken: no point is to blame."""


class OutOfRangeError(LeansimError):
    """Numbers so large or small that nothing can be computed with them."""


class NumericsError(LeansimError):
    """A replayed schedule that does not reproduce reference attention."""


class StoreError(LeansimError):
    """Stored results that are missing, incomplete, or of another version."""


class GpuError(LeansimError):
    """Kernels that cannot run here, do not fit the device, or do not give attention."""


class WorkerError(LeansimError):
    """Worker processes that cannot start, be reached, or agree with this one about a point."""


class UnknownNameError(LeansimError):
    """A name that nothing answers to."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """`kind` is the thing's word ("device"), `known` the names that would have worked.

        `hint` says what else might have been meant.
        """
        names = sorted(known)
        self.wanted = f"{suggestion(name, names)}; known: {listing(names)}"
        self.wanted += f"; {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r}{self.wanted}")
        self.kind, self.name, self.known, self.hint = kind, name, names, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.name, self.known, self.hint)


@dataclass(frozen=True)
class Problem:
    """One mistake in a file: where it is, what is there, what was wanted."""

    where: str
    found: str
    wanted: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":" if self.line is None else f":{self.line}:{self.column}:"
        return f"{place} {self.where}: found {self.found}; {self.wanted}"


class ConfigError(LeansimError):
    """All the mistakes of one file or command line, reported together."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """`source` is the file's path or a name such as "command line"."""
        ordered = sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))
        super().__init__("\n".join(f"{source}{problem}" for problem in ordered))
        self.source, self.problems = source, tuple(ordered)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems)


def unknown(kind: str, names: Sequence[str], known: Iterable[str]) -> LeansimError:
    """The error of names that nothing answers to: all of them, with what each might have been."""
    known = sorted(set(known))
    errors = [UnknownNameError(kind, name, known) for name in names]
    if len(errors) == 1:
        return errors[0]
    wanted = f"wanted a {kind}"
    return ConfigError("arguments", [Problem(kind, repr(e.name), wanted + e.wanted) for e in errors])


_OTHER_NAMES = {
    **dict.fromkeys(("bf16", "bf_16", "brain_float", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float", "single", "torch.float32"), "float32"),
    **dict.fromkeys(("float8", "e4m3", "e5m2", "fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "int8"), "fp8"),
}


def suggestion(name: str, known: Iterable[str], cutoff: float = 0.55) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest of `known`, or an empty string.

    Other names of a thing count before what is spelt alike: `fp16` is float16, not fp8.
    """
    known = list(known)
    other = _OTHER_NAMES.get(name.lower().replace("-", "_"))
    if other in known:
        return f" (did you mean {other!r}?)"
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def listing(names: Iterable[str], most: int = 24) -> str:
    """Join names for an error text, cut after `most` of them."""
    names = list(names)
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
