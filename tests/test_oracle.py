"""The oracle: nothing beats it, nothing beats its bound, and small cases are searched by force."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels import lowered
from sweeping import install

from leansim.errors import LeansimError, UnknownNameError
from leansim.partitioners.per_request_splits import PerRequestSplits, tiles_of_request
from leansim.partitioners.registry import make, name_of, option_names, partitioners
from leansim.points.point import Point, point, resolve
from leansim.specs import catalog
from leansim.study.bench import Bench
from leansim.study.oracle import Oracle, best_per_request, best_uniform, distinct_counts, oracle
from leansim.study.rules import chosen_rules, heeds_count, known_rules, own_rule, told
from leansim.timing.bound import program_floor_s

GQA: dict[str, Any] = {"num_q_heads": 16, "num_kv_heads": 4, "head_dim": 128}
RAGGED = (100, 3000, 700, 17_000, 2500, 9000, 65)


def at(kernel: str, device: str = "h100_sxm", **fields: Any) -> Point:
    return point(device=device, kernel=kernel, **{**GQA, **fields})


POINTS = [
    at("fa2", batch_size=1, context_len=1),
    at("fa2", batch_size=3, context_len=5000),
    at("fa2", "a100_sxm_80gb", context_lens=RAGGED),
    at("fa3", batch_size=2, context_len="32k"),
    at("fa3", context_lens=RAGGED),
    at("vllm_fa3", context_lens=RAGGED, max_context_len="32k"),
    at("lean", context_lens=RAGGED),
    at("lean", "a100_sxm_80gb", batch_size=1, context_len="64k"),
    at("flashinfer_tc_decode", "a100_sxm_80gb", batch_size=40, context_len=900),
    at("trtllm_xqa", batch_size=2, context_len="8k"),
    at("sglang_triton", context_lens=RAGGED, window=1024),
    at("fa2", batch_size=2, context_len=4000, query_len=4, num_kv_heads=16),
    point(device="h100_sxm", kernel="flash_mla", model="deepseek_v3", context_lens=RAGGED),
]


@pytest.mark.parametrize("given", POINTS, ids=lambda p: f"{p.kernel}-{p.device}")
def test_nothing_beats_the_oracle_and_nothing_its_bound(given: Point) -> None:
    found = oracle(given, budget=30)
    assert found.own is not None
    assert found.policies[0] is found.own, "the point's own rule comes first"
    latencies = [policy.latency_s for policy in found.ranked]
    assert found.best.latency_s == min(latencies)
    assert min(found.regret(policy) for policy in found.ranked) == 1.0
    assert 0.0 < found.bound.latency_s <= min(latencies)
    ragged = len(np.unique(tiles_of_request(found.resolved.grid))) > 1
    assert (found.per_request is not None) == ragged
    if found.per_request is not None:
        assert found.per_request.latency_s <= found.uniform.latency_s


@pytest.mark.parametrize("given", POINTS[::2], ids=lambda p: f"{p.kernel}-{p.device}")
def test_a_program_is_never_faster_than_its_floor(given: Point) -> None:
    bench = Bench(resolve(given))
    for rule in known_rules(bench.resolved):
        try:
            latency = bench.latency_s(rule.partitioner)
        except LeansimError:
            continue
        resolved = dataclasses.replace(bench.resolved, partitioner=rule.partitioner)
        floor = program_floor_s(lowered(resolved.schedule, resolved.kernel, resolved.device))
        assert floor <= latency * (1 + 1e-9), rule.name


@pytest.mark.parametrize("device", ["a100_sxm_80gb", "h100_sxm"])
@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("fa2", {"batch_size": 1, "context_len": 6000}),
        ("fa2", {"batch_size": 5, "context_len": 9000}),
        ("fa3", {"batch_size": 3, "context_len": "16k"}),
        ("lean", {"batch_size": 2, "context_len": 5000}),
        ("fa2", {"context_lens": (300, 5000, 1200)}),
    ],
)
def test_one_count_for_all_is_searched_by_force(
    kernel: str, fields: dict[str, Any], device: str
) -> None:
    bench = Bench(resolve(at(kernel, device, **fields)))
    every = range(1, int(tiles_of_request(bench.grid).max()) + 1)
    best = min(every, key=lambda count: bench.latency_s(bench.splits(count)))
    fresh = Bench(bench.resolved)
    found = best_uniform(fresh)
    assert bench.latency_s(bench.splits(found)) == bench.latency_s(bench.splits(best))
    assert fresh.simulations <= len(every)


@pytest.mark.parametrize("device", ["a100_sxm_80gb", "h100_sxm"])
@pytest.mark.parametrize("heads", [1, 4])
def test_many_counts_are_searched_as_well_as_by_force(device: str, heads: int) -> None:
    """2,048 KV tiles: more distinct counts than are all tried."""
    shape = {"num_q_heads": 4 * heads, "num_kv_heads": heads}
    bench = Bench(resolve(at("fa2", device, batch_size=1, context_len="256k", **shape)))
    counts = distinct_counts(tiles_of_request(bench.grid))
    assert len(counts) > 64
    found = best_uniform(Bench(bench.resolved))
    least = min(bench.latency_s(bench.splits(count)) for count in counts)
    assert bench.latency_s(bench.splits(found)) == least


def test_counts_that_cut_alike_are_tried_once() -> None:
    """10 tiles: 4 splits are segments of 3, so do no more; 6 to 9 splits are segments of 2, as 5 do."""
    assert distinct_counts(np.array([10])) == [1, 2, 3, 4, 5, 10]
    assert distinct_counts(np.array([10]), max_splits=4) == [1, 2, 3, 4]
    assert distinct_counts(np.array([10, 9]))[:5] == [1, 2, 3, 4, 5]
    long = distinct_counts(np.array([1_000_000]))
    assert (long[0], long[-1]) == (1, 1_000_000)
    assert len(long) < 2000


@pytest.mark.parametrize("device", ["a100_sxm_80gb", "h100_sxm"])
@pytest.mark.parametrize("lens", [(700, 150, 400), (640, 640, 128), (1, 500, 700)])
def test_a_count_for_each_request_is_searched_by_force(device: str, lens: tuple[int, ...]) -> None:
    shape = {"num_q_heads": 64, "num_kv_heads": 16}
    bench = Bench(resolve(at("fa2", device, context_lens=lens, **shape)))
    tiles = tiles_of_request(bench.grid).tolist()
    every = [
        PerRequestSplits(counts, order)  # type: ignore[arg-type]
        for counts in itertools.product(*(range(1, n + 1) for n in tiles))
        for order in ("issue", "longest_first")
    ]
    least = min(bench.latency_s(cut) for cut in every)
    fresh = Bench(bench.resolved)
    found = best_per_request(fresh, best_uniform(fresh))
    assert least <= bench.latency_s(found) <= 1.01 * least


def test_the_search_repeats_itself_and_keeps_its_budget() -> None:
    given = at("fa2", trace="mooncake_conversation", batch_size=12)
    runs = [oracle(given, ("lean",), budget=40) for _ in range(2)]
    assert runs[0].records() == runs[1].records()
    bench = Bench(resolve(given))
    uniform = best_uniform(bench)
    before = bench.simulations
    best_per_request(bench, uniform, budget=60)
    assert bench.simulations - before <= 60 + 2
    more = best_per_request(Bench(resolve(given)), uniform, budget=400)
    less = best_per_request(Bench(resolve(given)), uniform, budget=60)
    assert bench.latency_s(more) <= bench.latency_s(less)


def test_max_splits_bounds_what_is_tried() -> None:
    found = oracle(at("fa2", context_lens=RAGGED), ("fa2",), max_splits=3)
    assert max(found.uniform.splits) <= 3
    assert found.per_request is not None
    assert max(found.per_request.splits) <= 3


def test_rows_and_records_tell_the_same() -> None:
    found: Oracle = oracle(at("fa2", context_lens=RAGGED), ("lean", "flash_decoding"))
    records, rows = found.records(), found.rows()
    assert [row["policy"] for row in rows][-1] == f"bound ({found.bound.cause})"
    assert len(records) == len(rows) - 1 == 2 + len(found.policies)
    for record, row in zip(records, rows, strict=False):
        assert float(row["latency_us"]) == pytest.approx(record["latency_s"] * 1e6, abs=0.006)
        assert record["regret"] >= 1.0
    assert found.notes()[0].startswith(f"h100_sxm fa2: {found.simulations} simulations")


# -- split rules -----------------------------------------------------------------------------------


def test_every_kernel_for_this_vendor_and_cache_is_a_rule() -> None:
    resolved = resolve(at("fa2", context_lens=RAGGED))
    used = {name for rule in known_rules(resolved) for name in rule.used_by}
    meant = {
        name
        for name in catalog.names("kernel")
        if not catalog.kernel(name).latent_kv
        and any(arch.startswith("sm_") for arch in catalog.kernel(name).archs)
    }
    assert used == meant
    amd = resolve(at("lean_aiter", "mi300x", context_lens=RAGGED))
    mine = {name for rule in known_rules(amd) for name in rule.used_by}
    assert mine == {"lean_aiter", "lean_aiter_paged", "lean_aiter_prefill", "lean_aiter_xcd"}
    names = [rule.name for rule in known_rules(resolved)]
    assert len(names) == len(set(names))
    assert not {"per_request_splits", "fixed_split_size"} & set(names)


def test_rules_go_by_partitioner_or_kernel() -> None:
    resolved = resolve(at("fa2", context_lens=RAGGED))
    assert [rule.used_by for rule in chosen_rules(resolved, ("vllm_fa3",))] == [("vllm_fa3",)]
    assert len(chosen_rules(resolved, ("flash_decoding",))) == 4, "old, new, vLLM's and PyTorch's"
    assert [rule.used_by for rule in chosen_rules(resolved, ("lean", "lean"))] == [
        ("lean", "lean_prefill", "triton_lean")
    ]
    with pytest.raises(UnknownNameError, match="split rule 'flash_decodign'"):
        chosen_rules(resolved, ("flash_decodign",))


def test_a_point_with_options_of_its_own_is_a_rule_of_its_own() -> None:
    given = at("fa2", batch_size=1, context_len=4000)
    asked = given.model_copy(update={"partitioner": None, "kernel": "fa2+flash_attention_4"})
    assert own_rule(resolve(asked)).used_by == ("fa4",)
    options = {"name": "flash_decoding", "options": {"num_splits": 7}}
    mine = resolve(point(**{**given.model_dump(exclude_unset=True), "partitioner": options}))
    assert own_rule(mine).name == "flash_decoding(num_splits=7)"
    assert oracle(mine.point, ("fa2",)).own is not None


def test_only_some_partitioners_can_be_told_a_count() -> None:
    gqa, mha = ({"context_lens": RAGGED, "num_kv_heads": heads} for heads in (4, 16))
    heeding = {
        kernel: heeds_count(resolve(at(kernel, **gqa)))
        for kernel in ("fa2", "flash_decoding", "vllm_fa2", "vllm_fa3", "lean", "sglang_triton")
    }
    assert heeding == {
        "fa2": False,
        "flash_decoding": True,
        "vllm_fa2": True,
        "vllm_fa3": True,
        "lean": False,
        "sglang_triton": True,
    }
    assert not heeds_count(resolve(at("vllm_fa2", **mha))), "multi-head attention is never split"
    assert told(resolve(at("vllm_fa2", **gqa)).partitioner, 5) == (
        dataclasses.replace(resolve(at("vllm_fa2", **gqa)).partitioner, num_splits=5)  # type: ignore[type-var]
    )


FOREIGN = """
from dataclasses import dataclass
from leansim.partitioners.flash_decoding import FlashDecoding

