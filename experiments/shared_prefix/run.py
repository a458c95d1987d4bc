"""Shared prefixes: what others published beside what is simulated, and what nobody has built.

    python experiments/shared_prefix/run.py [--data FOLDER] [-o FOLDER]

Writes RESULTS.md, expected.csv (the pins) and figures, here or into another folder; with a folder
of data, which has the file that README.md names, A40.md as well. Under two minutes on one core.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "witnesses"))  # for its plain rows of the same data

import bifurcated_steps  # noqa: E402
import deft_ratios  # noqa: E402
import flashinfer_grid  # noqa: E402
import relay_rows  # noqa: E402
import split_prefix  # noqa: E402
import vllm_rule  # noqa: E402
from calls import Call, Times, pins, times_of  # noqa: E402
from heat_maps import map_figure  # noqa: E402

from leansim.answers import render  # noqa: E402
from leansim.checkout.pages import HEAD, page, tokens  # noqa: E402
from leansim.checkout.scripts import parser_of  # noqa: E402
from leansim.files.strict_yaml import read  # noqa: E402
from leansim.files.writing import write_whole  # noqa: E402
from leansim.report.sheet import save  # noqa: E402


def main() -> None:
    """Read, simulate, write."""
    parser = parser_of(__doc__, HERE)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="measurements")
    given = parser.parse_args()
    on_a40 = None if given.data is None else relay_rows.part(given.data)
    if on_a40 is not None:
        write_whole(given.out / "A40.md", page([on_a40], HEAD.replace("Results", "Results on an A40")))
    times = times_of(calls())
    write_whole(given.out / "expected.csv", render(pins(times), "csv") + "\n")
    write_whole(given.out / "RESULTS.md", results(times))
    draw(times, given.out)


def claims() -> dict[str, Any]:
    """What others published."""
    found: dict[str, Any] = read(HERE / "claims.yaml").data
    return found


def calls() -> list[Call]:
    """Every call that RESULTS.md and the figures rest on, but those of the A40."""
    said = claims()
    return [
        *flashinfer_grid.calls(said["flashinfer"]),
        *bifurcated_steps.calls(said["bifurcated"]),
        *deft_ratios.calls(said["deft"]),
        *split_prefix.calls(),
        *vllm_rule.calls(),
    ]


def results(times: Times) -> str:
    """RESULTS.md."""
    said = claims()
    parts = (
        split_prefix.part(times),
        vllm_rule.part(times),
        flashinfer_grid.part(times, said["flashinfer"]),
        bifurcated_steps.part(times, said["bifurcated"]),
        deft_ratios.part(times, said["deft"]),
    )
    return page(parts)


def draw(times: Times, out: Path) -> None:
    """The maps: gains by GPU, and the regret of vLLM's rule by GPU and heads."""
    for kernel, name in ((split_prefix.LEAN, "lean_gain"), (split_prefix.SPLIT, "split_gain")):
        panels = {
            f"{device}, {tokens(suffix)} tokens alone": {
                cell: (ratio := split_prefix.gain(times, cell, kernel), f"{ratio:.2f}")
                for cell in split_prefix.cells()
                if (cell.device, cell.suffix_len) == (device, suffix)
            }
            for device in split_prefix.DEVICES
            for suffix in split_prefix.SUFFIXES
        }
        title = f"Latency of {split_prefix.SHIPPED} over {kernel}: above 1 the latter is faster"
        save(map_figure(panels, title, 6.0), out / f"{name}.png")
    panels = {
        f"{device}, {heads[0]}/{heads[1]} heads, {tokens(suffix)} tokens alone": {
            cell: (1.0 / (ratio := vllm_rule.regret(times, cell)), f"{ratio:.2f}{taken(cell)}")
            for cell in vllm_rule.cells()
            if (cell.device, (cell.num_q_heads, cell.num_kv_heads), cell.suffix_len)
            == (device, heads, suffix)
        }
        for device in vllm_rule.DEVICES
        for heads in vllm_rule.HEADS
        for suffix in vllm_rule.SUFFIXES
    }
    title = "Regret of vLLM's rule over the better call; c: takes cascade, p: the plain call"
    save(map_figure(panels, title, 6.0), out / "rule_regret.png")


def taken(cell: Call) -> str:
    """`c` where vLLM takes cascade, else `p`."""
    return "c" if vllm_rule.picked(cell) == replace(cell, kernel=vllm_rule.CASCADE) else "p"


if __name__ == "__main__":
    main()
