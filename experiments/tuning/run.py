"""Simulations to within 1% of the best setting: Bayesian search, pruned or not, random, grid, oracle.

    python experiments/tuning/run.py [-o FOLDER]

Wants the extra `tune`. Writes RESULTS.md, a figure and expected.csv, here or into another folder.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from race import BUDGET, FACTS, METHODS, Case, cases, median

from leansim.checkout.pages import Part, write_page
from leansim.checkout.scripts import parser_of
from leansim.report.sheet import COLOURS, save
from leansim.study.tuning import size_of

HERE = Path(__file__).resolve().parent
WITHOUT_EXTRA = ("random", "random, pruned", "grid")
Counts = dict[str, dict[str, list[int | None]]]


def raced(chosen: list[Case], methods: tuple[str, ...]) -> Counts:
    """Evaluations of each seed, by case and method."""
    return {
        case.name: {
            method: [case.evaluations(method, seed) for seed in range(FACTS["seeds"])]
            for method in methods
        }
        for case in chosen
    }


def told(evaluations: list[int | None]) -> str:
    """The median, and how often the budget was not enough."""
    missed = sum(one is None for one in evaluations)
    middle = median(evaluations)
    text = f"> {BUDGET}" if math.isinf(middle) else f"{middle:g}"
    return text + (f" ({missed} of {len(evaluations)} not)" if missed else "")


def race_part(chosen: list[Case], counts: Counts) -> Part:
    """The table, and who wins."""
    rows, pins, wins = [], {}, 0
    for case in chosen:
        near, _, _ = case.oracle
        mine = {method: median(evaluations) for method, evaluations in counts[case.name].items()}
        wins += near is not None and near <= min(mine.values())
        pins |= {f"{case.name}, {method}": value for method, value in mine.items()}
        rows.append(
            {
                "case": case.name,
                "options": ", ".join(case.options),
                "settings": f"{size_of(case.space):,}",
                **{method: told(evaluations) for method, evaluations in counts[case.name].items()},
                "oracle": "not" if near is None else str(near),
            }
        )
    helped = {plain: sum(median(counts[case.name][f"{plain}, pruned"]) < median(counts[case.name][plain])
                         for case in chosen) for plain in ("random", "GP")}  # fmt: skip
    sentences = (
        f"Median of {FACTS['seeds']} seeds of the simulations until a setting is within "
        f"{FACTS['within']:.0%} of the best, {BUDGET} at most; in brackets how often that was not "
        "enough. The best is that of all settings, or, where they are too many, of what random "
        "search and a grid found in some hundreds. `oracle` does not set options: it searches the "
        "split counts themselves, uniform and then per request, without that limit, and is the "
        "same every time.",
        f"It is first, or as fast, in {wins} of {len(chosen)} cases. Where requests are alike its "
        "first guess fills the machine, which is what the best settings do; of ragged batches it "
        "looks at one count for all requests before it cuts each by itself, and takes longer. A "
        "grid does well where one option is tuned and a tenth of its values are good, and not at "
        "all where few are.",
        f"Pruning needs fewer simulations than the same search without it in {helped['GP']} of "
        f"{len(chosen)} cases with a Gaussian process and in {helped['random']} with random "
        f"search: {BUDGET} simulations leave it two or three prunings, and what lies outside of "
        "the best few is not found again until all between them was tried. A fit of the process "
        "takes longer than the simulation that it saves, some 20 ms against a few.",
    )
    return Part("Simulations to within 1%", sentences, (("Median simulations", rows),), pins)


def oracle_part(chosen: list[Case]) -> Part:
    """What the oracle finds beside, and what its options leave."""
    rows, pins = [], {}
    for case in chosen:
        near, simulations, best_s = case.oracle
        own_s = case.bench.latency_s(case.bench.own)
        pins[f"{case.name}, best setting, ns"] = round(case.best_s * 1e9)
        pins[f"{case.name}, oracle, ns"] = round(best_s * 1e9)
        pins[f"{case.name}, oracle, simulations to near"] = near or 0
        rows.append(
            {
                "case": case.name,
                "as it is_us": f"{own_s * 1e6:.2f}",
                "best setting_us": f"{case.best_s * 1e6:.2f} ({own_s / case.best_s:.2f}x)",
                "oracle_us": f"{best_s * 1e6:.2f} ({own_s / best_s:.2f}x)",
                "its simulations": simulations,
            }
        )
    sentences = (
        "What there is to gain over the options as they are. The oracle's schedules are cut per "
        "request, with the kernel's merge, so they may be faster or slower than any setting of a "
        "partitioner that cuts or merges otherwise.",
    )
    return Part("What there is to gain", sentences, (("Latency", rows),), pins)


def figure(chosen: list[Case], counts: Counts) -> Figure:
    """Simulations of each seed, a row per case, a colour per method; at the edge, not reached."""
    drawn = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = drawn.subplots()
    methods = [*METHODS, "grid"]
    for row, case in enumerate(chosen):
        for number, method in enumerate(methods):
            found = [BUDGET * 2.2 if one is None else one for one in counts[case.name][method]]
            height = row + (number - 2) * 0.14
            axes.plot(found, np.full(len(found), height), "o", color=COLOURS[number], markersize=4,
                      alpha=0.6, label=method if row == 0 else None)  # fmt: skip
        near, _, _ = case.oracle
        if near is not None:
            label = "oracle" if row == 0 else None
            axes.plot([near], [row + 0.42], "k*", markersize=8, label=label)
    axes.set_yticks(range(len(chosen)), [case.name for case in chosen])
    axes.invert_yaxis()
    axes.axvline(BUDGET * 1.75, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(
        [1, 2, 5, 10, 20, BUDGET, BUDGET * 2.2], ["1", "2", "5", "10", "20", str(BUDGET), "not"]
    )
    axes.minorticks_off()
    axes.set_xlabel("simulations to within 1% of the best")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def main() -> None:
    """Run the race, write the results, the figure and the pins."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    chosen = cases()
    counts = raced(chosen, (*METHODS, "grid"))
    write_page(out, [race_part(chosen, counts), oracle_part(chosen)])
    save(figure(chosen, counts), out / "race.png")


if __name__ == "__main__":
    main()
