"""What the README shows is what happens."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

import leansim
from leansim.cli.main import main
from leansim.files.strict_yaml import parse
from leansim.points import grid as config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(after: str, language: str) -> str:
    """The first fenced block of a language after a text."""
    return README[README.index(after) :].split(f"```{language}\n", 1)[1].split("```", 1)[0]


def run(*args: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "leansim", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_command_is_the_command_line() -> None:
    (command,) = distribution("leansim-attention").entry_points.select(group="console_scripts")
    assert command.name == "leansim"
    assert command.load() is main


def test_the_quickstart_table_is_the_one_shown(tmp_path: Path) -> None:
    shown = block("<!-- quickstart -->", "text")
    assert run("run", "configs/runs/quickstart.yaml", cwd=tmp_path).strip() == shown.strip()


def test_the_losing_example_loses() -> None:
    command = re.search(r"`leansim run (configs/runs/few_tiles\.yaml)`", README)
    assert command is not None
    done = leansim.run(command[1])
    losses = [done.speedup(s) for s in done.simulations if s.point.policy == "lean"]
    assert min(losses) < 1.0


def test_the_yaml_example_is_a_sweep() -> None:
    grid = config.build(parse(block("### Files", "yaml")))
    assert len(grid.points()) == 2 * 3 * 3


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(block("Each has a Python twin", "python"), "README.md", "exec"), names)
    assert re.fullmatch(r"\d+\.\d us, \d+% busy\n", capsys.readouterr().out)
    exec(compile(block("<!-- tables -->", "python"), "README.md", "exec"), names)
    assert names["worst"]["speedup"].is_monotonic_increasing
    assert 0 < names["best_s"] <= names["simulation"].metrics.latency_s
    assert "<table>" in names["run"]._repr_html_()
    assert capsys.readouterr().out == ""


CHECK = (
    "from leansim.testing import check_partitioner; from leansim.partitioners.registry import make; "
    "check_partitioner(make('round_robin'))"
)


@pytest.fixture
def copy_with_partitioner(tmp_path: Path) -> Path:
    """A copy of the package with the README's partitioner dropped in and nothing else changed."""
    shutil.copytree(ROOT / "leansim", tmp_path / "leansim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    code = block("<!-- partitioner -->", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 21
    (tmp_path / "leansim" / "partitioners" / "round_robin.py").write_text(code)
    return tmp_path


@pytest.mark.thorough
def test_a_partitioner_file_is_all_it_takes(copy_with_partitioner: Path) -> None:
    assert "round_robin" in run("list", "partitioners", cwd=copy_with_partitioner)
    command = re.search(r"leansim (run \S+ --kernel fa2,fa2\+round_robin.*)", README)
    assert command is not None
    assert "fa2+round_robin" in run(*command[1].split(), cwd=copy_with_partitioner)
    subprocess.run([sys.executable, "-c", CHECK], cwd=copy_with_partitioner, check=True, timeout=120)


def test_a_wrong_partitioner_file_fails_on_its_merits(copy_with_partitioner: Path) -> None:
    path = copy_with_partitioner / "leansim" / "partitioners" / "round_robin.py"
    path.write_text(path.read_text().replace("grid.num_kv_tiles[order]", "grid.num_kv_tiles[order] - 1"))
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(
        command, cwd=copy_with_partitioner, capture_output=True, text=True, check=False, timeout=120
    )
    assert "ConformanceError" in done.stderr
    assert "valid schedule" in done.stderr


def test_another_package_adds_a_partitioner_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "their_package.py").write_text(block("<!-- partitioner -->", "python"))
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    entries = "[leansim.partitioners]\ntheirs = their_package:RoundRobin\nbroken = nowhere:Thing\n"
    (info / "entry_points.txt").write_text(entries)
    code = (
        "from leansim.partitioners.registry import make, partitioners\n"
        "print(make('theirs'), 'broken' in partitioners())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )  # the current folder is on the path of `python -c`
    assert done.stdout.strip() == "RoundRobin() False"
    assert "'broken' (nowhere:Thing) failed to load" in done.stderr
