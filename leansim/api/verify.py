"""The verb that proves schedules exact."""

from __future__ import annotations

from collections.abc import Sequence

from leansim.answers import Answers
from leansim.api.given import Points, points_of
from leansim.numerics.attention import Precision
from leansim.numerics.verify import DEFAULT_PRECISIONS
from leansim.study.verify import Verified, verified


def verify(
    points: Points, precisions: Sequence[Precision] = DEFAULT_PRECISIONS, input_seed: int = 0
) -> Answers[Verified]:
    """Replay each point's schedule in NumPy against reference attention, and check batch invariance.

    Finding fault is no error: see `Verified.passed`. `input_seed` is that of the random inputs. Raises
    a `LeansimError` where a point makes no sense, `UnknownNameError` for a precision.
    """
    return Answers(tuple(verified(point, precisions, input_seed) for point in points_of(points)))
