"""Measuring: points, campaign and micro-measurements, in the interpreter and on a stand-in for a GPU."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gpu_kit import interpreted, needs_triton
from gpu_stand_in import CALL_MS, stand_in

from leansim.errors import ConfigError, GpuError, LeansimError
from leansim.files.extras import pip_install
from leansim.gpu import micro, timing
from leansim.gpu.campaign import COLUMNS, KERNELS, MeasuredFile, campaign, measured
from leansim.gpu.machine import differences, recognised
from leansim.gpu.measuring import Measurer, check_kernel
from leansim.gpu.timing import calls_for, timed
from leansim.points.point import point_from_row, resolve
from leansim.points.simulate import simulate
from leansim.silicon.calibration import read_calibration
from leansim.silicon.fit import calibrate, write
from leansim.silicon.own import MACHINE_COLUMNS, MEASUREMENT_COLUMNS, shape_of
from leansim.silicon.rows import is_for_fitting
from leansim.silicon.validate import validate_points
from leansim.specs import catalog

POINT = {"device": "h200_sxm", "kernel": "triton_flash_decoding", "batch_size": "1",
         "context_len": "700",
         "num_q_heads": "4", "num_kv_heads": "1", "head_dim": "64", "q_dtype": "float16",
         "kv_dtype": "float16"}  # fmt: skip


# -- which points ------------------------------------------------------------------------------


def test_a_campaign_has_the_shapes_it_should() -> None:
    rows = campaign("h200_sxm")
    shapes = [rows[at : at + 3] for at in range(0, len(rows), 3)]
    assert all(tuple(row["kernel"] for row in shape) == KERNELS for shape in shapes)
    firsts = [shape[0] for shape in shapes]
    assert sum(bool(row["context_len"]) for row in firsts) >= 200
    assert sum(bool(row["trace"]) for row in firsts) >= 60
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    fit = sum(is_for_fitting(shape_of(row)) for row in firsts) / len(firsts)
    assert 0.12 < fit < 0.28
    most = max(resolve(point_from_row(row, "campaign")).workload.kv_bytes for row in firsts[:60])
    assert most <= 8 * 2**30


def test_a_part_of_a_campaign_is_a_sample_of_it() -> None:
    """A third of it has short and long contexts, small and large batches, traces and uniform shapes."""
    rows = campaign("h200_sxm")[: 3 * 104]
    assert len({row["context_len"] for row in rows}) >= 9
    assert len({row["batch_size"] for row in rows}) >= 7
    assert len({row["trace"] for row in rows}) >= 3


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# -- the file ----------------------------------------------------------------------------------


def test_half_a_row_is_removed_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with MeasuredFile(path, ("a", "b")) as file:
        file.add({"a": 1, "b": "x, y"})
        file.add({"a": 2})
    path.write_text(path.read_text() + "3,half")
    with MeasuredFile(path, ("a", "b")) as file:
        assert file.rows == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
        file.add({"a": 4})
    assert path.read_text() == 'a,b\n1,"x, y"\n2,\n4,\n'
    with pytest.raises(ConfigError, match="wanted the columns of these measurements"):
        MeasuredFile(path, ("a", "c"))
    with MeasuredFile(path, ("a", "c"), fresh=True):
        assert path.read_text() == "a,c\n"


def test_finished_points_are_skipped_and_a_budget_ends_it(tmp_path: Path) -> None:
    rows = [{"device": "h200_sxm", "kernel": "triton_fa2", "batch_size": str(n)} for n in range(1, 6)]
    columns = [*rows[0], "measured_us"]
    calls: list[str] = []

    def measure(row: dict[str, str]) -> dict[str, Any]:
        calls.append(row["batch_size"])
        if row["batch_size"] == "2":
            raise GpuError("no")
        return {"measured_us": 1.0}

    refused: list[str] = []
    ticks = iter(range(100))
    with MeasuredFile(tmp_path / "m.csv", columns) as file:
        seen = list(
            measured(
                rows,
                measure,
                file,
                1.5,
                lambda row, _: refused.append(row["batch_size"]),
                lambda: next(ticks),
            )
        )
    assert calls == ["1"]  # begun after one second; the next would be after two
    assert seen[-1] == (1, 5)
    with MeasuredFile(tmp_path / "m.csv", columns) as file:
        seen = list(
            measured(rows, measure, file, None, lambda row, _: refused.append(row["batch_size"]))
        )
    assert calls == ["1", "2", "3", "4", "5"]
    assert (refused, seen[-1]) == (["2"], (4, 5))


# -- measuring ---------------------------------------------------------------------------------


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls to a sample, two samples: each really runs the interpreter."""
    monkeypatch.setattr(timing, "_MOST_CALLS", 4)
    monkeypatch.setattr(timing, "_LEAST_SAMPLES", 2)
    monkeypatch.setattr(timing, "_MOST_SAMPLES", 2)


