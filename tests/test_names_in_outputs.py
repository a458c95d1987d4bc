"""What a name may hold does nothing to the table, spreadsheet, page or terminal that shows it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sweeping import AXES, leansim

from leansim.answers import csv_cell, marked_down, printable, render, spreadsheet
from leansim.report.sheet import plain, wrapped

HOSTILE = (
    "a\nb", "a|b", "\x1b[31mred\x1b[0m", "=1+1", "+cmd", "-cmd|' /C calc'!A0", "@SUM(1)", "a\rb", "a\tb",
    "\x07", "\x9b2J", "a\u2028b", "\u202eabc", "a\x00b", "\ud800", "<b>", "a\x85b", "\ttab=first",
)  # fmt: skip


def is_tame(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["table", "md", "html", "csv", "json"])
def test_a_name_stays_in_its_cell(name: str, form: str) -> None:
    rows: list[dict[str, Any]] = [{"kernel": name, "us": 1.5}, {"kernel": "plain", "us": 2.5}]
    text = render(rows, form, title=name)
    assert is_tame(text)
    text.encode()
    if form in ("table", "md"):
        assert len(text.splitlines()) == 4 + (form == "table")
    if form == "md":
        bars = {line.replace(r"\|", "").count("|") for line in text.splitlines()}
        assert bars == {3}
    if form == "html":
        assert "<b>" not in text
    if form == "csv":
        cells = [row[0] for row in csv.reader(io.StringIO(text))]
        assert cells[0::2] == ["kernel", "plain"]
        assert cells[1][0] not in "=+-@"
    if form == "json":
        assert json.loads(text)[0]["kernel"] == name


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["table", "md", "html", "csv"])
def test_a_column_is_named_like_any_cell(name: str, form: str) -> None:
    text = render([{name: 1, "x": 2}], form)
    assert is_tame(text)
    if form == "csv":
        (head, _), (value, _) = csv.reader(io.StringIO(text))
        assert head[0] not in "=+-@"
        assert value == "1"


@pytest.mark.parametrize(
    "cell", ["-1", "+2.5", "-1e-9", "-inf", "1", "fa2", "fa2+lean", "µs → ≤", "", "a=b"]
)
def test_numbers_and_plain_names_stay_as_they_are(cell: str) -> None:
    assert csv_cell(cell) == printable(cell) == cell
    assert csv_cell(-1.5) == -1.5
    assert csv_cell(None) is None


def test_a_table_is_tamed_once_for_each_text_and_only_where_it_must_be() -> None:
    frame = pd.DataFrame({"kernel": ["fa2", None, "lean"], "n": [1, 2, 3], "ok": [True, False, True]})
    assert spreadsheet(frame).to_csv() == frame.to_csv()
    hostile = pd.DataFrame({"=x": ["=1+1", "a\nb", None], "n": [-1, -2, -3]})
    assert spreadsheet(hostile).to_csv(index=False).splitlines() == [
        "'=x,n",
        "'=1+1,-1",
        "a\\nb,-2",
        ",-3",
    ]
    assert hostile["=x"].tolist()[:2] == ["=1+1", "a\nb"], "the table itself is as it was"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_draws_a_name_as_text(name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle(wrapped(name, 10, 5.0) or plain(name))
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("name", ["[red]", "[/x]", "a\x1b[2Jb", "a\nb"])
def test_progress_shows_a_name_as_text(name: str) -> None:
    from leansim.sweeps.progress import Progress, _bar

    bar = _bar()
    bar.console.file = io.StringIO()
    with bar:
        bar.add_task(Progress(name).name, total=2, completed=1, rate="")
    assert printable(name) in bar.console.file.getvalue()


def test_marks_of_a_page_are_text() -> None:
    assert marked_down("a|b\n# c <i>") == r"a\|b\n# c &lt;i>"


def test_a_run_with_hostile_names(tmp_path: Path) -> None:
    """A device's file, the run's own name and a column that is carried along."""
    from leansim.specs import catalog

    text = catalog.spec_path("device", "h100_sxm").read_text(encoding="utf-8")
    device = "=cmd|\x1b[31m\n.yaml"
    (tmp_path / device).write_text(text)
    run = {**AXES, "name": "=n|\x1b\n", "device": [device, "h100_sxm"], "kernel": ["fa2"]}
    run |= {"batch_size": 1, "context_len": 1000}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    for verb in ("run", "oracle", "explain"):
        done = leansim(verb, "run.yaml", "-o", f"out-{verb}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert is_tame(done.stdout + done.stderr)
        page = (tmp_path / f"out-{verb}" / "table.md").read_text()
        assert is_tame(page)
        text = (tmp_path / f"out-{verb}" / "results.csv").read_text()
        for row in csv.reader(io.StringIO(text)):
            assert not any(cell[:1] in ("=", "@") for cell in row)
            assert is_tame("".join(row))
            assert "\n" not in "".join(row)
    assert len(list((tmp_path / "out-run" / "timelines").iterdir())) == 2


def test_a_csv_with_hostile_columns(tmp_path: Path) -> None:
    fields = {k: v for k, v in AXES.items() if k != "name"} | {"device": "h100_sxm", "kernel": "fa2"}
    fields |= {"batch_size": 1, "context_len": 1000, "no\x1bte": "=1+1"}
    with (tmp_path / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerow(fields)
    done = leansim("predict", "points.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert is_tame(done.stdout + done.stderr)
    assert ",'=1+1," in done.stdout
    assert r"note: carried along unread: no\x1bte" in done.stderr


def test_an_error_shows_a_name_as_text(tmp_path: Path) -> None:
    for args in (
        ("run", "a\x1b[2Jb.yaml"),
        ("show", "x\x1b[31m"),
        ("run", "--kernel", "\x07", "--device", "x"),
    ):
        done = leansim(*args, cwd=tmp_path)
        assert done.returncode == 2
        assert "\x1b" not in done.stderr
        assert "\x07" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_stops_a_command(tmp_path: Path, encoding: str) -> None:
    """Not even one that has no letter for a name: files are UTF-8, and so is what is no terminal."""
    run = {**AXES, "name": "µ→", "device": "h100_sxm", "kernel": "fa2", "batch_size": 1}
    (tmp_path / "run.json.yaml").write_text(json.dumps(run | {"context_len": 1000}))
    env = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "leansim", "explain", "run.json.yaml", "-o", "out"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "µ→" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "leansim", "run", "run.json.yaml"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env, check=False)
    assert "µ→" in done.stdout.decode("utf-8")


PRINTS = ("leansim/files/terminal.py",)


def test_nothing_prints_but_by_what_tames_it() -> None:
    root = Path(__file__).parent.parent
    files = [path.relative_to(root).as_posix() for path in root.glob("leansim/**/*.py")]
    printing = [path for path in files if " print(" in (root / path).read_text(encoding="utf-8")]
    assert printing == list(PRINTS)
