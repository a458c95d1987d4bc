"""docs/schedulers.md: its commands run, and its table names what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from csv import DictReader
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from golden import read

from leansim.partitioners.registry import partitioners
from leansim.points.grid import load
from leansim.points.point import point_from_row, resolve
from leansim.specs import catalog

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "schedulers.md").read_text()
COMMANDS = re.findall(r"```sh\n(leansim .*)\n```", TEXT)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.partition("## The schedulers\n")[2].splitlines()
    if line.startswith("| `")
]


def blocks(language: str) -> list[str]:
    """The page's examples in a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_there_is_an_example_of_each_verb() -> None:
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs == {"run", "explain", "oracle", "splits", "regret", "buckets", "invariance", "tune"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[1:6]))
def test_the_examples_run(command: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, "docs/schedulers.md", "exec"), names)
    assert re.fullmatch(r"\d+ \d+ \d+\.\d us\n\d+\.\d us\n", capsys.readouterr().out)
    assert names["lost"]["regret"].min() == 1.0
    assert [len(one.requests) for one in resolve(names["shared"]).workload.prefixes] == [16, 8]


def test_shared_prefixes_as_yaml_csv_and_flags_are_the_same(tmp_path: Path) -> None:
    # Of the page's two, that of shared prefixes.
    (yaml,), (csv,) = (
        [block for block in blocks(kind) if "prefix_len" in block] for kind in ("yaml", "csv")
    )
    (tmp_path / "run.yaml").write_text(yaml)
    in_yaml = [resolve(one) for one in load(tmp_path / "run.yaml").points()]
    rows = list(DictReader(csv.splitlines()))
    in_csv = [resolve(point_from_row(row, "docs/schedulers.md")) for row in rows]
    (flags,) = (command.split() for command in COMMANDS if "--prefix-len" in command)
    keys = {flag[2:].replace("-", "_"): value for flag, value in pairwise(flags) if flag[:2] == "--"}
    asked = resolve(point_from_row(keys, "docs/schedulers.md"))
    assert [len(one.requests) for one in asked.workload.prefixes] == [16] * 4
    for same in (*in_yaml, *in_csv):
        shares = same.kernel.shares_prefixes
        assert same.workload.prefixes == (asked.workload.prefixes if shares else ())
    assert {one.kernel.name for one in in_csv} <= {one.kernel.name for one in in_yaml}


def test_every_kernel_that_shares_prefixes_has_a_row() -> None:
    (table,) = re.findall(r"\| kernel \| what is shared .*?\n\n", TEXT, re.DOTALL)
    sharing = [name for name in catalog.names("kernel") if catalog.kernel(name).shares_prefixes]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sharing


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
