"""What proposes the next setting of a search: a lot, or a Gaussian process fitted to what is known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np

from leansim.arrays import FloatArray
from leansim.errors import StoreError
from leansim.files.extras import pip_install

SurrogateName = Literal["gp", "random"]
_KAPPA = 2.0  # standard deviations below the mean that a setting is credited with


class Surrogate(Protocol):
    """Scores candidates by what is known of others; the least is tried next."""

    def __call__(
        self, places: FloatArray, costs: FloatArray, candidates: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Score `candidates`, `[candidates, dimensions]` from 0 to 1, by `places` and their `costs`."""
        ...  # pragma: no cover


class ByLot:
    """Knows nothing."""

    def __call__(
        self,
        places: FloatArray,  # noqa: ARG002
        costs: FloatArray,  # noqa: ARG002
        candidates: FloatArray,
        rng: np.random.Generator,
    ) -> FloatArray:
        """A number drawn for each."""
        return rng.random(len(candidates))


class GaussianProcess:
    """scikit-learn's, with a Matérn 5/2 kernel: mean less twice the standard deviation.

    Raises `StoreError` without scikit-learn.
    """

    def __init__(self) -> None:
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
            from threadpoolctl import threadpool_limits  # scikit-learn needs it too
        except ModuleNotFoundError:
            raise StoreError(
                f"found no scikit-learn; wanted the extra that tunes, or surrogate random: "
                f"{pip_install('tune')}"
            ) from None
        self._limited = threadpool_limits
        kernel = ConstantKernel() * Matern(0.2, (0.01, 10.0), nu=2.5) + WhiteKernel(1e-4, (1e-6, 1e-1))
        self._process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)

    def __call__(
        self,
        places: FloatArray,
        costs: FloatArray,
        candidates: FloatArray,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> FloatArray:
        """Fit anew, and take the lower bound of confidence."""
        # Matrices are small: threads would only spin.
        with warnings.catch_warnings(), self._limited(limits=1):
            warnings.simplefilter("ignore")  # a length scale at its bound is no fault
            self._process.fit(places, costs)
            mean, deviation = self._process.predict(candidates, return_std=True)
        scores: FloatArray = mean - _KAPPA * deviation
        return scores


SURROGATES: Mapping[str, Callable[[], Surrogate]] = {"gp": GaussianProcess, "random": ByLot}
