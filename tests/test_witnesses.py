"""The witnesses run on made-up data of the same columns, and read it as the README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "witnesses"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few rows of each file, with round times."""
    folder = tmp_path / "data"
    folder.mkdir()
    batches = range(20, 30)
    pd.DataFrame(
        {
            "time_stats.attn_decode.median": 2 * ([0.04] * 2 + [0.02] * 6 + [0.03] * 2),
            "n_q_head": 64, "n_kv_head": 8, "num_tensor_parallel_workers": 2, "max_model_len": 4096,
            "batch_size": [*batches] * 2, "kv_cache_size": [512] * 10 + [2048] * 10, "is_prefill": False,
        }
    ).to_csv(folder / "vidur_a100_attention.csv", index=False)  # fmt: skip
    for card in ("rtx4090_llama31_8b", "rtxpro6000_qwen3_30b"):
        pd.DataFrame(
            {"prefill_chunk": [0, 0, 0, 16], "kv_prefill": 0, "n_decode": [1, 2, 2, 1],
             "kv_decode": [16, 16, 1024, 16], "time_us": [9.0, 13.5, 25.0, 99.0]}
        ).to_csv(folder / f"llmservingsim_{card}_attention.csv", index=False)  # fmt: skip
        pd.DataFrame(
            {"n": 4, "nb": [1, 2, 1], "pc": [0, 0, 16], "kvs": 128, "kv_big": 512,
             "kv_mean": [224, 320, 224], "t_mean_us": 50.0, "t_max_us": 60.0,
             "t_skew_us": [51.0, 53.0, 99.0]}
        ).to_csv(folder / f"llmservingsim_{card}_skew.csv", index=False)  # fmt: skip
    pd.DataFrame(
        {"nreqs": [1, 1, 16], "ctxlen": 128, "prefixlen": [64, 64, 1024], "relay": [False, True, False],
         "attn_usr": [7, 5, 700]}
    ).to_csv(folder / "relay_attention_NVIDIA-A40.csv", index=False)  # fmt: skip
    return folder


def run(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "run.py"), "--data", str(data), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_made_up_data_gives_results(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(data, out)
    assert done.returncode == 0, done.stderr
    names = {"RESULTS.md", "summary.csv", "cliffs.csv", "a40.csv", "steps.png", "raggedness.png"}
    assert {path.name for path in out.iterdir()} == names
    results = (out / "RESULTS.md").read_text()
    assert "Over 20 rows the mean error is" in results
    assert "1 batches with a prefill chunk" in results
    assert str(data) not in results
    cliffs = pd.read_csv(out / "cliffs.csv").set_index("cliff")
    assert cliffs.loc["21 -> 22", ["measured_at", "simulated_at"]].tolist() == ["21 -> 22"] * 2
    assert cliffs.loc["27 -> 28", "measured_long"] == pytest.approx(1.5)
    assert pd.read_csv(out / "a40.csv")["rows"].tolist() == [1, 1]


def test_a_missing_file_is_named(data: Path, tmp_path: Path) -> None:
    (data / "relay_attention_NVIDIA-A40.csv").unlink()
    done = run(data, tmp_path / "out")
    assert done.returncode == 1
    assert "found no relay_attention_NVIDIA-A40.csv" in done.stderr


def test_vllms_choice_between_its_two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from relay import kernel_of  # type: ignore[import-not-found]

    assert kernel_of(1, 512) == kernel_of(10, 513) == kernel_of(10, 8192) == "vllm_paged_v1"
    assert kernel_of(1, 513) == kernel_of(9, 513) == kernel_of(128, 8193) == "vllm_paged_v2"


def test_published_results_are_of_all_witnesses() -> None:
    results = (FOLDER / "RESULTS.md").read_text()
    for witness in ("vidur", "RTX 4090", "RTX PRO 6000", "A40"):
        assert witness in results
    assert "/work" not in results
