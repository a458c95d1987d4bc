"""Measures what leansim costs, and writes docs/benchmarks.md.

    python benchmarks/run.py

Machines are shared and noisy: every comparison is made inside this one run, the best of several
repeats is kept, and nothing here is a test.
"""

from __future__ import annotations

import csv
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from others import Estimate, installed

from leansim import __version__
from leansim.answers import render
from leansim.engine import numba_engine, simpy_engine
from leansim.engine.execute import execute
from leansim.engine.program import Program
from leansim.errors import LeansimError
from leansim.files.writing import write_whole
from leansim.points.point import Point, point, resolve
from leansim.results.metrics import time_shares
from leansim.specs.catalog import names
from leansim.sweeps.allocator import keep_memory
from leansim.sweeps.predict import prediction
from leansim.timing.lowering import lower
from leansim.timing.roofline import roofline

HERE = Path(__file__).resolve().parent
HEADS = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
KERNELS = ("fa2", "flash_decoding", "flash_decoding_2_5_6", "lean_ort", "lean")
# What the measured tables ran.
MEASURED = ("sglang_fa3",)
BATCHES: dict[str, dict[str, Any]] = {
    "uniform, 64 requests x 4k": {"batch_size": 64, "context_len": "4k"},
    "uniform, 1,024 requests x 1k": {"batch_size": 1024, "context_len": "1k"},
    "ragged, 256 of Mooncake": {"batch_size": 256, "trace": "mooncake_conversation"},
}


def best(work: Callable[[], Any], repeats: int = 7) -> float:
    """Least wall time of several runs, s; the first, which may compile, is not counted."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def programmed(what: Point) -> Program:
    """Plan and price a point."""
    item = resolve(what)
    return lower(item.schedule, item.instance, item.device)


def whole(what: Point) -> Callable[[], Any]:
    """Everything a prediction does: resolve, plan, price, execute, measure."""
    from leansim.points.simulate import simulate

    return lambda: simulate(what).metrics


def engines(batches: Mapping[str, dict[str, Any]] = BATCHES) -> list[dict[str, Any]]:
    """Both engines on the same programs."""
    rows = []
    for label, batch in batches.items():
        for kernel in ("fa2", "lean"):
            program = programmed(point(device="h100_sxm", kernel=kernel, **HEADS, **batch))
            slow = best(lambda p=program: simpy_engine.execute(p), 3)
            fast = best(lambda p=program: numba_engine.execute(p))
            events = program.num_events
            rows.append(
                {
                    "program": f"{kernel}, {label}",
                    "CTAs": program.num_ctas,
                    "events": events,
                    "SimPy events/s": f"{events / slow:,.0f}",
                    "Numba events/s": f"{events / fast:,.0f}",
                    "ratio": f"{slow / fast:.0f}",
                    "SimPy ms": f"{slow * 1e3:.2f}",
                    "Numba ms": f"{fast * 1e3:.3f}",
                }
            )
    return rows


def ragged(batch_size: int = 256) -> list[dict[str, Any]]:
    """One ragged batch under every kernel that takes it, everything included."""
    rows = []
    for kernel in (*KERNELS, *(name for name in names("kernel") if name not in KERNELS)):
        what = point(
            device="h100_sxm",
            kernel=kernel,
            trace="mooncake_conversation",
            batch_size=batch_size,
            **HEADS,
        )
        try:
            program = programmed(what)
        except LeansimError:  # another architecture's, or of another cache
            continue
        rows.append(
            {
                "kernel": kernel,
                "CTAs": f"{program.num_ctas:,}",
                "engine ms": f"{best(lambda p=program: numba_engine.execute(p), 30) * 1e3:.2f}",
                "whole point ms": f"{best(whole(what), 30) * 1e3:.2f}",
            }
        )
    return rows


def growth(
    batch_sizes: Sequence[int] = (16, 64, 256, 1024, 4096, 16384),
) -> tuple[list[dict[str, Any]], float]:
    """Engine time against CTAs (FA2, uniform), and the slope of its log-log fit."""
    rows, xs, ys = [], [], []
    for requests in batch_sizes:
        program = programmed(
            point(device="h100_sxm", kernel="fa2", batch_size=requests, context_len=512,
                  num_q_heads=64, num_kv_heads=64, head_dim=128)
        )  # fmt: skip
        seconds = best(lambda p=program: numba_engine.execute(p), 3)
        xs.append(program.num_ctas)
        ys.append(seconds)
        rows.append(
            {
                "CTAs": f"{program.num_ctas:,}",
                "engine ms": f"{seconds * 1e3:.3f}",
                "ns per CTA": f"{seconds / program.num_ctas * 1e9:.0f}",
            }
        )
    return rows, float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def context(lengths: Sequence[str] = ("8k", "64k", "256k", "1M")) -> list[dict[str, Any]]:
    """LeanAttention, 16 requests x 128 heads, over context."""
    rows = []
    for length in lengths:
        what = point(device="h100_sxm", kernel="lean", batch_size=16, context_len=length,
                     num_q_heads=128, num_kv_heads=128, head_dim=128)  # fmt: skip
        program = programmed(what)
        rows.append(
            {
                "context": length,
                "segments": resolve(what).schedule.num_segments,
                "engine ms": f"{best(lambda p=program: numba_engine.execute(p)) * 1e3:.2f}",
                "whole point ms": f"{best(whole(what)) * 1e3:.2f}",
            }
        )
    return rows


def silicon_style(count: int, kernels: Sequence[str] = KERNELS) -> list[dict[str, Any]]:
    """Points in the style of the measured tables: uniform, 1 to 2,048 requests, KV within 64 GB."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        kv_heads = int(rng.choice([1, 2, 4, 8, 16, 32]))
        row = {
            "device": str(rng.choice(["a100_sxm_80gb", "h100_sxm"])),
            "kernel": str(rng.choice(kernels)),
            "batch_size": int(2 ** rng.integers(0, 12)),
            "num_q_heads": kv_heads * int(rng.choice([1, 2, 4, 8])),
            "num_kv_heads": kv_heads,
            "head_dim": int(rng.choice([64, 128])),
            "context_len": int(2 ** rng.uniform(0, 17)),
        }
        size = row["batch_size"] * kv_heads * row["head_dim"] * row["context_len"] * 4
        if size <= 64e9 and row["num_q_heads"] <= 128:
            rows.append(row)
    return rows


