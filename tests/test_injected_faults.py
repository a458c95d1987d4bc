"""Verbs that are killed, or whose disk is full or read-only, at any moment: whole files or none.

`tests/faulty.py` injects the faults. Whatever happens, each file is then the one that was there or the
one that was to be, no traceback is printed, and the same command, undisturbed, puts everything right.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from faulty import FAULTS
from sweeping import AXES

from leansim.specs import catalog

ONE = {key: value for key, value in AXES.items() if key != "name"}
ONE |= {"device": "h100_sxm", "kernel": "fa2", "batch_size": 1, "context_len": 1000}
SMALL = {**AXES, "device": "h100_sxm", "kernel": ["fa2", "lean"], "batch_size": [1, 2]}
SMALL |= {"context_len": [1000, 2000]}
CALIBRATION = """
name: tiny
rows: [{points: own.csv, device: h100_sxm, kernels: [mine]}]
constants: [{target: kernel.mine.start.overhead_s.sm_90, bounds: [1.0e-8, 1.0e-4]}]
"""
# What a store leaves beside it while it is open, and times and machines in a manifest, may differ.
PASSING = (".sqlite", ".sqlite-wal", ".sqlite-shm", "manifest.json")


@dataclass(frozen=True)
class Case:
    """A verb in a folder where an earlier one may have left its files."""

    args: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()


CASES = {
    "run": Case(("run", "run.yaml", "-o", "out")),
    "run again": Case(
        ("run", "run.yaml", "-o", "out", "--batch-size", "3", "--kernel", "lean", "--baseline", "lean"),
        (("run", "run.yaml", "-o", "out"),),
    ),
    "sweep": Case(("sweep", "sweep.yaml", "-o", "out", "-j", "1", "--no-plots")),
    "sweep and draw": Case(
        ("sweep", "sweep.yaml", "-o", "out", "-j", "1"),
        (("sweep", "sweep.yaml", "-o", "out", "-j", "1", "--set", "batch_size=1"),),
    ),
    "predict": Case(
        ("predict", "points.csv", "-o", "out/found.csv"),
        (("plan", "points.csv", "-o", "out/found.csv"),),
    ),
    "plan": Case(("plan", "points.csv", "-o", "out/deep/found.csv")),
    "merge": Case(
        ("merge", "out", "--no-plots"),
        tuple(
            ("sweep", "sweep.yaml", "-o", "out", "-j", "1", "--shard", f"{i}/2", "--no-plots")
            for i in (1, 2)
        ),
    ),
    "oracle": Case(("oracle", "run.yaml", "-o", "out"), (("explain", "run.yaml", "-o", "out"),)),
    "splits": Case(("splits", "run.yaml", "--kernel", "flash_decoding", "-o", "out")),
    "plot": Case(("plot", "out"), (("sweep", "sweep.yaml", "-o", "out", "-j", "1", "--no-plots"),)),
    "validate": Case(("validate", "--points", "own.csv", "-o", "out", "-j", "1")),
    "calibrate": Case(("calibrate", "fit.yaml", "-j", "1")),
    "schema": Case(("schema", "-o", "out/schema.json")),
}
# How many dealings with files to go on by from one kill to the next, where there is little time.
QUICK = {"run again": 13, "sweep": 13, "predict": 3, "merge": 13, "calibrate": 3}


def prepared(folder: Path) -> Path:
    """A folder with the files that the cases name."""
    folder.mkdir(parents=True)
    run = {**ONE, "name": "a run", "kernel": ["fa2", "lean"], "baseline": "fa2"}
    (folder / "run.yaml").write_text(json.dumps({**run, "curve": {"batch_size": [1, 2]}}))
    (folder / "sweep.yaml").write_text(json.dumps(SMALL))
    points = [",".join(map(str, {**ONE, "context_len": n}.values())) for n in range(800, 820)]
    head = ",".join(ONE)
    (folder / "points.csv").write_text("\n".join([head, *points]) + "\n")
    measured = [f"{row},30".replace(",fa2,", ",mine,") for row in points]
    (folder / "own.csv").write_text("\n".join([f"{head},measured_us", *measured]) + "\n")
    (folder / "fit.yaml").write_text(CALIBRATION)
    (folder / "configs" / "kernels").mkdir(parents=True)
    text = catalog.spec_path("kernel", "fa2").read_text(encoding="utf-8")
    (folder / "configs" / "kernels" / "mine.yaml").write_text(text.replace("name: fa2", "name: mine", 1))
    return folder


@pytest.fixture(autouse=True)
def _own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANSIM_CONFIGS", "configs")


def leansim(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leansim", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those that differ from one undisturbed run to the next."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(PASSING) and ".part" not in str(path)
    }


def holds_some(file: str, content: bytes, new: dict[str, bytes]) -> bool:
    """Whether a table of results, itself whole, has some of the rows that it was to have.

    A sweep whose store cannot grow any more writes what it finished.
    """
    if file == "out/results.csv":
        head, *rows = content.splitlines()
        wanted, *others = new[file].splitlines()
        return head == wanted and set(rows) <= set(others)
    if file == "out/results.parquet":
        rows = pd.read_parquet(io.BytesIO(content)).astype(str).to_csv(index=False).splitlines()
        whole = pd.read_parquet(io.BytesIO(new[file])).astype(str).to_csv(index=False).splitlines()
        return set(rows) <= set(whole)
    return False


def faulty(args: tuple[str, ...], folder: Path, out: Path, fault: str, step: int) -> dict[str, int]:
    script = str(Path(__file__).parent / "faulty.py")
    command = [sys.executable, script, json.dumps(args), str(folder), str(out), fault, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(name: str, tmp_path: Path, fault: str, step: int = 1) -> int:
    """Inject a fault into a case at every `step`-th moment. How many runs it disturbed."""
    case, start = CASES[name], prepared(tmp_path / "start")
    for args in case.before:
        done = leansim(*args, cwd=start)
        assert done.returncode == 0, done.stderr
    whole = Path(shutil.copytree(start, tmp_path / "whole"))
    done = leansim(*case.args, cwd=whole)
    assert done.returncode == 0, done.stderr
    old, new = contents(start), contents(whole)
    statuses = faulty(case.args, start, tmp_path / "runs", fault, step)
    for number, status in statuses.items():
        folder = tmp_path / "runs" / number / "work"
        log = (folder.parent / "log").read_text()
        assert status in (0, 2, -9), log
        assert "Traceback" not in log, log
        for file, content in contents(folder).items():
            whole_one = content in (old.get(file), new.get(file)) or holds_some(file, content, new)
            assert whole_one, f"{file} after {fault} {number}: {log}"
        for manifest in folder.rglob("manifest.json"):
            assert json.loads(manifest.read_text())["model_version"]
        if status == 2:
            assert "error: " in log
    worst = [number for number, status in statuses.items() if status]
    for number in worst[len(worst) // 2 :][:1]:
        folder = tmp_path / "runs" / number / "work"
        done = leansim(*case.args, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert contents(folder) == new
        assert not list(folder.rglob("*.part")), "parts of the one that was killed are gone"
    return len(worst)


@pytest.mark.parametrize("name", QUICK)
def test_a_kill_at_some_moments(tmp_path: Path, name: str) -> None:
    assert check(name, tmp_path, "kill", QUICK[name]) >= 1


@pytest.mark.parametrize("name", ["run again", "predict"])
@pytest.mark.parametrize("fault", ["full", "read_only"])
def test_a_full_or_read_only_disk_at_some_moments(tmp_path: Path, name: str, fault: str) -> None:
    assert check(name, tmp_path, fault, QUICK[name]) >= 1


@pytest.mark.parametrize("name", ["run again", "sweep"])
def test_files_that_may_not_grow(tmp_path: Path, name: str) -> None:
    assert check(name, tmp_path, "bytes:0,5000,30000") >= 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fault", [*FAULTS, "bytes:0,1,100,1000,4096,8192,20000,40000,80000,200000"])
def test_any_fault_at_every_moment(tmp_path: Path, name: str, fault: str) -> None:
    check(name, tmp_path, fault)
