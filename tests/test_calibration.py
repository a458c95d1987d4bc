"""Calibration: it finds constants that are known, from rows that it may see, and writes only those."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pytest

import leansim
from leansim.errors import ConfigError, LeansimError, StoreError
from leansim.files.strict_yaml import parse
from leansim.files.writing import write_together, write_whole
from leansim.files.yaml_edit import edited, short
from leansim.silicon.calibration import MOST_PER_PAIR, Calibration, CalibrationConfig, read_calibration
from leansim.silicon.fit import calibrate, edits, fit_rows, write
from leansim.silicon.published import FILE_COLUMNS, RENAMED, measured_rows, table_rows
from leansim.silicon.rows import SHAPE, calls_of, digest
from leansim.silicon.targets import (
    applies,
    changed,
    defining,
    in_harness,
    target_of,
    value_at,
    with_bases,
)
from leansim.silicon.validate import validate
from leansim.specs import catalog
from leansim.sweeps.predict import prediction

SHIPPED = Path(__file__).parent.parent / "configs"
DATA = Path(__file__).parent / "data" / "silicon"
CALIBRATIONS = sorted((SHIPPED / "calibrations").glob("*.yaml"))
KERNEL = "kernel.fa2.combine.overhead_s.sm_80"
DEVICE = "device.a100_sxm_80gb.dram_efficiency"
SEGMENT_TARGET = "kernel.fa2.start.overhead_s.sm_80"
HARNESS = "table.a100_sxm_vllm.harness.base.seconds"
# What the silicon of these tests is like.
TRUTH = {KERNEL: 1.7e-6, DEVICE: 0.81, HARNESS: 8.8e-6}
BOUNDS = {KERNEL: "[0, 6.0e-6]", DEVICE: "[0.7, 0.95]", HARNESS: "[3.0e-6, 12.0e-6]"}


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configs of one's own, which may be written."""
    for kind in ("devices", "kernels", "tables"):
        shutil.copytree(SHIPPED / kind, tmp_path / "configs" / kind)
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path / "configs"))
    return tmp_path / "configs"


def calibration(
    tmp_path: Path, targets: dict[str, str], rows: str = "{table: a100_sxm_vllm}"
) -> Calibration:
    lines = ["name: trial", f"rows: [{rows}]", "constants:"]
    lines += [f"  - {{target: {target}, bounds: {bounds}}}" for target, bounds in targets.items()]
    (tmp_path / "trial.yaml").write_text("\n".join(lines) + "\n")
    return read_calibration(tmp_path / "trial.yaml")