@dataclass(frozen=True)
class {cls}:
    num_splits: int | None = None

    def __call__(self, grid, device):
        return FlashDecoding(num_splits=self.num_splits)(grid, device)
"""


WHOLE = """
from dataclasses import dataclass
from leansim.partitioners import flash_attention_2

@dataclass(frozen=True)
class FlashAttention2:
    def __call__(self, grid, device):
        return flash_attention_2.FlashAttention2()(grid, device)
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for plug-ins of other packages, looked at anew before and after."""
    monkeypatch.syspath_prepend(tmp_path)
    partitioners.cache_clear()
    yield tmp_path
    partitioners.cache_clear()


def test_a_partitioner_of_another_package_is_told_by_its_own_name(foreign: Path) -> None:
    """Its entry point names it, not its class, which may be called as one of leansim's."""
    install(foreign, FOREIGN.format(cls="Evenly"), package="evenly")
    install(foreign, FOREIGN.format(cls="FixedSplitSize"), package="halving", cls="FixedSplitSize")
    for name in ("evenly", "halving"):
        resolved = resolve(at(f"fa2+{name}", batch_size=1, context_len=5000))
        assert name_of(type(resolved.partitioner)) == name
        assert told(resolved.partitioner, 3) == make(name, {"num_splits": 3})
        assert heeds_count(resolved)