@needs_triton
@pytest.mark.usefixtures("few_calls")
def test_a_measured_point_says_everything(tmp_path: Path) -> None:
    """On the stand-in, each launch takes the same: two for a split call, attention and combine."""
    tools = stand_in()
    found = Measurer(tools).measure(POINT, "points.csv")
    assert set(found) == set(MEASUREMENT_COLUMNS)
    assert found["measured_us"] == pytest.approx(2 * CALL_MS * 1e3)
    assert found["spread_us"] == 0
    assert (found["calls"], found["buffers"], found["samples"]) == (4, 4, 2)
    assert (found["registers"], found["smem_bytes"], found["resident_ctas_per_sm"]) == (100, 36864, 4)
    assert float(found["row_error"]) < 1e-3
    assert found["gpu"] == "a stand-in"
    assert tools.torch.cuda.replays >= 2
    with MeasuredFile(tmp_path / "m.csv", [*POINT, *MEASUREMENT_COLUMNS]) as file:
        file.add({**POINT, **found})
    table = validate_points(tmp_path / "m.csv")
    assert table["measured_s"].tolist() == pytest.approx([2 * CALL_MS / 1e3])
    assert table["kernel"].tolist() == ["triton_flash_decoding"]


@needs_triton
def test_cold_calls_are_apart_by_what_is_read_and_not_by_what_is_there() -> None:
    """A list of 64 tokens of 3,200: as many buffers as of a context of 64."""
    tools = stand_in()
    device = {"num_q_heads": "64", "num_kv_heads": "64", "batch_size": "40"}
    buffers = [
        Measurer(tools)._plan(resolve(point_from_row(POINT | device | fields, "points.csv")))[1]
        for fields in (
            {"context_len": "3200"},
            {"context_len": "64"},
            {"context_len": "3200", "kv_budget": "64"},
        )
    ]
    assert buffers[0] < buffers[1] == buffers[2]


@needs_triton
@pytest.mark.usefixtures("few_calls")
def test_warm_calls_share_a_buffer_and_streams_are_no_graph() -> None:
    tools = stand_in()
    found = Measurer(tools).measure(POINT | {"cache": "warm", "launch": "stream"}, "points.csv")
    assert found["buffers"] == 1
    assert tools.torch.cuda.replays == 0
    assert found["measured_us"] == pytest.approx(2 * CALL_MS * 1e3)


