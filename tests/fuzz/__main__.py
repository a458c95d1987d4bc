"""`python -m tests.fuzz [READER ...] [--seconds 600]`: exit code 1 where something is found."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .readers import READERS
from .running import child, run


def main() -> int:
    """Fuzz readers one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", choices=[[], *READERS], help="all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each reader")
    parser.add_argument("--first", type=int, default=None, help="number of the first batch of inputs")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    first = int(time.time()) if asked.first is None else asked.first
    if asked.child:
        child(asked.readers[0], asked.seconds, first, asked.child)
        return 0
    total = 0
    for reader in asked.readers or READERS:
        found = run(reader, asked.seconds, first)
        counts = dict(sorted(found["counts"].items(), key=lambda item: -item[1]))
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        print(
            f"{reader}: {sum(counts.values()):,} inputs ({said}), {len(found['finds'])} finds",
            flush=True,
        )
        for one in found["finds"]:
            print(f"  {one['file']}: {one['what']}", flush=True)
        total += len(found["finds"])
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
