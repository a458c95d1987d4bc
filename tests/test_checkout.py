"""The experiments of the checkout: each says what it needs, all are listed, and a verb runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import leansim
from leansim.checkout.experiments import extras, package_root
from leansim.checkout.running import in_order
from leansim.checkout.scripts import parser_of, write_part
from leansim.cli.main import app
from leansim.errors import ConfigError, LeansimError, UnknownNameError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "experiments"
# Made once, by hand: numbers of kernel files, read off compiled code.
COUNTS = {"compiled_chains", "xqa_instances"}
EVERY = leansim.experiments(FOLDER)

# Writes down how it was called, and fails where it is told to.
SCRIPT = """
import sys
from pathlib import Path
import leansim
from leansim.checkout.scripts import parser_of

parser = parser_of(None, Path(__file__).resolve().parent)
parser.add_argument("--data", type=Path)
parser.add_argument("--fail", type=int, default=0)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
(given.out / "RESULTS.md").write_text(f"{Path.cwd()} {given.data}")
print("one", "two", sep="\\n", file=sys.stderr if given.fail else sys.stdout)
sys.exit(given.fail)
"""
NEEDS_DATA = "data: {times.csv: github.com/them/theirs}\n"


def experiment(root: Path, name: str, more: str = "", script: str = SCRIPT) -> Path:
    """A folder with an experiment."""
    folder = root / "experiments" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"# {name}\n")
    (folder / "run.py").write_text(script)
    (folder / "experiment.yaml").write_text(f"title: Is {name} so?\nminutes: 0.1\n{more}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with two experiments, of which one fails, and a count."""
    experiment(tmp_path, "good")
    experiment(tmp_path, "bad", 'command: [run.py, --fail, "3"]\n')
    (tmp_path / "experiments" / "count").mkdir()
    (tmp_path / "experiments" / "count" / "README.md").write_text("# count\n")
    tools = """["no-such-package>=1; python_version < '9'", "numpy"]"""
    (tmp_path / "pyproject.toml").write_text(f"[project.optional-dependencies]\ntools = {tools}\n")
    return tmp_path


