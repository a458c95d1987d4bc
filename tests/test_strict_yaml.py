"""The YAML reader: traps refused, places kept."""

from __future__ import annotations

import pytest

from leansim.errors import ConfigError
from leansim.files.strict_yaml import dotted, parse, read, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9),
        ("4.8e12", 4.8e12),
        ("-3", -3),
        ("1_000", 1000),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("32k", "32k"),
        ("2024-01-01", "2024-01-01"),
        ("'010'", "010"),
    ],
)
def test_plain_scalars_mean_what_they_say(text: str, value: object) -> None:
    parsed = parse(f"key: {text}").data["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["010", "no", "on", "Yes", "-007"])
def test_traps_are_problems_with_a_place(text: str) -> None:
    document = parse(f"a: 1\nkey:   {text}\n", "f.yaml")
    assert [(p.line, p.column) for p in document.problems] == [(2, 8)]
    with pytest.raises(ConfigError):
        scalar(text)


def test_duplicate_keys_are_problems() -> None:
    document = parse("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert [p.where for p in document.problems] == ["b.c", "a"]


def test_marks_follow_nesting() -> None:
    document = parse("a:\n  b: [1, two]\n")
    assert document.marks["a", "b", 1] == (2, 10)
    assert dotted(("a", "b", 1)) == "a.b[1]"


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tx: 1", "a: *nowhere"])
def test_broken_yaml_names_line_and_column(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:\d+:\d+: syntax: found"):
        parse(text, "f.yaml")


def test_unreadable_files(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "binary.yaml")
