"""Measures on a GPU: micro-measurements, then the campaign, into CSVs in a folder beside this file.

One command on a machine with an NVIDIA GPU, within a budget; the same command goes on where it stopped.
`--rehearse` runs the same steps in Triton's interpreter, on tiny shapes, and times nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "measured"


def main() -> int:
    """Measure, and return what a shell is to be told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=1500.0, help="seconds for all of it (1500)")
    parser.add_argument("--out", type=Path, help="folder for the CSVs (measured/)")
    parser.add_argument("--rehearse", action="store_true", help="in the interpreter; wants --out")
    parser.add_argument("--device", help="the GPU in configs/devices; recognised by default")
    given = parser.parse_args()
    if given.rehearse and given.out is None:
        parser.error("--rehearse: found no --out; wanted a folder for what a rehearsal writes")
    out = given.out or FOLDER
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    options = ["--interpret"] if given.rehearse else []
    options += ["--device", given.device] if given.device else []
    micro, points = out / "micro.csv", out / "triton_campaign.csv"
    codes = []
    if not micro.exists():
        codes.append(measure("micro", "-o", str(micro), *options))
    left_s = max(0.0, given.budget_s - (time.monotonic() - start))
    codes.append(measure("campaign", "-o", str(points), "--budget-s", f"{left_s:.0f}", *options))
    return max(codes)


def measure(*arguments: str) -> int:
    """Run `leansim measure` in a process of its own; returns its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "leansim", "measure", *arguments], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
