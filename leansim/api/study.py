"""The verbs that study how a call is cut: oracle, splits, explain, buckets, invariance, tune."""

from __future__ import annotations

from collections.abc import Sequence

from leansim.answers import Answers
from leansim.api.given import Names, Points, Progress, names_of, points_of
from leansim.engine.execute import Engine
from leansim.study import buckets as freezing
from leansim.study import explain as explaining
from leansim.study import invariance as changing
from leansim.study import oracle as searching
from leansim.study import splits as cutting
from leansim.study import tuning
from leansim.study.buckets import BucketStudy
from leansim.study.explain import Explanation
from leansim.study.invariance import InvarianceStudy
from leansim.study.oracle import Oracle
from leansim.study.splits import SplitCurve
from leansim.study.surrogates import SurrogateName
from leansim.study.tuning import Tuned


def oracle(
    points: Points,
    rules: Names = (),
    max_splits: int | None = None,
    budget: int = searching.BUDGET,
    engine: Engine = "auto",
) -> Answers[Oracle]:
    """Search the best split counts of each point, and run split rules beside them.

    `rules` names partitioners, or kernels whose rule is meant (none: every known one); the point's own
    is always run. `max_splits` limits what the search tries, `budget` its simulations of ragged
    batches. Raises a `LeansimError` where a kernel cannot run the workload.
    """
    return Answers(
        tuple(
            searching.oracle(point, names_of(rules), max_splits, budget, engine)
            for point in points_of(points)
        )
    )


def splits(
    points: Points, rules: Names = (), counts: Sequence[int] = (), engine: Engine = "auto"
) -> Answers[SplitCurve]:
    """Latency of each point against the number of splits, its knee, and what each split rule picks.

    `counts` are tried as given; by default enough to find the best. `rules` and errors as in `oracle`.
    """
    return Answers(
        tuple(cutting.split_curve(point, names_of(rules), counts, engine) for point in points_of(points))
    )


def explain(
    points: Points, rules: Names = (), budget: int = searching.BUDGET, engine: Engine = "auto"
) -> Answers[Explanation]:
    """Say in words where the time of each point goes and what would help; see `Explanation.text`.

    `rules`, `budget` and errors as in `oracle`.
    """
    return Answers(
        tuple(explaining.explain(point, names_of(rules), budget, engine) for point in points_of(points))
    )


def buckets(
    points: Points,
    sizes: Sequence[int] = freezing.SIZES,
    batches: int = freezing.BATCHES,
    counts: Sequence[int] = freezing.COUNTS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Answers[BucketStudy]:
    """Which split count to freeze into each captured CUDA graph, over the batches of a trace.

    Each point names device, kernel, shape and trace. Graphs are captured for batches of `sizes`
    requests, `batches` of each are drawn, and `counts` are what may be frozen. `jobs` processes (None:
    one per core); `progress` is told batches done and of all. Raises `WorkloadError` without a trace,
    `PartitionerError` for a kernel that takes no count.
    """
    chosen = points_of(points)

    def of_all(position: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(position * total + done, len(chosen) * total)

    return Answers(
        tuple(
            freezing.buckets(point, sizes, batches, counts, jobs, of_all(position))
            for position, point in enumerate(chosen)
        )
    )


def invariance(
    points: Points, rules: Names = (), seeds: int = changing.SEEDS, engine: Engine = "auto"
) -> Answers[InvarianceStudy]:
    """Which split rules are batch-invariant on each point's kernel, and what invariance costs.

    `seeds` is how many times nine batches are tried. `rules` and errors as in `oracle`.
    """
    chosen = names_of(rules)
    return Answers(
        tuple(changing.invariance(point, chosen, seeds, engine=engine) for point in points_of(points))
    )


def tune(
    points: Points,
    options: Names = (),
    surrogate: SurrogateName = "gp",
    memory: int = tuning.MEMORY,
    budget: int = tuning.BUDGET,
    search_seed: int = 0,
    engine: Engine = "auto",
) -> Answers[Tuned]:
    """Search the options of each point's partitioner, such as its number of CTAs, for the least latency.

    `options` names those that are tuned (none: all that are whole numbers). `surrogate` is `gp` (a
    Gaussian process; the extra `tune`) or `random`. With a `memory` of m, the search is confined to
    between the m best settings, again and again; 0 forgets nothing. `budget` is simulations. Raises
    `UnknownNameError`, `PartitionerError` where nothing can be tuned, and `StoreError` without
    scikit-learn. Where options do no more than set a split count, `oracle` needs fewer simulations.
    """
    return Answers(
        tuple(
            tuning.tune(point, names_of(options), surrogate, memory, budget, search_seed, engine)
            for point in points_of(points)
        )
    )
