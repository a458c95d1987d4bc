"""The benchmarks run: each of them once, at its smallest size. What they measure is no test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
Rows = list[dict[str, Any]]


def once(work: Callable[[], Any], repeats: int = 1) -> float:
    """Stands in for the best of several runs."""
    work()
    return 1e-3 * repeats


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("run")
    monkeypatch.delitem(sys.modules, "run")  # a name that is anyone's
    monkeypatch.setattr(module, "best", once)
    return module


SMALLEST: dict[str, Callable[[Any], Rows]] = {
    "throughput": lambda run: [run.throughput(10, run.KERNELS)],
    "start": lambda run: run.start(),
    "stages": lambda run: run.stages(5),
    "beside_others": lambda run: run.beside_others(5),
    "engines": lambda run: run.engines({"two": {"batch_size": 2, "context_len": 512}}),
    "ragged": lambda run: run.ragged(1),
    "growth": lambda run: run.growth((1, 2))[0],
    "context": lambda run: run.context(["1k"]),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_fills_its_table(run: Any, name: str) -> None:
    rows = SMALLEST[name](run)
    assert rows
    assert all(row.keys() == rows[0].keys() and all(row.values()) for row in rows)
