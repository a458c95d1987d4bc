"""What was asked for is what is shown: headers, columns, split counts, partitioners given themselves."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import leansim
from leansim.cli.main import app
from leansim.errors import ConfigError, LeansimError, PartitionerError, UnknownNameError
from leansim.partitioners.flash_decoding import FlashDecoding
from leansim.partitioners.registry import find, split_count_option
from leansim.points.point import point_from_row, resolve
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device

CALL: dict[str, Any] = {
    "device": "h100_sxm",
    "num_q_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 128,
    "batch_size": 2,
    "context_len": 4096,
}


def flags(**more: Any) -> list[str]:
    given = {**CALL, "kernel": "fa2", **more}
    return [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def cli(*args: str) -> str:
    done = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- headers ---------------------------------------------------------------------------------------

NOT_BY_ITSELF: list[tuple[list[str], str]] = [
    (["--window", "512"], "window 512"),
    (["--cache", "warm"], "cache warm"),
    (["--query-len", "4"], "query_len 4"),
    (["--num-sms", "66"], "num_sms 66"),
    (["--set", "device.dram_bandwidth_bytes_per_s=1e12"], "device.dram_bandwidth_bytes_per_s=1e+12"),
    (["--launch", "stream"], "launch stream"),
    (["--page-tokens", "32"], "page_tokens 32"),
    (["--q-dtype", "float16"], "q_dtype float16"),
    (["--max-context-len", "8k"], "max_context_len 8,192"),
    (["--context-scale", "0.5"], "context_scale 0.5"),
    (["--context-len-cv", "1", "--seed", "3"], "context_len_cv 1, seed 3"),
    (["--head-dim-v", "64"], "head_dim_v 64"),
    (["--set", "kernel.tiles.threads=64"], "kernel.tiles.threads=64"),
    (["--partitioner", "flash_decoding"], "fa2+flash_decoding"),
]


@pytest.mark.parametrize(("more", "said"), NOT_BY_ITSELF, ids=lambda part: str(part)[:40])
def test_what_is_not_as_by_itself_is_named(tmp_path: Path, more: list[str], said: str) -> None:
    text = cli("run", *flags(), *more, "-o", str(tmp_path))
    assert said in text
    assert said not in cli("run", *flags())
    assert said in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_window_of_a_model_is_named_too(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 64, "sliding_window": 512}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    shape = {"device": "h100_sxm", "kernel": "fa3", "batch_size": 2, "context_len": "4k"}
    given = [part for key, value in shape.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    assert "window 512 of the model" in cli("run", *given, "--model-config", str(path))


@pytest.mark.parametrize("verb", ["oracle", "splits", "explain"])
def test_studies_name_it_as_well(verb: str) -> None:
    text = cli(verb, *flags(window=512, cache="warm"), "--rules", "fa2")
    assert "window 512, cache warm" in text
    records = json.loads(cli(verb, *flags(window=512), "--rules", "fa2", "--format", "json"))
    assert {record["asked"] for record in records} == {"window 512"}
    assert {record["context_len"] for record in records} == {4096}


# -- plans -----------------------------------------------------------------------------------------


def test_plans_of_several_points_say_which_is_which() -> None:
    args = flags(kernel="fa2,lean", batch_size="1,2", context_len="1k,2k", window="256,512")
    rows = list(csv.DictReader(cli("plan", *args, "--format", "csv").splitlines()))
    told = [tuple(row[key] for key in ("kernel", "batch_size", "context_len", "window")) for row in rows]
    assert len(set(told)) == len(rows) == 16
    assert ("lean", "2", "1024", "512") in told
    assert "100-3000" in cli("plan", *flags(context_lens="[100, 3000]"), "--set", "context_len=null")


def test_plans_that_are_alike_in_a_field_do_not_show_it() -> None:
    assert "window" not in cli("plan", *flags(window="512", batch_size="1,2")).splitlines()[0]


def test_segments_say_whose_they_are() -> None:
    text = cli("plan", *flags(batch_size="1,2", query_len=2), "--segments", "--format", "csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert {(row["batch_size"], row["request"]) for row in rows} == {("1", "0"), ("2", "0"), ("2", "1")}
    assert {row["head"] for row in rows} == set(map(str, range(8)))
    mine = [row for row in rows if row["batch_size"] == "2"]
    assert all(int(row["output_tile"]) == 8 * int(row["request"]) + int(row["head"]) for row in mine)
    (plan,) = leansim.plan(leansim.point(**CALL, kernel="fa2"))
    assert [row["number"] for row in plan.segments()] == list(range(16))


def test_verifications_of_several_points_say_which_is_which() -> None:
    points = [leansim.point(**CALL | {"context_len": n}, kernel="fa2") for n in (100, 200)]
    assert [row["context_len"] for row in leansim.verify(points, ["float32"]).rows()] == [100, 200]


# -- split counts ----------------------------------------------------------------------------------

TAKERS = [
    name
    for name in catalog.names("kernel")
    if split_count_option(find(catalog.kernel(name).partitioner.name)) is not None
]
OTHERS = sorted(set(catalog.names("kernel")) - set(TAKERS))


@pytest.mark.parametrize("kernel", TAKERS)
def test_every_kernel_with_a_split_count_takes_it(kernel: str) -> None:
    """By whatever name its partitioner has for it, in Python and in a CSV's column alike."""
    spec = catalog.kernel(kernel)
    option = split_count_option(find(spec.partitioner.name))
    assert option is not None
    point = leansim.point(**CALL, kernel=kernel, num_splits=3)
    assert getattr(resolve(point).partitioner, option) == 3
    cells = {key: str(value) for key, value in CALL.items()} | {"kernel": kernel, "num_splits": "3"}
    assert point_from_row(cells, "a row") == point
    kept = {key: value for key, value in spec.partitioner.options.items() if key != option}
    assert all(getattr(resolve(point).partitioner, key) == value for key, value in kept.items())


