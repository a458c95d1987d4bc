"""Models whose layers are not all alike: read, run kind by kind, summed, held against memory."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hf_shapes import NAMED_REFUSALS, SHAPES, Config, Shape, of
from pydantic import ValidationError
from typer.testing import CliRunner

import leansim
from leansim.cli.main import app
from leansim.errors import ConfigError, WorkloadError
from leansim.points.held import in_chunks, kv_bytes_of
from leansim.points.point import Point, point, point_from_row, resolve
from leansim.specs import catalog
from leansim.specs.hf_config import read_hf_config
from leansim.specs.layers import Layers
from leansim.specs.model import Model
from leansim.specs.prefixes import Prefix, Prefixes

CALL = {"device": "h100_sxm", "kernel": "fa3", "batch_size": 8, "context_len": "8k"}


def written(folder: Path, config: Config) -> str:
    path = folder / "toy.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def of_shape(folder: Path, name: str, **more: Any) -> Point:
    return leansim.point(**CALL | {"model_config": written(folder, SHAPES[name].config)} | more)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_released_models_have_the_right_layers(tmp_path: Path, shape: Shape) -> None:
    model = read_hf_config(Path(written(tmp_path, shape.config)))
    assert model.describe_layers() == shape.layers
    told = [model.shape(some) for some in model.kinds]
    names = ("num_q_heads", "num_kv_heads", "head_dim", "head_dim_v")
    assert tuple(tuple(one[name] for name in names) for one in told) == shape.heads
    assert model.max_position_embeddings == shape.longest
    assert sum(some.shared_kv for some in model.kinds) == shape.shared
    assert sum(some.count for some in model.kinds) + sum(model.left_out.values()) == model.num_layers
    assert all(text.startswith("datasheet: ") for text in model.sources.values())


@pytest.mark.parametrize(("config", "key"), NAMED_REFUSALS.values(), ids=NAMED_REFUSALS)
def test_what_is_not_understood_is_refused_by_its_key(tmp_path: Path, config: Config, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_hf_config(Path(written(tmp_path, config)))
    assert key in {problem.where for problem in error.value.problems}


def test_more_than_twenty_five_models_are_here() -> None:
    assert len(SHAPES) > 25
    assert len(NAMED_REFUSALS) > 10


@pytest.mark.parametrize("key", ["index_head_dim", "indexer_types", "cla_share", "local_layer_ids"])
def test_keys_that_look_like_attentions_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: found 4; wanted only keys this reader understands"):
        read_hf_config(Path(written(tmp_path, of("llama", 4, 8, 8, 128, **{key: 4}))))


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**70, 1.5, "", "x", "LLLG", "M*-", [], {}, [1], [0, 1], {"a": 1}),
    *(["full_attention"], ["sliding_attention", None], [[1]], [None] * 36, {"attention": None}),
    *([{"attention": {}}], {"full_attn_layers": [0]}, {"full_attn_layers": "x"}, float("inf")),
]


@pytest.mark.parametrize("seed", range(4))
def test_configs_with_anything_in_them_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    """Among what was found so: layers, heads and windows beyond any number, groups of no head."""
    random = Random(seed)
    bases = [shape.config for shape in SHAPES.values()] + [
        config for config, _ in NAMED_REFUSALS.values()
    ]
    keys = sorted({key for config in bases for key in (config.get("text_config") or config)})
    for _ in range(150):
        config = deepcopy(random.choice(bases))
        for _ in range(random.randint(1, 4)):
            part = config.get("text_config")
            part = part if isinstance(part, dict) else config
            part[random.choice(keys if random.random() < 0.5 else sorted(part) or keys)] = random.choice(
                VALUES
            )
        try:
            model = read_hf_config(Path(written(tmp_path, config)))
        except ConfigError:
            continue
        assert model.num_attending + sum(model.left_out.values()) == model.num_layers


def test_a_model_of_your_own_may_have_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nnum_layers: 6\nnum_q_heads: 8\nnum_kv_heads: 2\nhead_dim: 64\n"
        "layers:\n  - {name: full, count: 1}\n"
        "  - {name: sliding, count: 2, window: 128, num_kv_heads: 8}\n"
        "left_out: {linear: 3}\nsources:\n" + "".join(f"  {key}: 'assumed: a test'\n" for key in OWN),
        encoding="utf-8",
    )
    model = catalog.model(str(path))
    assert model.describe_layers() == "1 x full, 2 x sliding (window 128); left out: 3 x linear"
    assert resolve(leansim.point(**CALL, model=str(path), layers="sliding")).workload.num_kv_heads == 8


OWN = ("num_layers", "num_q_heads", "num_kv_heads", "head_dim", "layers", "left_out")


def test_kinds_have_to_add_up() -> None:
    shape = {"num_layers": 4, "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    sources = dict.fromkeys([*shape, "layers"], "assumed: a test")
    three = (Layers(name="full", count=3),)
    with pytest.raises(
        ValidationError, match="found 3 layers in layers and left_out; wanted num_layers 4"
    ):
        Model(name="toy", sources=sources, layers=three, **shape)
    twice = (Layers(name="full", count=2),) * 2
    with pytest.raises(ValidationError, match="wanted a name for each"):
        Model(name="toy", sources=sources, layers=twice, **shape)


def test_each_kind_is_divided_over_gpus(tmp_path: Path) -> None:
    """8 and 2 KV heads on 4 GPUs: two each, and one that two GPUs hold."""
    model = read_hf_config(Path(written(tmp_path, SHAPES["gemma-4-26B-A4B"].config))).divided(4)
    full, sliding = (model.shape(some) for some in model.kinds)
    assert (full["num_q_heads"], full["num_kv_heads"]) == (4, 1)
    assert (sliding["num_q_heads"], sliding["num_kv_heads"]) == (4, 2)


# -- points ----------------------------------------------------------------------------------------


def test_a_point_is_about_layers_of_one_kind(tmp_path: Path) -> None:
    sliding = resolve(of_shape(tmp_path, "gpt-oss-120b", layers="sliding")).workload
    assert (sliding.window, sliding.num_q_heads, sliding.head_dim) == (128, 64, 64)
    assert resolve(of_shape(tmp_path, "gpt-oss-120b", layers="full")).workload.window is None
    with pytest.raises(WorkloadError, match=r"found nothing for toy, which has 18 x full, 18 x sliding"):
        resolve(of_shape(tmp_path, "gpt-oss-120b"))
    with pytest.raises(WorkloadError, match=r"found 'slidin'; wanted .*did you mean 'sliding'"):
        resolve(of_shape(tmp_path, "gpt-oss-120b", layers="slidin"))
    with pytest.raises(WorkloadError, match="layers picks among those of a model"):
        resolve(leansim.point(**CALL, num_q_heads=8, num_kv_heads=8, head_dim=128, layers="full"))


def test_a_column_picks_layers(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["gpt-oss-120b"].config)
    cells = {key: str(value) for key, value in CALL.items()} | {"model_config": config}
    point = point_from_row(cells | {"layers": "sliding"}, "a row")
    assert resolve(point).workload.window == 128
    rows = [cells | {"layers": name} for name in ("full", "sliding")]
    path = tmp_path / "points.csv"
    text = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(text), encoding="utf-8")
    full, sliding = leansim.predict(path, jobs=1).records()
    assert full["latency_us"] > sliding["latency_us"] > 0


def test_layers_in_chunks_see_their_own_chunk_alone(tmp_path: Path) -> None:
    """Of 8,192 tokens: all of the first chunk; of one more, that one alone."""
    assert in_chunks((1, 8192, 8193, 20000), 8192, 1) == (1, 8192, 1, 3616)
    assert in_chunks((8193, 2), 8192, 4) == (4, 2)
    lens = {"context_lens": (8193, 12288), "batch_size": None, "context_len": None}
    point = of_shape(tmp_path, "Llama-4-Scout", layers="chunked", **lens)
    assert resolve(point).workload.context_lens == (1, 4096)
    full = of_shape(tmp_path, "Llama-4-Scout", layers="full", **lens)
    assert resolve(full).workload.context_lens == (8193, 12288)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    point = of_shape(tmp_path, "gpt2")
    assert resolve(point).workload.num_q_heads == 12
    path = Path(written(tmp_path, of("llama", 4, 40, 8, 128)))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert resolve(point).workload.num_q_heads == 40


# -- what runs print -------------------------------------------------------------------------------


def run(*args: str) -> str:
    done = CliRunner().invoke(app, ["run", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def flags(config: str, **more: Any) -> list[str]:
    given = CALL | {"kernel": "fa3,vllm_fa3", "model_config": config} | more
    return [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def test_run_has_a_row_per_kind_and_their_weighted_sum(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["gpt-oss-120b"].config)
    text = run(*flags(config))
    assert text.count("18 x full  ") == 2
    assert text.count("18 x sliding (window 128)  ") == 2
    records = json.loads(run(*flags(config), "--format", "json"))
    for policy in ("fa3", "vllm_fa3"):
        mine = [record for record in records if record["policy"] == policy]
        kinds = {record["layers"]: record for record in mine}
        assert set(kinds) == {"full", "sliding", "all"}
        assert kinds["all"]["layer_count"] == 36
        summed = sum(18 * kinds[name]["latency_s"] for name in ("full", "sliding"))
        assert kinds["all"]["latency_s"] == pytest.approx(summed)
        assert f"{summed * 1e6:.2f}" in text


def test_run_names_what_is_left_out(tmp_path: Path) -> None:
    text = run(*flags(written(tmp_path, SHAPES["Qwen3-Next-80B-A3B"].config)))
    assert "one decode step: 12 x full; left out: 36 x linear" in text
    assert "12 x full" in text


def test_layers_can_be_picked(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["gpt-oss-120b"].config)
    text = run(*flags(config, layers="sliding"))
    assert "18 x sliding (window 128)" in text
    assert "18 x full" not in text
    assert "one decode step" not in text


def test_a_kind_of_several_names_is_picked_by_what_they_begin_with(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["blocks with KV heads of their own"].config)
    text = run(*flags(config, layers="full"))
    assert "2 x full_8kv" in text
    assert "2 x full_4kv" in text


def test_a_model_of_one_kind_prints_as_ever() -> None:
    grid = leansim.run("configs/runs/few_tiles.yaml")
    assert "layers" not in grid.rows()[0]
    assert grid.totals == ()
    assert "layer_count" not in grid.table


def test_a_run_leaves_files_for_each_kind(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["gpt-oss-120b"].config)
    file = tmp_path / "run.yaml"
    file.write_text(
        "name: oss\ndevice: h100_sxm\nkernel: [fa3, vllm_fa3]\nbaseline: fa3\nbatch_size: 8\n"
        f"context_len: 4k\nmodel_config: {config}\ncurve: {{context_scale: [1, 2]}}\n",
        encoding="utf-8",
    )
    run(str(file), "-o", str(tmp_path / "out"))
    import pandas as pd

    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["layers"].tolist() == ["full", "sliding"] * 2
    assert results["layer_count"].tolist() == [18] * 4
    weighted = (results["latency_s"] * results["layer_count"]).groupby(results["policy"]).sum()
    curve = pd.read_csv(tmp_path / "out" / "curve.csv")
    assert len(curve) == 4
    now = curve[curve["context_scale"] == 1].set_index("policy")["latency_s"]
    assert now["vllm_fa3"] == pytest.approx(weighted["vllm_fa3"])
    assert "one decode step" in (tmp_path / "out" / "table.md").read_text()
    assert len(list((tmp_path / "out" / "timelines").iterdir())) == 4


def test_sweeps_and_studies_have_a_point_per_kind(tmp_path: Path) -> None:
    config = written(tmp_path, SHAPES["gpt-oss-120b"].config)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: oss\ndevice: h100_sxm\nkernel: fa3\nbatch_size: 2\ncontext_len: 1k\n"
        f"model_config: {config}\n",
        encoding="utf-8",
    )
    done = leansim.sweep(file, tmp_path / "out", jobs=1)
    assert done.table["layers"].tolist() == ["full", "sliding"]
    assert [plan.rows()[0]["layers"] for plan in leansim.plan(file)] == ["full", "sliding"]
    texts = [found.text for found in leansim.explain(file, rules=["fa2"])]
    assert "(18 x full of 36 layers)" in texts[0]
    assert "(18 x sliding (window 128) of 36 layers)" in texts[1]


# -- limits ----------------------------------------------------------------------------------------


def test_kv_of_all_layers_by_hand(tmp_path: Path) -> None:
    """Gemma 3n: 4 full and 16 sliding layers keep their own KV, 2 heads of 256 elements, K and V."""
    model = read_hf_config(Path(written(tmp_path, SHAPES["gemma-3n-E4B"].config)))
    token = 2 * 2 * 256 * 2
    assert kv_bytes_of(model, [4096, 100], "bfloat16") == token * (4 * (4096 + 100) + 16 * (512 + 100))
    assert kv_bytes_of(model, [4096], "fp8", {"window": 8}) == token // 2 * 20 * 8


def test_kv_of_a_shared_prefix_is_held_once() -> None:
    """Three requests of 100, 70 and 60 tokens share 50: 130 are held, of a window of 40 fewer.

    Then they keep tokens from 60, 30 and 20 on: of those shared none, 20 and 30, of which 30 are held.
    """
    model = catalog.model("llama_2_7b")
    shared, token = Prefixes((Prefix(0, 50, (0, 1, 2)),)), 32 * 2 * 4096 * 2
    lens = (100, 70, 60)
    assert kv_bytes_of(model, lens, "bfloat16", shared=shared) == token * 130
    slid = kv_bytes_of(model, lens, "bfloat16", {"window": 40}, shared=shared)
    assert slid == token * (3 * 40 - 20)
    fields = {"device": "h100_sxm", "model": "llama_2_7b", "batch_size": 64, "context_len": 2048}
    for kernel in ("fa2", "lean_cascade"):
        found = resolve(point(kernel=kernel, prefix_len=2000, **fields)).held_bytes
        assert found == token * (2000 + 64 * 48)


def test_kv_of_all_layers_is_held_against_the_memory() -> None:
    """Llama 3 8B: 131,072 bytes a token in 32 layers; 640k tokens are 86 GB, of one layer 2.7."""
    shape = {"device": "h100_sxm", "kernel": "fa3", "model": "llama_3_8b", "context_len": 65536}
    fits, not_so = (leansim.point(**shape, batch_size=n) for n in (9, 11))
    assert leansim.simulate(fits).row["kv_fits_dram"]
    simulation = leansim.simulate(not_so)
    assert not simulation.row["kv_fits_dram"]
    assert simulation.notes()[0].startswith("The KV cache of all 32 attention layers (94.5 GB) does not")
    (found,) = leansim.explain(not_so, rules=["fa2"])
    assert "does not fit in the 85.9 GB of h100_sxm" in found.text
    halves = not_so.model_copy(update={"tensor_parallel": 2})
    assert resolve(halves).held_bytes * 2 == resolve(not_so).held_bytes


def test_a_context_beyond_what_a_model_takes_is_said() -> None:
    shape = {"device": "h100_sxm", "kernel": "fa3", "model": "llama_2_7b", "batch_size": 1}
    said = "A context of 8,192 tokens is beyond max_position_embeddings 4,096 of llama_2_7b."
    assert said in leansim.simulate(leansim.point(**shape, context_len="8k")).notes()
    assert said not in leansim.simulate(leansim.point(**shape, context_len="4k")).notes()
    (found,) = leansim.explain(leansim.point(**shape, context_len="8k"), rules=["fa2"])
    assert said in found.text


def test_points_that_differ_in_layers_have_results_of_their_own() -> None:
    """Their heads are alike; whether all their layers' KV fits is not."""
    shape = {"device": "h100_sxm", "kernel": "fa3", "batch_size": 1, "context_len": 4096}
    alike = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    keys = {
        resolve(leansim.point(**shape, **more)).key
        for more in ({"model": "llama_3_8b"}, {"model": "qwen_3_8b"}, alike)
    }
    assert len(keys) == 3
