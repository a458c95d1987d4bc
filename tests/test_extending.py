"""docs/extending.md: its files are all it takes, its commands run, and results know their sources."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^(leansim .*)$", TEXT, re.MULTILINE)
SCRIPTS = re.findall(r"(?<!-->)\n```python\n(.*?)```", TEXT, re.DOTALL)

# What a command has to say. A new one on the page must be named here.
SAYS = {
    "run configs/runs/quickstart.yaml": r"^h100_sxm +fa2\+longest_first ",
    "plan": r"longest_first",
    "list loops": r"^unbuffered +Loads K and V, waits for both",
    "show unbuffered_decode": r"^loops +.* +assumed: some 40 clocks",
    "show unbuffered": r"^barrier_s +0.0 +",
    "run --kernel unbuffered": r"^h100_sxm +unbuffered_decode ",
    "list devices": r"^h100_pcie +NVIDIA H100 PCIe",
    "show h100_pcie": r"^num_sms +114 +datasheet: NVIDIA H100 PCIe",
    "sweep": r"24",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in an empty folder, and what installing them leaves behind."""
    folder = tmp_path_factory.mktemp("project")
    write(folder, FILES)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    about = tomllib.loads(files["pyproject.toml"])["project"]
    entries = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in about["entry-points"].items()
    ]
    info = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(exist_ok=True)
    head = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    (info / "METADATA").write_text(head)
    (info / "entry_points.txt").write_text("\n".join(entries))


def python(folder: Path, *args: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "LEANSIM_CONFIGS": str(folder / "configs")}
    return subprocess.run(
        [sys.executable, "-W", warnings, *args],
        capture_output=True, text=True, cwd=folder, env=environment, check=False, timeout=300,
    )  # fmt: skip


def test_the_page_has_one_of_each() -> None:
    kinds = [name.split("/")[-2] for name in FILES if "/" in name]
    assert kinds == ["my_attention", "my_attention", "kernels", "devices", "sweeps"]
    listing = TEXT.split("```text\n", 1)[1].split("```", 1)[0]
    assert sorted(line.split()[0] for line in listing.splitlines()) == sorted(FILES)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(project: Path, command: str) -> None:
    arguments = shlex.split(command)[1:]
    wanted = next(text for start, text in SAYS.items() if " ".join(arguments).startswith(start))
    done = python(project, "-m", "leansim", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(wanted, done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_of_the_page(project: Path, number: int) -> None:
    script = project / f"script_{number}.py"
    script.write_text(SCRIPTS[number])
    done = python(project, str(script))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("own", ["leansim/partitioners", "leansim/timing/loops"])
def test_in_a_checkout_there_is_no_entry_point(tmp_path: Path, own: str) -> None:
    """The same two files where leansim's own stand, found by their place."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "leansim", tmp_path / "leansim", ignore=ignore)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    name = "longest_first" if own.endswith("partitioners") else "unbuffered"
    (tmp_path / own / f"{name}.py").write_text(FILES[f"my_attention/{name}.py"])
    done = python(tmp_path, "-m", "leansim", "show", name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ")


KEY = """
import leansim
from leansim.points.keys import plugin_versions
from leansim.points.point import resolve
point = leansim.point(device="h100_sxm", kernel="{kernel}", model="llama_3_8b", context_lens=[1024])
print(resolve(point).key, plugin_versions())
"""


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("my_attention/unbuffered.py", ["unbuffered_decode"]),
        ("my_attention/longest_first.py", ["unbuffered_decode", "fa2+longest_first"]),
    ],
)
def test_a_key_knows_the_source_of_what_it_rests_on(
    tmp_path: Path, file: str, changed: list[str]
) -> None:
    """A kernel rests on its loop and its partitioner, and on no other of the package's."""
    kernels = ("unbuffered_decode", "fa2+longest_first", "fa2")
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, FILES)
    write(after, {**FILES, file: FILES[file] + "\n# changed\n"})
    keys = {
        (folder.name, kernel): python(folder, "-c", KEY.format(kernel=kernel)).stdout
        for folder in (before, after)
        for kernel in kernels
    }
    assert all("{'my-attention': '1.0'}" in key for key in keys.values()), keys
    assert [k for k in kernels if keys["before", k] != keys["after", k]] == changed


def test_a_broken_entry_point_is_named_and_breaks_nothing(tmp_path: Path) -> None:
    entries = {
        "nowhere": "nowhere:Thing",  # cannot be loaded
        "no_loop": "my_attention.longest_first:LongestFirst",  # is something else
        "pipelined": "my_attention.unbuffered:Unbuffered",  # is taken
    }
    broken = "".join(f'{name} = "{value}"\n' for name, value in entries.items())
    write(tmp_path, {**FILES, "pyproject.toml": FILES["pyproject.toml"] + broken})
    done = python(tmp_path, "-m", "leansim", "list", "loops", warnings="default")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["pipelined", "serial_chain", "single_buffered", "transposed", "unbuffered"]
    assert (
        "tile loop 'nowhere' (nowhere:Thing) failed to load: ModuleNotFoundError: No module named"
        in done.stderr
    )
    wrong = "(my_attention.longest_first:LongestFirst) is not a frozen dataclass with price and fill_s"
    assert f"tile loop 'no_loop' {wrong}" in done.stderr
    taken = "(my_attention.unbuffered:Unbuffered) is not used: leansim.timing.loops.pipelined has one"
    assert f"tile loop 'pipelined' {taken}" in done.stderr
