"""Calls with a shared prefix: what is asked, what is pinned, and how long each takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import leansim
from leansim.points.point import Point
from leansim.points.simulate import simulate_each
from leansim.specs import catalog
from leansim.specs.device import Device

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Call:
    """A batch whose requests share `prefix_len` tokens and have `suffix_len` each alone; head dim 128.

    Where each request reads its context for itself, they have the pages of the prefix in common.

    Device and kernel by name: shipped ones, or those described in this folder.
    """

    device: str
    kernel: str
    batch_size: int
    prefix_len: int
    suffix_len: int
    num_q_heads: int
    num_kv_heads: int
    cache: str = "cold"
    dtype: str = "bfloat16"

    @property
    def point(self) -> Point:
        """The call as a point."""
        return leansim.point(
            device=_file(HERE, self.device), kernel=_file(HERE / "kernels", self.kernel),
            batch_size=self.batch_size, context_len=self.prefix_len + self.suffix_len,
            prefix_len=self.prefix_len or None, num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads, head_dim=128, q_dtype=self.dtype, kv_dtype=self.dtype,
            cache=self.cache,
        )  # type: ignore[arg-type]  # fmt: skip

    @property
    def apart(self) -> Call:
        """The same contexts, no page of which two requests have in common."""
        return replace(self, prefix_len=0, suffix_len=self.prefix_len + self.suffix_len)

    @property
    def spared_bytes(self) -> int:
        """KV that need not be read where what is shared is read once."""
        return (self.batch_size - 1) * self.prefix_len * self.num_kv_heads * 128 * 2 * 2


def _file(folder: Path, name: str) -> str:
    """The file of this name in a folder; the name itself where there is none."""
    path = folder / f"{name}.yaml"
    return str(path) if path.is_file() else name


def device_of(name: str) -> Device:
    """A device, shipped or of this folder."""
    return catalog.device(_file(HERE, name))


Times = Mapping[Call, int]  # latencies, ns


def times_of(calls: Iterable[Call]) -> dict[Call, int]:
    """Simulate calls, each once: latencies in ns. Raises what stood in the way of one."""
    distinct = list(dict.fromkeys(calls))
    found = {}
    for call, simulated in zip(distinct, simulate_each(call.point for call in distinct), strict=True):
        if isinstance(simulated, Exception):
            raise simulated
        found[call] = round(simulated.result.latency_s * 1e9)
    return found


def pins(times: Times) -> list[dict[str, Any]]:
    """What is pinned: each call and its time."""
    return [{**asdict(call), "time_ns": time} for call, time in times.items()]


def call_of(row: Mapping[str, str]) -> Call:
    """The call of a pinned row."""
    texts = {name: row[name] for name in ("device", "kernel", "cache", "dtype")}
    numbers = {name: int(row[name]) for name in row if name not in (*texts, "time_ns")}
    return Call(**texts, **numbers)
