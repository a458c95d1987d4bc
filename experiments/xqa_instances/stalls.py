"""Lists what ptxas scheduled: issue stalls summed up to each access to memory and each meeting of warps.

python experiments/xqa_instances/stalls.py KERNEL.cubin [FIRST LAST]    (addresses, hexadecimal)

Wants `nvdisasm` (nvidia-cuda-nvdisasm on PyPI). An instruction of 128 bits holds how many clocks its
warp waits before the next (bits 105 to 108): what fixed latencies need, nothing of what memory takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

_LINE = re.compile(r"\s*/\*([0-9a-f]{4,5})\*/\s+(.*?);?\s*/\* 0x[0-9a-f]{16} \*/")
_UPPER = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_MEETS = ("BAR", "SYNCS", "DEPBAR", "MEMBAR", "ATOM", "UTMALDG", "EXIT", "BRA")
_COUNTED = (
    "LDG",
    "LDS",
    "LDSM",
    "LDL",
    "STG",
    "STS",
    "STSM",
    "LDGSTS",
    "SHFL",
    "MUFU",
    "MOVM",
    "HMMA",
    "QGMMA",
)


def instructions(cubin: str) -> list[tuple[int, str, int]]:
    """Address, text and stall in clocks of each."""
    listing = subprocess.run(["nvdisasm", "-hex", cubin], capture_output=True, text=True, check=True)
    found: list[tuple[int, str, int]] = []
    begun: tuple[int, str] | None = None
    for line in listing.stdout.splitlines():
        if match := _LINE.match(line):
            begun = int(match[1], 16), match[2].strip()
        elif begun and (match := _UPPER.match(line)):
            found.append((*begun, int(match[1], 16) >> 41 & 15))
            begun = None
    return found


def opcode(text: str) -> str:
    """The operation, without predicate and modifiers."""
    words = text.split()
    return (words[1] if words[0].startswith("@") else words[0]).split(".")[0]


def main(cubin: str, first: str = "0", last: str = "fffff") -> None:
    """Print a line for each place where a warp may have to wait."""
    clocks = count = 0
    between: Counter[str] = Counter()
    for address, text, stall in instructions(cubin):
        if not int(first, 16) <= address < int(last, 16):
            continue
        clocks, count = clocks + stall, count + 1
        name = opcode(text)
        if name in _COUNTED:
            between[name] += 1
        if name.startswith(_MEETS):
            waits = " ".join(f"{key}{n}" for key, n in between.items())
            print(f"{address:05x}  {count:5d} instructions  {clocks:6d} clocks  [{waits}]  {text[:60]}")
            between.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
