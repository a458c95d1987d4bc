"""The Python face: every verb is a typed function, answers have tables, and notebooks show them."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pandas as pd
import pytest
import typer

import leansim
from leansim.answers import Answers, Shown, render
from leansim.cli.main import app
from leansim.errors import ConfigError, GpuError, LeansimError, UnknownNameError
from leansim.files.strict_yaml import parse
from leansim.points.grid import build
from leansim.points.point import POINT_KEYS, Point
from leansim.report.run import write_run

PACKAGE = Path(leansim.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
TWINS = {"experiment list": "experiments", "experiment run": "experiment"}  # others have one name
# What the command line prints or writes of an answer; a Python caller has the answer itself.
OF_OUTPUT = {"out", "form", "plots", "worst", "segments", "dry_run", "settings"}


def _commands(group: Any, before: str = "") -> dict[str, click.Command]:
    """The verbs of a group, those of groups in it too, as they are typed."""
    return {
        name: verb
        for word, command in group.commands.items()
        for name, verb in (
            _commands(command, f"{before}{word} ")
            if hasattr(command, "commands")
            else {before + word: command}
        ).items()
    }


COMMANDS = _commands(typer.main.get_command(app))
GQA = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
POINT = leansim.point(device="h100_sxm", kernel="fa2", batch_size=2, context_len="6k", **GQA)
RUN = """
name: small
device: h100_sxm
kernel: [fa2, lean]
baseline: fa2
batch_size: 2
context_len: 6k
num_q_heads: 8
num_kv_heads: 2
head_dim: 64
"""

# -- the verbs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_verb_has_a_twin_with_its_options(verb: str) -> None:
    twin = inspect.signature(getattr(leansim, TWINS.get(verb, verb))).parameters
    options = {param.name for param in COMMANDS[verb].params} - set(POINT_KEYS.values())
    options = {name for name in options if (name is not None and name in twin) or name not in OF_OUTPUT}
    if "file" in options:
        assert {"points", "config"} & set(twin)
        options -= {"file"}
    assert options <= set(twin), f"leansim.{verb} lacks {', '.join(options - set(twin))}"
    for param in COMMANDS[verb].params:
        if param.name in options and isinstance(param.default, int):
            assert twin[param.name].default == param.default, param.name


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_twin_says_what_it_takes_and_returns(verb: str) -> None:
    twin = getattr(leansim, TWINS.get(verb, verb))
    signature = inspect.signature(twin)
    bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert not bare
    assert signature.return_annotation not in (inspect.Signature.empty, "None", "Any")
    said = inspect.getdoc(twin)
    assert said is not None
    assert not signature.parameters or "Raises" in said or "error" in said


# -- the names ---------------------------------------------------------------------------------


def test_editors_see_the_names_that_load() -> None:
    """The stub re-exports each name of the lazy table from where it loads; `point` it types itself."""
    seen = {
        alias.asname: node.module
        for node in STUB.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None and alias.asname == alias.name
    }
    lazy: dict[str, str] = leansim._HOME  # type: ignore[attr-defined]
    assert seen == {name: home for name, home in lazy.items() if name != "point"}
    for name, home in lazy.items():
        assert getattr(leansim, name).__module__ == home, f"{name} is only passed on by {home}"
    with pytest.raises(AttributeError, match="no attribute 'orakel'"):
        leansim.orakel  # type: ignore[attr-defined]  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


def test_the_keywords_of_a_point_are_its_fields() -> None:
    (typed,) = (node for node in STUB.body if isinstance(node, ast.FunctionDef))
    assert not typed.args.args
    fields = {key: Point.model_fields[name] for key, name in POINT_KEYS.items()}
    assert [arg.arg for arg in typed.args.kwonlyargs] == list(fields)
    shown = inspect.signature(leansim.point).parameters
    assert list(shown) == list(fields)
    for (key, field), default in zip(fields.items(), typed.args.kw_defaults, strict=True):
        assert (default is None) == field.is_required()
        assert (shown[key].default is inspect.Parameter.empty) == field.is_required()
        if default is not None and key != "overrides":
            assert ast.literal_eval(default) == field.default == shown[key].default


def test_a_wrong_keyword_is_named_with_the_nearest() -> None:
    fields: dict[str, Any] = {"device": "h100_sxm", "kernle": "fa2", "batchsize": 1}
    with pytest.raises(ConfigError) as raised:
        leansim.point(**fields)
    assert "did you mean 'kernel'" in str(raised.value)
    assert "did you mean 'batch_size'" in str(raised.value)


def test_names_load_on_first_use() -> None:
    heavy = {"pandas", "matplotlib", "numba", "simpy", "torch", "scipy"}
    code = (
        "import sys, leansim; assert 'numpy' not in sys.modules\n"
        f"leansim.point, leansim.simulate, leansim.oracle; print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


GOOD = """\
import leansim
from leansim import Point

