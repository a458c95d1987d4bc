"""Every reader, what it is fed, and how far what it reads is taken: to a schedule with its prices."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import leansim
from leansim.errors import OutOfRangeError
from leansim.files.strict_yaml import Document, read
from leansim.points.grid import PointGrid, build, load
from leansim.points.plan import made
from leansim.points.point import POINT_KEYS, Point, all_option_columns, point, resolve
from leansim.points.simulate import TOO_MUCH
from leansim.points.travel import RANK_MERGES
from leansim.report.show import described
from leansim.silicon.card import Micro, direct
from leansim.silicon.own import MEASURED, own_rows
from leansim.silicon.published import FILE_COLUMNS, table_rows
from leansim.specs import catalog
from leansim.specs.harness import Calls
from leansim.specs.hf_config import read_hf_config
from leansim.specs.traces import read_trace, sample_in_flight
from leansim.steps.step import steps_of
from leansim.sweeps.sweep import manifest, read_results, sweep
from leansim.timing.lowering import lower

from .inputs import NUMBERS, Draw, cell, csv_of, edited_text, json_of, value, yaml_of

ROOT = Path(__file__).parent.parent.parent
CALL = {"device": "h100_sxm", "kernel": "fa2", "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128,
        "batch_size": 2, "context_len": 1000}  # fmt: skip
_MOST_TILES = 5000  # of schedules that are made: an input is to take milliseconds


@dataclass(frozen=True)
class Reader:
    """A way in: `make` draws an input, `read` takes it from a folder to what comes of it."""

    make: Callable[[Draw], bytes]
    read: Callable[[bytes, Path], object]


def priced(asked: Point) -> None:
    """Take a point as far as its priced schedule, where that is small."""
    resolved = resolve(asked)
    if resolved.workload.batch_size * resolved.workload.num_q_heads > _MOST_TILES:
        return
    if resolved.grid.num_output_tiles <= _MOST_TILES and resolved.grid.total_kv_tiles < 2**20:
        made(resolved).rows()
        try:
            lower(resolved.schedule, resolved.instance, resolved.device)
        except TOO_MUCH as error:  # as `simulate` tells it
            raise OutOfRangeError(str(error)) from None


def _few(grid: PointGrid) -> None:
    json.dumps(manifest(grid))
    _ = grid.policies
    for position in sorted({0, grid.size // 2, grid.size - 1}):
        priced(grid.at(position))


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@cache
def _shipped(kind: str) -> list[Any]:
    return [read(path).data for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


def _yaml(kind: str) -> Callable[[Draw], bytes]:
    return lambda draw: yaml_of(draw, draw(st.sampled_from(_shipped(kind))))


def _run(content: bytes, folder: Path) -> None:
    _few(load(_file(folder, "x.yaml", content)))


def _device(content: bytes, folder: Path) -> None:
    path = str(_file(folder, "x.yaml", content))
    catalog.device(path)
    described(path)
    priced(point(**{**CALL, "device": path}))


def _kernel(content: bytes, folder: Path) -> None:
    path = str(_file(folder, "x.yaml", content))
    catalog.kernel(path)
    described(path)
    for kv_dtype in ("bfloat16", "fp8"):
        priced(point(**{**CALL, "kernel": path, "kv_dtype": kv_dtype}))


def _model(content: bytes, folder: Path) -> None:
    path = str(_file(folder, "x.yaml", content))
    described(path)
    shape = {"model": path, "tensor_parallel": 1, "batch_size": 2, "context_len": 1000}
    _stepped(point(device="h100_sxm", kernel="fa2", **shape))


def _stepped(asked: Point) -> None:
    """Take a point to its whole step, where that is small."""
    priced(asked)
    for _, step in steps_of([asked]):
        if isinstance(step, Exception):
            raise step
        step.records()
        step.rows()


def _node(content: bytes, folder: Path) -> None:
    path = str(_file(folder, "x.yaml", content))
    node = catalog.node(path)
    described(path)
    shape = {"model": "llama_2_7b", "batch_size": 2, "context_len": 100, "kernel": "fa2"}
    for merge in RANK_MERGES:
        layout = {"node": path, "tensor_parallel": 2, "kv_ranks": 2, "kv_rank_merge": merge}
        _stepped(point(device=node.device, **shape, **layout))


def _table(content: bytes, folder: Path) -> None:
    table = catalog.table(str(_file(folder, "x.yaml", content)))
    for kernel in table.kernels.values():
        float(table.harness_s(Calls.of(kernel.name, resolve(point(**CALL)).workload)))


def _calibration(content: bytes, folder: Path) -> None:
    from leansim.silicon.calibration import read_calibration

    _ = read_calibration(_file(folder, "x.yaml", content)).starts


# A description with every key, of an experiment that is run as it says.
EXPERIMENT = {"title": "Is it so?", "minutes": 0.5, "needs": ["silicon"], "after": [],
              "data": {"times.csv": "theirs"}, "command": ["run.py", "--sample", "3"]}  # fmt: skip


def _experiment(content: bytes, folder: Path) -> None:
    from leansim.checkout.experiments import experiments

    there = folder / "experiments" / "it"
    there.mkdir(parents=True, exist_ok=True)
    (there / "run.py").touch()
    (folder / "pyproject.toml").write_text(
        '[project.optional-dependencies]\nsilicon = ["scipy>=1.11"]\n'
    )
    _file(there, "experiment.yaml", content)
    found = experiments(there.parent)
    found.written("table")
    found.written("csv")
    found[0].missing(folder)


HF = (
    {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
     "num_hidden_layers": 32, "torch_dtype": "bfloat16", "rope_scaling": {"factor": 8.0}},
    {"text_config": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                     "num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"]}},
    {"num_attention_heads": 128, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
     "qk_nope_head_dim": 128, "v_head_dim": 128, "hidden_size": 7168, "q_lora_rank": 1536},
    {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "num_hidden_layers": 2,
     "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 0,
     "layer_types": ["sliding_attention", "sliding_attention"]},
    {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_hidden_layers": 4,
     "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2,
     "model_type": "gpt_oss"},
)  # fmt: skip


def _hf(content: bytes, folder: Path) -> None:
    path = _file(folder, "config.json", content)
    read_hf_config(path)
    call = {"device": "h100_sxm", "kernel": "fa2", "batch_size": 2, "context_len": 1000}
    priced(point(**call, model_config=str(path)))


def _table_of(*rows: dict[str, Any]) -> list[list[str]]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [columns, *([str(row.get(key, "")) for key in columns] for row in rows)]


POINTS = _table_of(
    CALL,
    {**CALL, "kernel": "flash_decoding", "num_splits": 3, "device.num_sms": 66},
    {**CALL, "kernel": "lean", "batch_size": "", "context_len": "", "context_lens": "100 7000 512"},
)
COLUMNS = tuple(
    sorted({*POINT_KEYS, *all_option_columns(), "device.l2_bytes", "kernel.ctas.overhead_s"})
)


def _points(content: bytes, folder: Path) -> None:
    path = _file(folder, "p.csv", content)
    leansim.plan(path).written("csv")


FLASHINFER = {
    "routine": "BatchDecodeWithPagedKVCacheWrapper", "median_time": 0.05, "std_time": 0,
    "backend": "fa2", "resolved_backend": "", "page_size": 16, "batch_size": 8, "s_qo": 1, "s_kv": 4096,
    "num_qo_heads": 32, "num_kv_heads": 8, "head_dim_qk": 128, "head_dim_vo": 128,
    "q_dtype": "torch.bfloat16",
    "kv_dtype": "torch.bfloat16", "random_actual_seq_len": False, "no_cuda_graph": False,
}  # fmt: skip
MINE = _table_of({**CALL, MEASURED: 20, "harness": ""}, {**CALL, MEASURED: 9.5, "harness": ""})


def _own(content: bytes, folder: Path) -> None:
    own_rows(_file(folder, "m.csv", content), "h100_sxm", strict=False)


_SAID = {"series": "graph", "bytes": 0, "gb_per_s": "", "median_us": 1.1, "x": 1}
_WAVE = {**_SAID, "measurement": "cta_turnover", "series": "1024 threads, 2 CTAs per SM"}
MICRO = _table_of(
    {"measurement": "launch_gap", **_SAID},
    _WAVE,
    {**_WAVE, "x": 2, "median_us": 1.4},
    {**_SAID, "measurement": "flag_hand_over", "series": "release to acquire"},
)


def _micro(content: bytes, folder: Path) -> None:
    direct(Micro(_file(folder, "micro.csv", content)), catalog.device("h100_sxm"))


def _samples(content: bytes, folder: Path) -> None:
    _file(folder, "a100_sxm_vllm.csv", content)
    table_rows((), "all", 20, folder, strict=False)


@cache
def _sample() -> list[list[str]]:
    text = (ROOT / "tests" / "data" / "silicon" / "a100_sxm_vllm.csv").read_text(encoding="utf-8")
    assert set(FILE_COLUMNS) <= set(text.splitlines()[0].split(","))
    return list(csv.reader(text.splitlines()[:12]))


TRACES = (
    "context_len\n5\n7000\n",
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023,374,44\n2023,396,109\n",
    "Timestamp,Model,Request tokens,Response tokens\n5,x,10,3\n",
    "# a comment\nnum_prefill_tokens,num_decode_tokens\n5,6\n",
    '{"input_length": 5, "output_length": 1, "hash_ids": [1]}\n{"input_length": 9, "output_length": 3}',
)


def _make_trace(draw: Draw) -> bytes:
    text = draw(st.sampled_from(TRACES))
    if text.startswith("{"):
        lines = [json_of(draw, json.loads(line)).replace(b"\n", b"") for line in text.splitlines()]
        return b"\n".join(lines)
    return csv_of(draw, [line.split(",") for line in text.splitlines()])


def _trace(content: bytes, folder: Path) -> None:
    path = _file(folder, "t.csv", content)
    sample_in_flight(read_trace(path), 4, 0)
    priced(point(**{**CALL, "context_len": None, "trace": str(path)}))


def _make_settings(draw: Draw) -> bytes:
    keys = st.one_of(
        st.sampled_from(sorted(POINT_KEYS)),
        st.sampled_from(_number_paths()),
        st.sampled_from(["name", "zip", "curve", "baseline", "=", ""]),
    )
    lines = []
    texts = st.one_of(
        cell,
        st.sampled_from(NUMBERS).map(str),
        value.map(lambda found: json.dumps(found, default=str)),
    )
    for _ in range(draw(st.integers(1, 3))):
        text = draw(texts)
        lines.append(f"{draw(keys)}={text}".replace("\n", " "))
    return edited_text(draw, "\n".join(lines))


@cache
def _number_paths() -> list[str]:
    """Where numbers of devices and kernels are, for `--set`."""
    found = [f"device.{name}" for name in type(catalog.device("h100_sxm")).model_fields]
    for name in ("fa2", "fa3", "trtllm_xqa", "sglang_triton"):
        found += [".".join(("kernel", *path)) for path, _ in catalog.kernel(name).said()]
    return sorted({*found, "device", "kernel", "kernel.", "kernel.tiles.0.threads", "device.num_sms.x"})


def _settings(content: bytes, _: Path) -> None:
    settings = content.decode("utf-8", "surrogateescape").split("\n")
    _few(build(Document("command line", {"name": "x", **CALL}, {}), settings))


STORED = ("results.sqlite", "manifest.json", "results.parquet")


@cache
def _store() -> dict[str, bytes]:
    """The files of a small finished sweep."""
    import tempfile

    grid = build(Document("f", {"name": "x", **CALL, "batch_size": [1, 2, 3]}, {}))
    with tempfile.TemporaryDirectory() as name:
        sweep(grid, name, jobs=1)
        return {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()}


def _make_store(draw: Draw) -> bytes:
    files = sorted(name for name in _store() if not name.endswith(".csv"))
    name = draw(st.sampled_from(files))
    if name == "manifest.json":
        content = json_of(draw, json.loads(_store()[name]))
        return json.dumps({"file": name, "content": content.decode("latin-1")}).encode()
    size = len(_store()[name])
    edits = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=6)
    cut = draw(st.one_of(st.just(size), st.integers(0, size)))
    return json.dumps({"file": name, "edits": draw(edits), "cut": cut}).encode()


def _read_store(content: bytes, folder: Path) -> None:
    edit = json.loads(content)
    out = folder / "store"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, data in _store().items():
        (out / name).write_bytes(data)
    if "content" in edit:
        (out / edit["file"]).write_bytes(edit["content"].encode("latin-1"))
    else:
        data = bytearray(_store()[edit["file"]])
        for at, byte in edit["edits"]:
            data[at] = byte
        (out / edit["file"]).write_bytes(bytes(data[: edit["cut"]]))
    read_results(out)
    leansim.merge(folder / "store", [out], partial=True)


READERS: dict[str, Reader] = {
    "run": Reader(lambda draw: _yaml(draw(st.sampled_from(("runs", "sweeps"))))(draw), _run),
    "device": Reader(_yaml("devices"), _device),
    "kernel": Reader(_yaml("kernels"), _kernel),
    "model": Reader(_yaml("models"), _model),
    "node": Reader(_yaml("nodes"), _node),
    "table": Reader(_yaml("tables"), _table),
    "calibration": Reader(_yaml("calibrations"), _calibration),
    "experiment": Reader(lambda draw: yaml_of(draw, EXPERIMENT), _experiment),
    "hf_config": Reader(lambda draw: json_of(draw, draw(st.sampled_from(HF))), _hf),
    "points": Reader(lambda draw: csv_of(draw, POINTS, COLUMNS), _points),
    "measured": Reader(
        lambda draw: csv_of(draw, draw(st.sampled_from((MINE, _table_of(FLASHINFER)))), COLUMNS), _own
    ),
    "micro": Reader(lambda draw: csv_of(draw, MICRO), _micro),
    "samples": Reader(lambda draw: csv_of(draw, _sample(), FILE_COLUMNS), _samples),
    "trace": Reader(_make_trace, _trace),
    "settings": Reader(_make_settings, _settings),
    "store": Reader(_make_store, _read_store),
}