def silicon(folder: Path, steps: tuple[int, ...] = (15, 255, 1023, 4095, 16383)) -> Path:
    """Rows that the simulator makes with `TRUTH`: latencies of a100_sxm_vllm, in a folder."""
    shapes = [
        {"kernel_source": "vllm_flash_attn", "batch_size": batch, "num_heads": heads,
         "num_key_value_heads": kv_heads, "head_dim": 128, "window_size": 0,
         "kv_cache_dtype": "bfloat16", "step": step, "latency": 1.0}
        for batch in (1, 4, 16, 64) for heads, kv_heads in ((8, 8), (32, 8), (16, 1), (12, 4))
        for step in steps if batch * step < 300_000
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "a100_sxm_vllm.csv"
    pd.DataFrame(shapes)[list(FILE_COLUMNS)].to_csv(path, index=False)
    table = catalog.table("a100_sxm_vllm")
    rows = measured_rows(table, data=folder)
    spec = changed(table, {target_of(HARNESS): TRUTH[HARNESS]})
    overrides = {"kernel.combine": {**catalog.kernel("vllm_fa2").combine.model_dump(),  # type: ignore[union-attr]
                                    "overhead_s": {"sm_80": TRUTH[KERNEL]}},
                 "device.dram_efficiency": TRUTH[DEVICE]}  # fmt: skip
    seconds = [
        leansim.simulate(point.model_copy(update={"overrides": overrides})).result.latency_s
        for point in rows["point"]
    ]
    raw = rows.rename(columns={ours: theirs for theirs, ours in RENAMED.items()}).assign(
        latency=(np.array(seconds) + spec.harness_s(calls_of(rows))) * 1e3
    )
    raw[list(FILE_COLUMNS)].to_csv(path, index=False)
    return folder


def test_a_shipped_calibration_goes_by_its_name() -> None:
    assert read_calibration("own_fa3").config.name == "own_fa3"
    with pytest.raises(ConfigError, match="did you mean 'own_fa3'"):
        read_calibration("own_fa33")


def test_a_fit_finds_known_constants_and_writes_only_them(tmp_path: Path, configs: Path) -> None:
    data = silicon(tmp_path / "data")
    made = calibration(tmp_path, BOUNDS)
    before = {path: path.read_text() for path in configs.rglob("*.yaml")}
    fit = calibrate(made, data, jobs=1)
    for constant in fit.constants:
        assert constant.after == pytest.approx(TRUTH[str(constant.target)], rel=0.03), constant.target
        assert not constant.at_bound
    assert np.abs(fit.before).mean() > 0.02
    assert np.abs(fit.after).mean() < 0.005
    assert {path: path.read_text() for path in before} == before, "nothing is written before `write`"
    written = write(fit)
    assert sorted(path.name for path in written) == [
        "a100_sxm_80gb.yaml", "a100_sxm_vllm.yaml", "fa2.yaml",
    ]  # fmt: skip
    after = {path: path.read_text() for path in before}
    assert {path for path in before if after[path] != before[path]} == set(written)
    for constant in fit.constants:
        assert value_at(constant.target) == constant.after
    # the rows that no constant was fitted to are met as well, through the path that predicts
    test = validate(table_rows(["a100_sxm_vllm"], "test", data=data), jobs=1)
    assert test["error"].abs().mean() < 0.01


def test_written_files_keep_their_comments_and_say_where_numbers_come_from(
    tmp_path: Path, configs: Path
) -> None:
    made = calibration(tmp_path, BOUNDS)
    old = (configs / "devices" / "a100_sxm_80gb.yaml").read_text()
    fa2 = catalog.kernel("fa2").sources
    write(calibrate(made, DATA, jobs=1))
    new = (configs / "devices" / "a100_sxm_80gb.yaml").read_text()
    comments = [line[line.index("#") :] for line in old.splitlines() if "#" in line]
    assert [line[line.index("#") :] for line in new.splitlines() if "#" in line] == comments
    source = catalog.device("a100_sxm_80gb").sources["dram_efficiency"]
    assert source.startswith("fitted: leansim calibrate trial, ")
    assert "rows to fit of aiconfigurator-core a100_sxm/attention/vllm/0.14.0" in source
    assert source.endswith(" after")
    old_sources, sources = fa2, catalog.kernel("fa2").sources
    assert sources["combine.overhead_s.sm_80"].startswith("fitted: leansim calibrate trial, ")
    rest = {key: text for key, text in old_sources.items() if key != "combine.overhead_s.sm_80"}
    assert {key: sources[key] for key in rest} == rest, "what was not fitted keeps its source"
    (base,) = (t for t in catalog.table("a100_sxm_vllm").harness if t.name == "base")
    assert base.sources["seconds"].startswith("fitted: leansim calibrate trial, ")


def test_processes_change_nothing(tmp_path: Path) -> None:
    made = calibration(tmp_path, {HARNESS: BOUNDS[HARNESS], KERNEL: BOUNDS[KERNEL]})
    one, two = (calibrate(made, DATA, jobs=jobs) for jobs in (1, 2))
    assert [c.after for c in one.constants] == [c.after for c in two.constants]


def test_only_the_fit_fifth_is_fitted(tmp_path: Path) -> None:
    rows = fit_rows(calibration(tmp_path, {HARNESS: BOUNDS[HARNESS]}), DATA)
    names = ["batch_size", "num_q_heads", "num_kv_heads", "head_dim", "window", "kv_dtype", "step"]
    shapes = [",".join(map(str, row)) for row in rows[names].itertuples(index=False)]
    assert shapes
    assert all(digest(shape) % 5 == 0 for shape in shapes)
    raw = pd.read_csv(DATA / "a100_sxm_vllm.csv")
    columns = ["batch_size", "num_heads", "num_key_value_heads", "head_dim"]
    keys = [",".join([*map(str, r[:4]), "0", "bfloat16", str(r[4])])
            for r in raw[[*columns, "step"]].itertuples(index=False)]  # fmt: skip
    raw[[digest(key) % 5 != 0 for key in keys]].to_csv(tmp_path / "a100_sxm_vllm.csv", index=False)
    with pytest.raises(StoreError, match="no rows to fit"):
        fit_rows(calibration(tmp_path, {HARNESS: BOUNDS[HARNESS]}), tmp_path)


def test_points_of_ones_own_are_fitted_with_the_harness_that_they_contain(tmp_path: Path) -> None:
    points = [
        leansim.point(
            device="a100_sxm_80gb", kernel="vllm_fa2", batch_size=batch, context_len=context,
            num_q_heads=32, num_kv_heads=8, head_dim=128,
        )
        for batch in (1, 2, 3, 4) for context in (500, 1000, 2000, 3000, 4000)
    ]  # fmt: skip
    rows = [
        {**point.model_dump(include=set(SHAPE) | {"device", "kernel", "context_len"}),
         "harness": "table", "measured_us": prediction(point, "table").latency_s * 1e6}
        for point in points
    ]  # fmt: skip
    pd.DataFrame(rows).drop(columns="window").to_csv(tmp_path / "mine.csv", index=False)
    mine = f"{{points: {tmp_path / 'mine.csv'}, device: a100_sxm_80gb, kernels: [vllm_fa2]}}"
    fit = calibrate(calibration(tmp_path, {KERNEL: BOUNDS[KERNEL]}, mine), jobs=1)
    assert np.abs(fit.before).max() < 1e-9


@pytest.mark.parametrize("path", CALIBRATIONS, ids=lambda path: path.stem)
def test_the_shipped_calibrations_make_sense(path: Path) -> None:
    made = read_calibration(path)
    assert path.stem == made.config.name
    low_high = [constant.bounds for constant in made.config.constants]
    assert all(low <= s <= high for s, (low, high) in zip(made.starts, low_high, strict=True))


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("kernel.fa2.tiles", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.loops.single_buffered.stages", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.start.loads", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.combine.registers_per_thread", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.combine.splits_in_flight", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.partitioner", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.compute.mma_efficiency", "decide schedules, or what fits on an SM"),
        ("kernel.fa2.compute.mma_eficiency.sm_80", "did you mean 'mma_efficiency'"),
        ("device.a100_sxm_80gb.num_sms", "decide schedules, or what fits on an SM"),
        ("device.a100_sxm_80gb.smem_bytes_per_sm", "decide schedules, or what fits on an SM"),
        ("device.a100.latency_spread", "unknown device"),
        ("table.a100_sxm_vllm.harness.bass.seconds", "did you mean 'base'"),
        ("table.a100_sxm_vllm.harness.base.when", "unknown number of a harness term"),
        ("table.a100_sxm_vllm.step_offset", "harness.<term>.<field>"),
        ("mma_efficiency", "unknown kind of constant"),
        # of other rows
        ("kernel.fa3.compute.mma_efficiency.sm_90", "changes one of these rows"),
        ("kernel.fa2.compute.mma_efficiency.sm_90", "changes one of these rows"),
        ("device.h100_sxm.latency_spread", "changes one of these rows"),
        ("table.h100_sxm_vllm.harness.base.seconds", "changes one of these rows"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, target: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        calibration(tmp_path, {target: "[0, 1]"})


@pytest.mark.parametrize(
    "rows", ["{table: h100_sxm_vllm}", "{table: h100_sxm_sglang}", "{table: h200_sxm_sglang}",
             "{table: h100_sxm_sglang, kernels: [sglang_triton]}", "{table: l40s_vllm}",
             "{table: b200_sxm_vllm}"],
)  # fmt: skip
def test_only_four_tables_may_fit_kernels_and_devices(tmp_path: Path, rows: str) -> None:
    """The FA3 rows of H100 SGLang may; that table's Triton rows may not."""
    name = rows.split(":")[1].strip(" }").split(",")[0]
    device = catalog.table(name).device
    with pytest.raises(ConfigError, match="fit their harness only"):
        calibration(tmp_path, {f"device.{device}.latency_spread": "[0.01, 0.2]"}, rows)
    calibration(tmp_path, {f"table.{name}.harness.base.seconds": "[0, 1.0e-5]"}, rows)
    allowed = "{table: h100_sxm_sglang, kernels: [sglang_fa3]}"
    calibration(tmp_path, {"device.h100_sxm.latency_spread": "[0.01, 0.2]"}, allowed)
    tables = map(catalog.table, catalog.names("table"))
    fits = [(t.name, source) for t in tables for source, kernel in t.kernels.items() if kernel.fits]
    assert fits == [
        ("a100_sxm_sglang", "flash_attention"),
        ("a100_sxm_vllm", "vllm_flash_attn"),
        ("b200_sxm_sglang", "trtllm_mha"),
        ("h100_sxm_sglang", "fa3"),
    ]


def test_few_constants_only(tmp_path: Path) -> None:
    names = ["cta_launch_s", "dram_latency_s", "l2_latency_s", "l2_far_latency_s", "fence_s", "atomic_s",
             "flag_latency_s", "latency_spread", "l2_resident_fraction"]  # fmt: skip
    many = {f"device.a100_sxm_80gb.{name}": "[1.0e-9, 0.1]" for name in names}
    with pytest.raises(ConfigError, match=f"at most {MOST_PER_PAIR}"):
        calibration(tmp_path, many)
    with pytest.raises(ConfigError, match="at most 12"):
        calibration(tmp_path, {**many, **{f"device.h100_sxm.{name}": "[0, 1]" for name in names}})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"{{target: {HARNESS}, bounds: [2, 1]}}", "low below high"),
        (f"{{target: {HARNESS}, bounds: [0, 1], start: 2}}", "start inside the bounds"),
        (f"{{target: {HARNESS}, bounds: [0, 1]}}, {{target: {HARNESS}, bounds: [0, 1]}}", "each once"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "c.yaml").write_text(f"name: c\nrows: [{{table: a100_sxm_vllm}}]\nconstants: [{text}]\n")
    with pytest.raises(ConfigError, match=complaint):
        read_calibration(tmp_path / "c.yaml")


def test_a_constant_stands_where_its_chain_defines_it() -> None:
    assert with_bases("vllm_fa2") == ["vllm_fa2", "fa2"]
    assert defining("vllm_fa2", ("compute", "mma_efficiency")) == "fa2"
    target = target_of("kernel.vllm_fa2.compute.mma_efficiency.sm_80")
    assert str(target) == "kernel.fa2.compute.mma_efficiency.sm_80"
    assert applies(target, "vllm_fa2", "a100_sxm_80gb")
    assert not applies(target, "vllm_fa2", "h100_sxm")
    assert not applies(target, "fa3", "a100_sxm_80gb")
    own = next(name for name in ("vllm_fa3", "sglang_fa3") if defining(name, ("tiles",)) == name)
    assert with_bases(own)[0] == own


def test_constants_change_time_and_no_schedule(tmp_path: Path) -> None:
    """What the fit lowers again is what the path that predicts would make anew."""
    made = calibration(tmp_path, BOUNDS)
    config = made.config
    assert isinstance(config, CalibrationConfig)
    device = changed(catalog.device("a100_sxm_80gb"), {target_of(DEVICE): 0.8})
    assert device.dram_efficiency == 0.8
    assert device.sources["dram_efficiency"].startswith("fitted: ")
    with pytest.raises(LeansimError, match="less than or equal to 1"):
        changed(catalog.device("a100_sxm_80gb"), {target_of(DEVICE): 1.2})


# Writing

TEXT = """\
# head
name: x  # a name
flat: {a: 1, b: 2.5e-6}  # flow
empty: {}
list:
  - [1, 2]
  - [3, 4]  # last
nested:
  one: 1   # aligned
  two: "text"

sources:
  flat: "measured: here"
  long:
    "measured: a text that goes on
     over two lines"
"""


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("flat", "b"), 1.25e-6, "flat: {a: 1, b: 1.25e-6}  # flow"),
        (("flat", "c"), 0.5, "flat: {a: 1, b: 2.5e-6, c: 0.5}  # flow"),
        (("empty", "a"), 1, "empty: {a: 1}"),
        (("list",), [[1.0, 0.85]], "list: [[1.0, 0.85]]  # last"),
        (("list", 1, 0), 9, "  - [9, 4]  # last"),
        (("nested", "one"), 9.17e11, "  one: 9.17e11   # aligned"),
        (("nested", "three"), 3, "  three: 3"),
        (("new", "sm_80"), 1e-7, "new: {sm_80: 1.0e-7}"),
        (("sources", "flat"), 'fitted: "so"', '  flat: "fitted: \\"so\\""'),
        (("sources", "new"), "assumed: so", '  new: "assumed: so"'),
    ],
)  # fmt: skip
def test_an_edit_changes_one_value(path: tuple[str | int, ...], value: object, line: str) -> None:
    text = edited(TEXT, {path: value})
    assert line in text.splitlines()
    old, new = TEXT.splitlines(), text.splitlines()
    assert sum(line not in old for line in new) == 1
    if path[0] == "new":
        assert new.index(line) < new.index("sources:")


