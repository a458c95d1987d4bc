"""Ways of searching a partitioner's options, and after how many simulations each is near the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import leansim
from leansim.files.strict_yaml import read
from leansim.partitioners.registry import option_names
from leansim.points.point import resolve
from leansim.study.bench import Bench
from leansim.study.oracle import search
from leansim.study.space import Dimension, dimensions
from leansim.study.surrogates import SURROGATES
from leansim.study.tuning import Setting, latency_s, searched, size_of

FACTS: dict[str, Any] = read(Path(__file__).resolve().parent / "cases.yaml").data
BUDGET: int = FACTS["budget"]
# A surrogate and how many settings its pruning keeps.
METHODS = {
    "random": ("random", 0),
    "random, pruned": ("random", FACTS["memory"]),
    "GP": ("gp", 0),
    "GP, pruned": ("gp", FACTS["memory"]),
}


class Reached(Exception):  # noqa: N818 - it is what is looked for
    """A search is near enough to the best."""


@dataclass(frozen=True, eq=False)
class Case:
    """A point, and the options of its partitioner that are searched."""

    name: str
    options: tuple[str, ...]
    fields: dict[str, Any]

    @cached_property
    def bench(self) -> Bench:
        """Simulations of its partitioner's settings, each once."""
        return Bench(resolve(leansim.point(model=FACTS["model"], **self.fields)))

    @cached_property
    def space(self) -> tuple[Dimension, ...]:
        """What is searched."""
        return dimensions(self.bench.resolved, self.options)

    def cost(self, setting: Setting) -> float:
        """Latency of a setting, s."""
        own = self.bench.own
        chosen = {one.name: one.values[at] for one, at in zip(self.space, setting, strict=True)}
        kept = {name: getattr(own, name) for name in option_names(type(own))}
        return latency_s(self.bench, own, kept | chosen)

    @property
    def small(self) -> bool:
        """Whether all settings are simulated."""
        return size_of(self.space) <= FACTS["exhaustive"]

    @cached_property
    def best_s(self) -> float:
        """The least latency: of all settings if they are few, else of what lots and a grid find."""
        if self.small:
            every = product(*(range(len(one.values)) for one in self.space))
            return min(map(self.cost, every))
        found = [min(map(self.cost, self.grid(0)))]
        for memory in (0, FACTS["memory"]):
            for seed in range(2):
                tried = searched(self.cost, self.space, SURROGATES["random"], memory, 200, seed)
                found.append(min(cost for _, cost in tried))
        return min(found)

    @cached_property
    def near_s(self) -> float:
        """What is near enough."""
        return self.best_s * (1 + float(FACTS["within"]))

    def grid(self, seed: int) -> Iterator[Setting]:
        """About as many settings as the budget, evenly in logarithms, in an order that is drawn."""
        levels = max(2, math.floor(BUDGET ** (1 / len(self.space))))
        axes = [np.unique(one.at(np.linspace(0, 1, levels))).tolist() for one in self.space]
        every = list(product(*axes))
        for at in np.random.default_rng(seed).permutation(len(every)):
            yield every[at]

    def evaluations(self, method: str, seed: int) -> int | None:
        """Simulations until a method is near the best; None: not within the budget."""
        counted = 0

        def cost(setting: Setting) -> float:
            nonlocal counted
            counted += 1
            found = self.cost(setting)
            if found <= self.near_s:
                raise Reached
            return found

        try:
            if method == "grid":
                for setting in self.grid(seed):
                    cost(setting)
            else:
                surrogate, memory = METHODS[method]
                searched(cost, self.space, SURROGATES[surrogate], memory, BUDGET, seed)
        except Reached:
            return counted
        return None

    @cached_property
    def oracle(self) -> tuple[int | None, int, float]:
        """Of the search over split counts: simulations until near, in all, and its best latency, s."""
        bench = Bench(self.bench.resolved)
        found = search(bench).found
        first = (i for i, one in enumerate(bench.latencies, 1) if one <= self.near_s)
        return next(first, None), len(bench.latencies), found.latency_s


def cases() -> list[Case]:
    """Those of cases.yaml."""
    found = []
    for entry in FACTS["cases"]:
        fields = {key: value for key, value in entry.items() if key not in ("name", "options")}
        found.append(Case(entry["name"], tuple(entry["options"]), fields))
    return found


def median(evaluations: list[int | None]) -> float:
    """The median; what was not reached counts as infinite."""
    return float(np.median([math.inf if one is None else one for one in evaluations]))
