"""Many points at once are simulated as one by one, whatever stands among them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
from kernels import lowered

from leansim.engine import execute as engine
from leansim.engine import simpy_engine
from leansim.errors import LeansimError, OutOfRangeError, PairingError, UnknownNameError
from leansim.points.point import Point, point, resolve
from leansim.points.simulate import Simulation, simulate, simulate_each

SHAPE = {"device": "h100_sxm", "num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}


def of(**fields: object) -> Point:
    return point(**{**SHAPE, "kernel": "fa2", "batch_size": 4, "context_len": 512, **fields})


def test_points_in_stages_come_out_as_alone_and_in_order() -> None:
    lengths = [1 + 37 * i for i in range(40)]  # more than go through the stages together
    points = [of(context_len=n, kernel=kernel) for n in lengths for kernel in ("fa2", "lean")]
    found = list(simulate_each(points))
    assert [one.point for one in found if isinstance(one, Simulation)] == points
    for one in found[::7]:
        assert isinstance(one, Simulation)
        assert one.row == simulate(one.point).row


def test_what_cannot_be_simulated_stays_in_its_place() -> None:
    refused = LeansimError("no point at all")
    points: list[Point | Exception] = [
        of(),
        refused,
        of(kernel="no_such_kernel"),
        of(head_dim=8192),
        of(overrides={"device.num_sms": 10**12}),
        of(context_len=1024),
    ]
    found = list(simulate_each(points))
    assert isinstance(found[0], Simulation)
    assert found[1] is refused
    assert isinstance(found[2], UnknownNameError)
    assert isinstance(found[3], PairingError)
    assert isinstance(found[4], OutOfRangeError)
    assert isinstance(found[5], Simulation)
    with pytest.raises(OutOfRangeError, match="fa3 on h100_sxm: a number is out of range"):
        simulate(of(kernel="fa3", overrides={"kernel.loops.pipelined.stages": 0}))


def test_a_faulty_engine_costs_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    real = simpy_engine.execute

    def faulty(program: object) -> object:
        done = real(program)  # type: ignore[arg-type]
        if done.program.num_ctas == 5 * 8:
            raise RuntimeError("five requests")
        return done

    monkeypatch.setattr(simpy_engine, "execute", faulty)
    found = list(simulate_each([of(batch_size=n) for n in (4, 5, 6)], engine="simpy"))
    assert [type(one) for one in found] == [Simulation, RuntimeError, Simulation]


@pytest.mark.skipif(find_spec("numba") is None, reason="needs Numba")
def test_the_compiled_engine_is_loaded_when_there_is_enough_to_do() -> None:
    """In a process of its own: in this one it may be loaded already."""
    script = (
        "import sys\n"
        "from leansim.engine import execute as engine\n"
        "from leansim.points.point import point, resolve\n"
        "from leansim.timing.lowering import lower\n"
        f"r = resolve(point(kernel='fa2', batch_size=4, context_len=512, **{SHAPE!r}))\n"
        "program = lower(r.schedule, r.instance, r.device)\n"
        "engine.execute(program)\n"
        "assert 'numba' not in sys.modules\n"
        "engine._auto.left_s = 60.0\n"
        "engine.execute(program)\n"
        "assert 'numba' not in sys.modules\n"
        "engine._auto.left_s = 0.0\n"
        "engine.execute(program)\n"
        "assert 'numba' in sys.modules\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_an_engine_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    item = resolve(of())
    program = lowered(item.schedule, item.kernel, item.device)
    taken = []
    monkeypatch.setattr(simpy_engine, "execute", lambda one: taken.append(one) or "done")
    monkeypatch.setenv(engine.ENGINE_VARIABLE, "simpy")
    assert engine.execute(program) == "done"
    assert engine.execute(replace(program), "simpy") == "done"
    assert len(taken) == 2
