"""Types of the arrays that travel through leansim: NumPy, of any shape."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
# A number, or one for each of several.
Floats = float | FloatArray
