"""The command line as a user meets it: output, exit codes, and no tracebacks."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SHAPE = [
    "--batch-size",
    "2",
    "--context-len",
    "2k",
    "--num-q-heads",
    "8",
    "--num-kv-heads",
    "2",
    "--head-dim",
    "64",
]

FA2 = ["--device", "h100_sxm", "--kernel", "fa2", *SHAPE]


def leansim(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leansim", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


def test_run_prints_one_table_and_writes_artifacts(tmp_path: Path) -> None:
    done = leansim(
        "run",
        "configs/runs/quickstart.yaml",
        "-o",
        "out",
        "--set",
        "curve={context_scale: [0.5, 1]}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("quickstart: azure_2023_conv: batch 32")
    body = [
        line.split()[:2]
        for line in lines[4:]
        if line.startswith(("a100", "h100")) and ":" not in line.split()[0]
    ]
    assert ["h100_sxm", "lean"] in body
    out = tmp_path / "out"
    assert {"results.csv", "table.md", "speedup_curve.png", "curve.csv", "manifest.json"} <= {
        p.name for p in out.iterdir()
    }
    assert (out / "speedup_curve.png").read_bytes().startswith(b"\x89PNG")
    trace = json.loads((out / "timelines" / "h100_sxm-lean.json").read_text())["traceEvents"]
    assert {event["ph"] for event in trace} == {"M", "X", "C", "s", "f"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["name"] == "quickstart"


@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
def test_run_formats(form: str) -> None:
    done = leansim("run", "--device", "h100_sxm", "--kernel", "fa2,lean", *SHAPE, "--format", form)
    assert done.returncode == 0, done.stderr
    if form == "json":
        rows = json.loads(done.stdout)
        assert [row["policy"] for row in rows] == ["fa2", "lean"]
        assert rows[0]["latency_s"] > rows[0]["makespan_s"] > rows[0]["roofline_s"]
    if form == "csv":
        assert len(list(csv.DictReader(done.stdout.splitlines()))) == 2


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: file: found nothing"),
        (["run", "--device", "h100", "--kernel", "fa2", *SHAPE], "did you mean 'h100_sxm'"),
        (["run", *FA2, "--set", "nonsense"], "wanted key=value"),
        (["run", *FA2, "--format", "xml"], "wanted table, json, csv or md"),
        (["run", "configs/sweeps/context_length.yaml"], "leansim sweep"),
        (["sweep", "configs/sweeps/context_length.yaml"], "-o DIR"),
        (["plot", "nowhere"], "wanted the results of `leansim sweep`"),
        (["list", "gpus"], "unknown list 'gpus'"),
        (["show", "h100"], "did you mean 'h100_sxm'"),
        (["run", "--devise", "x"], "--device"),
        (["run", *FA2, "--head-dim", "sixty"], "head_dim[0]: found 'sixty'"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2_and_say_what_was_wanted(args: list[str], complaint: str) -> None:
    done = leansim(*args)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_list_and_show() -> None:
    some = {
        "devices": "h200_sxm",
        "kernels": "lean_ort",
        "loops": "serial_chain",
        "partitioners": "lean_attention",
        "models": "llama_3_70b",
        "traces": "mooncake_conversation",
        "timers": "do_bench",
        "libraries": "flashinfer_xqa",
    }
    for thing, name in some.items():
        listed = leansim("list", thing)
        assert name in [line.split()[0] for line in listed.stdout.splitlines()]
    shown = leansim("show", "a100_sxm_80gb").stdout
    assert "datasheet: " in shown
    assert "assumed" in shown.splitlines()[-1]
    assert (
        "sms_factor" in leansim("show", "flash_decoding").stdout
        or "partitioner" in leansim("show", "flash_decoding").stdout
    )
    loop = leansim("show", "pipelined").stdout
    assert "load = latency + bytes / load rate" in loop
    assert re.search(r"^stages +required +int$", loop, re.M)
    assert "num_sms" in leansim("schema").stdout


def test_verify_reports_each_precision() -> None:
    done = leansim("verify", "--device", "a100_sxm_80gb", "--kernel", "lean", *SHAPE)
    assert done.returncode == 0, done.stderr
    assert "float64" in done.stdout
    assert "cover exact" in done.stdout
    assert "not batch-invariant" in done.stdout


# The last column means nothing to leansim.
POINTS = """\
id,device,kernel,batch_size,num_q_heads,num_kv_heads,head_dim,context_len,context_lens,num_sms,num_splits,x
a,a100_sxm_80gb,flash_decoding,1,32,32,64,8192,,,,x
b,h100_sxm,flash_decoding,4,8,8,128,32k,,108,3,
c,a100_sxm_80gb,lean_ort,1,32,32,64,8192,,,,
d,h100_sxm,lean,,32,8,128,,100 7000 512,,,
"""


def test_plan_reads_points_and_adds_columns(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(POINTS)
    done = leansim("plan", "points.csv", "-o", "plans.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "carried along unread: x" in done.stderr
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "plans.csv").read_text().splitlines())}
    assert (rows["a"]["num_splits"], rows["a"]["num_ctas"], rows["a"]["ctas_per_sm"]) == (
        "6",
        "192",
        "2",
    )
    assert (rows["b"]["num_splits"], rows["b"]["num_ctas"]) == ("3", "96")
    assert (rows["c"]["num_splits"], rows["c"]["num_ctas"]) == ("9", "216")
    assert rows["d"]["num_ctas"] == "240"  # (1 + 55 + 4) tiles x 8 heads, two per CTA


def test_a_strict_plan_writes_nothing_when_a_row_is_wrong(tmp_path: Path) -> None:
    bad = POINTS + "e,h100_sxm,lean,1,32,7,128,100,,,,\nf,h100_sxm,leen,1,32,8,128,100,,,,\n"
    (tmp_path / "points.csv").write_text(bad)
    done = leansim("plan", "points.csv", "-o", "plans.csv", "--strict", cwd=tmp_path)
    assert done.returncode == 2
    assert "points.csv:6:1" in done.stderr
    assert "points.csv:7:1" in done.stderr
    assert "did you mean 'lean'" in done.stderr
    assert not (tmp_path / "plans.csv").exists()
    (tmp_path / "points.csv").write_text(POINTS.replace("context_len,", "contex_len,", 1))
    assert "did you mean 'context_len'" in leansim("plan", "points.csv", cwd=tmp_path).stderr


def test_plan_shows_segments() -> None:
    done = leansim(
        "plan", "--device", "h100_sxm", "--kernel", "lean", *SHAPE, "--segments", "--format", "json"
    )
    segments = json.loads(done.stdout)
    assert sum(row["stop"] - row["start"] for row in segments) == 2 * 2 * 8


SWEEP = """
name: small
device: [a100_sxm_80gb, h100_sxm]
kernel: [fa2, flash_decoding, lean, lean_aiter]
baseline: flash_decoding
batch_size: [1, 8]
context_len: [256, 2k, 16k]
num_q_heads: 32
num_kv_heads: 8
head_dim: 128
"""


def test_sweep_stores_refusals_and_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    first = leansim("sweep", "s.yaml", "-o", "out", "-j", "2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "48 points in out: 48 simulated, 0 already there, 12 refused" in first.stdout
    assert "not built for 'h100_sxm'" in first.stdout
    drawn = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert drawn == {
        f"{v}_{a}.png" for v in ("latency", "busy", "speedup") for a in ("context_len", "batch_size")
    } | {"winner_map.png"}
    before = pd.read_parquet(tmp_path / "out" / "results.parquet")
    again = leansim("sweep", "s.yaml", "-o", "out", "--no-plots", cwd=tmp_path)
    assert "0 simulated, 48 already there" in again.stdout
    pd.testing.assert_frame_equal(before, pd.read_parquet(tmp_path / "out" / "results.parquet"))
    fresh = leansim("sweep", "s.yaml", "-o", "out2", "-j", "1", "--no-plots", cwd=tmp_path)
    assert fresh.returncode == 0
    pd.testing.assert_frame_equal(before, pd.read_parquet(tmp_path / "out2" / "results.parquet"))
    (tmp_path / "out" / "winner_map.png").unlink()
    assert leansim("plot", "out", "--baseline", "fa2", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "winner_map.png").exists()
    assert leansim("plot", "out", "--baseline", "fa3", cwd=tmp_path).returncode == 2


def test_interrupting_a_sweep_loses_no_finished_point(tmp_path: Path) -> None:
    batches = list(range(1024, 6145, 512))  # enough to be at it still when the signal comes
    heavy = SWEEP.replace("[1, 8]", str(batches)).replace(", lean_aiter", "")
    total = len(batches) * 3 * 3 * 2
    (tmp_path / "s.yaml").write_text(heavy)
    command = [sys.executable, "-m", "leansim", "sweep", "s.yaml", "-o", "out", "-j", "1", "--no-plots"]
    # A job in the background ignores the signal, and hands that on to what it starts.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        assert "points" in process.stderr.readline()  # at least a tenth is done
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    assert "the same command goes on" in rest
    kept = len(pd.read_parquet(tmp_path / "out" / "results.parquet"))
    assert 0 < kept < total
    done = leansim("sweep", "s.yaml", "-o", "out", "--no-plots", cwd=tmp_path)
    assert f"{total - kept} simulated, {kept} already there" in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, leansim; print({'numpy', 'pandas', 'pydantic', 'simpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
