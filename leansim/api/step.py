"""The verb for whole decode steps."""

from __future__ import annotations

from collections.abc import Sequence

from leansim.api.given import Points, points_of
from leansim.steps.step import Step, Steps, steps_of


def step(points: Points, weight_dtype: str = "bfloat16", settings: Sequence[str] = ()) -> Steps:
    """A whole decode step of each point's model: attention of all layers, and all that is around it.

    Matrices, norms and experts by a roofline, all-reduces from the node's tables; tokens/s, energy per
    token between two bounds, and bytes on a GPU. `weight_dtype` is the weights'; `settings` are
    `key=value` texts laid over a file. A point that cannot be a step is told in `refused`. Raises the
    `LeansimError` of the first where all are.
    """
    found = list(steps_of(points_of(points, settings), weight_dtype))
    steps = tuple(one for _, one in found if isinstance(one, Step))
    errors = [(point, one) for point, one in found if isinstance(one, Exception)]
    if errors and not steps:
        raise errors[0][1]
    return Steps(steps, tuple(f"{point.policy} on {point.device}: {one}" for point, one in errors))