point: Point = leansim.point(device="h100_sxm", kernel="lean", batch_size=8, context_len="32k")
latency_s: float = leansim.simulate(point).metrics.latency_s
speedups: list[float | None] = [done.speedup(s) for done in [leansim.run("a.yaml")] for s in
                                done.simulations]
best: int = leansim.splits(point, rules=["fa3"], counts=(1, 2))[0].best
found_s: float = leansim.oracle([point, point], max_splits=8)[1].best.latency_s
text: str = leansim.explain("points.csv")[0].text
mean: float = leansim.validate("a100_sxm_vllm", sample=10).table["error"].mean()
frozen: int | None = leansim.buckets(point, sizes=(1, 2))[0].buckets[0].expected.num_splits
names: list[str] = leansim.list("devices")
done: int = leansim.measure("campaign", "out.csv", interpret=True).done
"""
WRONG = {
    'leansim.point(device="h100_sxm", kernle="lean")': 'did you mean "kernel"',
    'leansim.point(device="h100_sxm", kernel="lean", cache="hot")': "incompatible type",
    'leansim.simulate("lean")': 'expected "Point"',
    'leansim.oracle("a.yaml", most=3)': "Unexpected keyword argument",
    'leansim.list("gpus")': "incompatible type",
    "leansim.orakel": "has no attribute",
}


@pytest.mark.thorough
def test_a_type_checker_finds_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "used.py").write_text(GOOD + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", "used.py"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={"MYPYPATH": str(PACKAGE.parent), "PATH": ""},
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    first = GOOD.count("\n") + 1
    assert [int(line.split(":")[1]) for line in errors] == list(range(first, first + len(WRONG))), (
        done.stdout + done.stderr
    )
    for line, complaint in zip(errors, WRONG.values(), strict=True):
        assert complaint in line


# -- tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> leansim.Run:
    return leansim.run(build(parse(RUN)))


def test_the_table_of_a_run_is_its_results_file(run: leansim.Run, tmp_path: Path) -> None:
    table = run.table
    assert table["policy"].tolist() == ["fa2", "lean"]
    assert table["latency_s"].tolist() == [s.result.latency_s for s in run.simulations]
    assert table["speedup"].tolist() == [run.speedup(s) for s in run.simulations]
    assert table["batch_size"].tolist() == [2, 2]
    write_run(run, tmp_path)
    written = pd.read_csv(tmp_path / "results.csv")
    assert list(written) == list(table)
    assert written["speedup"].tolist() == table["speedup"].tolist()


def test_another_baseline(run: leansim.Run) -> None:
    other = leansim.run(run.config, baseline="lean").table
    assert other["speedup"].tolist() == pytest.approx([1 / run.table["speedup"][1], 1.0])
    with pytest.raises(ConfigError, match="did you mean 'lean'"):
        leansim.run(run.config, baseline="leen")
    without = leansim.run(build(parse(RUN.replace("baseline: fa2\n", ""))))
    assert "speedup" not in without.table
    assert "speedup" not in without.shown()


def test_a_notebook_shows_a_run(run: leansim.Run) -> None:
    html, markdown = run._repr_html_(), run._repr_markdown_()
    read, shown = _tables(html)[0], run.rows()
    assert [row[1] for row in read[1:]] == ["fa2", "lean"]
    assert read[0] == list(shown[0])
    assert read[2][2] == shown[1]["latency_us"]
    assert "<p><b>small: batch 2 x 6,144 tokens" in html
    assert "fastest is" in html
    assert "| h100_sxm | lean |" in markdown


def test_a_simulation_has_a_table_of_one_row() -> None:
    simulation = leansim.simulate(POINT)
    (record,) = simulation.table.to_dict("records")
    assert record["latency_s"] == simulation.metrics.latency_s
    assert record["context_len"] == 6144
    assert _tables(simulation._repr_html_())[0][1][:2] == ["h100_sxm", "fa2"]
    assert simulation.records()[0]["kernel"] == "fa2"


def test_html_is_escaped() -> None:
    assert render([{"<b>": "a & b", "x": None}], "html").splitlines()[1:3] == [
        "<tr><th>&lt;b&gt;</th><th>x</th></tr>",
        "<tr><td>a &amp; b</td><td>-</td></tr>",
    ]


def _tables(html: str) -> list[list[list[str]]]:
    """The cells of each table of an HTML text, as a browser reads them."""
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        tables: list[list[list[str]]] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
            if tag == "table":
                self.tables.append([])
            elif tag == "tr":
                self.tables[-1].append([])
            elif tag in ("td", "th"):
                self.tables[-1][-1].append("")

        def handle_data(self, data: str) -> None:
            if data.strip() and self.lasttag in ("td", "th"):
                self.tables[-1][-1][-1] += data

    reader = Reader()
    reader.tables = []
    reader.feed(html)
    return reader.tables


# -- one answer per point ----------------------------------------------------------------------

STUDIES: dict[str, Any] = {
    "plan": leansim.plan,
    "verify": lambda points: leansim.verify(points, precisions=("float64",)),
    "oracle": lambda points: leansim.oracle(points, rules="lean"),
    "splits": lambda points: leansim.splits(points, rules=["lean"], counts=(1, 2)),
    "explain": lambda points: leansim.explain(points, rules="lean", budget=10),
    "invariance": lambda points: leansim.invariance(points, rules=["lean"], seeds=1),
}


@pytest.mark.parametrize("verb", STUDIES)
def test_answers_are_one_per_point_whatever_names_them(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A point, several, a grid, a YAML file and a CSV; nothing is printed."""
    (tmp_path / "run.yaml").write_text(RUN)
    header = "device,kernel,batch_size,context_len,num_q_heads,num_kv_heads,head_dim"
    (tmp_path / "p.csv").write_text(f"{header}\nh100_sxm,fa2,2,6k,8,2,64\nh100_sxm,lean,2,6k,8,2,64\n")
    grid = build(parse(RUN))
    several = (grid, grid.points(), tmp_path / "run.yaml", str(tmp_path / "p.csv"))
    one, *many = (STUDIES[verb](points) for points in (POINT, *several))
    assert isinstance(one, Answers)
    assert [len(answers) for answers in (one, *many)] == [1, 2, 2, 2, 2]
    assert list(one) == [one[0]]
    assert one[:1] == (one[0],)
    for answers in many[1:3]:
        pd.testing.assert_frame_equal(answers.table, many[0].table)
    assert len(one.table) >= 1
    assert "<table>" in one._repr_html_() or verb == "explain"
    assert one._repr_html_().startswith("<")
    assert capsys.readouterr() == ("", "")


