"""Tunes the options of a point's own partitioner: random or Bayesian search, its memory pruned or not.

Each evaluation is a simulation. Pruning (as PV-Lab/ZoMBI does) keeps the best few settings, searches
between them only, and fits anew. `oracle` searches split counts themselves, and needs fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.answers import Tabled
from leansim.arrays import FloatArray, IntArray
from leansim.engine.execute import Engine
from leansim.errors import PartitionerError, UnknownNameError
from leansim.lazy import cached_property
from leansim.partitioners.registry import Partitioner, make, name_of, option_names
from leansim.points.asked import call_columns, titled
from leansim.points.point import Point, Resolved, resolve
from leansim.specs import evidence
from leansim.study.bench import Bench
from leansim.study.space import Dimension, dimensions
from leansim.study.surrogates import SURROGATES, Surrogate, SurrogateName

BUDGET = 60  # simulations
MEMORY = 5  # settings that pruning keeps; 0 prunes nothing
FORWARD = 12  # evaluations between two prunings
START = 4  # settings drawn at random before a surrogate is asked, and again after each pruning
_ALL = 4096  # settings up to which all that are left are candidates
_DRAWN = 512  # candidates of more

Setting = tuple[int, ...]  # a place among the values of each dimension
Cost = Callable[[Setting], float]


@dataclass(frozen=True)
class Trial:
    """Options that were simulated, and their latency, s; infinite where the partitioner refuses."""

    options: dict[str, Any]
    latency_s: float


@dataclass(frozen=True, eq=False)
class Tuned(Tabled):
    """What was tried for a point, in order; `own_s` is the latency of its options as they are, s."""

    resolved: Resolved
    space: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    own_s: float

    @cached_property
    def best(self) -> Trial:
        """The fastest, the first of equals; of infinite latency if all were refused."""
        return min(self.trials, key=lambda trial: trial.latency_s)

    def evaluations_to(self, latency_s: float) -> int | None:
        """After how many simulations a latency was reached; None: it was not."""
        reached = (i for i, one in enumerate(self.trials, 1) if one.latency_s <= latency_s)
        return next(reached, None)

    def rows(self) -> list[dict[str, Any]]:
        """The point's own options, then each trial that was faster than all before it."""
        rows: list[dict[str, Any]] = [self._row(0, "as they are", self.own_s)]
        least = np.inf
        for number, trial in enumerate(self.trials, 1):
            if trial.latency_s < least:
                least = trial.latency_s
                text = ", ".join(f"{key}={value}" for key, value in trial.options.items())
                rows.append(self._row(number, text, least))
        return rows

    def _row(self, number: int, options: str, latency_s: float) -> dict[str, Any]:
        times = f"{self.own_s / latency_s:.3f}x"
        return {"simulation": number, "options": options,
                "latency_us": f"{latency_s * 1e6:.2f}", "as_fast": times}  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        """One flat record per trial, in seconds."""
        point, load = self.resolved.point, self.resolved.workload
        asked = {"device": point.device, "kernel": point.kernel, **call_columns(point, load)}
        return [
            {**asked, "simulation": number, **one.options, "latency_s": one.latency_s,
             "own_s": self.own_s}
            for number, one in enumerate(self.trials, 1)
        ]  # fmt: skip

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """The rows under device, kernel and workload."""
        return {titled(self.resolved): self.rows()}

    def notes(self) -> list[str]:
        """How much of the space was tried, and what is gained."""
        point, refused = self.resolved.point, sum(np.isinf(one.latency_s) for one in self.trials)
        size, names = size_of(self.space), ", ".join(one.name for one in self.space)
        note = f"{len(self.trials)} of {size:,} settings of {names} simulated"
        if refused:
            note += f", of which {refused} were refused"
        gained = f"the best is {self.own_s / self.best.latency_s:.3f}x as fast as its own options"
        told = evidence.told([(point.policy, self.resolved.grounds)])
        return [f"{point.device} {point.policy}: {note}; {gained}", told]


