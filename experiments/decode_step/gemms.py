"""Fits what matrices of a decode step reach on each GPU, to those that NVIDIA's collectors timed.

    pip install '.[silicon]' && python experiments/decode_step/gemms.py [-o FOLDER]

Writes GEMMS.md: the `matmul` of each device file, how far off it is, and by how many rows. The device
files are changed by hand, so that a fit is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from leansim.answers import Row, render
from leansim.checkout.scripts import parser_of
from leansim.files.writing import write_whole
from leansim.specs import catalog

HERE = Path(__file__).resolve().parent
# Tables of each device: framework and version.
TABLES = {
    "a100_sxm_80gb": ("a100_sxm", ("vllm/0.14.0", "trtllm/1.0.0", "sglang/0.5.10")),
    "h100_sxm": ("h100_sxm", ("vllm/0.24.0", "trtllm/1.3.0rc20", "sglang/0.5.14")),
    "h200_sxm": ("h200_sxm", ("vllm/0.24.0", "trtllm/1.3.0rc20", "sglang/0.5.14")),
    "b200_sxm": ("b200_sxm", ("vllm/0.24.0", "trtllm/1.3.0rc20", "sglang/0.5.14")),
    "l40s": ("l40s", ("vllm/0.24.0", "trtllm/1.3.0rc20")),
}
MOST_ROWS, SMALL_BYTES, LARGE_BYTES = 512, 1e6, 2e9
HEAD = "Written by `gemms.py`; do not edit."


@dataclass(frozen=True)
class Timed:
    """Matrices of one device: bytes moved, FLOP, bytes of weights, seconds, framework; at full rates."""

    moved: np.ndarray
    flop: np.ndarray
    weights: np.ndarray
    seconds: np.ndarray
    framework: np.ndarray
    bytes_per_s: float
    flop_per_s: float

    def predicted(self, overhead_us: float, dram: float, tensor: float, q: float) -> np.ndarray:
        """`overhead + (memory^q + arithmetic^q)^(1/q)`, as `leansim.steps.kernels.matmul`."""
        memory = self.moved / (dram * self.bytes_per_s)
        arithmetic = self.flop / (tensor * self.flop_per_s)
        found: np.ndarray = overhead_us * 1e-6 + (memory**q + arithmetic**q) ** (1 / q)
        return found


def timed(device: str) -> Timed:
    """Read matrices of 16-bit numbers: larger than what L2 keeps, and small ones for the overhead.

    A replay reads smaller matrices from L2, which a step does not.
    """
    gpu = catalog.device(device)
    system, tables = TABLES[device]
    folder = files("aiconfigurator_core") / "systems" / "data" / system / "gemm"
    parts = [
        pd.read_parquet(str(folder / table / "gemm_perf.parquet")).assign(of=table.split("/")[0])
        for table in tables
    ]
    rows = pd.concat(parts)
    rows = rows[(rows["gemm_dtype"] == "bfloat16") & (rows["m"] <= MOST_ROWS)]
    rows = rows.groupby(["of", "m", "n", "k"], as_index=False)["latency"].median()
    weights = 2.0 * rows["n"] * rows["k"]
    large = (weights > 1.5 * gpu.l2_bytes) & (weights < LARGE_BYTES)
    rows = rows[large | ((weights < SMALL_BYTES) & (rows["m"] <= 128))]
    m, n, k = (rows[name].to_numpy(float) for name in "mnk")
    rate = gpu.tensor_flop_per_s_per_sm("bfloat16")
    assert rate is not None
    return Timed(
        2 * (n * k + m * (n + k)),
        2 * m * n * k,
        2 * n * k,
        rows["latency"].to_numpy() * 1e-3,
        rows["of"].to_numpy(),
        gpu.dram_bandwidth_bytes_per_s,
        rate * gpu.num_sms,
    )


def fit(data: Timed) -> np.ndarray:
    """The four numbers of least error: small and large matrices count alike, outliers less."""
    small = data.weights < SMALL_BYTES
    weigh = np.where(small, 1 / np.sqrt(small.sum()), 1 / np.sqrt((~small).sum()))

    def error(numbers: np.ndarray) -> Any:
        return weigh * (np.log(data.predicted(*numbers)) - np.log(data.seconds))

    bounds = ([0, 0.3, 0.1, 1], [20, 1, 1, 8])
    found: np.ndarray = least_squares(
        error, [3, 0.9, 0.7, 2], bounds=bounds, loss="soft_l1", f_scale=0.1
    ).x
    return found


def row(device: str) -> Row:
    """What was fitted for a device, and errors of its large matrices."""
    data = timed(device)
    numbers = fit(data)
    large = data.weights > SMALL_BYTES
    errors = data.predicted(*numbers)[large] / data.seconds[large] - 1
    names = ("overhead_us", "dram_fraction", "tensor_fraction", "exponent")
    own = catalog.device(device).matmul
    kept = (own.overhead_s * 1e6, own.dram_fraction, own.tensor_fraction, own.exponent)
    of = data.framework[large]
    return {
        "device": device,
        "matrices": len(data.seconds),
        **{name: f"{value:.3g}" for name, value in zip(names, numbers, strict=True)},
        "in the file": " ".join(f"{value:.3g}" for value in kept),
        "mean error": f"{np.abs(errors).mean():.1%}",
        "bias": ", ".join(f"{name} {errors[of == name].mean():+.1%}" for name in dict.fromkeys(of)),
    }


def main() -> None:
    """Fit every device."""
    out: Path = parser_of(__doc__, HERE).parse_args().out
    table = render([row(device) for device in TABLES], "md")
    told = (
        "16-bit matrices of up to 512 rows that vLLM, TensorRT-LLM and SGLang ran (aiconfigurator-core",
        "0.12.0, gemm): those larger than 1.5 times L2, whose errors are told, and small ones, which",
        "say what one takes at least.",
    )
    page = [f"# Matrices\n\n{HEAD}", "\n".join(told), table]
    write_whole(out / "GEMMS.md", "\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
