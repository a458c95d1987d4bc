"""Decode and prefill over several GPUs: heads divided, contexts divided, KV going round a ring.

    python experiments/many_gpus/run.py [-o FOLDER]

Writes RESULTS.md and expected.csv (the pins), here or into another folder, in seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # for parts of pages

import decode  # noqa: E402
import latent  # noqa: E402
from calls import Attention, Steps, attention_of, pins, steps  # noqa: E402

from leansim.answers import render  # noqa: E402
from leansim.files.strict_yaml import read  # noqa: E402
from leansim.files.writing import write_whole  # noqa: E402

HEAD = "Written by `run.py`; do not edit. README.md says what is asked, and what is not modelled."


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=HERE, help="where to write; here by default")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    attention, whole = attention_of(decode.calls()), steps(latent.calls())
    write_whole(out / "expected.csv", render(pins(attention, whole), "csv") + "\n")
    write_whole(out / "RESULTS.md", results(attention, whole))


def published() -> dict[str, Any]:
    """What others published."""
    data: dict[str, Any] = read(HERE / "published.yaml").data
    return data


def results(attention: Attention, whole: Steps) -> str:
    """RESULTS.md."""
    said = published()
    parts = (decode.part(attention, said["tree_over_ring"]), latent.part(whole, said))
    return "\n\n".join([f"# Results\n\n{HEAD}", *(part.written for part in parts)]) + "\n"


if __name__ == "__main__":
    main()