@needs_triton
def test_kernels_of_a_shape_have_the_same_inputs_and_the_next_shape_others() -> None:
    measurer = Measurer(interpreted())
    seeds = [
        measurer.measure(POINT | change, "points.csv")["input_seed"]
        for change in ({}, {"kernel": "triton_lean"}, {"context_len": "701"}, {})
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert Measurer(interpreted(), seed=7).measure(POINT, "points.csv")["input_seed"] == 7


@needs_triton
def test_what_goes_wrong_on_the_device_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = stand_in()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(tools.kernels.attention, "warmup", broken)
    with pytest.raises(GpuError, match=r"the device gave up: RuntimeError: CUDA error: out of memory$"):
        Measurer(tools).measure(POINT, "points.csv")


@needs_triton
def test_a_point_of_another_gpu_is_refused() -> None:
    with pytest.raises(GpuError, match="has sm_90, not sm_80 and 132 SMs, not 108"):
        Measurer(stand_in()).measure(POINT | {"device": "a100_sxm_80gb"}, "points.csv")


def test_only_our_own_kernels_are_measured() -> None:
    with pytest.raises(GpuError, match="triton_fa2, triton_flash_decoding, triton_lean"):
        check_kernel("fa3")
    check_kernel("triton_lean+lean_aiter")


@needs_triton
def test_timing_divides_and_flushes() -> None:
    tools, evicted = stand_in(), []
    flush = lambda: evicted.append(tools.torch.cuda.now_ms)  # noqa: E731
    order: list[int] = []

    def call(i: int) -> None:
        tools.torch.cuda.launched(lambda: order.append(i))

    found = timed(tools, call, 5, "graph", flush, least_s=0.0)
    assert (found.median_us, found.calls, found.samples) == (CALL_MS * 1e3, 5, len(evicted))
    assert order[:5] == [0, 1, 2, 3, 4]
    assert [calls_for(us) for us in (0.5, 100.0, 5000.0)] == [64, 10, 2]


# -- the machine -------------------------------------------------------------------------------


@needs_triton
def test_the_gpu_is_recognised_by_architecture_sms_and_memory() -> None:
    torch = stand_in().torch
    assert recognised(torch) == "h200_sxm"
    properties = torch.cuda.get_device_properties()
    assert differences(catalog.device("h100_sxm"), properties) == "150 GB, not 86"
    assert differences(catalog.device("h200_sxm"), properties) == ""
    torch.cuda.get_device_properties = lambda: type(properties)(
        **{**vars(properties), "total_memory": 10**10}
    )
    with pytest.raises(GpuError, match="wanted a device of configs/devices like it"):
        recognised(torch)


@needs_triton
def test_every_column_of_the_machine_is_there_without_nvidia_smi() -> None:
    measurer = Measurer(interpreted())
    columns = measurer.machine.columns()
    assert set(columns) == set(MACHINE_COLUMNS)
    assert columns["gpu"] == "Triton's interpreter"


# -- micro-measurements ------------------------------------------------------------------------

MECHANISMS = {
    "read_bandwidth",
    "l2_residency",
    "launch_gap",
    "cta_turnover",
    "flag_hand_over",
    "combine",
}


@needs_triton
def test_each_mechanism_is_rehearsed() -> None:
    rows = list(micro.Micro(interpreted(), catalog.device("h200_sxm")).rows())
    assert {row["measurement"] for row in rows} == MECHANISMS
    assert all(set(row) == set(micro.COLUMNS) for row in rows)
    assert not any(row["median_us"] for row in rows)


@needs_triton
@pytest.mark.usefixtures("few_calls")
def test_trials_are_timed() -> None:
    """On the stand-in: what a row holds, and that a hand-over is one way of two."""
    rehearsed = micro.Micro(interpreted(), catalog.device("h200_sxm"))
    measuring = micro.Micro(interpreted(), catalog.device("h200_sxm"))
    measuring.tools, measuring.small = stand_in(), False
    for trials in (rehearsed._launch_gap, rehearsed._combine, rehearsed._hand_over):
        assert list(trials())
    rehearsed.tools = measuring.tools
    row = measuring._row(next(iter(rehearsed._launch_gap())))
    assert row["median_us"] == CALL_MS * 1e3
    row = measuring._row(next(iter(rehearsed._combine())))
    assert row["gb_per_s"] == pytest.approx(row["bytes"] / 1e9 / (CALL_MS / 1e3), abs=0.01)
    row = measuring._row(next(iter(rehearsed._hand_over())))
    assert row["median_us"] == pytest.approx(CALL_MS * 1e3 / 4)


@needs_triton
def test_wrong_sums_are_found() -> None:
    trials = micro.Micro(interpreted(), catalog.device("h200_sxm"))
    trial = next(iter(trials._bandwidth()))
    trial.call(0)
    trial.check()
    trials.sums[0] += 1
    with pytest.raises(GpuError, match="added up to"):
        trial.check()


# -- the command -------------------------------------------------------------------------------


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`leansim measure` in a process of its own, without a GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    whole = [sys.executable, "-m", "leansim", "measure", *arguments]
    return subprocess.run(
        whole, capture_output=True, text=True, check=False, timeout=300, env=environment
    )


def test_help_says_what_to_run() -> None:
    text = command("--help", COLUMNS="200").stdout
    for line in (
        "pip install '.[gpu]'",
        "leansim measure micro -o micro.csv",
        "leansim measure campaign -o points.csv --budget-s 540",
        "leansim validate --points points.csv",
        "--interpret",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("micro",), "--out: found nothing; wanted a file"),
        (("micra", "-o", "x.csv"), "campaign, micro, libraries, timers, pace or card"),
        (("no.csv", "-o", "x.csv"), "wanted a readable CSV"),
        (("points.csv", "-o", "x.csv", "--device", "h200_sxm"), "wanted the device in each row"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    """In a process that finds no torch, whether it is installed or not."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import leansim.cli.main, leansim.gpu.measuring, leansim.gpu.micro\n"
        f"sys.argv = ['leansim', 'measure', 'micro', '-o', {str(tmp_path / 'x.csv')!r}]\n"
        "leansim.cli.main.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found no torch; wanted the extra" in done.stderr
    assert pip_install("gpu") in done.stderr
    assert not list(tmp_path.iterdir())


@needs_triton
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = command("campaign", "-o", str(tmp_path / "x.csv"))
    assert done.returncode == 2
    assert "found no CUDA device" in done.stderr
    assert "--interpret" in done.stderr
    assert not list(tmp_path.iterdir())


@needs_triton
def test_points_of_ones_own_are_rehearsed(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    rows = [
        POINT | {"id": "1"},
        POINT | {"id": "2", "kernel": "triton_lean"},
        POINT | {"id": "3", "kernel": "fa3"},
    ]
    with points.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = command(str(points), "-o", str(tmp_path / "out.csv"), "--interpret", "--input-seed", "3")
    assert done.returncode == 1
    assert "refused: device=h200_sxm, kernel=fa3" in done.stderr
    assert "2 of 3 points" in done.stdout
    found = read(tmp_path / "out.csv")
    assert [row["id"] for row in found] == ["1", "2"]
    assert [row["input_seed"] for row in found] == ["3", "3"]
    with pytest.raises(ConfigError, match="wanted a time in microseconds"):
        validate_points(tmp_path / "out.csv")


@needs_triton
def test_a_killed_campaign_goes_on(tmp_path: Path) -> None:
    """Killed in the middle, the same command finishes it, repeats nothing and leaves whole rows."""
    out = tmp_path / "out.csv"
    whole = [sys.executable, "-m", "leansim", "measure", "campaign", "--interpret", "-o", str(out)]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and (not out.exists() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = out.read_text().splitlines()[1:]
    done = command("campaign", "--interpret", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "12 of 12 points" in done.stdout
    rows = read(out)
    assert Counter(row["kernel"] for row in rows) == dict.fromkeys(KERNELS, 4)
    assert len({tuple(row[name] for name in COLUMNS) for row in rows}) == 12
    assert out.read_text().splitlines()[1 : len(before) + 1] == before


def test_errors_of_gpu_modules_are_leansims_own() -> None:
    assert issubclass(GpuError, LeansimError)


# -- what becomes of measurements --

ROOT = Path(__file__).resolve().parent.parent
TRUTH: dict[str, Any] = {
    "kernel.start.overhead_s.sm_90": 1.5e-6,
    "device.dram_efficiency": 0.8,
}


def as_if_measured(path: Path, shapes: int, slower: float = 1.0) -> None:
    """Points of the campaign with the times of a simulator whose constants are `TRUTH`."""
    rows = [row for row in campaign("h200_sxm") if row["batch_size"] in ("1", "4", "8")][: 3 * shapes]
    with MeasuredFile(path, [*COLUMNS, *MEASUREMENT_COLUMNS]) as file:
        for row in rows:
            point = point_from_row(row, "campaign").model_copy(update={"overrides": TRUTH})
            time_us = simulate(point).result.latency_s * 1e6 * slower
            file.add({**row, "measured_us": time_us, "gpu": "simulated", "row_error": "1e-3"})


def test_constants_are_fitted_to_measured_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the fit fifth is fitted to; what made the times is found, the rest predicted better."""
    monkeypatch.chdir(tmp_path)
    for kind in ("kernels", "devices"):
        shutil.copytree(ROOT / "configs" / kind, tmp_path / "configs" / kind)
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path / "configs"))
    as_if_measured(tmp_path / "points.csv", 60)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\n"
        f"rows: [{{points: points.csv, device: h200_sxm, kernels: [{', '.join(KERNELS)}]}}]\n"
        "constants:\n"
        "  - {target: device.h200_sxm.dram_efficiency, bounds: [0.7, 0.97]}\n"
        "  - {target: kernel.triton_fa2.start.overhead_s.sm_90, bounds: [0, 3.0e-6]}\n"
    )
    before = validate_points("points.csv", split="test")
    fit = calibrate(read_calibration("mine.yaml"), jobs=1)
    assert len(fit.rows) == len(validate_points("points.csv", split="fit"))
    assert len(fit.rows) + len(before) == 180
    assert [c.after for c in fit.constants] == pytest.approx([0.8, 1.5e-6], rel=0.05)
    assert {path.name for path in write(fit)} == {"triton_fa2.yaml", "h200_sxm.yaml"}
    source = catalog.kernel("triton_fa2").sources["start.overhead_s.sm_90"]
    assert "own measurements points.csv" in source
    after = validate_points("points.csv", split="test")
    assert after["error"].abs().mean() < 0.01 < before["error"].abs().mean()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("{table: a100_sxm_vllm, points: p.csv}", "wanted table, or points"),
        ("{points: p.csv}", "wanted device and kernels beside points"),
        ("{points: p.csv, device: h300, kernels: [triton_fa2]}", "unknown device 'h300'"),
        ("{points: p.csv, device: h200_sxm, kernels: [triton_fa]}", "did you mean 'triton_fa2'"),
        ("{points: p.csv, device: h200_sxm, kernels: [fa3]}", "wanted a constant that changes one of"),
    ],
)  # fmt: skip
def test_a_choice_of_points_that_makes_no_sense(tmp_path: Path, rows: str, complaint: str) -> None:
    constant = "{target: kernel.triton_fa2.compute.mma_efficiency.sm_90, bounds: [0.1, 1.0]}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nrows: [{rows}]\nconstants: [{constant}]\n")
    with pytest.raises(ConfigError, match=complaint):
        read_calibration(tmp_path / "mine.yaml")


