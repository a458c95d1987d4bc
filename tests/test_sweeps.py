"""Sweeps: killed and resumed, keyed, shared by processes; and the progress they show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeping import AXES, DEADLY, TOTAL, grid, install, results, runs

from leansim.errors import LeansimError
from leansim.points.point import Point, point, resolve
from leansim.sweeps import executors
from leansim.sweeps.executors import Finished, point_key, simulate_chunk
from leansim.sweeps.progress import Progress, estimate
from leansim.sweeps.store import Store
from leansim.sweeps.sweep import sweep

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, simulated in turn and never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert sweep(grid(), folder, jobs=1).simulated == TOTAL
    return folder


@pytest.mark.thorough
def test_a_sweep_killed_three_times_runs_no_point_twice() -> None:
    """The published check, on fewer points: benchmarks/sweep_kill_resume.py."""
    script = str(ROOT / "benchmarks" / "sweep_kill_resume.py")
    command = [sys.executable, script, "--points", "400", "--jobs", "2", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["kills"], found["points"], found["stored"], found["runs"]) == (3, 400, 400, 400)
    assert found["finished_points_run_again"] == 0
    assert found["same_parquet_bytes"]


def test_processes_and_resuming_change_nothing(whole: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = sweep(grid(), tmp_path, jobs=2, progress=lambda *now: told.append(now))
    assert (done.simulated, done.reused, done.refused, done.failed) == (TOTAL, 0, 24, 0)
    assert results(tmp_path) == results(whole)
    assert (told[0], told[-1]) == ((0, TOTAL), (TOTAL, TOTAL))
    assert told == sorted(told)
    told.clear()
    more = sweep(grid(batch_size=[1, 2, 3, 4]), tmp_path, jobs=1, progress=lambda *now: told.append(now))
    assert (more.simulated, more.reused) == (TOTAL // 3, TOTAL)
    assert told[0] == (TOTAL, TOTAL * 4 // 3), "points that were there count as done from the start"
    assert set(runs(tmp_path)) == {1}


def test_fresh_forgets_what_is_there(tmp_path: Path) -> None:
    small = grid(batch_size=1, kernel="fa2")
    with Store(tmp_path) as store:
        store.put([(point_key(one), {"error": None, "latency_s": -1.0}) for one in small.points()])
    assert set(sweep(small, tmp_path, jobs=1).table["latency_s"]) == {-1.0}
    assert sweep(small, tmp_path, jobs=1, resume=False).table["latency_s"].min() > 0
    assert set(runs(tmp_path)) == {1}


def test_points_that_differ_in_name_alone_are_simulated_once(tmp_path: Path) -> None:
    done = sweep(grid(kernel=["lean", "lean+lean_attention"], batch_size=1), tmp_path, jobs=1)
    assert (done.simulated, done.reused) == (8, 8)
    assert list(done.table["policy"]) == list(done.table["kernel"])


def test_two_processes_share_a_store(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(AXES))
    command = [sys.executable, "-m", "leansim", "sweep", "s.yaml", "-o", "out", "-j", "1", "--no-plots"]
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert results(tmp_path / "out") == results(whole)
    assert sum(int(out.split(": ")[1].split()[0]) for out, _ in said) == sum(runs(tmp_path / "out"))
    assert sum(runs(tmp_path / "out")) <= TOTAL + 2 * 8, "at most what was in flight is done twice"


# --- keys ----------------------------------------------------------------------------------------

KEY = "from leansim.points import point as p; print(p.resolve(p.point(**{})).key)"
ONE = {"device": "h100_sxm", "kernel": "fa2+other", "batch_size": 1, "context_len": 4096}
ONE |= {"num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128}


def plugged_key(folder: Path, version: str, source: str) -> str:
    folder.mkdir()
    install(folder, source, version, "other")
    code = KEY.replace("{}", repr(ONE))
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    return done.stdout.strip()


def test_keys_know_a_plug_ins_version_and_source(tmp_path: Path) -> None:
    source = DEADLY.replace("Deadly", "Other")
    keys = [
        plugged_key(tmp_path / "a", "1.0", source),
        plugged_key(tmp_path / "b", "1.1", source),
        plugged_key(tmp_path / "c", "1.0", source + "\n# another line\n"),
    ]
    assert len(set(keys)) == 3
    assert plugged_key(tmp_path / "d", "1.0", source) == keys[0], "not where it is installed"


def test_keys_are_cheap() -> None:
    """Resolving and hashing must stay far below simulating, about 0.3 ms a point when compiled."""
    lens = tuple(range(1000, 1256))
    points = [
        point(**{**ONE, "kernel": "fa2", "batch_size": None, "context_lens": lens, "seed": i})
        for i in range(50)
    ]
    point_key(points[0])

    def timed(work: Callable[[Point], object]) -> float:
        began = time.perf_counter()
        for one in points:
            work(one)
        return (time.perf_counter() - began) / len(points)

    assert min(timed(point_key) for _ in range(5)) < 1e-3  # about 0.15 ms; slack for a busy machine


def test_a_point_that_cannot_be_resolved_has_a_key_too() -> None:
    lone = point(device="h100_sxm", kernel="fa2", batch_size=1)
    other = point(device="h100_sxm", kernel="fa2", batch_size=2)
    assert point_key(lone).startswith("refused:")
    assert point_key(lone) != point_key(other)
    finished: Finished = simulate_chunk(((point_key(lone), lone),))
    assert finished.outcomes[0].final
    assert "WorkloadError" in finished.outcomes[0].row["error"]


def test_a_sweep_of_refusals_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LeansimError, match="every point was refused; the first: "):
        sweep(grid(kernel="lean_aiter"), tmp_path, jobs=1)


# --- progress ------------------------------------------------------------------------------------


def test_rates_leave_out_what_was_there_before() -> None:
    assert estimate((600, 10.0), (700, 15.0), 1000) == (20.0, 15.0)
    assert estimate((600, 10.0), (600, 15.0), 1000) == (0.0, 0.0)


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress("name", clock=lambda: now) as progress:
        progress(500, 1000)
        for done in range(501, 1001):
            now += 0.02
            progress(done, 1000)
        lines = capsys.readouterr().err.splitlines()
        assert lines[:2] == [
            "name: 500/1000 points already there",
            "name: 600/1000 points, 50.0 points/s, 8 s left",
        ]
        assert len(lines) == 6
    assert lines[-1] == "name: 1000/1000 points, 50.0 points/s, 0 s left"


def test_progress_on_a_terminal_is_a_bar(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    (tmp_path / "s.yaml").write_text(json.dumps(AXES | {"batch_size": 1}))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "leansim", "sweep", "s.yaml", "-o", "out", "-j", "1", "--no-plots"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=theirs, stdout=subprocess.PIPE, env=env
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                read = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not read:
                break
            shown += read
        assert process.wait(timeout=60) == 0, shown
    os.close(ours)
    assert b"24/24" in shown
    assert b"points/s" in shown
    assert b"Traceback" not in shown


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= executors.cores() <= (os.cpu_count() or 1)
    assert resolve(grid().points()[0]).key == point_key(grid().points()[0])


# --- the page about them -------------------------------------------------------------------------


def test_the_commands_on_the_page_exist() -> None:
    import typer.main

    from leansim.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "sweeps.md").read_text()
    lines = [line.split() for line in page.splitlines() if line.startswith("leansim ")]
    assert {line[1] for line in lines} == {"sweep", "merge"}
    for line in lines:
        known = {option for given in commands[line[1]].params for option in given.opts}
        assert {word for word in line if word.startswith("-")} <= known
    for flag in ("--resume", "--fresh", "--shard", "--scheduler", "--partial", "-j"):
        assert flag in page
