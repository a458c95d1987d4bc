"""Kills a sweep with SIGKILL again and again, resumes it, and says what that cost.

    python benchmarks/sweep_kill_resume.py [--points 10000] [--kills 3] [--jobs N] [--format json]

The same sweep also runs undisturbed. Exits with 1 unless both write the same bytes of Parquet, no
point that was finished is simulated again, and none is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from leansim.sweeps.executors import cores

DEVICES, KERNELS = ("a100_sxm_80gb", "h100_sxm"), ("fa2", "flash_decoding", "lean", "lean_ort")
BATCHES = (1, 2, 3, 4, 6)


def write_sweep(path: Path, points: int) -> int:
    """Write a sweep of about `points` cheap points and return how many they are."""
    lens = max(1, points // (len(DEVICES) * len(KERNELS) * len(BATCHES)))
    axes = {
        "name": "kill_resume",
        "device": list(DEVICES),
        "kernel": list(KERNELS),
        "batch_size": list(BATCHES),
        "context_len": [1024 + 128 * i for i in range(lens)],
        "num_q_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
    }
    path.write_text(json.dumps(axes))
    return lens * len(DEVICES) * len(KERNELS) * len(BATCHES)


def start(folder: Path, out: str, jobs: int) -> subprocess.Popen[str]:
    """Start the command line's sweep in a process of its own."""
    command = [sys.executable, "-m", "leansim", "sweep", "sweep.yaml", "-o", out, "--no-plots"]
    # To a file, not a pipe, which the workers of a killed sweep could hold open.
    with (folder / f"{out}.log").open("w") as log:
        return subprocess.Popen(
            [*command, "-j", str(jobs)], cwd=folder, stderr=log, stdout=log, text=True
        )


def query(store: Path, sql: str) -> int:
    """Ask a store for one number; 0 while there is no store."""
    if not store.exists():
        return 0
    try:
        with closing(sqlite3.connect(store, timeout=60)) as connection:
            return int(connection.execute(sql).fetchone()[0] or 0)
    except sqlite3.OperationalError:
        return 0


def kill_at(folder: Path, target: int, jobs: int) -> dict[str, int]:
    """Start the sweep, kill it when `target` points are stored, and count them before and after."""
    store, count = folder / "killed" / "points.sqlite", "SELECT count(*) FROM points"
    before = query(store, count)
    process = start(folder, "killed", jobs)
    while process.poll() is None and query(store, count) < target:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = re.search(r"(\d+)/\d+ points already there", (folder / "killed.log").read_text())
    reused = int(found[1]) if found else 0
    return {"stored_before": before, "reused": reused, "stored_at_kill": query(store, count)}


def undisturbed(folder: Path, out: str, jobs: int) -> float:
    """Run the sweep to its end and return the seconds it took."""
    began = time.perf_counter()
    if start(folder, out, jobs).wait() != 0:
        raise SystemExit((folder / f"{out}.log").read_text())
    return time.perf_counter() - began


def measure(folder: Path, points: int, kills: int, jobs: int) -> dict[str, Any]:
    """Run the sweep killed and resumed, and undisturbed; compare."""
    total = write_sweep(folder / "sweep.yaml", points)
    began = time.perf_counter()
    sessions = [kill_at(folder, total * (i + 1) // (kills + 1), jobs) for i in range(kills)]
    undisturbed(folder, "killed", jobs)
    killed_s, straight_s = time.perf_counter() - began, undisturbed(folder, "straight", jobs)
    store = folder / "killed" / "points.sqlite"
    parquet = [(folder / out / "results.parquet").read_bytes() for out in ("killed", "straight")]
    return {
        "points": total,
        "jobs": jobs,
        "kills": sum(session["stored_at_kill"] < total for session in sessions),
        "sessions": sessions,
        "seconds": round(killed_s, 2),
        "seconds_undisturbed": round(straight_s, 2),
        "points_per_s_undisturbed": round(total / straight_s, 1),
        "stored": query(store, "SELECT count(*) FROM points"),
        "runs": query(store, "SELECT sum(runs) FROM points"),
        "finished_points_run_again": query(store, "SELECT sum(runs - 1) FROM points"),
        "claims_left": query(store, "SELECT count(*) FROM claims"),
        "same_parquet_bytes": parquet[0] == parquet[1],
    }


def passed(found: dict[str, Any]) -> bool:
    """Whether nothing was lost, nothing done twice, and the results are the same."""
    kept = all(session["reused"] == session["stored_before"] for session in found["sessions"])
    once = found["finished_points_run_again"] == 0 and found["runs"] == found["points"]
    return bool(kept and once and found["same_parquet_bytes"])


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.points, given.kills, given.jobs)
    if given.format == "json":
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))
    sys.exit(0 if passed(found) else 1)


if __name__ == "__main__":
    main()