def test_shipped_calibrations_have_their_measurements() -> None:
    """The CSVs of points that they name are part of the repository."""
    shipped = sorted((ROOT / "configs" / "calibrations").glob("*.yaml"))
    rows = [rows for file in shipped for rows in read_calibration(file).config.rows]
    named = {rows.points for rows in rows if rows.points is not None}
    assert named
    assert all((ROOT / name).is_file() for name in named)


def experiment(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "experiments" / "own_gpus" / name)
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@needs_triton
def test_the_experiment_is_rehearsed(tmp_path: Path) -> None:
    done = experiment("run.py", "--rehearse", "--out", str(tmp_path / "card"))
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "card" / "triton_campaign.csv")) == 12
    assert {row["measurement"] for row in read(tmp_path / "card" / "micro.csv")} == MECHANISMS
    report = experiment("report.py", str(tmp_path))
    assert report.returncode == 2
    assert "wanted a time in microseconds" in report.stderr


def test_the_report_of_what_was_just_measured(tmp_path: Path) -> None:
    """Times 25% above the simulator's: each error is negative, and speedups are its own."""
    (tmp_path / "card").mkdir()
    as_if_measured(tmp_path / "card" / "triton_campaign.csv", 12, slower=1.25)
    done = experiment("report.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    errors = read(tmp_path / "errors.csv")
    assert {row["kernel"] for row in errors} == set(KERNELS)
    assert all(float(row["bias"]) < -0.19 for row in errors)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "on simulated" not in text
    assert "card (`h200_sxm`): 36 rows of 12 batches" in text
    assert experiment("report.py", str(tmp_path / "none")).returncode == 2
