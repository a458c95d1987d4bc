"""The Triton kernels, interpreted: against float64 attention, and against the NumPy replay."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gpu_kit import interpreted, needs_triton, schedules
from hypothesis import HealthCheck, given, settings

from leansim.errors import GpuError, PairingError
from leansim.gpu.execution import Execution, row_error
from leansim.gpu.inputs import Inputs, draw, reference
from leansim.gpu.worklist import SEGMENT
from leansim.numerics import attention as numerics
from leansim.numerics import reference as whole
from leansim.points.point import Resolved, point, resolve
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.workload import Workload

pytestmark = needs_triton
BATCH = {
    "context_lens": (150, 33, 500),
    "num_q_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "num_sms": 3,
}
KERNELS = (
    "triton_fa2",
    "triton_flash_decoding",
    "triton_lean",
    "triton_lean+lean_aiter",
    "triton_lean+cutlass_stream_k",
    "triton_fa2+flash_attention_3_varlen",
    "triton_fa2+flash_attention_2",
)
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float16": {"q_dtype": "float16", "kv_dtype": "float16"},
    "mha": {"num_q_heads": 2},
    "group_8": {"num_q_heads": 16},
    "wide_group": {"num_q_heads": 40},
    "odd_pages": {"page_tokens": 7},
    "large_pages": {"page_tokens": 256},
    "several_tokens": {"query_len": 3},
    "window": {"window": 90},
    "window_tokens": {"window": 40, "query_len": 6},
    "odd_head_dims": {"head_dim": 80, "head_dim_v": 48},
}


def resolved(kernel: str = "triton_lean", **fields: Any) -> Resolved:
    return resolve(point(device="h100_sxm", kernel=kernel, **{**BATCH, **fields}))


def execution(item: Resolved, schedule: Schedule | None = None, seed: int = 5) -> Execution:
    tools = interpreted()
    inputs = draw(tools.torch, item.workload, "cpu", seed)
    return Execution(tools, schedule or item.schedule, item.kernel, item.device, inputs)


def as_replay_takes_them(inputs: Inputs) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """q, k and v in float64, out of their pages."""
    load = inputs.workload
    q = inputs.q.double().numpy().reshape(load.batch_size, load.query_len, load.num_q_heads, -1)
    requests = []
    for request, tokens in enumerate(load.context_lens):
        pages = inputs.page_table[0, request, : -(-tokens // load.page_tokens)].long()
        requests.append(
            [pool[pages].flatten(0, 1)[:tokens].double().numpy() for pool in (inputs.k, inputs.v)]
        )
    return q, [k for k, _ in requests], [v for _, v in requests]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("call", CALLS)
def test_attention_comes_out(kernel: str, call: str) -> None:
    """Every partitioner and every kind of call, on poisoned outputs."""
    run = execution(resolved(kernel, **CALLS[call]))
    run.poison()
    run.launch()
    assert run.check() < 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_replay_of_the_schedule(kernel: str) -> None:
    """In float16, where the interpreter rounds as a GPU does, the two differ by single roundings."""
    item = resolved(kernel, q_dtype="float16", kv_dtype="float16")
    run = execution(item)
    run.launch()
    q, k, v = as_replay_takes_them(run.inputs)
    replayed = numerics.replay(item.schedule, q, k, v, "float16").reshape(run.out.shape)
    difference = np.abs(run.out.double().numpy() - replayed)
    assert difference.max() < 2e-3
    assert (difference > 0).mean() < 0.2


def test_host_and_combine_are_really_there() -> None:
    """The cases above are not all unsplit."""
    kinds = {resolved(kernel).schedule.combine for kernel in KERNELS}
    assert {"none", "host"} <= kinds
    assert resolved("triton_flash_decoding", context_lens=(2000,)).schedule.combine == "kernel"


@pytest.mark.parametrize("kernel", KERNELS[1:6])
def test_long_requests_are_split_every_way(kernel: str) -> None:
    """One request on many slots: combine kernels, hosts and last CTAs with several peers."""
    run = execution(resolved(kernel, context_lens=(1500, 40), num_q_heads=4, num_kv_heads=1, num_sms=8))
    assert run.schedule.segments_of_tile.max() > 1
    run.poison()
    run.launch()
    run.check()


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(schedule=schedules())
def test_any_schedule_gives_attention(schedule: Schedule) -> None:
    load = dataclasses.replace(schedule.grid.workload, q_dtype="float16", kv_dtype="float16")
    grid = dataclasses.replace(schedule.grid, workload=load)
    kernel = catalog.kernel("triton_fa2")
    inputs = draw(interpreted().torch, load, "cpu", seed=1)
    same = dataclasses.replace(schedule, grid=grid)
    run = Execution(interpreted(), same, kernel, catalog.device("h100_sxm"), inputs)
    run.poison()
    run.launch()
    run.check()


def test_flags_are_zero_again_after_each_launch() -> None:
    run = execution(resolved(context_lens=(1500,), num_sms=8))
    assert run.work.column("peers").any()
    for _ in range(2):
        run.poison()
        run.launch()
        run.check()
        assert not run.flags.any()


def test_outputs_are_poisoned_and_an_unwritten_row_is_found() -> None:
    run = execution(resolved("triton_fa2"))
    run.poison()
    with pytest.raises(GpuError, match="never written"):
        run.check()
    run.launch()
    run.lists["last"][0] = run.lists["first"][0]  # the first program does nothing
    run.poison()
    run.launch()
    with pytest.raises(GpuError, match="never written"):
        run.check()


@pytest.mark.parametrize(
    ("column", "change"),
    [("first_tile", 1), ("kv_end", -16), ("tiles", -1), ("head", 1), ("context", -16)],
)
def test_a_wrong_schedule_as_data_is_found(column: str, change: int) -> None:
    """The arrays decide what is computed: changed, the check refuses what comes out."""
    run = execution(resolved("triton_fa2"))
    longest = int(run.work.column("tiles").argmax())
    run.lists["segments"][longest, SEGMENT.index(column)] += change
    run.poison()
    run.launch()
    with pytest.raises(GpuError, match="is not attention"):
        run.check()


def test_a_peer_that_never_comes_is_told_and_holds_nothing_up() -> None:
    run = execution(resolved(context_lens=(1500,), num_sms=8))
    peer = int(np.flatnonzero(run.work.column("slot") >= 0)[0])
    program = int(np.flatnonzero(run.work.first == peer)[0])
    run.lists["last"][program] = run.lists["first"][program]
    tile = int(run.work.column("tile")[peer])
    run.launch()
    with pytest.raises(GpuError, match=f"waited in vain for the peers of output tile {tile}"):
        run.check()
    run.lists = {name: run._on_device(getattr(run.work, name)) for name in run.lists}
    run.launch()
    run.check()  # flags are in order again


def test_what_must_not_be_read_is_nan() -> None:
    """Tokens past the end and the page that unused entries name."""
    torch = interpreted().torch
    load = Workload((5, 17), num_q_heads=2, num_kv_heads=1, head_dim=16, page_tokens=16)
    inputs = draw(torch, load, "cpu", seed=0, buffers=3)
    assert inputs.buffers == 3
    used = {
        int(page)
        for buffer in range(3)
        for page in (inputs.page_table[buffer, 0, 0], *inputs.page_table[buffer, 1, :2])
    }
    assert len(used) == 9  # no page twice
    nan = inputs.k.isnan().any(-1).sum().item()
    assert nan == 16 + 3 * (11 + 15)
    assert not reference(torch, inputs, 2).isnan().any()


@pytest.mark.parametrize("call", CALLS)
def test_the_reference_is_that_of_numerics(call: str) -> None:
    item = resolved(**CALLS[call])
    inputs = draw(interpreted().torch, item.workload, "cpu", seed=2)
    expected = whole.reference(item.workload, *as_replay_takes_them(inputs))
    found = reference(interpreted().torch, inputs).numpy()
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-10, atol=1e-12)


def test_calls_that_the_kernels_do_not_compute_are_refused() -> None:
    torch = interpreted().torch
    plain = {"num_q_heads": 2, "num_kv_heads": 1, "head_dim": 32}
    mixed = Workload((9,), **plain, q_dtype="float16")
    with pytest.raises(PairingError, match="float16 Q and bfloat16 KV"):
        draw(torch, mixed, "cpu", 0)
    latent = draw(torch, Workload((9,), **plain, latent_kv=True, head_dim_v=16), "cpu", 0)
    assert latent.v.data_ptr() == latent.k.data_ptr()
    item = resolved()
    with pytest.raises(PairingError, match="latent"):
        Execution(interpreted(), item.schedule, item.kernel, item.device, latent)


def test_the_error_is_by_row() -> None:
    """One bad row among many is not averaged away."""
    torch = interpreted().torch
    expected = torch.ones(1000, 4, dtype=torch.float64)
    out = expected.clone()
    out[77, 2] = 1.2
    assert row_error(torch, out, expected) == pytest.approx(0.1)
