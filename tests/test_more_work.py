"""More work with the same schedule takes no less time, and where it seems to, the code does less.

Held of every kernel: with one instance, the same cuts, and no CTA with fewer KV tiles, a longer context
takes no less than 99% of the time of a shorter one. A window must begin at the same place of a tile.
Three mechanisms allow for more, each where it is found in the schedule or the program (`tolerance`).
And twice the SMs never take longer where CTAs share nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels import kernels_and_a_few_devices, suited

from leansim.points.point import point
from leansim.points.simulate import Simulation, simulate, simulate_each
from leansim.specs.workload import Workload
from leansim.timing.segments import first_loaded

# Fewer bytes before the first tile; several CTAs to an SM, in waves; less offered than a pace asks for.
EXACT, FIRST_TILE, WAVES, OFFERED = 0.01, 0.04, 0.02, 0.06
LENGTHS = (16, 87, 300, 500, 518, 791, 1000, 1024, 2345, 3450)
MORE = (1, 8, 64, 500, 1792, 2048)


def is_more_of_the_same(few: Simulation, many: Simulation) -> bool:
    """Whether another call is cut alike, by the same instance, and leaves no CTA less."""
    one, two = few.schedule, many.schedule
    alike = (
        few.resolved.instance == many.resolved.instance
        and one.num_ctas == two.num_ctas
        and np.array_equal(one.cta, two.cta)
        and np.array_equal(one.output_tile, two.output_tile)
        and bool(np.all(two.stop - two.start >= one.stop - one.start))
    )
    longer = int(two.grid.context_lens[0] - one.grid.context_lens[0])
    return alike and (one.grid.workload.window is None or longer % one.grid.tile_tokens == 0)


def tolerance(few: Simulation, many: Simulation) -> float:
    """How much faster the longer call may be: 1%, but for three mechanisms.

    - A segment whose first tile has fewer tokens waits for fewer bytes, and works on it as long: it is
      ahead of the CTA that it shares its SM with, and the others' first bytes come sooner.
    - Over several waves CTAs that end apart go on beside others than those that end together.
    - DRAM serves no more than is offered, and a loop's offer falls with the masked tokens of the batch,
      also that of a serial loop, whose pace does not: single tiles that are half masked take as long as
      whole ones, behind a longer fill.
    """
    if first_loaded_least(many) < first_loaded_least(few):
        return FIRST_TILE
    kv = few.result.program.flows[0]
    if kv.offered_bytes_per_ps < kv.max_bytes_per_ps:
        return OFFERED
    return WAVES if few.schedule.num_ctas > few.schedule.grid.slots else EXACT


def first_loaded_least(run: Simulation) -> float:
    """Share of the first tile that is not masked, of the segment with the fewest."""
    return float(np.min(first_loaded(run.schedule)))


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize(("kernel", "device"), kernels_and_a_few_devices(2))
def test_more_work_takes_no_less_time(kernel: str, device: str, window: int | None) -> None:
    load = suited(Workload((64,), 16, 2, 128), kernel)
    shape: dict[str, Any] = {"num_q_heads": 16, "num_kv_heads": load.num_kv_heads, "window": window}
    shape |= {"head_dim": load.head_dim, "latent_kv": load.latent_kv}
    if load.latent_kv:
        shape["head_dim_v"] = load.head_dim_v
    asked = [(b, n) for b in (1, 32, 200) for n in {m + k for m in LENGTHS for k in (0, *MORE)}]
    points = [
        point(device=device, kernel=kernel, batch_size=b, context_len=n, **shape) for b, n in asked
    ]
    runs = dict(zip(asked, simulate_each(points), strict=True))
    for batch in (1, 32, 200):
        for length in LENGTHS:
            for more in MORE:
                few, many = runs[batch, length], runs[batch, length + more]
                if not (isinstance(few, Simulation) and isinstance(many, Simulation)):
                    continue
                if is_more_of_the_same(few, many):
                    ratio = many.result.latency_s / few.result.latency_s
                    assert ratio >= 1.0 - tolerance(few, many), (batch, length, more)


def two(first: int, second: int, **fields: Any) -> tuple[Simulation, Simulation]:
    """The same call at two contexts, of which the second is faster."""
    runs = tuple(simulate(point(context_len=n, **fields)) for n in (first, second))
    assert runs[0].result.latency_s > runs[1].result.latency_s
    return runs  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("lengths", "tiles", "fields"),
    [
        (
            (2048, 3072),
            (2, 1),
            {"device": "h100_sxm", "kernel": "fa3_varlen", "num_q_heads": 8, "kv_dtype": "fp8",
             "launch": "pdl"},
        ),
        (
            (500, 1000),
            (4, 3),
            {"device": "a100_sxm_80gb", "kernel": "fa3", "num_q_heads": 32, "cache": "warm",
             "launch": "stream"},
        ),
    ],
    ids=["fa3_varlen", "fa3"],
)  # fmt: skip
def test_a_window_lies_on_fewer_tiles_further_on(
    lengths: tuple[int, int], tiles: tuple[int, int], fields: dict[str, Any]
) -> None:
    """Tiles count from the first token: 128 tokens lie on 2 of 224 from token 1,920, on 1 from 2,944."""
    runs = two(*lengths, batch_size=256, window=128, num_kv_heads=1, head_dim=128, **fields)
    assert tuple(int(run.schedule.grid.num_kv_tiles[0]) for run in runs) == tiles
    assert not is_more_of_the_same(*runs)


def test_one_token_more_is_cut_into_fewer_segments() -> None:
    """32 tiles are 16 segments of 2; 33 are 11 of 3, and five CTAs of each tile have nothing to do."""
    runs = two(
        1024, 1025, device="h100_sxm", kernel="vllm_unified", batch_size=32, num_q_heads=16,
        num_kv_heads=2, head_dim=64, kv_dtype="fp8",
    )  # fmt: skip
    assert [int(run.schedule.segments_of_tile.max()) for run in runs] == [16, 11]
    assert not is_more_of_the_same(*runs)


SHARES_NOTHING = {
    "device.max_ctas_per_sm": 1,
    "device.dram_bandwidth_bytes_per_s": 1e16,
    "device.l2_bandwidth_bytes_per_s": 1e16,
}


def twice_the_sms(
    shape: tuple[int, int, int, int], seed: int, overrides: dict[str, Any] | None = None
) -> float:
    """What a ragged batch of `fa2` takes on 296 SMs of a B200, over what it takes on 148."""
    batch_size, num_q_heads, num_kv_heads, context_len = shape
    points = [
        point(
            device="b200_sxm", kernel="fa2", batch_size=batch_size, context_len=context_len,
            context_len_cv=2.9, seed=seed, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads,
            head_dim=128, num_sms=num_sms, overrides=overrides or {},
        )
        for num_sms in (148, 296)
    ]  # fmt: skip
    one, two = (simulate(each).result.latency_s for each in points)
    return two / one


@pytest.mark.parametrize("shape", [(96, 32, 8, 2000), (128, 8, 8, 2000), (48, 32, 8, 6000)])
def test_twice_the_sms_take_no_longer_where_ctas_share_nothing(shape: tuple[int, int, int, int]) -> None:
    """With one CTA to an SM and memory for all each takes its own time, and none begins later."""
    assert all(twice_the_sms(shape, seed, SHARES_NOTHING) <= 1.0 + EXACT for seed in range(12))


@pytest.mark.parametrize("seed", [1, 9])
def test_twice_the_sms_take_longer_where_the_longest_come_to_share_one(seed: int) -> None:
    """A slot is given to the next CTA in order, whatever runs beside it: no CTA moves to an idle SM."""
    shape = (96, 32, 8, 2000)
    assert twice_the_sms(shape, seed) > 1.1
    alone = {"device.max_ctas_per_sm": 1}
    assert twice_the_sms(shape, seed, alone) <= 1.0 + EXACT