def test_a_csv_of_points_is_planned_and_predicted_beside_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "device,kernel,batch_size,context_len,num_q_heads,num_kv_heads,head_dim,harness\n"
        "a100_sxm_80gb,vllm_fa2,8,4k,32,8,128,\nh100_sxm,lean,8,4k,32,8,128,a100_sxm_vllm\n"
    )
    plans, predictions = leansim.plan(path), leansim.predict(path, harness="table", engine="simpy")
    assert plans.table["context_len"].tolist() == ["4k", "4k"]
    assert plans.table["num_ctas"].tolist() == [plan.schedule.num_ctas for plan in plans]
    assert (predictions.table["harness_us"] > 0).all()
    assert predictions.table["kernel"].tolist() == ["vllm_fa2", "lean"]


def test_predictions_of_points_keep_errors_in_their_place() -> None:
    wrong = POINT.model_copy(update={"kernel": "leen"})
    found = leansim.predict([POINT, wrong])
    assert isinstance(found[1], LeansimError)
    assert [row for row in found.table["refused"] != ""] == [False, True]  # noqa: C416
    assert found.table["latency_us"][0] == pytest.approx(
        leansim.simulate(POINT).metrics.latency_s * 1e6, abs=1e-6
    )
    with pytest.raises(UnknownNameError, match="engine"):
        leansim.predict(POINT, engine="cuda")  # type: ignore[arg-type]


