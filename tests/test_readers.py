"""Every reader of text: whatever it is given ends in data or in a named error with a place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leansim
from leansim.errors import ConfigError, LeansimError
from leansim.files.csv import read_csv
from leansim.files.strict_json import parse as parse_json
from leansim.files.strict_json import value_of
from leansim.files.strict_yaml import MOST_DEEP, MOST_REPEATED, MOST_VALUES, parse, read, scalar
from leansim.files.text import MOST_BYTES
from leansim.points.grid import load
from leansim.points.point import point, resolve
from leansim.specs import catalog
from leansim.specs.hf_config import read_hf_config
from leansim.specs.traces import find_trace, read_trace

ONE = {"device": "h100_sxm", "kernel": "fa2", "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128,
       "batch_size": 2, "context_len": 4096}  # fmt: skip
HF = {"num_attention_heads": 8, "num_hidden_layers": 2, "hidden_size": 1024}
READERS: dict[str, Callable[[Path], Any]] = {
    "yaml": read,
    "run": load,
    "device": lambda path: catalog.device(str(path.with_suffix(".yaml"))),
    "csv": lambda path: read_csv(str(path)),
    "hf": read_hf_config,
    "trace": read_trace,
    "points": lambda path: leansim.predict(path.with_suffix(".csv")),
}


def suffixed(path: Path) -> list[Path]:
    return [path, path.with_suffix(".yaml"), path.with_suffix(".csv")]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\xfe\x00", "bytes that are not UTF-8"),
        (b'a: "x\x00y"\n{"a": 1}', "NUL|valid|special characters"),
        (b"", "nothing|no rows|no lines|expecting value|wanted"),
    ],
    ids=["bytes", "nul", "empty"],
)
def test_what_is_no_text(tmp_path: Path, reader: str, content: bytes, complaint: str) -> None:
    for path in suffixed(tmp_path / "x.json"):
        path.write_bytes(content)
    if reader == "yaml" and not content:
        assert read(tmp_path / "x.yaml").data is None
        return
    with pytest.raises(ConfigError, match=complaint):
        READERS[reader](tmp_path / "x.json")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a\0b", "n" * 5000, "folder", "pipe", "nothing"])
def test_what_is_no_file(tmp_path: Path, reader: str, name: str) -> None:
    """A pipe that nobody writes to is not waited for."""
    path = tmp_path / f"{name}.json"
    for one in suffixed(path) if name in ("folder", "pipe") else ():
        one.mkdir() if name == "folder" else os.mkfifo(one)
    found = {"folder": "a folder", "pipe": "a pipe", "nothing": "no such file|nothing"}
    with pytest.raises(LeansimError, match=found.get(name, "null|too long|nothing")):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_an_endless_file_is_refused_by_its_kind(reader: str, tmp_path: Path) -> None:
    for path in suffixed(tmp_path / "zero.json"):
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="a device"):
        READERS[reader](tmp_path / "zero.json")


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as handle:
        handle.truncate(MOST_BYTES + 1)
    with pytest.raises(ConfigError, match=f"{MOST_BYTES + 1:,} bytes; wanted at most {MOST_BYTES:,}"):
        read(path)


@pytest.mark.parametrize("reader", ["hf", "trace", "points", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, reader: str) -> None:
    texts = {"hf": json.dumps(HF), "trace": "context_len\n5\n"}
    table = ",".join(ONE) + "\n" + ",".join(map(str, ONE.values())) + "\n"
    for path in suffixed(tmp_path / "x.json"):
        path.write_bytes(b"\xef\xbb\xbf" + texts.get(reader, table).encode())
    assert READERS[reader](tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 5000, "very deep nesting; wanted at most 64 levels"),
        ('{"a":' * 5000, "very deep nesting"),
        ("[" * 900 + "]" * 900, "very deep nesting; wanted at most 64"),
        ("9" * 5000, "4300 digits"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ('["a\\u0000"]', "a NUL character"),
        ('{"a": 1,}', "wanted valid JSON"),
    ],
)
def test_json(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_json(text, "f.json")
    assert value_of(text) == text
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_hf_config(tmp_path / "config.json")
    (tmp_path / "trace.jsonl").write_text('{"input_length": 5, "output_length": 1}\n' + text)
    with pytest.raises(ConfigError, match=r"trace\.jsonl:2:"):
        read_trace(tmp_path / "trace.jsonl")


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers", "hidden_size"])
@pytest.mark.parametrize("value", [2**63, 10**400, 1e300, True, [], "\u20ac" * 999], ids=str)
def test_numbers_of_a_config_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**HF, "hidden_size": 8 * 2**60, key: value}))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_hf_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: &a [" + "x, " * 100 + "]\nb: [" + "*a, " * 101 + "]", f"at most {MOST_REPEATED:,} values"),
        ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]"
                                     for i in range(1, 30))]), "aliases that repeat more"),
        ("a: &a {b: *a}", "nesting without end"),
        ("a: &a 1\nb: &a 2", "anchor 'a' twice"),
        ("a: 1\n---\nb: 2", "another document; wanted one"),
        ("? [1, 2]\n: 3", "a list or mapping as a key"),
        ("a: " + "[" * 5000, "maximum nesting depth"),
        ("a: " + "[" * 99, f"very deep nesting; wanted at most {MOST_DEEP} levels"),
        ("a: " + "{a: " * 5000, "very deep nesting"),
        ("\n".join(" " * i + "a:" for i in range(500)), "very deep nesting"),
        ("[" + "1," * (MOST_VALUES + 1) + "]", f"more than {MOST_VALUES:,} values"),
        ('a: "\\ud800"', "wanted"),
    ],
    ids=range(12),
)  # fmt: skip
def test_yaml_that_expands(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text, "f.yaml")


def test_aliases_mean_what_they_repeat() -> None:
    document = parse("a: &a {x: &x [1, 2], y: *x}\nb: [*a, *x]\n? &k c\n: *k\n", "f.yaml")
    assert document.data["b"] == [{"x": [1, 2], "y": [1, 2]}, [1, 2]]
    assert document.data["c"] == "c"
    assert document.marks["b", 0, "x", 1] == document.marks["a", "x", 1] == (1, 18)


def test_many_lengths_of_a_file_are_read_in_seconds() -> None:
    """Half a minute in pure Python."""
    text = "context_lens: [" + ", ".join(map(str, range(1, 300_001))) + "]"
    assert len(parse(text).data["context_lens"]) == 300_000


@pytest.mark.parametrize("text", ["\udcff", "a\0b", '"\\ud800"', '"\\0"', "[\udcff]", "{a\0: 1}"])
def test_a_setting_that_is_no_text(text: str) -> None:
    with pytest.raises(ConfigError):
        scalar(text)


@pytest.mark.parametrize("field", ["device", "kernel", "model", "trace", "model_config", "partitioner"])
@pytest.mark.parametrize("name", ["a\0b", "n" * 5000, "\ud800", "a/" * 3000])
def test_names_that_nothing_can_have(field: str, name: str) -> None:
    with pytest.raises(LeansimError):
        resolve(point(**{**ONE, "context_len": None if field == "trace" else 4096, field: name}))
    with pytest.raises(LeansimError):
        find_trace(name)


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + "k", "1e400", "nan", "inf"])
def test_numbers_without_end(text: str) -> None:
    for field in ("context_len", "batch_size", "context_scale", "seed", "window"):
        with pytest.raises(LeansimError):
            resolve(point(**{**ONE, field: text}))
    for number in ("device.num_sms", "device.sm_clock_hz", "kernel.start.overhead_s"):
        with pytest.raises(LeansimError):
            resolve(point(**ONE, overrides={number: text}))


def test_a_dtype_of_a_measured_table_is_one(tmp_path: Path) -> None:
    name = catalog.names("table")[0]
    text = catalog.spec_path("table", name).read_text()
    path = tmp_path / "t.yaml"
    path.write_text(text + "\nq_dtype: bf16\n")
    with pytest.raises(ConfigError, match="q_dtype: found 'bf16'; wanted 'float32'"):
        catalog.table(str(path))
    cut = text.partition("kv_dtypes: [")
    assert cut[1], "a range that rows cover"
    path.write_text(cut[0] + "kv_dtypes: [bf16, " + cut[2])
    with pytest.raises(ConfigError, match=r"kv_dtypes\[0\]: found 'bf16'"):
        catalog.table(str(path))


def test_the_command_line_ends_without_a_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "deep.json").write_text("[" * 5000)
    shape = [f"--{key.replace('_', '-')}={value}" for key, value in ONE.items() if "_h" in key]
    for args in (
        ["run", "pipe.yaml"],
        ["run", "/dev/zero"],
        ["predict", "pipe.yaml"],
        ["show", "/dev/zero.yaml"],
        ["run", *shape, "--set", b"name=\xff", "--device=h100_sxm", "--kernel=fa2"],
        ["run", "--device=h100_sxm", "--kernel=fa2", "--model-config=deep.json", "--batch-size=1",
         "--context-len=1k"],
    ):  # fmt: skip
        command = [sys.executable, "-m", "leansim", *args]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"num_q_heads": 2**40, "num_kv_heads": 2**40},
            "2,199,023,255,552 output tiles; wanted at most",
        ),
        ({"batch_size": 2**20, "num_kv_heads": 8}, "8,388,608 output tiles"),
        ({"query_len": 4096, "num_q_heads": 2**20}, "output tiles; wanted at most 4,194,304"),
        ({"num_sms": 10**9}, "slots; wanted at most 1,048,576"),
        ({"overrides": {"device.num_sms": 2**40}}, "slots; wanted at most"),
        ({"overrides": {"kernel.ctas.setup_kernels": 10**9}}, "less than or equal to 1024"),
    ],
    ids=range(6),
)
def test_sizes_that_no_memory_holds(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LeansimError, match=complaint):
        leansim.plan(point(**{**ONE, **fields}))


def test_a_context_that_cannot_be_replayed() -> None:
    with pytest.raises(LeansimError, match=r"verify: found a context of .* wanted at most 2,097,152"):
        leansim.verify(point(**{**ONE, "batch_size": 1, "context_len": 2**40}))
