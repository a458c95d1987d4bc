"""Latencies known to a tick: what they are of, what they leave open, and what a fit makes of them.

Replays on a toy harness begin every 2 us, 10 of them between events that add 5 us once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansim.silicon.evaluating import Model
from leansim.silicon.fit import Free, fit_to
from leansim.silicon.published import measured_rows
from leansim.silicon.rows import Harnesses
from leansim.silicon.targets import target_of
from leansim.specs import catalog
from leansim.specs.harness import Calls, MeasuredTable, Replays
from leansim.specs.workload import Workload

pytest.importorskip("pandas")

DATA = Path(__file__).parent / "data" / "silicon"
US = 1e-6
TOY = Replays(count=10, tick_s=2 * US, events_s=5 * US)


@pytest.mark.parametrize(("replay", "latency"), [(0.1, 2.5), (2.0, 2.5), (2.1, 4.5), (7.9, 8.5)])
def test_a_replay_lasts_until_the_next_tick(replay: float, latency: float) -> None:
    assert TOY.latency_s(replay * US) == pytest.approx(latency * US)


@given(st.floats(1e-7, 1e-2))
def test_what_was_measured_says_in_which_tick_a_replay_ended(replay_s: float) -> None:
    least, most = TOY.span_s(TOY.latency_s(replay_s))
    assert least - 1e-12 <= replay_s <= most + 1e-12
    assert most - least == pytest.approx(TOY.tick_s)


def test_a_table_adds_what_is_beside_a_kernel_and_waits_for_the_tick() -> None:
    table = catalog.table("b200_sxm_sglang")
    assert table.replays is not None
    call = Calls.of(
        "trtllm_gen", Workload.uniform(8, 1000, num_q_heads=32, num_kv_heads=4, head_dim=128)
    )
    beside_s = float(table.beside_s(call))
    kernel_s = 7.5 * table.replays.tick_s - beside_s
    whole_s = 8 * table.replays.tick_s + table.replays.events_s / table.replays.count
    assert kernel_s + table.harness_s(call, kernel_s) == pytest.approx(whole_s)


def agreed(tables: list[MeasuredTable]) -> float:
    """How far latencies below 60 us agree about their place in a Blackwell card's tick: 1 if all do."""
    measured_s = np.concatenate([measured_rows(table, data=DATA)["measured_s"] for table in tables])
    turns = np.exp(2j * np.pi * measured_s[measured_s < 60 * US] / (2.048 * US))
    return float(abs(turns.mean()))


def test_latencies_lie_on_ticks_where_a_table_says_so_and_nowhere_else() -> None:
    tables = [catalog.table(name) for name in catalog.names("table")]
    on_ticks = [table for table in tables if table.replays is not None]
    assert all(catalog.device(table.device).arch == "sm_100" for table in on_ticks)
    assert all(agreed([table]) > 0.6 for table in on_ticks)
    assert agreed([table for table in tables if table.replays is None]) < 0.15


def test_a_fit_counts_only_how_far_replays_are_outside_their_ticks() -> None:
    """Latencies made with another base, and then known to a tick, give it back."""
    table = catalog.table("b200_sxm_sglang")
    assert table.replays is not None
    rows = measured_rows(table, data=DATA)
    rows = rows[(rows["kv_dtype"] == "bfloat16") & (rows["head_dim"] <= 256) & (rows["fit"])]
    rows = rows.reset_index(drop=True)
    base = target_of("table.b200_sxm_sglang.harness.base.seconds")
    free = [Free(base, (1 * US, 12 * US), (5 * US,))]
    truth = 7.3 * US
    with Model([base], rows, 1) as model:
        rows["measured_s"] = model.seconds([truth])
    fit = fit_to("here", free, rows, jobs=1)
    (found,) = fit.constants
    assert found.after == pytest.approx(truth, abs=0.3 * US)
    least, most = Harnesses(rows).spans_s(rows["measured_s"].to_numpy())
    np.testing.assert_allclose(most - least, table.replays.tick_s)
    assert np.abs(fit.after).mean() < 0.03 < np.abs(fit.before).mean()
