"""Nodes: what a collective takes, and attention of GPUs that divide contexts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import leansim
from leansim.engine.execute import Engine, execute
from leansim.errors import ConfigError, LeansimError, WorkloadError
from leansim.files.strict_yaml import parse
from leansim.points.grid import build
from leansim.points.point import resolve
from leansim.points.travel import RANK_MERGES, RankMerge, Travel
from leansim.results.metrics import SHARES
from leansim.specs import catalog
from leansim.specs.node import COLLECTIVES, Collective, CollectiveTable, Node
from leansim.timing.launches import waiting

TOY = Node(
    name="toy",
    device="h100_sxm",
    num_gpus=4,
    link_bandwidth_bytes_per_s=1e9,
    link_latency_s=1e-6,
    message_bytes=(1000, 100_000),
    collectives=(
        CollectiveTable(op="all_reduce", library="a", num_gpus=4, seconds=(10e-6, 1e-3)),
        CollectiveTable(op="all_reduce", library="b", num_gpus=4, seconds=(4e-6,)),
    ),
    sources=dict.fromkeys(
        ("num_gpus", "link_bandwidth_bytes_per_s", "link_latency_s", "collectives"), "assumed: a toy"
    ),
)
LONG = {"device": "h100_sxm", "kernel": "flash_decoding", "num_q_heads": 16, "num_kv_heads": 1}
LONG |= {"head_dim": 128, "batch_size": 1, "context_len": 2**20}


def test_tables_are_interpolated_and_the_faster_library_counts() -> None:
    """At 1,000 bytes b's 4 us; at 10,000, half way by logarithm, a's sqrt(10 us * 1 ms) = 100 us.

    Or b's pace beyond its only size, 4 us * 10.
    """
    assert TOY.collective_s("all_reduce", 4, 1000) == pytest.approx(4e-6)
    assert TOY.collective_s("all_reduce", 4, 10) == pytest.approx(4e-6)
    assert TOY._interpolated((10e-6, 1e-3), 10_000) == pytest.approx(math.sqrt(10e-6 * 1e-3))
    assert TOY.collective_s("all_reduce", 4, 10_000) == pytest.approx(40e-6)
    assert TOY.collective_s("all_reduce", 4, 10**6) == pytest.approx(4e-3)


def test_what_was_not_measured_goes_round_a_ring() -> None:
    """8,000 bytes on 4 GPUs are parts of 2,000, a hop 1 + 2 us: 3 hops gather, 6 reduce and gather."""
    assert TOY.collective_s("all_gather", 4, 8000) == pytest.approx(9e-6)
    assert TOY.ring_s("all_reduce", 4, 8000) == pytest.approx(18e-6)
    assert TOY.collective_s("all_to_all", 4, 8000) == pytest.approx(1e-6 + 6e-6)
    assert TOY.collective_s("all_reduce", 2, 8000) == pytest.approx(2 * (1e-6 + 4e-6))


@pytest.mark.parametrize("op", COLLECTIVES)
def test_one_gpu_sends_nothing_and_more_than_there_are_are_refused(op: Collective) -> None:
    assert TOY.collective_s(op, 1, 10**9) == 0.0
    assert TOY.collective_s(op, 4, 0) == 0.0
    with pytest.raises(WorkloadError, match="found 5 GPUs; wanted at most the 4 of toy"):
        TOY.collective_s(op, 5, 1)


@pytest.mark.parametrize("name", catalog.names("node"))
@given(size=st.integers(1, 2**31), num_gpus=st.sampled_from([2, 3, 4, 8]))
def test_a_doubled_message_takes_no_less_but_for_noise(name: str, size: int, num_gpus: int) -> None:
    """Medians of the tables fall by up to a third where a library changes its algorithm."""
    node = catalog.node(name)
    for op in COLLECTIVES:
        time = node.collective_s(op, num_gpus, size)
        assert 1e-6 < time < 3.0
        assert node.collective_s(op, num_gpus, 4 * size) > 0.4 * time


def test_published_sizes_come_back() -> None:
    """All-reduces of 8 GPUs, us: the fastest of NCCL's and the frameworks' own kernels."""
    found = {
        name: catalog.node(f"{name}_x8").collective_s("all_reduce", 8, 32_768) * 1e6
        for name in ("a100_sxm_80gb", "h100_sxm", "h200_sxm", "b200_sxm")
    }
    assert found == pytest.approx(
        {"a100_sxm_80gb": 6.9, "h100_sxm": 3.8, "h200_sxm": 3.9, "b200_sxm": 6.1}, rel=0.02
    )


def test_what_each_merge_sends() -> None:
    """One token of 16 heads of 128 in 16 bits: Q and O of 4,096 bytes, 64 bytes of log-sum-exps."""
    load = resolve(leansim.point(**LONG, kv_ranks=8)).workload
    sent = {merge: Travel.of(load, 8, merge) for merge in RANK_MERGES}
    assert sent["all_gather"].before == (("all_gather", 4096),)
    assert sent["all_gather"].after == (("all_gather", 8 * 64), ("reduce_scatter", 4096))
    assert sent["all_to_all"].after == sent["helix"].after == (("all_to_all", 4096 + 64),)
    assert sent["helix"].before == ()
    assert [size for _, size in sent["tree"].after] == [64, 8192, 64]
    assert sent["ring"] == Travel(8, hop_bytes=2**20 // 8 * 512)
    assert Travel.of(load, 1, "ring") == Travel(1)


@pytest.mark.parametrize("merge", RANK_MERGES)
def test_travel_is_part_of_the_latency_and_of_the_shares(merge: RankMerge) -> None:
    alone = leansim.simulate(leansim.point(**LONG, kv_ranks=8))
    point = leansim.point(**LONG, kv_ranks=8, kv_rank_merge=merge, node="h100_sxm_x8")
    found = leansim.simulate(point)
    node, travel = catalog.node("h100_sxm_x8"), Travel.of(alone.resolved.workload, 8, merge)
    extra = travel.before_s(node) + travel.after_s(node, alone.metrics.latency_s)
    assert found.metrics.latency_s == pytest.approx(alone.metrics.latency_s + extra, abs=1e-11)
    assert sum(getattr(found.metrics, f"share_{name}") for name in SHARES) == pytest.approx(1.0)
    assert found.metrics.share_travel == pytest.approx(extra / found.metrics.makespan_s, rel=0.02)
    assert found.metrics.dram_bytes == alone.metrics.dram_bytes
    assert found.resolved.key != alone.resolved.key
    assert "travel" in found.rows()[0]
    assert "travel" not in alone.rows()[0]


def test_circulating_kv_is_at_least_six_times_slower_than_merging() -> None:
    """A hop moves a rank's KV at 450 GB/s of link where DRAM has 3,000: 1M and 10M tokens."""
    for context in (2**20, 10 * 2**20):
        asked = {**LONG, "context_len": context, "kv_ranks": 8, "node": "h100_sxm_x8"}
        ring, tree = (
            leansim.simulate(leansim.point(**asked, kv_rank_merge=merge)).metrics.latency_s
            for merge in ("ring", "tree")
        )
        assert ring > 6 * tree


