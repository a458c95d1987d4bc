"""What interpolation gives: a Gaussian process and boosted trees beside the simulator.

Wants scikit-learn. Per card, file, kernel and state of the cache they learn from half of the shapes, and
all three are tested on the other half, without the rows that constants were fitted to.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leansim.silicon.rows import digest

_LOGARITHMS = (
    "batch_size", "mean_context_len", "context_len", "num_q_heads", "num_kv_heads", "head_dim",
    "kv_bytes", "tiles", "most_splits", "num_ctas", "tiles_per_cta", "most_tiles_of_a_cta", "group",
)  # fmt: skip
_AS_THEY_ARE = ("context_spread",)
FEATURES = (*_LOGARITHMS, *_AS_THEY_ARE)
# One interpolation each.
KEYS = ["card", "file", "kernel", "cache"]
# Fewer rows to learn from say nothing.
_FEWEST = 20
_Floats = npt.NDArray[np.float64]


def installed() -> bool:
    """Whether scikit-learn is there."""
    return importlib.util.find_spec("sklearn") is not None


def interpolated(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of the simulator and of both interpolations on the test half, a row each per `KEYS`."""
    found = []
    for values, mine in rows.groupby(KEYS, sort=True):
        learned = np.array([is_for_learning(shape) for shape in mine["shape"]])
        tested = ~learned & ~mine["fit"].to_numpy()
        if min(learned.sum(), tested.sum()) < _FEWEST:
            continue
        head = {**dict(zip(KEYS, values, strict=True)), "learned": learned.sum()}
        found += [{**head, **one} for one in _compared(mine, learned, tested)]
    return pd.DataFrame(found)


def is_for_learning(shape: str) -> bool:
    """Whether interpolations learn from a shape: half of them, by a hash, the same under all kernels."""
    return digest(f"half,{shape}") % 2 == 0


def _compared(
    rows: pd.DataFrame, learned: npt.NDArray[np.bool_], tested: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    x, y = features(rows), np.log(rows["measured_s"].to_numpy())
    said = {"simulator": rows.loc[tested, "error"].to_numpy()}
    for name, predicted in _learners(x[learned], y[learned], x[tested]).items():
        said[name] = np.exp(predicted - y[tested]) - 1.0
    return [
        {
            "by": name,
            "tested": len(error),
            "mean": np.abs(error).mean(),
            "median": np.median(np.abs(error)),
            "within_10": (np.abs(error) <= 0.1).mean(),
        }
        for name, error in said.items()
    ]


def features(rows: pd.DataFrame) -> _Floats:
    """What a row's batch and planned schedule are, `[rows, FEATURES]`; no time is among them."""
    logs = np.log(np.maximum(rows[list(_LOGARITHMS)].to_numpy(dtype=float), 1e-9))
    return np.column_stack([logs, rows[list(_AS_THEY_ARE)].to_numpy(dtype=float)])


def _learners(x: _Floats, y: _Floats, wanted: _Floats) -> dict[str, _Floats]:
    """Logarithms of times at `wanted`, as each interpolation has them from those at `x`."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    varying = np.ptp(x, axis=0) > 1e-9
    centre, spread = x[:, varying].mean(axis=0), x[:, varying].std(axis=0)
    known, asked = ((part[:, varying] - centre) / spread for part in (x, wanted))
    covariance = ConstantKernel(10.0, (1e-3, 1e5)) * RBF(
        np.full(known.shape[1], 3.0), (1e-1, 1e4)
    ) + WhiteKernel(1e-3, (1e-8, 1e-1))
    process = GaussianProcessRegressor(covariance, normalize_y=True, random_state=0)
    trees = GradientBoostingRegressor(
        n_estimators=400, learning_rate=0.05, max_depth=3, subsample=0.7, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length scale at its bound says that a feature is no help
        process.fit(known, y)
    return {
        "Gaussian process": process.predict(asked),
        "gradient boosting": trees.fit(known, y).predict(asked),
    }
