"""Laws of sharing: rates are max-min fair, within every limit, and follow the offered load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import flow_kinds, kv

from leansim.engine.program import FlowKind
from leansim.engine.sharing import Demand, level, loaded_capacity, shared_rates, sm_limits

RELATIVE = 1e-9

counts = st.integers(1, 300)
limits = st.floats(1e-4, 10.0)
# (DRAM, L2): what DRAM brings passes L2, masked bytes pass neither.
shares = st.sampled_from([(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.125, 0.25), (0.25, 1.0), (1.0, 1.0)])
offers = st.one_of(st.just(0.0), st.floats(1e-4, 10.0))
demand_lists = st.lists(
    st.builds(
        lambda n, limit, share, offered: Demand(n, limit, share[0], share[1], offered),
        counts,
        limits,
        shares,
        offers,
    ),
    min_size=1,
    max_size=6,
)
peaks = st.floats(1e-2, 100.0)
exponents = st.floats(1.0, 8.0)


@settings(deadline=None)
@given(st.lists(st.tuples(limits, st.floats(1e-3, 300.0)), min_size=1, max_size=8), peaks)
def test_level_fills_the_capacity_or_nobody_is_held_back(
    wants: list[tuple[float, float]], capacity: float
) -> None:
    height = level(wants, capacity)
    taken = sum(weight * min(limit, height) for limit, weight in wants)
    if math.isinf(height):
        assert taken < capacity
    else:
        assert taken == pytest.approx(capacity, rel=RELATIVE)


@settings(deadline=None)
@given(st.floats(1e-6, 1e4), peaks, exponents)
def test_a_loaded_memory_gives_less_than_the_offer_and_than_the_peak(
    offered: float, peak: float, exponent: float
) -> None:
    """And never less than both would at an exponent of 1, the harmonic sum."""
    got = loaded_capacity(offered, peak, exponent)
    assert got <= min(offered, peak) * (1 + RELATIVE)
    assert got >= 1 / (1 / offered + 1 / peak) * (1 - RELATIVE)
    assert loaded_capacity(offered * 2, peak, exponent) >= got * (1 - RELATIVE)


def test_a_memory_that_nobody_loads_has_its_peak() -> None:
    """Transfers that L2 serves offer DRAM nothing; the law would divide by their number."""
    assert loaded_capacity(0.0, 3.0, 2.2) == 3.0


# -- rates -----------------------------------------------------------------------------------------


def dram_capacity(demands: Sequence[Demand], peak: float, exponent: float) -> float:
    return loaded_capacity(sum(d.count * d.offered * d.dram_share for d in demands), peak, exponent)


def used(demands: Sequence[Demand], rates: Sequence[float]) -> tuple[float, float]:
    """Bytes/ps through DRAM and through L2."""
    pairs = list(zip(demands, rates, strict=True))
    dram = sum(d.count * d.dram_share * rate for d, rate in pairs)
    return dram, sum(d.count * d.l2_share * rate for d, rate in pairs)


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks)
def test_rates_keep_within_every_limit(
    demands: list[Demand], dram: float, exponent: float, l2: float
) -> None:
    rates = shared_rates(demands, dram, exponent, l2)
    assert len(rates) == len(demands)
    for demand, rate in zip(demands, rates, strict=True):
        assert 0 < rate <= demand.limit
    from_dram, from_l2 = used(demands, rates)
    assert from_dram <= dram_capacity(demands, dram, exponent) * (1 + RELATIVE)
    assert from_l2 <= l2 * (1 + RELATIVE)


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks)
def test_no_rate_can_rise_unless_a_smaller_or_equal_one_falls(
    demands: list[Demand], dram: float, exponent: float, l2: float
) -> None:
    """Max-min fair: each rate is at its own limit, or is the largest on some full memory it uses."""
    rates = shared_rates(demands, dram, exponent, l2)
    pairs = list(zip(demands, rates, strict=True))
    capacity = dram_capacity(demands, dram, exponent)
    from_dram, from_l2 = used(demands, rates)
    most_dram = max((rate for d, rate in pairs if d.dram_share), default=0.0)
    most_l2 = max((rate for d, rate in pairs if d.l2_share), default=0.0)
    for demand, rate in pairs:
        own = rate >= demand.limit * (1 - RELATIVE)
        by_dram = (
            demand.dram_share > 0
            and from_dram >= capacity * (1 - RELATIVE)
            and rate >= most_dram * (1 - RELATIVE)
        )
        by_l2 = (
            demand.l2_share > 0 and from_l2 >= l2 * (1 - RELATIVE) and rate >= most_l2 * (1 - RELATIVE)
        )
        assert own or by_dram or by_l2


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks, st.randoms(use_true_random=False))
def test_rates_do_not_depend_on_the_order_of_demands(
    demands: list[Demand], dram: float, exponent: float, l2: float, random: object
) -> None:
    rates = shared_rates(demands, dram, exponent, l2)
    order = list(range(len(demands)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = shared_rates([demands[i] for i in order], dram, exponent, l2)
    assert shuffled == pytest.approx([rates[i] for i in order], rel=RELATIVE)


@settings(deadline=None)
@given(demand_lists, peaks, exponents, peaks)
def test_bytes_that_pass_no_memory_are_held_back_by_none(
    demands: list[Demand], dram: float, exponent: float, l2: float
) -> None:
    """Masked ones among others: they run at their limit, and the others run as if they were alone."""
    masked = Demand(7, 0.9, 0.0, 0.0, 5.0)
    *rates, own = shared_rates([*demands, masked], dram, exponent, l2)
    assert own == masked.limit
    assert rates == pytest.approx(shared_rates(demands, dram, exponent, l2), rel=RELATIVE)


def test_dram_is_loaded_by_what_is_in_flight_and_not_by_what_is_asked() -> None:
    """By hand, with an exponent of 1: 3 transfers in a DRAM of 6 B/ps, half of whose bytes hit L2.

    Each would take 4 B/ps. In flight is what would bring 2 B/ps each from an idle memory: DRAM is
    offered 3 * 1/2 * 2 = 3 and gives 3 / (1 + 3/6) = 2. That is 3 rates of x, half of it from DRAM:
    x = 4/3. With four times as much in flight, DRAM is offered 12 and gives 12 / (1 + 2) = 4: 8/3.
    """
    for offered, rate in ((2.0, 4 / 3), (8.0, 8 / 3)):
        demand = Demand(3, 4.0, 0.5, 1.0, offered)
        assert shared_rates([demand], 6.0, 1.0, 1e9) == [pytest.approx(rate, rel=1e-12)]


def test_memories_count_what_passes_them() -> None:
    """By hand: L2 gives 3 B/ps to 2 transfers of which 3/4 pass it: x = 2 each, 4 if half did."""
    for share, rate in ((0.75, 2.0), (0.375, 4.0)):
        demand = Demand(2, 5.0, 0.0, share, 5.0)
        assert shared_rates([demand], 1e9, 2.0, 3.0) == [pytest.approx(rate, rel=1e-12)]


# -- one SM ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(flow_kinds, min_size=1, max_size=3), st.integers(1, 5))
def test_an_sm_gives_what_it_has_and_no_more(flows: list[FlowKind], max_ctas: int) -> None:
    """For everything that fits on it: each kind has its own limit, or a full SM's level."""
    table, power = sm_limits(tuple(flows), max_ctas)
    for numbers in itertools.product(range(max_ctas + 1), repeat=len(flows)):
        if not 0 < sum(numbers) <= max_ctas:
            continue
        row = table[np.dot(numbers, power)]
        work = sum(n * f.sm_ps_per_byte * x for f, n, x in zip(flows, numbers, row, strict=True))
        assert work <= 1 + RELATIVE
        for flow, n, limit in zip(flows, numbers, row, strict=True):
            assert 0 < limit <= flow.max_bytes_per_ps
            if n and limit < flow.max_bytes_per_ps:
                assert work == pytest.approx(1, rel=RELATIVE)
                assert limit == max(row), "who is held back by the SM has as much as anyone"


@pytest.mark.parametrize("max_ctas", [1, 4])
def test_kinds_alike_on_an_sm_share_a_digit(max_ctas: int) -> None:
    """They differ only past the SM, so two CTAs of one and one of the other are three of either."""
    one = kv(0.06, 12.0)
    alike = replace(one, dram_share=0.0, l2_share=0.5, offered_bytes_per_ps=9.0)
    other = replace(one, sm_ps_per_byte=13.0)
    table, power = sm_limits((one, alike, other), max_ctas)
    assert power.tolist() == [1, 1, max_ctas + 1]
    assert len(table) == (max_ctas + 1) ** 2
    assert np.array_equal(table[:, 0], table[:, 1])