def tune(
    point: Point,
    options: Sequence[str] = (),
    surrogate: SurrogateName = "gp",
    memory: int = MEMORY,
    budget: int = BUDGET,
    search_seed: int = 0,
    engine: Engine = "auto",
) -> Tuned:
    """Search the options of a point's partitioner for the least latency.

    `options` names those that are tuned (none: all that are whole numbers); others stay as they are.
    `surrogate` proposes settings: `gp` by a Gaussian process, `random` by lot. With a `memory` of m, the
    search is confined to between the m best settings, again and again. Raises `UnknownNameError` for
    an option or a surrogate, `PartitionerError` where nothing can be tuned, `StoreError` where `gp`
    lacks scikit-learn.
    """
    if surrogate not in SURROGATES:
        raise UnknownNameError("surrogate", surrogate, SURROGATES)
    bench = Bench(resolve(point), engine)
    space = dimensions(bench.resolved, options)
    own = bench.own
    kept = {name: getattr(own, name) for name in option_names(type(own))}
    trials: list[Trial] = []

    def cost(setting: Setting) -> float:
        chosen = {one.name: one.values[at] for one, at in zip(space, setting, strict=True)}
        trials.append(Trial(chosen, latency_s(bench, own, kept | chosen)))
        return trials[-1].latency_s

    searched(cost, space, SURROGATES[surrogate], memory, budget, search_seed)
    return Tuned(bench.resolved, space, tuple(trials), bench.latency_s(own))


def latency_s(bench: Bench, own: Partitioner, options: dict[str, Any]) -> float:
    """Latency of the own partitioner with options, s; infinite where it refuses them."""
    try:
        return bench.latency_s(make(name_of(type(own)), options))
    except PartitionerError:
        return float("inf")


def size_of(space: Sequence[Dimension]) -> int:
    """How many settings there are."""
    return int(np.prod([len(one.values) for one in space], dtype=object))


def searched(
    cost: Cost,
    space: Sequence[Dimension],
    surrogate: Callable[[], Surrogate],
    memory: int,
    budget: int,
    seed: int,
) -> list[tuple[Setting, float]]:
    """Try `budget` settings at most, none twice, and return them in order with their costs.

    `memory` 0 searches the whole space and fits to all that was tried. Else, each time 12 more were
    tried, all but the `memory` best are forgotten, the space is cut to their least and largest place in
    each dimension, and 4 settings are drawn in it before the surrogate is asked again. Where all in it
    were tried, the search begins anew in the whole space.
    """
    rng = np.random.default_rng(seed)
    fitted, tried = surrogate(), dict[Setting, float]()
    whole = np.array([[0, len(one.values) - 1] for one in space], dtype=np.int64)
    bounds, known, drawn = whole, list[Setting](), 0
    while len(tried) < budget:
        candidates = _candidates(bounds, space, tried, rng)
        if not candidates:
            if np.array_equal(bounds, whole):
                break
            bounds, known, drawn = whole, [], 0
            continue
        if drawn < START:
            chosen, drawn = candidates[int(rng.integers(len(candidates)))], drawn + 1
        else:
            costs = np.array([tried[one] for one in known])
            scores = fitted(_places(known, space), _finite(costs), _places(candidates, space), rng)
            chosen = candidates[int(np.argmin(scores))]
        tried[chosen] = cost(chosen)
        known.append(chosen)
        if memory and len(known) >= memory + FORWARD:
            known = sorted(tried, key=tried.__getitem__)[:memory]
            bounds, drawn = _between(known), 0
    return list(tried.items())


def _between(kept: Sequence[Setting]) -> IntArray:
    """The least and the largest place of each dimension."""
    places = np.array(kept, dtype=np.int64)
    return np.stack([places.min(axis=0), places.max(axis=0)], axis=1)


def _candidates(
    bounds: IntArray, space: Sequence[Dimension], tried: dict[Setting, float], rng: np.random.Generator
) -> list[Setting]:
    """Settings inside the bounds that were not tried: all if they are few, else some that are drawn."""
    counts = bounds[:, 1] - bounds[:, 0] + 1
    if int(np.prod(counts, dtype=object)) <= _ALL:
        every = np.indices(tuple(counts)).reshape(len(counts), -1).T + bounds[:, 0]
        found = [tuple(setting) for setting in every.tolist()]
    else:
        low, high = (_places(edge[None, :], space) for edge in bounds.T)
        units = low + rng.random((_DRAWN, len(space))) * (high - low)
        drawn = np.stack([one.at(units[:, i]) for i, one in enumerate(space)], axis=1)
        found = [tuple(setting) for setting in drawn.tolist()]
    return [setting for setting in dict.fromkeys(found) if setting not in tried]


def _places(settings: Any, space: Sequence[Dimension]) -> FloatArray:
    """Settings as places from 0 to 1, `[settings, dimensions]`."""
    at = np.array(settings, dtype=np.int64)
    return np.stack([one.place(at[:, i]) for i, one in enumerate(space)], axis=1)


def _finite(costs: FloatArray) -> FloatArray:
    """Logarithms of costs; what was refused counts as twice the worst that was not."""
    finite = np.isfinite(costs)
    if not finite.any():
        return np.zeros_like(costs)
    worst = 2 * costs[finite].max()
    return np.log(np.where(finite, costs, worst))