def test_long_texts_stay_folded() -> None:
    text = edited(TEXT, {("sources", "long"): "fitted: " + "word " * 40 + "end"})
    assert parse(text).data["sources"]["long"].endswith("word end")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.yaml")), ids=lambda path: path.name)
def test_every_number_of_every_file_can_be_edited(path: Path) -> None:
    text = path.read_text()
    data = parse(text).data
    numbers = {(key,): value for key, value in data.items() if isinstance(value, int | float)}
    assert parse(edited(text, numbers)).data == data


def test_a_file_is_written_by_what_knows_how_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.bin", lambda part: part.write(b"\0"))
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\0"

    def half(part: BinaryIO) -> None:
        part.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "new" / "a.bin", half)
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"\0"]


def test_several_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("old")
    with pytest.raises(OSError, match=r"Not a directory: '.*b.yaml'"):
        write_together({tmp_path / "a.yaml": "new", tmp_path / "a.yaml" / "b.yaml": "new"})
    assert (tmp_path / "a.yaml").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


SEGMENT = re.compile(r"(?<=, )overhead_s: \{[^}]*\}(?=\}$)", re.MULTILINE)
LAST_SEGMENT = re.compile(r", overhead_s: \{[^}]*\}(?=\}$)", re.MULTILINE)
SEGMENT_SOURCE = re.compile(
    r"^  start.overhead_s[^\n]*\n(    +\"[^\n]*\n( {5}[^\n]*\n)*)?", re.MULTILINE
)