@pytest.mark.parametrize("kernel", OTHERS)
def test_a_kernel_without_one_says_who_has(kernel: str) -> None:
    with pytest.raises(PartitionerError, match=r"num_splits: found 3 for .* takes no number .* fa3"):
        resolve(leansim.point(**CALL, kernel=kernel, num_splits=3))


def test_a_list_of_counts_makes_several(tmp_path: Path) -> None:
    rows = json.loads(cli("run", *flags(kernel="fa3", num_splits="2,8"), "--format", "json"))
    assert [row["num_splits"] for row in rows] == [2, 8]
    assert [row["policy"] for row in rows] == [f"fa3+flash_attention_3(num_splits={n})" for n in (2, 8)]
    file = tmp_path / "sweep.yaml"
    text = {**CALL, "name": "counts", "kernel": ["fa3", "fa2"], "num_splits": [None, 4]}
    file.write_text(json.dumps(text), encoding="utf-8")
    done = leansim.sweep(file, tmp_path / "out", jobs=1)
    told = dict(zip(done.table["policy"], done.table["num_splits"], strict=True))
    assert told["fa3+flash_attention_3(num_splits=4)"] == 4
    assert done.refused == 1
    assert "takes no number of splits" in done.table["error"].dropna().iloc[0]


def test_a_count_goes_to_the_partitioner_that_is_named() -> None:
    one = leansim.point(**CALL, kernel="fa2+flash_decoding", num_splits=4)
    two = leansim.point(**CALL, kernel="fa2", partitioner="flash_decoding", num_splits=4)
    three = leansim.point(**CALL, kernel="fa2", partitioner=FlashDecoding(num_splits=4))
    assert one.policy == two.policy == three.policy == "fa2+flash_decoding(num_splits=4)"
    assert leansim.simulate(one).schedule.num_splits == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_splits": 0}, "greater than or equal to 1"),
        ({"num_splits": True}, "not true or false"),
        ({"num_splits": "many"}, "valid integer"),
        ({"num_splits": 999}, "less than or equal to 256"),
        (
            {
                "num_splits": 4,
                "partitioner": {"name": "flash_attention_3", "options": {"num_splits": 2}},
            },
            "num_splits 4 and num_splits 2 of partitioner 'flash_attention_3'; wanted one of them",
        ),
        (
            {"num_splits": 4, "partitioner": FlashDecoding()},
            "wanted the count among the options of Flash",
        ),
        ({"num_splits": 4, "partitioner": "flash_decodin"}, "did you mean 'flash_decoding'"),
        ({"num_splits": 4, "kernel": "fa33"}, "did you mean 'fa3'"),
    ],
)
def test_counts_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(LeansimError, match=said):
        resolve(leansim.point(**{**CALL, "kernel": "fa3", **fields}))


