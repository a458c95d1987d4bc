"""Engines execute a Program and record a Result; they agree to the picosecond.

`numba` is compiled and the default where Numba is installed (extra `fast`); `simpy` is the reference.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

from leansim.errors import UnknownNameError
from leansim.program import Program
from leansim.result import Result

Engine = Literal["auto", "numba", "simpy"]


ENGINE_VARIABLE = "LEANSIM_ENGINE"


def check_engine(engine: str) -> None:
    """Raise `UnknownNameError` for an engine that does not exist or is not installed."""
    known = [name for name in get_args(Engine) if name != "numba" or find_spec("numba")]
    if engine not in known:
        raise UnknownNameError("engine", engine, known)


@cache
def _default(wanted: str) -> str:
    check_engine(wanted)
    if wanted != "auto":
        return wanted
    return "numba" if find_spec("numba") else "simpy"


def execute(program: Program, engine: Engine = "auto") -> Result:
    """Execute a program.

    `auto` is the engine that `$LEANSIM_ENGINE` names, else `numba` where it is installed, else
    `simpy`. Raises `UnknownNameError` for an engine that is not there.
    """
    name = _default(os.environ.get(ENGINE_VARIABLE, "auto") if engine == "auto" else engine)
    if name == "numba":
        from leansim.engine import numba_engine  # noqa: PLC0415 - importing Numba takes a while

        return numba_engine.execute(program)
    from leansim.engine import simpy_engine  # noqa: PLC0415

    return simpy_engine.execute(program)
