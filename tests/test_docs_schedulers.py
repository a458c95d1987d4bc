"""docs/schedulers.md: its commands run, and its table names what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import read

from leansim.partitioners.registry import partitioners
from leansim.specs import catalog

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "schedulers.md").read_text()
COMMANDS = re.findall(r"```sh\n(leansim .*)\n```", TEXT)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]


def test_there_is_an_example_of_each_verb() -> None:
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs == {"explain", "oracle", "splits", "regret", "buckets", "invariance"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[1])
def test_the_examples_run(command: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/schedulers.md", "exec"), names)
    assert re.fullmatch(r"\d+ \d+ \d+\.\d us\n", capsys.readouterr().out)
    assert names["lost"]["regret"].min() == 1.0


def test_every_partitioner_has_a_row_with_its_kernels() -> None:
    names = [row[0].strip("`") for row in ROWS]
    assert sorted(names) == sorted(partitioners())
    kernels = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in ROWS}
    for name in catalog.names("kernel"):
        assert name in kernels[catalog.kernel(name).partitioner.name]
    assert set().union(*kernels.values()) == set(catalog.names("kernel"))


def test_golden_rows_are_as_many_as_it_says() -> None:
    files = [found for row in ROWS for found in re.findall(r"`(\w+)` ([\d,]+)", row[3])]
    assert len(files) == len({name for name, _ in files}) == 19
    for name, count in files:
        assert len(read(name)) == int(count.replace(",", "")), name
