"""Engines execute a Program and record a Result; they agree to the picosecond.

`numba` is compiled and does all long work where Numba is installed (extra `fast`); `simpy` is the
reference, and needs no loading.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from typing import Literal, get_args

from leansim.engine.program import Program
from leansim.engine.result import Result
from leansim.errors import UnknownNameError

Engine = Literal["auto", "numba", "simpy"]
ENGINE_VARIABLE = "LEANSIM_ENGINE"
_COMPILED = "leansim.engine.numba_engine"
# What loading Numba and the compiled code takes, s, and an event of the reference before one was timed.
_LOADING_S = 0.4
_EVENT_S = 4e-6


def check_engine(engine: str) -> None:
    """Raise `UnknownNameError` for an engine that does not exist or is not installed."""
    known = [name for name in get_args(Engine) if name != "numba" or find_spec("numba")]
    if engine not in known:
        raise UnknownNameError("engine", engine, known)


@cache
def _default(wanted: str) -> str:
    check_engine(wanted)
    return "simpy" if wanted == "auto" and not find_spec("numba") else wanted


class _Auto:
    """Executes with the compiled engine once the reference has worked as long as loading it takes.

    A single small point is then answered at once, and nobody waits more than twice as long as with
    either engine alone (the ski rental problem).
    """

    def __init__(self) -> None:
        self.left_s, self.event_s = _LOADING_S, _EVENT_S

    def execute(self, program: Program) -> Result:
        """Execute a program, and learn how long the reference worked."""
        if _COMPILED in sys.modules or program.num_events * self.event_s > self.left_s:
            return _with_numba(program)
        began = perf_counter()
        result = _with_simpy(program)
        seconds = perf_counter() - began
        self.left_s -= seconds
        self.event_s = seconds / program.num_events
        return result


def _with_numba(program: Program) -> Result:
    from leansim.engine import numba_engine

    return numba_engine.execute(program)


def _with_simpy(program: Program) -> Result:
    from leansim.engine import simpy_engine

    return simpy_engine.execute(program)


_auto = _Auto()
_EXECUTE = {"auto": _auto.execute, "numba": _with_numba, "simpy": _with_simpy}


def load() -> None:
    """Load the engine of long work now: for a process that is there for nothing else."""
    if _default(os.environ.get(ENGINE_VARIABLE, "auto")) != "simpy":
        importlib.import_module(_COMPILED)


def execute(program: Program, engine: Engine = "auto") -> Result:
    """Execute a program.

    `auto` is the engine that `$LEANSIM_ENGINE` names, else `numba` where it is installed and there is
    enough to do, else `simpy`. Raises `UnknownNameError` for an engine that is not there.
    """
    name = _default(os.environ.get(ENGINE_VARIABLE, "auto") if engine == "auto" else engine)
    return _EXECUTE[name](program)