@pytest.mark.parametrize(
    ("numbers", "key"),
    [("{sm_80: 3.4e-7}", "start.overhead_s"), ("{sm_80: 1e-7, sm_90: 0}", "start.overhead_s.sm_80")],
)
def test_a_source_is_written_for_the_number_that_was_fitted(
    tmp_path: Path, configs: Path, numbers: str, key: str
) -> None:
    """Under its own path beside the source of the rest, or under the key that answers for it alone."""
    path = configs / "kernels" / "fa2.yaml"
    text = SEGMENT.sub(f"overhead_s: {numbers}", SEGMENT_SOURCE.sub("", path.read_text()))
    path.write_text(text + '  start.overhead_s: "assumed: as before"\n')
    fit = calibrate(calibration(tmp_path, {SEGMENT_TARGET: "[0, 2.0e-6]"}), DATA, jobs=1)
    path.write_text(edits(fit)[path])
    sources = catalog.kernel("fa2").sources
    assert sources[key].startswith("fitted: leansim calibrate trial, ")
    assert sources.get("start.overhead_s", "") in (sources[key], "assumed: as before")
    assert all(catalog.kernel("fa2").numbers_by_source().values())


def test_a_tables_number_stands_where_its_chain_defines_it() -> None:
    """H200's table says only its base; the rest is H100's, which take it from each other."""
    stands = {
        "h200_sxm_vllm.harness.base.seconds": "h200_sxm_vllm",
        "h200_sxm_vllm.harness.fp8_query.seconds": "h100_sxm_vllm",
        "h200_sxm_vllm.harness.evicted.seconds": "h100_sxm_sglang",
        "h200_sxm_sglang.harness.fp8_query.bytes_per_s": "h200_sxm_sglang",
        "h200_sxm_sglang.harness.fp8_query.seconds": "h100_sxm_sglang",
        "l40s_vllm.harness.evicted.seconds": "h100_sxm_sglang",
        "h200_sxm_vllm.harness.base.per_request_s": "h200_sxm_vllm",  # said nowhere: the nearest
    }
    for key, home in stands.items():
        target = target_of(f"table.{key}")
        assert (target.kind, target.name) == ("table", home), key
        assert in_harness(target, key.partition(".")[0])
    assert not in_harness(target_of("table.h200_sxm_vllm.harness.base.seconds"), "h100_sxm_vllm")
    assert not in_harness(target_of("table.l40s_vllm.harness.base.seconds"), "a100_sxm_sglang")


def test_numbers_are_written_to_four_digits() -> None:
    assert short(0.123456) == 0.1235


def test_a_number_of_another_tables_file_is_not_fitted_from_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"table\.h100_sxm_sglang\.harness\.evicted\.seconds; wanted"):
        calibration(
            tmp_path, {"table.l40s_vllm.harness.evicted.seconds": "[0, 1]"}, "{table: l40s_vllm}"
        )


def test_a_new_constant_is_added_with_its_source(tmp_path: Path, configs: Path) -> None:
    """A kernel that does not say a constant gets it in its own file."""
    path = configs / "kernels" / "fa2.yaml"
    path.write_text(LAST_SEGMENT.sub("", SEGMENT_SOURCE.sub("", path.read_text())))
    made = calibration(tmp_path, {SEGMENT_TARGET: "[0, 2.0e-6]"})
    fit = calibrate(made, DATA, jobs=1)
    fit = replace(fit, constants=(replace(fit.constants[0], after=5e-7),))
    path.write_text(edits(fit)[path])
    assert catalog.kernel("vllm_fa2").start.overhead_s == {"sm_80": 5e-7}
    assert catalog.kernel("fa2").sources["start.overhead_s.sm_80"].startswith("fitted: leansim")
