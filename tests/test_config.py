"""Run and sweep files: every mistake at once with its place, and the grid they expand to."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.errors import ConfigError, LeansimError, UnknownNameError
from leansim.files.csv import read_csv
from leansim.files.strict_yaml import parse
from leansim.points.grid import build, load, schema
from leansim.points.point import point, resolve
from leansim.points.simulate import simulate
from leansim.specs import catalog
from leansim.specs.traces import find_trace

GOOD = """
name: good
device: [a100_sxm_80gb, h100_sxm]
kernel: [fa2, lean]
batch_size: [1, 4]
context_len: [1k, 1M, 12]
num_q_heads: [8, 16]
num_kv_heads: [2, 4]
zip: [[num_q_heads, num_kv_heads]]
head_dim: 128
"""

BAD = """
name: bad
device: [a100_sxm_80b, h100_sxm]
kernel: [fa2, leen]
batch_size: [1, -4]
batch_size: 3
contxt_len: [1k, 8k]
num_q_heads: no
context_len: 3x
baseline: fa3
window: 010
"""


def test_every_mistake_of_a_file_is_reported_at_once_with_its_place() -> None:
    with pytest.raises(ConfigError) as raised:
        build(parse(BAD, "bad.yaml"))
    problems = {(p.line, p.where): str(p) for p in raised.value.problems}
    assert {line for line, _ in problems} == {3, 4, 6, 7, 8, 9, 10, 11}
    assert "did you mean 'a100_sxm_80gb'" in problems[3, "device[0]"]
    assert "did you mean 'lean'" in problems[4, "kernel[1]"]
    assert "duplicate key" in problems[6, "batch_size"]
    assert "did you mean 'context_len'" in problems[7, "contxt_len"]
    assert "token count" in problems[9, "context_len[0]"]
    assert "did you mean 'fa2'" in problems[10, "baseline"]
    assert str(raised.value).startswith("bad.yaml:3:10: device[0]: found 'a100_sxm_80b'; wanted")


def test_kernels_that_are_typed_replace_a_baseline_that_was_one_of_the_files() -> None:
    file = parse(f"{GOOD}baseline: fa2\n")
    assert build(file).baseline == "fa2"
    assert build(file, ["kernel=lean"]).baseline is None
    assert build(file, ["kernel=lean", "baseline=lean"]).baseline == "lean"
    assert build(file, ["kernel=fa2,fa3"]).baseline == "fa2"
    with pytest.raises(ConfigError, match="found 'fa3'; wanted one of this file's kernels"):
        build(file, ["kernel=lean", "baseline=fa3"])


def test_axes_multiply_and_zipped_axes_advance_together() -> None:
    grid = build(parse(GOOD))
    points = grid.points()
    assert len(points) == 2 * 2 * 2 * 3 * 2
    assert {(p.num_q_heads, p.num_kv_heads) for p in points} == {(8, 2), (16, 4)}
    assert {p.context_len for p in points} == {1024, 1024**2, 12}
    assert grid.varied == [
        "device",
        "kernel",
        "batch_size",
        "context_len",
        "num_q_heads",
        "num_kv_heads",
    ]


@pytest.mark.parametrize(
    ("zipped", "complaint"),
    [
        ("[[num_q_heads, contxt_len]]", "did you mean 'context_len'"),
        ("[[num_q_heads, context_len]]", "equal"),
    ],
)
def test_zip_names_what_does_not_pair(zipped: str, complaint: str) -> None:
    text = GOOD.replace("[[num_q_heads, num_kv_heads]]", zipped)
    with pytest.raises(ConfigError, match=complaint):
        build(parse(text)).points()


def test_settings_lay_over_a_file() -> None:
    grid = build(parse(GOOD), ["context-len=2k,4k", "device.num_sms=99", "kernel=fa2"])
    points = grid.points()
    assert {p.context_len for p in points} == {2048, 4096}
    assert resolve(points[0]).device.num_sms == 99
    assert resolve(points[0]).device.sources["num_sms"].startswith("assumed: overridden")
    with pytest.raises(ConfigError, match="key=value"):
        build(parse(GOOD), ["context_len"])


def test_context_lens_is_one_list_or_a_list_of_lists() -> None:
    base = "name: x\ndevice: h100_sxm\nkernel: fa2\nnum_q_heads: 8\nnum_kv_heads: 8\nhead_dim: 64\n"
    one = build(parse(base + "context_lens: [1k, 2k]")).points()
    two = build(parse(base + "context_lens: [[1k, 2k], [5]]")).points()
    assert [p.context_lens for p in one] == [(1024, 2048)]
    assert [p.context_lens for p in two] == [(1024, 2048), (5,)]


def test_shipped_runs_and_sweeps_load() -> None:
    paths = [
        p for f in catalog.config_folders() for p in [*f.glob("runs/*.yaml"), *f.glob("sweeps/*.yaml")]
    ]
    assert len(paths) >= 2
    for path in paths:
        for item in load(path).points():
            resolve(item)


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("configs/runs/quickstart.yaml").name == "quickstart"
    with pytest.raises(ConfigError, match=r"did you mean 'configs/runs/quickstart\.yaml'"):
        load("configs/runs/quickstar.yaml")
    assert load("quickstart").name == "quickstart"
    with pytest.raises(ConfigError, match=r"did you mean 'quickstart'\?\); known: context_length,"):
        load("quikstart")


def test_a_file_that_is_not_there_is_answered_with_the_nearest_beside_it(tmp_path) -> None:
    for name in ("points.csv", "chat.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"readable CSV \(did you mean 'points\.csv'\?\)"):
        read_csv(str(tmp_path / "poins.csv"))
    with pytest.raises(ConfigError, match=r"YAML file \(did you mean 'chat\.yaml'\?\)"):
        load(str(tmp_path / "chatt.yaml"))
    with pytest.raises(UnknownNameError, match=r"no such file \(did you mean 'points\.csv'\?\)"):
        find_trace(tmp_path / "point.csv")
    with pytest.raises(ConfigError, match=r"wanted a readable CSV$"):
        read_csv(str(tmp_path / "elsewhere" / "points.csv"))


def test_schema_accepts_a_value_or_a_list() -> None:
    properties = schema()["properties"]
    assert "model_config" in properties
    assert _kinds(properties["batch_size"]) == {"integer", "array", "null"}
    assert _kinds(properties["context_len"]) == {"integer", "string", "array", "null"}


def _kinds(schema: dict[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(_kinds(option) for option in schema["anyOf"]))
    return {schema["type"]}


SHAPE = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128}
ONE = {"device": "h100_sxm", "kernel": "fa2", **SHAPE}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({**ONE, "batch_size": 1}, "wanted one of context_len, context_lens and trace"),
        ({**ONE, "context_len": 5}, "wanted batch_size"),
        (
            {**ONE, "context_len": 5, "trace": "azure_2023_conv", "batch_size": 1},
            "found context_len and trace",
        ),
        ({**ONE, "context_lens": (5, 6), "batch_size": 3}, "context_lens has 2 requests"),
        ({**ONE, "context_lens": (5,), "num_q_heads": 7}, "not a multiple"),
        ({**ONE, "context_lens": (5,), "query_len": 9}, "at least query_len"),
        ({**ONE, "context_lens": (5,), "tensor_parallel": 2}, "give model"),
        ({**ONE, "context_lens": (5,), "kv_dtype": "fp8"}, "does not take kv_dtype fp8"),
        ({**ONE, "context_lens": (5,), "head_dim": 512}, "no tile for head_dim 512"),
        ({**ONE, "context_lens": (5,), "device": "mi300x"}, "not built for 'mi300x'"),
        ({**ONE, "context_lens": (5,), "kernel": "lean_aiter"}, "not built for 'h100_sxm'"),
        ({**ONE, "context_lens": (5,), "model": "llama"}, "did you mean 'llama_"),
        ({**ONE, "context_lens": (5,), "device": "h100"}, "did you mean 'h100_sxm'"),
        (
            {**ONE, "context_lens": (5,), "trace": None, "kernel": "fa2+round_robbin"},
            "unknown partitioner",
        ),
        (
            {**ONE, "context_lens": (5,), "launch": "pdl", "device": "a100_sxm_80gb"},
            "no launch mode 'pdl'",
        ),
        ({**ONE, "context_lens": (5,), "overrides": {"device.num_smss": 1}}, "did you mean 'num_sms'"),
        ({**ONE, "context_lens": (5,), "overrides": {"gpu.num_sms": 1}}, r"wanted device\.<number>"),
    ],
)
def test_points_that_make_no_sense_say_why(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(LeansimError, match=complaint):
        simulate(point(**fields))


def test_a_tile_that_does_not_fit_in_shared_memory_is_named() -> None:
    small = {"device.smem_bytes_per_cta_max": 1024}
    with pytest.raises(LeansimError, match=r"does not fit on 'h100_sxm'.*81,920 B"):
        _ = resolve(point(**ONE, context_lens=(5,), overrides=small)).grid


def test_partitioner_options_are_checked() -> None:
    choice = {"name": "flash_decoding", "options": {"num_split": 3, "sms_factor": 7}}
    with pytest.raises(
        LeansimError, match=r"num_split: unknown option \(did you mean 'num_splits'.*sms_factor: found 7"
    ):
        resolve(point(**ONE, context_lens=(5,), partitioner=choice))


def test_unknown_names_list_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match=r"known: a100_sxm_40gb, a100_sxm_80gb"):
        catalog.device("zzz")


def test_own_config_folder_comes_first(tmp_path, monkeypatch) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "mine.yaml").write_text(
        "name: mine\nbase: fa2\nstart: {loads: 7}\nsources: {start.loads: 'assumed: a test'}\n"
    )
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path))
    kernel = catalog.kernel("mine")
    assert (kernel.start.loads, kernel.tiles) == (7, catalog.kernel("fa2").tiles)
    assert "mine" in catalog.names("kernel")
    (tmp_path / "kernels" / "loop.yaml").write_text("name: loop\nbase: loop\n")
    with pytest.raises(ConfigError, match=r"loop\.yaml:2:7: base: found 'loop'"):
        catalog.kernel("loop")


def test_keys_depend_on_numbers_not_on_names() -> None:
    base = {**ONE, "context_lens": (100, 200)}
    key = resolve(point(**base)).key
    assert resolve(point(**{**base, "num_sms": 132})).key == key
    assert resolve(point(**{**base, "num_sms": 131})).key != key
    assert resolve(point(**{**base, "context_lens": (200, 100)})).key != key
    assert resolve(point(**{**base, "kernel": "flash_decoding"})).key != key