def start() -> list[dict[str, Any]]:
    """What a person waits for who starts Python or the command line, everything compiled before."""
    point_flags = "--device h100_sxm --kernel fa2,lean --num-q-heads 32 --num-kv-heads 8 --head-dim 128"
    run = f"run {point_flags} --batch-size 16 --context-len 4k"
    commands = {
        "python -c pass": ["-c", "pass"],
        "import leansim": ["-c", "import leansim"],
        "leansim run, two kernels": ["-m", "leansim", *run.split()],
        "the same, --engine numba": ["-m", "leansim", *run.split(), "--engine", "numba"],
    }
    return [
        {"command": name, "seconds": f"{best(lambda a=args: python(a), 5):.2f}"}
        for name, args in commands.items()
    ]


def python(arguments: list[str]) -> None:
    """Run Python and wait for it."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def throughput(count: int, kernels: Sequence[str]) -> dict[str, Any]:
    """`leansim predict` on many points, from the command line, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.csv"
        rows = silicon_style(count, kernels)
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        began = time.perf_counter()
        python(["-m", "leansim", "predict", str(path), "-o", str(Path(folder) / "out.csv")])
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "kernels": ", ".join(kernels),
        "points": f"{count:,}",
        "seconds": f"{seconds:.1f}",
        "points per minute": f"{count / seconds * 60:,.0f}",
        "largest process, MB": f"{peak / 1024:.0f}",
    }


