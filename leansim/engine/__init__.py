"""Engines execute a Program and record a Result; they must agree to the picosecond."""

from __future__ import annotations

from leansim.engine.simpy_engine import execute

__all__ = ["execute"]
