"""What the parts of this experiment have in common: points that are timed, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

import leansim
from leansim.answers import render

Pins = dict[str, int]


@dataclass(frozen=True)
class Part:
    """A part of RESULTS.md: a title, sentences, tables under their captions, and what is pinned, ns."""

    title: str
    sentences: tuple[str, ...]
    tables: tuple[tuple[str, pd.DataFrame], ...]
    pins: Pins = field(default_factory=dict)

    def written(self) -> str:
        """As Markdown."""
        tables = (
            f"### {name}\n\n{render(table.to_dict('records'), 'md')}" for name, table in self.tables
        )
        return "\n\n".join([f"## {self.title}", "\n".join(self.sentences), *tables])


def timed(points: Mapping[str, leansim.Point]) -> Pins:
    """Latency of each point, ns. Raises what stands in the way of one."""
    found = leansim.predict([*points.values()])
    times: Pins = {}
    for name, answer in zip(points, found, strict=True):
        if isinstance(answer, Exception):
            raise answer
        times[name] = round(answer.latency_s * 1e9)
    return times


def llama(device: str = "h100_sxm", kernel: str = "flash_decoding", **fields: Any) -> leansim.Point:
    """A call of Llama-3-8B: 32 query heads over 8 KV heads of 128, bfloat16, pages of 16."""
    return leansim.point(**({"device": device, "kernel": kernel, "model": "llama_3_8b"} | fields))


def us(time_ns: float) -> str:
    """A time in microseconds."""
    return f"{time_ns / 1e3:.1f}"


def beside(claimed: float, simulated: float) -> dict[str, str]:
    """A ratio as reported and as simulated, and how far off that is."""
    return {
        "reported": f"{claimed:.2f}",
        "simulated": f"{simulated:.2f}",
        "off": f"{simulated / claimed - 1:+.0%}",
    }