def test_a_count_may_be_set_in_the_kernel() -> None:
    setting = ["--set", "kernel.partitioner.options.num_splits=64"]
    (row,) = json.loads(cli("run", *flags(kernel="fa3"), *setting, "--format", "json"))
    assert row["num_splits"] == 64


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("kernel.partitioner.num_splits=6", "an option is kernel.partitioner.options.num_splits"),
        ("kernel.num_splits=6", r"options of its partitioner are kernel.partitioner.options"),
        (
            "partitioner.options.num_splits=6",
            "wanted kernel.partitioner.options.num_splits=6, or num_spl",
        ),
        ("partitioner.lengths=actual", "wanted kernel.partitioner.options.lengths=actual"),
    ],
)
def test_a_count_set_elsewhere_is_told_where(setting: str, said: str) -> None:
    with pytest.raises(LeansimError, match=said):
        CliRunner().invoke(app, ["run", *flags(kernel="fa3"), "--set", setting], catch_exceptions=False)


# -- partitioners given themselves -----------------------------------------------------------------


@dataclass(frozen=True)
class Dealt:
    """Whole output tiles, a CTA each."""

    extra: int = 0

    def __call__(self, grid: TileGrid, _device: Device) -> Schedule:
        tiles = np.arange(grid.num_output_tiles)
        return Schedule(grid, tiles, tiles, np.zeros_like(tiles), grid.num_kv_tiles, num_ctas=len(tiles))


def test_a_point_takes_a_partitioner_itself() -> None:
    point = leansim.point(**CALL, kernel="fa2", partitioner=Dealt(extra=2))
    assert point.policy == "fa2+dealt(extra=2)"
    assert resolve(point).partitioner == Dealt(extra=2)
    whole = leansim.simulate(leansim.point(**CALL, kernel="fa2"))
    assert leansim.simulate(point).metrics.latency_s == whole.metrics.latency_s
    assert leansim.predict([point], jobs=1).records()[0]["latency_us"] == pytest.approx(
        whole.metrics.latency_s * 1e6, rel=1e-3
    )
    assert "fa2+dealt(extra=2)" in leansim.explain(point, rules=["fa2"])[0].text


@pytest.mark.parametrize("wrong", [Dealt, lambda *_: None, len])
def test_what_is_no_partitioner_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="wanted a partitioner's name, or a frozen dataclass"):
        leansim.point(**CALL, kernel="fa2", partitioner=wrong)


# -- files that are not looked at ------------------------------------------------------------------


def elsewhere(folder: Path, *args: str) -> str:
    """Run in a checkout that is not the package that runs; what it says."""
    path = str(Path(leansim.__file__).parents[1])
    command = [sys.executable, "-P", "-m", "leansim", *args]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stderr


def test_files_of_a_checkout_that_is_not_installed_are_pointed_at(tmp_path: Path) -> None:
    for name in ("partitioners/mine.py", "timing/loops/spare.py"):
        path = tmp_path / "leansim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    kernel = tmp_path / "configs" / "kernels" / "my_kernel.yaml"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("", encoding="utf-8")
    text = elsewhere(tmp_path, "run", *flags(partitioner="mine"))
    assert f"{tmp_path}/leansim/partitioners/mine.py is not of the package that runs" in text
    assert "`pip install -e .`" in text
    text = elsewhere(tmp_path, "run", *flags(), "--set", "kernel.loops={spare: {}}")
    assert f"{tmp_path}/leansim/timing/loops/spare.py is not of the package that runs" in text
    text = elsewhere(tmp_path, "run", *flags(kernel="my_kernel"))
    assert f"set LEANSIM_CONFIGS={tmp_path}/configs" in text


def test_a_file_is_no_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"wanted a name: mine\.py is found in leansim/partitioners"
    ):
        resolve(leansim.point(**CALL, kernel="fa2", partitioner="./mine.py"))
