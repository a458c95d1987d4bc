"""Our own measurements: every row is read, and the report holds them against the simulator."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from leansim.silicon.own import own_rows

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "own_gpus"
# Files of other measurements: of mechanisms, and of the kernels of a call apart.
NO_POINTS = (
    "micro",
    "sm_paces",
    "cta_ends",
    "kernel_durations_cold",
    "more_kernels_cold",
    "pace",
    "timers",
)
FILES = [path for path in sorted(FOLDER.glob("h?00/*.csv")) if path.stem not in NO_POINTS]
LEAN_OVER_FA2 = ("triton_lean", "triton_fa2")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_row_is_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = own_rows(file)
    assert rows.attrs["left_out"] == {}
    assert rows["measured_us"].astype(float).tolist() == [
        float(row["measured_us"]) for row in read(file)
    ]
    assert set(rows["device"]) == {f"{file.parent.name}_sxm"}
    assert capsys.readouterr().err == ""  # no column is carried along unread


def sample(folder: Path, most: int) -> None:
    """The first rows of every file, of all kernels alike, and the micro-measurements as they are."""
    others = [FOLDER / "h200" / f"{name}.csv" for name in ("micro", "cta_ends")]
    for file in [*FILES, *others]:
        lines = file.read_text().splitlines(keepends=True)
        few = folder / file.parent.name / file.name
        few.parent.mkdir(exist_ok=True)
        few.write_text("".join(lines[: 1 + most]))


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "report.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_report_of_a_sample(tmp_path: Path) -> None:
    sample(tmp_path, 12)
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    by_file = read(tmp_path / "errors_by_file.csv")
    assert {(row["card"], row["file"]) for row in by_file} == {(f.parent.name, f.stem) for f in FILES}
    assert sum(int(row["rows"]) for row in by_file) == 12 * len(FILES)
    assert {row["card"] for row in by_file if row["rows_are"] == "fit"} <= {"h200"}
    bands = read(tmp_path / "speedups_by_band.csv")
    for card in ("h100", "h200"):
        rows = read(tmp_path / card / "triton_campaign.csv")
        times = [
            [float(row["measured_us"]) for row in rows if row["kernel"] == k] for k in LEAN_OVER_FA2
        ]
        wanted = math.exp(sum(math.log(b / a) for a, b in zip(*times, strict=True)) / len(times[0]))
        (found,) = [
            row
            for row in bands
            if (row["card"], row["over"], row["batch"]) == (card, "triton_fa2", "all")
        ]
        assert float(found["measured"]) == pytest.approx(wanted, rel=1e-3)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Not compared: " in text
    assert "- h200: the last CTA of 12 calls ends " in text
    assert len(read(tmp_path / "timelines.csv")) == 12
    assert {path.name for path in tmp_path.glob("*.png")} == {"times.png", "speedups.png"}


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.returncode == 2
    assert "found no measurements; wanted CARD/FILE.csv with measured_us" in done.stderr


def test_published_errors_are_those_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one file, to the digit. Else run `leansim experiment run own_gpus`, and say what moved."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from comparisons import SETTING, errors  # type: ignore[import-not-found]
    from measured import simulated  # type: ignore[import-not-found]

    rows = simulated([FOLDER / "h100" / "libraries_warm.csv"])
    found = errors(rows, SETTING).to_csv(index=False, float_format="%.5g").splitlines()
    published = (FOLDER / "errors_by_file.csv").read_text().splitlines()
    assert len(found) > 3
    assert found[1:] == [line for line in published if line.startswith("h100,libraries_warm,")]
