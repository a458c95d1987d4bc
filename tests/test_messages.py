"""What mistakes are answered with: where they are, once; all of them; with what was probably meant."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import leansim
from leansim.cli.main import app
from leansim.errors import ConfigError, LeansimError, SetupError, UnknownNameError, suggestion, unknown
from leansim.files import extras, strict_yaml
from leansim.partitioners.registry import partitioners
from leansim.points.grid import build, load
from leansim.points.point import resolve
from leansim.silicon.published import table_rows
from leansim.specs import catalog
from leansim.specs.base import DTYPES

SHAPE = {"num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128, "batch_size": 2, "context_len": 1024}
CALL: dict[str, Any] = {"device": "h100_sxm", "kernel": "fa2", **SHAPE}


def complaint(*args: str) -> str:
    """What the command line says of a mistake."""
    with pytest.raises(LeansimError) as error:
        CliRunner().invoke(app, list(args), catch_exceptions=False)
    return str(error.value)


def flags(**more: Any) -> list[str]:
    given = {**CALL, **more}
    return [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["run", *flags(kernel="fa33")],
        ["run", *flags(window="x")],
        ["run", *flags(), "--set", "colour=red"],
        ["run", *flags(), "--set", "novalue"],
        ["plan", *flags(device="h1000")],
        ["run", *flags(), "--baseline", "fa9"],
        ["run", *flags(cache="x", launch="y")],
        ["run", *flags(), "--set", "batch_size=[1, {]"],
    ],
    ids=lambda args: " ".join(args[-2:]),
)
def test_a_command_line_has_one_prefix_and_no_lines(args: list[str]) -> None:
    for line in complaint(*args).splitlines():
        assert line.startswith("command line: ")
        assert line.count("command line") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"window": "x"},
        {"colour": 1},
        {"partitioner": {"nam": "fa2"}},
        {"overrides": 3},
        {"device": None},
    ],
)
def test_arguments_have_no_lines(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^arguments: ") as error:
        leansim.point(**{**CALL, **fields})
    assert "1:1" not in str(error.value)


def test_overrides_have_no_lines() -> None:
    point = leansim.point(**CALL, overrides={"kernel.start.foo": 3})
    with pytest.raises(ConfigError, match=r"^kernel override: start\.foo: "):
        resolve(point)


def test_what_is_typed_over_a_file_is_told_from_it(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(json.dumps({**CALL, "name": "f", "windw": 3}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load(file, ["cache=hot"])
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith(f"{file}: command line: cache[0]: found 'hot'")
    assert second.startswith(f"{file}:1:")


def test_an_empty_file_still_has_a_place(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"f\.yaml:1:1: \(top level\): found nothing"):
        load(file)


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["run", *flags(kernel="fa33,fa44")], ("fa33", "fa44")),
        (["run", *flags(kernel="fa2+bog,fa2+flash_decodin")], ("bog", "flash_decodin")),
        (["run", *flags(kernel="fa33+bog")], ("fa33", "bog")),
        (["run", *flags(partitioner="bog,flash_decodin")], ("bog", "flash_decodin")),
        (["run", *flags(device="h1000,a1000", kernel="fa33")], ("h1000", "a1000", "fa33")),
        (["oracle", *flags(), "--rules", "bog,flash_decodin"], ("bog", "flash_decodin")),
        (["validate", "h100", "a100"], ("h100", "a100")),
    ],
    ids=lambda part: " ".join(part[-2:]),
)
def test_every_name_that_nothing_answers_to_is_told(args: list[str], names: tuple[str, ...]) -> None:
    text = complaint(*args)
    assert all(f"found {name!r}" in text for name in names), text


def test_one_name_is_an_error_of_its_own() -> None:
    assert isinstance(unknown("table", ["x"], ["y"]), UnknownNameError)
    assert isinstance(unknown("table", ["x", "z"], ["y"]), ConfigError)
    with pytest.raises(
        UnknownNameError, match="unknown table 'h100_sxm_vlm' \\(did you mean 'h100_sxm_vllm'"
    ):
        table_rows(["h100_sxm_vlm"])


def test_names_of_partitioners_in_a_file_have_lines() -> None:
    text = "name: f\ndevice: h100_sxm\nkernel:\n  - fa2\n  - fa2+bog\nbatch_size: 1\n"
    with pytest.raises(
        ConfigError, match=r"^f\.yaml:5:5: kernel\[1\]: found 'bog'; wanted a partitioner"
    ):
        build(strict_yaml.parse(text, "f.yaml"))
    assert "fa2" not in partitioners()


# -- what was probably meant -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("float8_e4m3fn", "fp8"),
        ("fp8_e4m3", "fp8"),
        ("e5m2", "fp8"),
        ("bfloat", "bfloat16"),
    ],
)
def test_dtypes_by_their_other_names(said: str, meant: str) -> None:
    assert suggestion(said, DTYPES) == f" (did you mean {meant!r}?)"
    for field in ("kv_dtype", "q_dtype"):
        with pytest.raises(ConfigError, match=f"{field}: found '{said}'.*did you mean '{meant}'"):
            leansim.point(**CALL, **{field: said})


@pytest.mark.parametrize(
    ("field", "said", "meant"), [("launch", "graphs", "graph"), ("cache", "war", "warm")]
)
def test_other_choices_have_suggestions(field: str, said: str, meant: str) -> None:
    assert f"(did you mean '{meant}'?)" in complaint("run", *flags(**{field: said}))


def test_choices_in_files_have_suggestions(tmp_path: Path) -> None:
    text = catalog.spec_path("kernel", "fa2").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("pack_gqa: ", "pack_gqa: singel_query #", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean 'single_query'"):
        catalog.kernel(str(file))


# -- whose fault it is -----------------------------------------------------------------------------


def points_csv(folder: Path, harness: str) -> Path:
    path = folder / "points.csv"
    cells = {"device": "h100_sxm", "kernel": "vllm_fa3", **SHAPE, "harness": harness}
    row = ",".join(map(str, cells.values()))
    path.write_text("\n".join([",".join(cells), row, row]), encoding="utf-8")
    return path


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that is none, in a folder of configs."""
    path = tmp_path / "configs" / "tables" / "broken.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("name: broken\nfoo: 3\n", encoding="utf-8")
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path / "configs"))
    return path


