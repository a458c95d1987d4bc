"""Prices the kernels of a decode step that are not attention: matrices, and small ones between them.

Answers "how long, how many bytes of weights, how many FLOP?" for one kernel on one of the GPUs that
divide a model. Ignores how a library tiles a matrix, and that experts are seldom chosen evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from leansim.specs.base import DTYPE_BYTES, LaunchMode
from leansim.specs.device import Device
from leansim.specs.weights import Matrix
from leansim.timing.merges import kernel_gap_s

ACTIVATION_BYTES = 2  # of an element that one kernel hands to the next


@dataclass(frozen=True)
class Spent:
    """Seconds, bytes from DRAM and FLOP of some kernels on one GPU."""

    seconds: float = 0.0
    dram_bytes: float = 0.0
    flop: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.dram_bytes + other.dram_bytes,
            self.flop + other.flop,
        )

    def times(self, count: float) -> Spent:
        """The same, several times."""
        return Spent(self.seconds * count, self.dram_bytes * count, self.flop * count)


def share(matrix: Matrix, num_gpus: int) -> Matrix:
    """The part of a matrix that one of `num_gpus` GPUs has; an uneven one is rounded up."""
    if matrix.divided == "columns":
        return replace(matrix, columns=-(-matrix.columns // num_gpus))
    if matrix.divided == "rows":
        return replace(matrix, rows=-(-matrix.rows // num_gpus))
    return matrix


def experts_touched(matrix: Matrix, tokens: int) -> float:
    """Experts that some of `tokens` pass, if each chooses evenly: `E (1 - (1 - k / E)^tokens)`."""
    left_out = 1.0 - matrix.per_token / matrix.experts
    return matrix.experts * (1.0 - left_out**tokens)


def weight_bytes(matrix: Matrix, weight_dtype: str) -> int:
    """Bytes of a matrix, all experts."""
    return matrix.rows * matrix.columns * matrix.experts * DTYPE_BYTES[weight_dtype]


def matmul(matrix: Matrix, tokens: int, device: Device, weight_dtype: str) -> Spent:
    """Multiply `tokens` rows with a matrix.

    `overhead + (memory^q + arithmetic^q)^(1/q)`: memory is the weights that are touched, what goes in
    and what comes out, over a fraction of the datasheet's bandwidth; arithmetic is `2 x tokens x rows x
    columns` over a fraction of the dense tensor rate; the fractions, the overhead and q are the
    device's `matmul`. Experts of a layer are one grouped kernel. Source: a roofline with its corner
    rounded, fitted to measured matrices (experiments/decode_step).
    """
    reached = device.matmul
    touched = experts_touched(matrix, tokens)
    weights = touched * matrix.rows * matrix.columns * DTYPE_BYTES[weight_dtype]
    passed = tokens * matrix.per_token
    moved = weights + passed * (matrix.rows + matrix.columns) * ACTIVATION_BYTES
    flop = 2.0 * passed * matrix.rows * matrix.columns
    rate = device.tensor_flop_per_s_per_sm(weight_dtype)
    rate = rate or device.tensor_flop_per_s_per_sm("bfloat16")
    assert rate is not None
    memory_s = moved / (reached.dram_fraction * device.dram_bandwidth_bytes_per_s)
    arithmetic_s = flop / (reached.tensor_fraction * rate * device.num_sms)
    q = reached.exponent
    longer, shorter = max(memory_s, arithmetic_s), min(memory_s, arithmetic_s)
    busy_s = longer * (1.0 + (shorter / longer) ** q) ** (1.0 / q)
    return Spent(reached.overhead_s + busy_s, weights, flop)


def small_kernel(moved_bytes: float, device: Device, launch: LaunchMode) -> Spent:
    """A norm, an activation or the like: the boundary between kernels, two reads that wait, the bytes.

    `gap + CTA launch + DRAM latency + L2 latency + bytes / L2 bandwidth`: what it reads was just
    written, but for a few weights that nobody read lately.
    """
    waits = device.cta_launch_s + device.dram_latency_s + device.l2_latency_s
    seconds = kernel_gap_s(device, launch) + waits + moved_bytes / device.l2_bandwidth_bytes_per_s
    return Spent(seconds)
