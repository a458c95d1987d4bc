"""A unit is part of a number's name; here is what numbers so named may be.

The limits are far from any GPU there is: beyond them a number was given in another unit.
"""

from __future__ import annotations

from collections.abc import Iterator

from leansim.specs.base import Keys, SourcedSpec

# How a name ends, the least and the most such a number is, and what to say of another.
_UNITS = (
    ("dram_bytes", 1e6, 1e15, "bytes, as 80e9 for 80 GB"),
    ("l2_bytes", 1e3, 1e12, "bytes, as 50e6 for 50 MB"),
    ("bytes_per_sm", 1e3, 1e9, "bytes, as 228e3 for 228 kB"),
    ("bytes_per_s", 1e8, 1e19, "bytes per second, as 4.8e12 for 4,800 GB/s"),
    ("_hz", 1e7, 1e11, "hertz, as 1.98e9 for 1,980 MHz"),
    ("_s", 0.0, 1.0, "seconds, as 5e-6 for 5 us"),
    ("seconds", 0.0, 1.0, "seconds, as 5e-6 for 5 us"),
)


def of_other_units(spec: SourcedSpec) -> Iterator[tuple[Keys, float, str]]:
    """Path, value and what was wanted of each number that is not in the unit of its name."""
    for path, value in spec.said():
        for low, high, unit in _units_of(path):
            if not low <= value <= high:
                yield path, value, f"wanted {unit}"


def _units_of(path: Keys) -> Iterator[tuple[float, float, str]]:
    """The unit that the last name on a path to say one says; architectures stand behind it."""
    for name in reversed(path):
        for ending, low, high, unit in _UNITS:
            if name.endswith(ending):
                yield low, high, unit
                return