def test_what_is_no_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="wanted a point, several, a grid or a file"):
        leansim.oracle([{"device": "h100_sxm"}])  # type: ignore[list-item]


def test_buckets_tell_progress_over_all_points() -> None:
    fields = {**GQA, "device": "h100_sxm", "trace": "azure_2023_conv"}
    points = [leansim.point(kernel=name, **fields) for name in ("vllm_fa3", "flash_decoding")]
    seen: list[tuple[int, int]] = []
    found = leansim.buckets(
        points, (1, 2), 2, (1, 8), jobs=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (8, 8)
    assert [study.point.kernel for study in found] == ["vllm_fa3", "flash_decoding"]
    assert set(found.table["bucket"]) == {1, 2}
    assert len(found.notes()) == 2


def test_a_sweep_shows_itself(tmp_path: Path) -> None:
    done = leansim.sweep(build(parse(RUN)), tmp_path / "out", jobs=1, engine="simpy")
    assert isinstance(done, Shown)
    assert [row["kernel"] for row in done.rows()] == ["fa2", "lean"]
    assert "2 points in" in done._repr_html_()


def test_a_validation_has_its_rows_and_errors() -> None:
    data = Path(__file__).parent / "data" / "silicon"
    found = leansim.validate("a100_sxm_vllm", sample=20, split="all", data=data, jobs=1)
    assert len(found.table) == 20
    assert found.errors["rows"].iloc[0] == 20 - (found.table["refused"] != "").sum()
    assert len(found.worst(3)) == 3
    assert _tables(found._repr_html_())[0][1][0] == "a100_sxm_vllm"
    with pytest.raises(ConfigError, match="wanted one of the two"):
        leansim.validate("a100_sxm_vllm", points="p.csv")


def test_calibrate_and_measure_complain_as_the_command_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.yaml"):
        leansim.calibrate("nosuch.yaml")
    with pytest.raises(ConfigError, match="wanted a CSV of points, campaign, micro, libraries"):
        leansim.measure("micra", tmp_path / "o.csv")
    with pytest.raises(ConfigError, match="wanted the device in each row"):
        leansim.measure("p.csv", tmp_path / "o.csv", device="h100_sxm")


def test_measurements_say_what_became_of_the_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a measurer that refuses one kernel: no GPU is needed for what is around it."""

    class Measurer:
        def __init__(self, *_: object) -> None: ...

        def measure(self, row: dict[str, str], _: str) -> dict[str, Any]:
            if row["kernel"] == "triton_lean":
                raise GpuError("not today")
            return {"measured_us": 2.5}

    monkeypatch.setattr("leansim.gpu.measure.toolkit.cuda", lambda _: SimpleNamespace(interpreted=True))
    monkeypatch.setattr("leansim.gpu.measure.Measurer", Measurer)
    seen: list[tuple[int, int]] = []
    told: list[str] = []
    done = leansim.measure(
        "campaign",
        tmp_path / "o.csv",
        interpret=True,
        progress=lambda one, all_of: seen.append((one, all_of)),
        refused=lambda row, _: told.append(row["kernel"]),
    )
    assert (done.done, done.total, len(done.refused), done.left) == (8, 12, 4, 0)
    assert seen[-1] == (8, 12)
    assert told == ["triton_lean"] * 4
    assert done.table["measured_us"].tolist() == [2.5] * 8
    assert done.notes()[0].endswith("checked in the interpreter, not timed; 4 refused")
    again = leansim.measure("campaign", tmp_path / "o.csv", interpret=True, budget_s=0)
    assert again.done == 8
    assert "<table>" in again._repr_html_()
