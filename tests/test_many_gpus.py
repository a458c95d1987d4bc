"""The experiment on several GPUs: its pins, and what its README says of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import EXPERIMENTS, modules_of

from leansim.errors import UnknownNameError

FOLDER = EXPERIMENTS / "many_gpus"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    with modules_of(FOLDER) as found:
        yield found


@pytest.fixture(scope="module")
def pins() -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / "expected.csv").read_text().splitlines()))


def test_a_sample_of_the_pins(modules: Any, pins: list[dict[str, str]]) -> None:
    calls = modules["calls"]
    layers = [row for row in pins if row["of"] == "layer"][2::11]
    found = calls.attention_of(map(calls.call_of, layers))
    for row, one in zip(layers, found.values(), strict=True):
        assert one.result.latency_s * 1e9 == pytest.approx(float(row["time_ns"]), abs=1)
    steps = [row for row in pins if row["of"] == "step"][5::23]
    for row, one in zip(steps, calls.steps(map(calls.call_of, steps)).values(), strict=True):
        assert one.seconds * 1e9 == pytest.approx(float(row["time_ns"]), abs=1)


def test_every_call_is_pinned(modules: Any, pins: list[dict[str, str]]) -> None:
    pinned = [(row["of"], modules["calls"].call_of(row)) for row in pins]
    layers = [("layer", call) for call in dict.fromkeys(modules["decode"].calls())]
    assert pinned == [*layers, *(("step", call) for call in dict.fromkeys(modules["latent"].calls()))]


def test_a_ring_is_at_least_six_times_slower_than_a_tree(modules: Any) -> None:
    decode = modules["decode"]
    found = modules["calls"].attention_of(call for call in decode.calls() if call.kernel != "vllm_fa3")
    assert min(decode.ring_over_tree(found).values()) > 6


def test_dividing_contexts_loses_short_and_gains_long_as_reported(modules: Any) -> None:
    """ROCm/ATOM#847: 0.78 with 1k in and out, 1.18 with 8k and 1k, 1.50 with 8k and 8k.

    Here 0.74, 1.15 and 1.33: the last is 11% less, which a cure has to be noticed of.
    """
    latent = modules["latent"]
    steps = modules["calls"].steps(call for call in latent.calls() if call.batch_size == 256)
    found = [latent.speedup(steps, 256, context) for context in (1536, 8704, 12_288)]
    assert found == sorted(found)
    assert found == pytest.approx([0.78, 1.18, 1.50], rel=0.12)
    assert found == pytest.approx([0.744, 1.155, 1.334], abs=0.005)


# -- prefill in the orders of ring attention -------------------------------------------------------


@pytest.fixture(scope="module")
def said(modules: Any) -> Any:
    return modules["run"].published()


def test_a_sample_of_the_prefill_pins(modules: Any, said: Any) -> None:
    prefill, ring = modules["prefill"], modules["ring"]
    machines = prefill.machines(said["ring_flash_attention"])
    accounts = prefill.ACCOUNTS | prefill.SCHEDULES
    rows = list(csv.DictReader((FOLDER / "expected_prefill.csv").read_text().splitlines()))
    assert len(rows) == len(machines) * (1 + 3 * len(accounts))
    orders = {one.name: one for one in modules["orders"].ORDERS}
    for row in rows[::6]:
        machine = machines[row["node"]]
        if row["order"] == "single":
            seconds = prefill.single_s(machine)
        else:
            seconds = ring.call_s(orders[row["order"]], machine, accounts[row["account"]])
        assert seconds * 1e9 == pytest.approx(float(row["time_ns"]), abs=1)


@pytest.mark.parametrize("name", ["RING", "ZIGZAG", "STRIPE"])
@given(ranks=st.integers(1, 6), half=st.integers(1, 6))
def test_every_order_covers_the_causal_triangle_once(
    modules: Any, name: str, ranks: int, half: int
) -> None:
    """Each row sees each key up to its own position in one round, and no other key in any."""
    order, tokens = getattr(modules["orders"], name), 2 * half
    seen = np.zeros((ranks * tokens, ranks * tokens), dtype=int)
    for rank in range(ranks):
        for step in range(ranks):
            block = order.block(rank, step, tokens)
            if block is None:
                continue
            rows = order.held(rank, ranks, tokens)[list(block.rows)]
            keys = order.held((rank - step) % ranks, ranks, tokens)[list(block.keys)]
            shape = (len(rows), len(keys))
            mask = np.tri(*shape, dtype=int) if block.causal else np.ones(shape, dtype=int)
            assert mask.sum() == block.pairs
            seen[np.ix_(rows, keys)] += mask
    assert np.array_equal(seen, np.tri(ranks * tokens, dtype=int))


def test_rounds_merge_to_causal_softmax(modules: Any) -> None:
    """4 ranks of 16 tokens. Blocks of one order with the tokens of another are found out."""
    orders = modules["orders"]
    for order in orders.ORDERS:
        assert orders.replay_error(order) < 1e-14
    mixed = orders.Order("mixed", orders.STRIPE.held, orders.ZIGZAG.block)
    assert orders.replay_error(mixed) > 0.1


def test_a_plain_ring_is_unbalanced_and_the_others_are_not(modules: Any) -> None:
    """4 ranks: 1/2 + 1 + 1 + 1 against 2; 8: 7.5 against 4. Of many tokens the diagonal is nothing."""
    orders = modules["orders"]
    assert orders.round_times(orders.RING, 4, 8192) == pytest.approx([0.5, 1, 1, 1], rel=2e-4)
    for ranks, share in ((4, 2 / 3.5), (8, 4 / 7.5)):
        assert orders.balance(orders.RING, ranks, 8192) == pytest.approx(share, rel=2e-4)
        assert orders.balance(orders.ZIGZAG, ranks, 8192) == pytest.approx(1.0, rel=1e-12)
        assert orders.balance(orders.STRIPE, ranks, 8192) == pytest.approx(1.0, rel=2e-4)


def test_ranks_wait_for_the_hops_of_their_neighbours(modules: Any) -> None:
    """Own work 1 + 3 and 2 + 2 s: 4 s. A hop of 5 s ends both first rounds, then come 3 and 2 s: 8 s.

    After attention: the second rank, a second ahead when it begins again, is done with its first 2 s as
    the other is with its 1 s; then the hop of 5 s, then 3 s: 9 s.
    """
    period_s = modules["ring"].period_s
    attention, update = np.array([[1.0, 3.0], [2.0, 2.0]]), np.zeros((2, 2))
    assert period_s(attention, update, 0.0) == pytest.approx(4.0)
    assert period_s(attention, update, 5.0) == pytest.approx(8.0)
    assert period_s(attention, update, 5.0, after=True) == pytest.approx(9.0)


@given(
    work=st.lists(st.lists(st.floats(0.0, 9.0), min_size=4, max_size=4), min_size=2, max_size=5),
    hops=st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 4.0)),
)
def test_a_call_is_between_the_busiest_rank_and_all_slowest_rounds(
    modules: Any, work: list[list[float]], hops: tuple[float, float]
) -> None:
    """And a longer hop, or one that begins later, never makes it shorter."""
    period_s = modules["ring"].period_s
    attention = np.array(work)
    update = np.zeros_like(attention)
    short, long = sorted(hops)
    found = period_s(attention, update, short)
    assert attention.sum(axis=1).max() <= found + 1e-9
    assert found <= np.maximum(attention, [*[short] * 3, 0.0]).max(axis=0).sum() + 1e-9
    assert found <= period_s(attention, update, long) + 1e-9
    assert found <= period_s(attention, update, short, after=True) + 1e-9


def test_an_update_takes_its_bytes(modules: Any) -> None:
    """8,192 rows of 32 heads of 128: 33.6 M elements of O. In one kernel 6 B read, 4 written: 336 MB.

    At 2.039e12 * 0.871 B/s 188.9 us; LSE's 40 B of a row and head 5.9 us, and 4 gaps of 1.96 us. Apart:
    38 B an element, 12 + 8 + 4 + 32 B a row, 9 gaps.
    """
    ring, orders = modules["ring"], modules["orders"]
    block = orders.RING.block(7, 1, 8192)
    pace = 2.039e12 * 0.871
    elements, rows = 8192 * 32 * 128, 8192 * 32
    fused, apart = (
        ring.update_s(ring.Account(update), block, 1, 8192, "a100_sxm_80gb")
        for update in ("fused", "apart")
    )
    assert fused == pytest.approx((10 * elements + 40 * rows) / pace + 4 * 1.96e-6)
    assert apart == pytest.approx((38 * elements + 56 * rows) / pace + 9 * 1.96e-6)
    part = orders.ZIGZAG.block(0, 1, 8192)
    sliced = ring.update_s(ring.Account("fused"), part, 1, 8192, "a100_sxm_80gb")
    assert sliced == pytest.approx((18 * elements + 48 * rows) / 2 / pace + 6 * 1.96e-6)


def test_an_account_that_there_is_not_is_refused(modules: Any) -> None:
    with pytest.raises(UnknownNameError, match="beside"):
        modules["ring"].Account(hop="besides")
    with pytest.raises(UnknownNameError, match="fused"):
        modules["ring"].Account("fuse")


@pytest.mark.parametrize(
    ("account", "wanted"),
    [
        ("FUSED", [0.000, -0.051, -0.150, -0.221, 0.054, -0.023, -0.099, -0.118]),
        ("APART", [0.000, 0.040, -0.006, -0.098, 0.054, 0.064, 0.044, 0.006]),
    ],
)
def test_errors_of_the_eight_rows_are_as_reported(
    modules: Any, said: Any, account: str, wanted: list[float]
) -> None:
    """Single, ring, zigzag, stripe on A100, then on H800: a cure of known gaps has to be noticed."""
    prefill = modules["prefill"]
    found = prefill.errors(said["ring_flash_attention"], getattr(prefill, account))
    assert [*found.values()] == pytest.approx(wanted, abs=0.005)


def test_what_is_counted_is_within_a_tenth_of_all_eight_rows(modules: Any, said: Any) -> None:
    found = modules["prefill"].errors(said["ring_flash_attention"], modules["ring"].Account())
    assert len(found) == 8
    assert max(map(abs, found.values())) < 0.1


def test_what_is_missing_grows_from_ring_to_stripe(modules: Any, said: Any) -> None:
    """With O in one kernel; blocks as simulated, and scaled to the measured row of one GPU."""
    prefill = modules["prefill"]
    about = said["ring_flash_attention"]
    found = prefill.times(about)
    for scaled in (False, True):
        missing = prefill.missing_s(about, found, scaled)
        for one in about:
            rest = [missing[one["name"], order.name] for order in modules["orders"].ORDERS]
            assert rest == sorted(rest)
            assert 50e-6 < rest[0] < rest[-1] < 1e-3


def test_equal_shares_of_tiles_help_balanced_orders(modules: Any, said: Any) -> None:
    prefill, orders = modules["prefill"], modules["orders"]
    found = {}
    for name, machine in prefill.machines(said["ring_flash_attention"]).items():
        for what, account in prefill.SCHEDULES.items():
            for one in orders.ORDERS[1:]:
                found[name, one.name, what] = modules["ring"].call_s(one, machine, account)
        for one in orders.ORDERS[1:]:
            assert 1.04 < prefill.gain(found, name, one) < 1.12


# -- Striped Attention's bounds --------------------------------------------------------------------


def test_striped_attentions_bounds_come_out(modules: Any, said: Any) -> None:
    """All 21 of table 3, to the digit; whole tiles leave less, at 16k nothing; measured is less."""
    striped, about = modules["striped"], said["striped_attention"]
    for model in about["models"]:
        for context, stated, measured in model["rows"]:
            half, tiled = striped.bounds(about, model, context)
            assert half == pytest.approx(stated, abs=0.0051)
            assert measured < tiled < half
            assert tiled / 1.17 < measured
        assert striped.bounds(about, model, 16_384)[1] == 1.0


@pytest.mark.parametrize(
    ("block", "share"), [(4096, 1.0), (8192, 6 / 8), (16_384, 20 / 32), (2**24, 0.5)]
)
def test_whole_tiles_that_a_causal_block_needs(modules: Any, block: int, share: float) -> None:
    """2,048 by 4,096: 1 + 1 of 2; 1 + 1 + 2 + 2 of 8; 2 (1 + 2 + 3 + 4) of 32; in the limit a half."""
    assert modules["striped"].computed_share(block, 2048, 4096) == pytest.approx(share, abs=2e-4)