def test_heads_divided_need_no_travel() -> None:
    shape = {"device": "h100_sxm", "kernel": "lean", "model": "llama_3_70b", "batch_size": 2}
    shape |= {"context_len": 8192, "tensor_parallel": 8}
    alone = leansim.simulate(leansim.point(**shape))
    on_node = leansim.simulate(leansim.point(**shape, node="h100_sxm_x8"))
    assert on_node.metrics == alone.metrics


def test_each_rank_holds_its_part_of_the_kv() -> None:
    shape = {"device": "h100_sxm", "kernel": "lean", "model": "llama_3_70b", "tensor_parallel": 8}
    shape |= {"context_len": 2**20, "batch_size": 1}
    whole = resolve(leansim.point(**{**shape, "kv_ranks": 1}))
    part = resolve(leansim.point(**{**shape, "tensor_parallel": 1, "kv_ranks": 8}))
    assert part.held_bytes == whole.held_bytes  # an eighth of the tokens of eight times the heads


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"node": "a100_sxm_80gb_x8"}, "a100_sxm_80gb_x8 has a100_sxm_80gb; found device h100_sxm"),
        ({"node": "h100_sxm_x8", "kv_ranks": 16}, "which is 16 GPUs; wanted at most the 8"),
        ({"node": "h100_sxm_x9"}, "did you mean 'h100_sxm_x8'"),
    ],
)
def test_what_no_node_has_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(LeansimError, match=complaint):
        resolve(leansim.point(**(LONG | fields)))


def test_a_misspelt_node_of_a_file_is_told_with_its_place() -> None:
    lines = [f"{key}: {value}" for key, value in (LONG | {"node": "h100_sxm_8"}).items()]
    with pytest.raises(ConfigError, match=r"node: found 'h100_sxm_8'.*did you mean 'h100_sxm_x8'"):
        build(parse("\n".join(["name: x", *lines])))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"message_bytes": (5, 5)}, "message_bytes that do not rise"),
        ({"message_bytes": (5,)}, "found 2 times of all_reduce on 4 GPUs"),
    ],
)
def test_tables_that_do_not_fit_their_sizes_are_refused(
    changed: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Node(**(TOY.model_dump() | changed))


@pytest.mark.parametrize("merge", RANK_MERGES)
def test_studies_count_what_travels(merge: RankMerge) -> None:
    """Each verb has the latency that `run` has, a bound that no schedule beats, and words for it."""
    point = leansim.point(**LONG, kv_ranks=8, kv_rank_merge=merge, node="h100_sxm_x8")
    latency_s = leansim.simulate(point).metrics.latency_s
    explained = leansim.explain(point, rules=["fa2"])[0]
    assert "travels between GPUs" in explained.text
    assert explained.simulation.metrics.latency_s == pytest.approx(latency_s)
    found = explained.oracle
    assert found.bound.latency_s <= found.best.latency_s <= latency_s
    curve = leansim.splits(point, rules=["fa2"], counts=[8])[0]
    alone = leansim.point(**LONG, kv_ranks=8, num_splits=8)
    asked = alone.model_copy(update={"node": "h100_sxm_x8", "kv_rank_merge": merge})
    assert curve.latencies_s[0] == pytest.approx(leansim.simulate(asked).metrics.latency_s)


@pytest.mark.parametrize("engine", ["numba", "simpy"])
def test_engines_run_a_launch_without_transfers(engine: Engine) -> None:
    found = execute(waiting("travel", 5e-6, catalog.device("h100_sxm")), engine)
    assert (found.launch_begin, found.launch_end) == ((0,), (5_000_000,))