@pytest.fixture
def inside(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as what a command finds: from a folder of it, with a package that has no checkout."""
    (root / "experiments" / "good" / "deeper").mkdir()
    monkeypatch.chdir(root / "experiments" / "good" / "deeper")
    monkeypatch.setattr("leansim.checkout.experiments.package_root", lambda: root / "site-packages")
    return root


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, ["experiment", *args])


def complaint(*args: str) -> str:
    with pytest.raises(LeansimError) as error:
        CliRunner().invoke(app, ["experiment", *args], catch_exceptions=False)
    return str(error.value)


# -- those that there are --------------------------------------------------------------------------


def test_every_folder_is_listed() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/*.py")}
    assert {one.name for one in EVERY} == folders - COUNTS
    assert set(EVERY.counts) == COUNTS
    assert {path.parent.name for path in FOLDER.glob("*/RESULTS.md")} <= {one.name for one in EVERY}
    assert not COUNTS & {path.parent.name for path in FOLDER.glob("*/*.csv")}


def test_experiments_are_those_beside_the_package() -> None:
    assert [one.folder for one in leansim.experiments()] == [one.folder for one in EVERY]
    assert package_root() == ROOT


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_each_has_what_a_reader_finds_and_takes_a_folder(one: Any) -> None:
    assert one.says.title.endswith("?")
    readme = (one.folder / "README.md").read_text()
    assert "Question: " in readme
    assert f"python experiments/{one.name}/{one.says.command[0]}" in readme
    assert all((FOLDER / name).is_dir() for name in one.says.after)
    script = (one.folder / one.says.command[0]).read_text()
    assert "parser_of(__doc__, " in script or '"--out"' in script
    assert not one.says.data or '"--data"' in script


def test_all_of_them_take_less_than_twenty_minutes() -> None:
    assert sum(one.says.minutes for one in EVERY) < 20.0


def test_each_that_has_pins_is_held_by_a_test() -> None:
    """Sweeps by test_experiments.py, others by a test of their own."""
    tests = [path.read_text() for path in (ROOT / "tests").glob("test_*.py")]
    for pins in FOLDER.glob("*/expected.csv"):
        name = pins.parent.name
        reads = ('"expected.csv"', "read_pins(")
        held = [text for text in tests if f'"{name}"' in text and any(one in text for one in reads)]
        assert held or (pins.parent / "sweep.yaml").exists(), name


def test_the_page_has_them() -> None:
    """Else run `python experiments/table.py`."""
    sys.path.insert(0, str(FOLDER))
    from table import table  # type: ignore[import-not-found]

    sys.path.remove(str(FOLDER))
    page = (ROOT / "docs" / "experiments.md").read_text()
    shown = page.partition("<!-- experiments -->\n")[2].partition("<!-- /experiments -->")[0]
    assert shown.strip() == table(EVERY)
    assert all(f"{name}/README.md" in page for name in COUNTS)


def test_results_are_read_after_they_are_written() -> None:
    names = [one.name for one in in_order(EVERY)]
    assert sorted(names) == [one.name for one in EVERY]
    for one in EVERY:
        assert all(names.index(earlier) < names.index(one.name) for earlier in one.says.after)


# -- listing ---------------------------------------------------------------------------------------


def test_a_list_in_every_format(inside: Path) -> None:  # noqa: ARG001
    shown = invoke("list").stdout
    assert [line.split()[0] for line in shown.splitlines()[2:4]] == ["bad", "good"]
    assert "Counts made once, by hand, as their README.md says: count\n" in shown
    first, second = json.loads(invoke("list", "--format", "json").stdout)
    assert first["command"] == "run.py --fail 3"
    assert second == {
        "experiment": "good", "title": "Is good so?", "minutes": 0.1, "needs": "", "data": "",
        "after": "", "command": "run.py",
    }  # fmt: skip
    assert invoke("list", "--format", "csv").stdout.splitlines()[2].startswith("good,Is good so?,0.1")
    assert "| good | 0.1 | - | Is good so? |" in invoke("list", "--format", "md").stdout
    assert "wanted table, json, csv or md" in complaint("list", "--format", "xml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("titel: x", "titel: found an unknown key; wanted a known key (did you mean 'title'?)"),
        (
            "needs: [tolls]",
            "needs[0]: found 'tolls'; wanted an extra of pyproject.toml (did you mean 't",
        ),
        ("after: [bed]", "after[0]: found 'bed'; wanted another experiment (did you mean 'bad'?)"),
        ("after: [good]", "after[0]: found 'good'; wanted another experiment"),
        (
            "command: [ran.py]",
            "command[0]: found 'ran.py'; wanted a script of this folder (did you mean",
        ),
        ("command: []", "command: found []"),
        ("data: {a.csv: ''}", "data.a.csv: found ''; wanted one line"),
        ('data: {a.csv: "one\\ntwo"}', "wanted one line"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(root: Path, more: str, said: str) -> None:
    file = experiment(root, "good", more) / "experiment.yaml"
    with pytest.raises(ConfigError) as raised:
        leansim.experiments(root / "experiments")
    assert str(file) in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize("minutes", ["0", "-1", "true", "soon"])
def test_minutes_are_a_time(root: Path, minutes: str) -> None:
    file = root / "experiments" / "good" / "experiment.yaml"
    file.write_text(f"title: Is it?\nminutes: {minutes}\n")
    with pytest.raises(ConfigError, match="minutes: found"):
        leansim.experiments(root / "experiments")


def test_without_a_checkout_it_says_where_experiments_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("leansim.checkout.experiments.package_root", lambda: tmp_path / "site-packages")
    assert "wanted a checkout of leansim: what is installed has no experiments" in complaint("list")


def test_extras_are_those_of_the_project() -> None:
    assert extras(ROOT)["silicon"] == ["aiconfigurator-core", "scipy"]
    assert extras(ROOT)["cluster"] == ["dask"]


# -- running ---------------------------------------------------------------------------------------


def test_an_experiment_runs_from_the_root(
    inside: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    done = invoke("run", "good", "-o", str(out))
    assert done.exit_code == 0, done.output
    begins, *lines, ends = done.stdout.splitlines()
    assert begins == "good: Is good so? (about 0.1 min)"
    assert lines == ["one", "two"]
    assert ends.startswith("good: done after ")
    assert (out / "RESULTS.md").read_text() == f"{inside} None"
    assert not (inside / "experiments" / "good" / "RESULTS.md").exists()


def test_without_a_folder_results_go_to_their_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (ran,) = leansim.experiment("good", folder="experiments")
    assert (ran.exit_code, ran.output) == (0, "one\ntwo\n")
    assert (root / "experiments" / "good" / "RESULTS.md").exists()


def test_a_failure_is_told(inside: Path, tmp_path: Path) -> None:
    done = invoke("run", "bad", "-o", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "one\ntwo\nbad: failed (exit code 3) after " in done.stdout
    done = invoke("run", "good", "-o", str(tmp_path / "out"), "--", "--fail", "4")
    assert done.exit_code == 1
    assert "good: failed (exit code 4)" in done.stdout
    assert inside == tmp_path


def test_all_run_in_turn_and_those_that_cannot_are_skipped(inside: Path, tmp_path: Path) -> None:
    experiment(inside, "aftermath", "after: [good]\n")
    experiment(inside, "held", NEEDS_DATA)
    experiment(inside, "tooled", "needs: [tools]\n")
    done = invoke("run", "all", "-o", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert done.stdout.index("good: done") < done.stdout.index("aftermath: Is")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good", "bad", "aftermath"}
    assert "3 ran in " in done.stdout
    assert ", 1 failed: bad" in done.stdout
    assert "skipped held: wanted a folder with times.csv (github.com/them/theirs)" in done.stdout
    assert "skipped tooled: wanted the extra tools: pip install '" in done.stdout
    assert "wanted one experiment for these" in complaint("run", "all", "--", "--fail", "1")


def test_all_that_want_data_get_it(root: Path) -> None:
    experiment(root, "bad", NEEDS_DATA)
    (root / "times.csv").touch()
    out = root / "out"
    runs = leansim.experiment("all", out, root, folder=root / "experiments")
    assert (len(runs), runs.failed, runs.skipped) == (2, [], ())
    assert (out / "bad" / "RESULTS.md").read_text().endswith(f" {root}")
    assert (out / "good" / "RESULTS.md").read_text().endswith(" None")
    assert runs.table["exit_code"].tolist() == [0, 0]


def test_what_is_missing_is_told_before_anything_runs(inside: Path) -> None:
    held = experiment(inside, "held", f"{NEEDS_DATA}needs: [tools]\n")
    said = complaint("run", "held", "--data", str(inside))
    assert "needs: found no no-such-package; wanted the extra tools: pip install '" in said
    assert f"--data: found {inside}; wanted a folder with times.csv (github.com/them/theirs)" in said
    assert "--data: found nothing; wanted a folder with times.csv" in complaint("run", "held")
    assert not (held / "RESULTS.md").exists()


def test_a_misspelt_name_gets_the_nearest(inside: Path) -> None:  # noqa: ARG001
    assert "unknown experiment 'goof' (did you mean 'good'?); known: all, bad, good" in complaint(
        "run", "goof"
    )
    with pytest.raises(UnknownNameError):
        EVERY.named("silicone")


def test_those_that_wait_for_each_other_are_refused(root: Path) -> None:
    experiment(root, "good", "after: [bad]\n")
    experiment(root, "bad", "after: [good]\n")
    with pytest.raises(ConfigError, match="wanted no circle"):
        leansim.experiment("all", folder=root / "experiments")


def test_a_real_one_gives_what_is_published(tmp_path: Path) -> None:
    """From somewhere else, through the command line."""
    command = [sys.executable, "-m", "leansim", "experiment", "run", "evidence", "-o", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    published = (ROOT / "leansim" / "data" / "evidence" / "classes.csv").read_text()
    assert (tmp_path / "out" / "classes.csv").read_text() == published


# -- what scripts share ----------------------------------------------------------------------------


def test_a_part_of_a_page_goes_there_or_beside_the_results(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- it -->\nold\n<!-- /it -->\n")
    here = parser_of("What it does.", tmp_path).parse_args([]).out
    write_part(page, "it", "new", here, tmp_path)
    assert page.read_text() == "<!-- it -->\nnew\n<!-- /it -->\n"
    there = parser_of(None, tmp_path).parse_args(["-o", str(tmp_path / "x" / ".." / "there")]).out
    write_part(page, "it", "newer", there, tmp_path)
    assert page.read_text() == "<!-- it -->\nnew\n<!-- /it -->\n"
    assert (tmp_path / "there" / "it.md").read_text() == "newer\n"
