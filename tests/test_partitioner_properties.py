"""Properties: every kernel of the catalogue cuts any ragged batch exactly, or says that it cannot."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from kernels import devices_of, tiled

from leansim.errors import PairingError, PartitionerError
from leansim.numerics.cover import count_cover
from leansim.numerics.verify import verify
from leansim.partitioners.lean_attention import LeanAttention
from leansim.partitioners.registry import make
from leansim.schedule.schedule import Schedule, changes
from leansim.schedule.tiling import TileGrid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload

REPLAYED_TOKENS = 2000
LENGTHS = st.one_of(
    st.integers(1, 300),
    st.sampled_from([63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 1024, 2049]),
    st.integers(1, 3000),
)
BATCHES = st.one_of(
    st.lists(st.integers(1000, 3000), min_size=1, max_size=3),
    st.lists(LENGTHS, min_size=1, max_size=5),
    st.lists(LENGTHS, min_size=20, max_size=40),
    st.lists(st.integers(600, 2500), min_size=12, max_size=24),  # too much work for one wave of few SMs
    st.builds(lambda n, length: [length] * n, st.integers(1, 12), LENGTHS),
)
SHAPES = [(1, 1), (1, 4), (1, 8), (2, 1), (2, 4), (2, 8), (8, 1), (8, 3), (8, 8)]  # KV heads, group size
PLAIN = (1, None)  # what every kernel takes: new tokens per request, window
MASKS = [*[PLAIN] * 6, (1, 1), (1, 100), (1, 1000), (2, None), (5, None), (3, 100)]
fixed = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@cache
def devices_for(name: str) -> list[Device]:
    return [catalog.device(found) for found in devices_of(name)]


@st.composite
def devices(draw: st.DrawFn, kernel: Kernel) -> Device:
    """A device the kernel is built for, whole or with few SMs, so that there are several waves."""
    device = draw(st.sampled_from(devices_for(kernel.name)))
    num_sms = draw(st.sampled_from([device.num_sms, device.num_sms, 16, 5]))
    return device.model_copy(update={"num_sms": num_sms})


@st.composite
def workloads(draw: st.DrawFn, kernel: Kernel) -> Workload:
    """A ragged batch in shapes and dtypes of the kernel; those with a latent cache get one."""
    query_len, window = draw(st.sampled_from(MASKS))
    lens = tuple(max(query_len, n) for n in draw(BATCHES))
    shape = {
        "query_len": query_len,
        "window": window,
        "q_dtype": draw(st.sampled_from(kernel.q_dtypes)),
        "kv_dtype": draw(st.sampled_from(kernel.kv_dtypes)),
    }
    if draw(st.booleans()):
        shape["max_context_len"] = max(lens) + draw(st.sampled_from([0, 1, 5000]))
    if kernel.latent_kv:
        heads = draw(st.sampled_from([8, 16, 128]))
        # Narrow, for speed: the tile is that of 576 and 512 all the same.
        return Workload(lens, heads, 1, 72, head_dim_v=64, latent_kv=True, **shape)
    kv_heads, group = draw(st.sampled_from(SHAPES))
    head_dim = draw(st.sampled_from(sorted({tile.head_dim for tile in kernel.tiles})))
    return Workload(lens, kv_heads * group, kv_heads, head_dim, **shape)


def plain(kernel: Kernel) -> Workload:
    """One new token a request, contexts that are neither short nor alike: nothing to refuse."""
    lens = (2500, 2001, 1500, 450)
    if kernel.latent_kv:
        return Workload(lens, 16, 1, 576, head_dim_v=512, latent_kv=True)
    head_dim = 128 if any(tile.head_dim == 128 for tile in kernel.tiles) else kernel.tiles[0].head_dim
    shape = {"q_dtype": kernel.q_dtypes[0], "kv_dtype": kernel.kv_dtypes[0]}
    return Workload(lens, 32, 8, head_dim, **shape)


def schedule_of(kernel: Kernel, workload: Workload, device: Device) -> Schedule:
    grid = tiled(workload, kernel, device)
    return make(kernel.partitioner.name, kernel.partitioner.options)(grid, device)


def assert_exact(schedule: Schedule) -> None:
    workload = schedule.grid.workload
    longest = max(workload.context_lens)  # a window is replayed against all of its context
    budget = REPLAYED_TOKENS * workload.visible_tokens(longest) // (longest * workload.group_size)
    verification = verify(schedule, ("float64",), max_tokens=budget)
    verification.raise_if_failed()
    assert verification.cover.kv_tiles == schedule.grid.total_kv_tiles
    assert int(schedule.tiles_of_cta.sum()) == schedule.grid.total_kv_tiles


@pytest.mark.parametrize("name", catalog.names("kernel"))
def test_every_kernel_cuts_any_batch_exactly_or_refuses_it(name: str) -> None:
    kernel = catalog.kernel(name)

    @seed(zlib.crc32(name.encode()))  # other batches for each kernel, the same ones every time
    @settings(fixed, max_examples=10)
    @given(workload=workloads(kernel), device=devices(kernel))
    def check(workload: Workload, device: Device) -> None:
        try:
            schedule = schedule_of(kernel, workload, device)
        except (PairingError, PartitionerError):
            return
        assert_exact(schedule)

    check()


@pytest.mark.parametrize("name", catalog.names("kernel"))
def test_no_kernel_refuses_a_plain_batch(name: str) -> None:
    kernel = catalog.kernel(name)
    first, *others = (schedule_of(kernel, plain(kernel), device) for device in devices_for(name))
    assert_exact(first)
    assert all(count_cover(schedule).exact for schedule in others)


# -- LeanAttention over each request's own tiles ---------------------------------------------------


def lean_grid(workload: Workload, num_sms: int, ctas_per_sm: int) -> TileGrid:
    kernel, device = catalog.kernel("lean"), catalog.device("a100_sxm_80gb")
    return tiled(workload, kernel, device).with_slots(num_sms, ctas_per_sm)


@settings(fixed, max_examples=60)
@given(
    workload=workloads(catalog.kernel("lean")),
    num_sms=st.sampled_from([2, 5, 16, 108]),
    ctas_per_sm=st.sampled_from([1, 2]),
)
def test_lean_deals_each_requests_own_tiles_evenly(
    workload: Workload, num_sms: int, ctas_per_sm: int
) -> None:
    """Ragged, several new tokens, windows: loads differ by a KV tile at most, nothing is padded."""
    grid = lean_grid(workload, num_sms, ctas_per_sm)
    schedule = LeanAttention(lengths="actual")(grid, catalog.device("a100_sxm_80gb"))
    assert np.ptp(schedule.tiles_of_cta) <= 1
    assert schedule.num_empty_ctas == 0
    assert schedule.num_ctas <= grid.slots
    line = schedule.by_tile  # request, head and row block as in the grid, then context
    assert np.array_equal(line, np.arange(schedule.num_segments))
    assert schedule.num_segments <= grid.num_output_tiles + schedule.num_ctas - 1
    later = ~changes(schedule.cta)
    assert not schedule.start[later].any(), "a CTA goes on with the first tiles of the next output tile"


@settings(fixed, max_examples=15)
@given(workload=workloads(catalog.kernel("lean")))
def test_lean_is_exact_on_each_requests_own_tiles(workload: Workload) -> None:
    grid = lean_grid(workload, num_sms=16, ctas_per_sm=2)
    assert_exact(LeanAttention(lengths="actual")(grid, catalog.device("a100_sxm_80gb")))
