"""What a point costs in other tools, where they are installed (aiconfigurator-core, genz-llm)."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

Row = dict[str, Any]
Estimate = Callable[[Row], float]
# H100 SXM: dense bfloat16 TFLOP/s, GB/s of DRAM (datasheet).
H100_TFLOPS, H100_GB_PER_S = 989.5, 3350.0


def aiconfigurator() -> Estimate:
    """Interpolation in the measured table of vLLM on H100, by its compiled engine; ms, or NaN."""
    from aiconfigurator_core.sdk.common import KVCacheQuantMode
    from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError
    from aiconfigurator_core.sdk.operations.attention import GenerationAttention
    from aiconfigurator_core.sdk.perf_database import get_database

    database = get_database("h100_sxm", "vllm", "0.24.0")

    def estimate(row: Row) -> float:
        op = GenerationAttention(
            "attention", 1.0, row["num_q_heads"], row["num_kv_heads"], KVCacheQuantMode.bfloat16,
            head_size=row["head_dim"],
        )  # fmt: skip
        try:
            return float(op._engine_query(database, batch_size=row["batch_size"], s=row["context_len"]))
        except PerfDataNotAvailableError:
            return math.nan

    return estimate


def genz() -> Estimate:
    """GenZ's roofline of the two operators of decode attention, Q K and P V; ms."""
    from GenZ.operators import Attend, Logit
    from GenZ.system import System
    from GenZ.unit import Unit

    system, unit = System(flops=H100_TFLOPS, offchip_mem_bw=H100_GB_PER_S, bits="bf16"), Unit()

    def estimate(row: Row) -> float:
        shape = [row["batch_size"], row["num_q_heads"], 1, row["context_len"], row["head_dim"],
                 row["num_kv_heads"]]  # fmt: skip
        operators = (kind(dim=[kind.__name__, *shape, 0], density=(1, 1, 1)) for kind in (Logit, Attend))
        return sum(
            float(one.get_roofline(system=system, unit=unit)["Latency (msec)"]) for one in operators
        )

    return estimate


_TOOLS = {"aiconfigurator_core": aiconfigurator, "GenZ": genz}


def installed() -> dict[str, Estimate]:
    """Every tool that can be imported, ready to estimate points; what they print is kept from sight."""
    found = {}
    for module, make in _TOOLS.items():
        if find_spec(module) is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                found[module] = make()
    return found
