"""The study verbs as a user meets them: output, formats, artifacts, mistakes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SHAPE = ["--num-q-heads", "16", "--num-kv-heads", "4", "--head-dim", "128"]
FA2 = ["--device", "h100_sxm", "--kernel", "fa2", "--batch-size", "2", "--context-len", "6k", *SHAPE]
SWEEP = """\
name: small
device: h100_sxm
kernel: [flash_decoding, lean]
batch_size: [1, 4]
context_len: [1k, 8k]
num_q_heads: 16
num_kv_heads: 4
head_dim: 128
"""


def leansim(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leansim", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


def test_help_lists_the_verbs_and_loads_nothing_heavy() -> None:
    heavy = "{'pandas', 'matplotlib', 'numba', 'simpy'}"
    code = f"import sys, leansim.cli.main; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    done = leansim("--help")
    for verb in ("oracle", "splits", "explain", "regret", "buckets", "invariance", "tune"):
        assert f" {verb} " in done.stdout


def test_oracle_prints_policies_regret_and_bound(tmp_path: Path) -> None:
    done = leansim("oracle", *FA2, "--rules", "lean,flash_decoding", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("h100_sxm fa2, batch 2 x 6,144 tokens")
    assert lines[2].split() == [
        "policy",
        "num_splits",
        "cuts",
        "ctas",
        "sm_busy",
        "latency_us",
        "regret",
    ]
    assert any(line.startswith("bound (") for line in lines)
    assert "h100_sxm fa2: its own rule cuts 1 and loses " in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.csv", "table.md", "manifest.json"}
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {row["policy"] for row in rows} >= {"best uniform", "flash_attention_2"}


def test_oracle_takes_several_points_and_gives_json() -> None:
    done = leansim("oracle", *FA2, "--kernel", "fa2,fa3", "--rules", "lean", "--format", "json")
    records = json.loads(done.stdout)
    assert {record["kernel"] for record in records} == {"fa2", "fa3"}
    assert min(record["regret"] for record in records) == 1.0
    assert all(record["bound_s"] <= record["latency_s"] for record in records)


def test_splits_draws_the_curve(tmp_path: Path) -> None:
    done = leansim("splits", *FA2, "--rules", "fa3,flash_decoding", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "splits are best" in done.stdout
    assert (tmp_path / "out" / "splits.png").read_bytes().startswith(b"\x89PNG")
    done = leansim("splits", *FA2, "--rules", "fa3", "--counts", "1,2,8", "--format", "csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["num_splits"] for row in rows if row["kind"] == "count"] == ["1", "2", "8"]


def test_explain_prints_a_paragraph(tmp_path: Path) -> None:
    done = leansim("explain", *FA2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fa2 on h100_sxm, batch 2 x 6,144 tokens")
    assert "CTAs on 132 SMs" in done.stdout
    again = leansim("explain", *FA2, "--format", "json", "-o", "out", cwd=tmp_path)
    record = json.loads(again.stdout)[0]
    assert record["text"] in (tmp_path / "out" / "table.md").read_text()
    assert done.stdout.startswith(record["text"])


def test_regret_writes_maps_and_worst_cells(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    done = leansim("regret", "sweep.yaml", "-o", "out", "-j", "1", "--worst", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "small: 4/4 points" in done.stderr
    assert "Worst cells" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    maps = {"regret_flash_decoding.png", "regret_lean.png"}
    assert names == {"results.csv", "table.md", "manifest.json", *maps}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["name"] == "small"


def test_buckets_prints_what_to_freeze() -> None:
    flags = ["--device", "h100_sxm", "--kernel", "vllm_fa3", "--trace", "azure_2023_conv", *SHAPE]
    done = leansim(
        "buckets", *flags, "--buckets", "1,4", "--batches", "2", "--counts", "1,8,32", "-j", "1"
    )
    assert done.returncode == 0, done.stderr
    body = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in body] == ["1", "4"]
    assert "captured for 8,192 tokens" in done.stdout


def test_invariance_prints_who_is_and_what_it_costs() -> None:
    done = leansim("invariance", *FA2, "--rules", "lean", "--seeds", "1", "--format", "md")
    assert done.returncode == 0, done.stderr
    assert "| lean, lean_prefill, triton_lean | no |" in done.stdout
    assert "its own rule is batch-invariant" in done.stdout


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["oracle", *FA2, "--format", "xml"], "--format: found 'xml'"),
        (["oracle", *FA2, "--rules", "flashdecoding"], "unknown split rule 'flashdecoding'"),
        (["splits", *FA2, "--counts", "1,x"], "found '1,x'; wanted whole numbers"),
        (["splits", *FA2, "--counts", "0"], "found '0'; wanted whole numbers"),
        (["explain", *FA2, "--kernel", "flash_mla"], "latent"),
        (["regret", "nosuch.yaml"], "nosuch.yaml"),
        (["buckets", *FA2[:4], *SHAPE], "found no trace"),
        (["invariance", "--device", "h100_sxm", "--kernel", "fa2", *SHAPE], "wanted one of context_len"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(args: list[str], complaint: str) -> None:
    done = leansim(*args)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
