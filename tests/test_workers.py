"""Workers of a sweep that die, on this machine and on a cluster, and those that never start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from sweeping import AXES, DEADLY, TOTAL, grid, install, leansim, results, runs

from leansim.errors import WorkerError
from leansim.files.extras import pip_install
from leansim.sweeps.executors import Chunk, in_processes, point_key, simulate_chunk
from leansim.sweeps.sweep import RESULTS, sweep


@pytest.mark.thorough
def test_a_point_that_kills_its_worker_costs_itself_alone(tmp_path: Path) -> None:
    install(tmp_path, DEADLY)
    lens = [1000, 2000, 3000, 4000, 5000, 6000]
    axes = AXES | {"kernel": ["fa2", "fa2+deadly"], "batch_size": [1, 2, 4], "context_len": lens}
    axes |= {"device": "h100_sxm"}
    (tmp_path / "s.yaml").write_text(json.dumps(axes))
    args = ("sweep", "s.yaml", "-o", "out", "--no-plots", "-j", "2")
    done = leansim(*args, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "36 points in out: 30 simulated, 0 already there, 0 refused, 6 failed" in done.stdout
    assert "6 without a result: partitioner Deadly raised ZeroDivisionError: a fault" in done.stdout
    assert (tmp_path / "died").exists()
    deadly = axes | {"context_len": [1000], "batch_size": [1, 2, 3, 5, 6, 7, 8, 9, 10]}
    (tmp_path / "s.yaml").write_text(json.dumps(deadly))
    done = leansim(*args, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "18 points in out: 13 simulated, 4 already there, 0 refused, 1 failed" in done.stdout
    assert "1 without a result: WorkerError: its worker process died again and again" in done.stdout
    table = pd.read_parquet(tmp_path / "out" / RESULTS)
    assert list(table[table["error"].notna()]["batch_size"]) == [3]
    assert set(runs(tmp_path / "out")) == {1}, "no point that had finished was simulated again"


def test_workers_die_with_the_sweep(tmp_path: Path) -> None:
    """Not even `kill -9` leaves processes behind that hold memory and cores."""
    code = (
        "import os, time\n"
        "from leansim.sweeps.executors import process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = process_pool(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_workers_that_cannot_start_are_an_error_not_a_loop(tmp_path: Path) -> None:
    """A script without the guard of `__main__` starts itself in every worker."""
    (tmp_path / "main.py").write_text(
        "from leansim import sweep\nsweep('s.yaml', 'out', jobs=2, resume=False)\n"
    )
    (tmp_path / "s.yaml").write_text(json.dumps(AXES))
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "WorkerError: worker processes die as they start" in done.stderr
    assert done.returncode == 1


def test_a_worker_that_knows_another_point_by_the_name_is_an_error() -> None:
    one = grid().points()[0]
    with pytest.raises(WorkerError, match="found another point under these names in a worker"):
        simulate_chunk((("the key that the parent found", one),))


def test_chunks_are_drawn_no_sooner_than_there_is_room() -> None:
    drawn = 0

    def chunks() -> Iterator[Chunk]:
        nonlocal drawn
        for one in grid(kernel="fa2").points():
            drawn += 1
            yield ((point_key(one), one),)

    results = in_processes(2)(chunks())
    for count, finished in enumerate(results, start=1):
        assert len(finished.outcomes) == 1
        assert drawn - count <= 4
    assert count == drawn == TOTAL // 3


# --- a cluster -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Dask's own, of ports in use and workers that went away
@pytest.mark.thorough
def test_a_cluster_that_loses_a_worker_mid_run(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    more = grid(batch_size=[1, 2, 3, 8, 16, 32], kernel=["fa2", "lean", "lean_aiter"])
    local = sweep(more, tmp_path / "local", jobs=1)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        killed = []

        def progress(done: int, total: int) -> None:
            if done >= total // 4 and not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(done)

        address = cluster.scheduler_address
        remote = sweep(more, tmp_path / "remote", progress=progress, scheduler=address)
    assert killed
    assert killed[0] < len(remote.table)
    assert (remote.simulated, remote.failed) == (local.simulated, 0)
    assert results(tmp_path / "remote") == results(tmp_path / "local")
    assert set(runs(tmp_path / "remote")) == {1}


CLUSTER = """
import json, sys
import dask
from distributed import LocalCluster
from leansim.points import grid as config
from leansim.files import strict_yaml
from leansim.sweeps import sweep as sweeps

if __name__ == "__main__":
    # A LocalCluster drops a worker that is starting anew `lost-worker-timeout` after any of its deaths.
    dask.config.set({
        "distributed.deploy.lost-worker-timeout": "1h", "distributed.scheduler.allowed-failures": 1
    })
    grid = config.build(strict_yaml.Document("test", json.loads(sys.argv[1]), {}))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        done = sweeps.sweep(grid, "out", scheduler=cluster.scheduler_address)
    print(json.dumps([done.simulated, done.failed, list(done.table["error"].dropna())]))
"""


@pytest.mark.thorough
def test_a_point_that_kills_a_clusters_workers_costs_itself_alone(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    install(tmp_path, DEADLY)
    (tmp_path / "main.py").write_text(CLUSTER)
    axes = AXES | {"device": "h100_sxm", "kernel": ["fa2", "fa2+deadly"], "batch_size": [1, 3]}
    command = [sys.executable, "main.py", json.dumps(axes)]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    simulated, failed, errors = json.loads(done.stdout.splitlines()[-1])
    assert (simulated, failed) == (12, 4)
    assert set(errors) == {"WorkerError: its worker died again and again"}


@pytest.mark.filterwarnings("ignore")  # Dask's own, of ports in use
def test_a_cluster_that_has_no_worker_for_as_long_as_it_allows_is_an_error(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "500ms"}),
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(WorkerError, match="found NoWorkerError"),
    ):
        sweep(grid(), tmp_path, scheduler=cluster.scheduler_address)


def test_no_scheduler_is_a_plain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WorkerError, match=re.escape(pip_install("cluster"))):
        sweep(grid(), tmp_path, scheduler="tcp://127.0.0.1:1")
    done = leansim(
        "sweep", "x", "-o", "out", "-j", "2", "--scheduler", "tcp://127.0.0.1:1", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--jobs: found --scheduler too; wanted one of the two" in done.stderr