def stages(count: int = 400) -> list[dict[str, Any]]:
    """Where the time of a prediction goes: us per point of each stage, mean and by size of program."""
    taken: dict[str, list[float]] = {}
    sizes = []
    for row in silicon_style(count):
        what = point(**row)
        item = resolve(what)
        program = lower(item.schedule, item.instance, item.device)
        result = execute(program)
        sizes.append(program.num_phases)
        for name, work in {
            "read and look up": lambda: resolve(point(**row)),  # noqa: B023 - run at once
            "schedule": lambda: resolve(what).schedule,  # noqa: B023
            "price": lambda: lower(item.schedule, item.instance, item.device),  # noqa: B023
            "execute": lambda: execute(program),  # noqa: B023
            "measure": lambda: time_shares(result),  # noqa: B023
        }.items():
            taken.setdefault(name, []).append(best(work, 3) * 1e6)
    taken["schedule"] = [
        b - a for a, b in zip(taken["read and look up"], taken["schedule"], strict=True)
    ]
    phases = np.array(sizes)
    bands = {"all": phases >= 0, "below 1,000 phases": phases < 1000, "above 30,000": phases > 30000}
    return [
        {"stage": name, **{band: f"{np.array(us)[at].mean():,.0f}" for band, at in bands.items()}}
        for name, us in taken.items()
    ]


def beside_others(count: int = 500) -> list[dict[str, Any]]:
    """Time per point on one core, here and in other tools, on the same points."""
    rows = [row | {"device": "h100_sxm", "kernel": "vllm_fa3"} for row in silicon_style(count)]
    estimates: dict[str, Estimate] = {
        "leansim, every CTA simulated": lambda row: prediction(point(**row)).latency_s,
        "plain roofline": lambda row: roofline(resolve(point(**row)).workload, DEVICE).floor_s,
        **installed(),
    }
    found = []
    for tool, estimate in estimates.items():
        seconds = best(lambda: [estimate(row) for row in rows], 3)  # noqa: B023 - run at once
        answered = sum(not math.isnan(estimate(row)) for row in rows) / count
        per_point = f"{seconds / count * 1e6:,.0f}"
        found.append({"tool": tool, "us per point": per_point, "points answered": f"{answered:.0%}"})
    return found


DEVICE = resolve(point(device="h100_sxm", kernel="fa2", batch_size=1, context_len=1, **HEADS)).device


def machine() -> str:
    """Where this ran."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "simpy"))
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}, {packages}; leansim {__version__}"  # noqa: E501


_HEAD = """# Benchmarks

Written by `python benchmarks/run.py`; do not edit. Times are the best of several runs on a shared
machine.

"""
_START = """Everything compiled before. A process starts with the reference engine, and loads the
compiled one when there is half a second's work."""
_STAGES = """Microseconds per point on one core, least of three with caches warm, by the phases of the
program: reading it and looking up what it names; the partitioner and the schedule's checks; pricing;
the engine; the metrics."""
_OTHERS = """The same points on H100. `aiconfigurator_core` interpolates in its measured table of vLLM;
GenZ's are two rooflines, of Q K and of P V."""


def main() -> None:
    """Measure and write."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    # First: a child's peak memory counts what its parent held when it was forked.
    predicted = [throughput(count, KERNELS), *(throughput(count // 4, [name]) for name in MEASURED)]
    keep_memory()  # as the command line does
    grown, slope = growth()
    sections: list[tuple[str, str, list[dict[str, Any]]]] = [
        ("`leansim predict`, silicon-table style points", "", predicted),
        ("From the start to the first result", _START, start()),
        ("Where the time goes", _STAGES, stages()),
        ("A point on one core, beside other tools", _OTHERS, beside_others()),
        ("Both engines on the same programs", "", engines()),
        ("One ragged batch of 256 requests (Mooncake), 8 KV heads, H100", "", ragged()),
        ("Cost against CTAs", f"Slope of the log-log fit: {slope:.2f}.", grown),
        ("Cost against context: LeanAttention, 16 requests x 128 heads, H100", "", context()),
    ]
    parts = [_HEAD + machine() + "."]
    for title, text, rows in sections:
        parts += [part for part in (f"## {title}", text, render(rows, "md")) if part]
    write_whole(HERE.parent / "docs" / "benchmarks.md", "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
