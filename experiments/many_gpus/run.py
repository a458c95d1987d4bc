"""Decode and prefill over several GPUs: heads divided, contexts divided, KV going round a ring.

    python experiments/many_gpus/run.py [-o FOLDER]

Writes RESULTS.md and the pins, expected.csv and expected_prefill.csv, here or into another folder,
in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import decode
import latent
import prefill
import striped
from calls import Attention, Steps, attention_of, pins, steps

from leansim.answers import render
from leansim.checkout.pages import page
from leansim.checkout.scripts import parser_of
from leansim.files.strict_yaml import read
from leansim.files.writing import write_whole

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Simulate and write."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    attention, whole = attention_of(decode.calls()), steps(latent.calls())
    write_whole(out / "expected.csv", render(pins(attention, whole), "csv") + "\n")
    found = prefill.times(published()["ring_flash_attention"])
    write_whole(out / "expected_prefill.csv", render(prefill.pins(found), "csv") + "\n")
    write_whole(out / "RESULTS.md", results(attention, whole, found))


def published() -> dict[str, Any]:
    """What others published."""
    data: dict[str, Any] = read(HERE / "published.yaml").data
    return data


def results(attention: Attention, whole: Steps, found: prefill.Times) -> str:
    """RESULTS.md."""
    said = published()
    return page(
        [
            decode.part(attention, said["tree_over_ring"]),
            latent.part(whole, said),
            prefill.part(said["ring_flash_attention"], found),
            striped.part(said["striped_attention"]),
        ]
    )


if __name__ == "__main__":
    main()