def test_a_broken_table_is_its_own_fault(tmp_path: Path, broken: Path) -> None:
    file = points_csv(tmp_path, "table")
    with pytest.raises(SetupError) as error:
        leansim.predict(file, jobs=1)
    assert str(file) not in str(error.value)
    assert f"{broken}:2:6: foo: found an unknown key" in str(error.value)


def test_a_broken_table_that_a_row_names_is_told_by_its_place(tmp_path: Path, broken: Path) -> None:
    file = points_csv(tmp_path, "broken")
    with pytest.raises(ConfigError, match=r"points\.csv:3:1: row: ") as error:
        leansim.predict(file, jobs=1)
    assert f"{broken}:2:6: foo: found an unknown key" in str(error.value)


def test_tables_that_are_whole_are_used(tmp_path: Path) -> None:
    with_harness = leansim.predict(points_csv(tmp_path, "table"), jobs=1).records()
    assert len(with_harness) == 2


# -- extras ----------------------------------------------------------------------------------------


class Installed:
    """A distribution that was installed from somewhere."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self.origin = origin

    def read_text(self, _file: str) -> str | None:
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize("extra", ["gpu", "silicon", "cluster"])
def test_extras_are_installed_from_where_this_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    root = Path(extras.__file__).parents[2]
    git = {"url": "https://example.org/leansim", "vcs_info": {"vcs": "git"}}
    expected = {
        f"pip install '{tmp_path}[{extra}]'": {"url": tmp_path.as_uri()},
        f"pip install 'leansim-attention[{extra}] @ git+https://example.org/leansim'": git,
        f"pip install '{root}[{extra}]'": None,
    }
    for text, origin in expected.items():
        monkeypatch.setattr(extras, "distribution", lambda _, origin=origin: Installed(origin))
        assert extras.pip_install(extra) == text

    def absent(_name: str) -> Installed:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(extras, "distribution", absent)
    assert extras.pip_install(extra) == f"pip install '{root}[{extra}]'"


def test_every_extra_that_is_named_exists() -> None:
    import tomllib

    project = tomllib.loads((Path(extras.__file__).parents[2] / "pyproject.toml").read_text())
    assert {"gpu", "silicon", "cluster"} <= set(project["project"]["optional-dependencies"])
    assert project["project"]["name"] == extras.NAME