def test_a_class_of_another_package_that_is_called_as_ours_is_a_rule_too(foreign: Path) -> None:
    install(foreign, WHOLE, package="whole", cls="FlashAttention2")
    assert repr(make("whole")) == repr(make("flash_attention_2"))
    resolved = resolve(at("fa2+whole", batch_size=1, context_len=5000))
    assert {"whole", "flash_attention_2"} <= {rule.name for rule in known_rules(resolved)}
    assert own_rule(resolved).name == "whole"


def test_a_class_that_is_no_partitioner_has_no_name() -> None:
    with pytest.raises(UnknownNameError, match="Point"):
        name_of(Point)


def test_what_a_partitioner_calls_its_count_is_an_option_of_it() -> None:
    """And it tells how many splits there are, whoever asks for it by that name."""
    named = {
        name: cls.split_count_option
        for name, cls in partitioners().items()
        if hasattr(cls, "split_count_option")
    }
    assert named == {"sglang_triton": "max_kv_splits", "vllm_unified": "segments"}
    for name, option in named.items():
        assert option in option_names(partitioners()[name])
        assert getattr(told(make(name), 3), option) == 3
    tools = {name for name, cls in partitioners().items() if not getattr(cls, "chooses", True)}
    assert tools == {"per_request_splits", "fixed_split_size"}
