"""What micro-measurements and a driver say of a card, and a device file begun from them.

A card of the catalogue takes from micro-measurements what they read directly (`direct`). A card that is
not gets all they say, the driver's facts, and for the rest what the likest card of the catalogue has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leansim.errors import ConfigError, Problem
from leansim.files.csv import CsvRow, read_csv
from leansim.files.strict_yaml import Document
from leansim.files.yaml_edit import short
from leansim.specs import catalog
from leansim.specs.device import Device

# A number by its keys in a device's file, and where it is from.
Read = dict[tuple[str, ...], tuple[float, str]]
# x, us and GB/s of each point.
Curve = list[tuple[float, float, float]]
_COLUMNS = ("measurement", "x", "series", "bytes", "gb_per_s", "median_us")
# Facts that a device's file must have of its own.
_NEEDED = ("name", "arch", "num_sms", "sm_clock_hz", "dram_bytes", "l2_bytes")
# What attention kernels reach of DRAM, of what plain reads do. Measured on an H200: 0.915 of the
# datasheet's bandwidth on long contexts, and 0.944 (experiments/own_gpus).
_OF_PLAIN_READS = 0.97
_REACHED = f"{_OF_PLAIN_READS} of the highest read_bandwidth"


class Micro:
    """The rows of `leansim measure micro`: curves by measurement and series."""

    def __init__(self, file: str | Path) -> None:
        """Raises `ConfigError` for what is no such file, with the lines of cells that are no numbers."""
        self.source = str(file)
        columns, rows = read_csv(self.source)
        if missing := [name for name in _COLUMNS if name not in columns]:
            wanted = f"wanted what `leansim measure micro` writes; missing here: {', '.join(missing)}"
            found = ", ".join(columns[:8])
            raise ConfigError(self.source, [Problem("header", found, wanted, 1, 1)])
        self.curves: dict[tuple[str, str], Curve] = {}
        problems: list[Problem] = []
        for line, row in rows:
            x, took_us, rate = (
                self._number(row, name, line, problems) for name in ("x", "median_us", "gb_per_s")
            )
            curve = self.curves.setdefault((row["measurement"], row["series"]), [])
            curve.append((x, took_us, rate))
        if problems:
            raise ConfigError(self.source, problems)

    @staticmethod
    def _number(row: CsvRow, name: str, line: int, problems: list[Problem]) -> float:
        text = row[name]
        if name == "gb_per_s" and not text:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.0 < value < float("inf"):
            problems.append(Problem(name, repr(text), "wanted a number above 0", line, 1))
        return value

    def series(self, measurement: str) -> dict[str, Curve]:
        """Curves of a measurement by series: x, us and GB/s, in the order of x."""
        return {name: sorted(c) for (what, name), c in self.curves.items() if what == measurement}

    def said(self, what: str) -> str:
        """Source of a number that these rows say."""
        return f"measured: {self.source}, {what}"


def direct(micro: Micro, device: Device) -> Read:
    """What micro-measurements read directly: gaps of launches, turnover of CTAs, a flag's way, s."""
    found: Read = {}
    gaps = micro.series("launch_gap")
    for launch in ("graph", "stream"):
        if launch in gaps:
            gap_s = float(np.mean([us for _, us, _ in gaps[launch]])) * 1e-6
            found["kernel_gap_s", launch] = short(gap_s), micro.said("launch_gap")
    turnover = {per: _slope_s(curve) for per, curve in _by_ctas(micro.series("cta_turnover")).items()}
    if known := {per_sm: wave_s for per_sm, wave_s in turnover.items() if wave_s > 0}:
        few, many = min(known), max(known)
        found["cta_launch_s",] = short(known[few]), micro.said(f"cta_turnover, {few} per SM")
        interval_s = known[many] / (many * device.num_sms)
        found["cta_dispatch_interval_s",] = short(interval_s), micro.said(f"cta_turnover, {many} per SM")
    for curve in micro.series("flag_hand_over").values():
        flag_s = curve[0][1] * 1e-6 - device.fence_s - device.atomic_s
        if flag_s > 0:
            what = "flag_hand_over less fence_s and atomic_s"
            found["flag_latency_s",] = short(flag_s), micro.said(what)
    return found


def of_memory(micro: Micro, device: Device) -> Read:
    """What attention kernels reach of DRAM's bandwidth, by what plain reads do.

    Latency and the exponent of saturation are not taken: the loop of the reading kernel has a latency
    and a depth of its own (on an H200 they would be 384 ns and 2.6; kernels ask for 330 ns and 1.9).
    """
    if not (reached := _reached_bytes_per_s(micro)):
        return {}
    efficiency = min(1.0, reached / device.dram_bandwidth_bytes_per_s)
    return {("dram_efficiency",): (short(efficiency), micro.said(_REACHED))}


def _reached_bytes_per_s(micro: Micro) -> float:
    """DRAM's bandwidth for attention kernels; 0 where no reads were measured."""
    rates = [rate for curve in micro.series("read_bandwidth").values() for *_, rate in curve]
    return _OF_PLAIN_READS * max(rates, default=0.0) * 1e9


def begun(facts: Mapping[str, Any], micro: str | Path | None = None, but: Sequence[str] = ()) -> str:
    """A device file as text: facts by field of `Device`, micro-measurements, and the likest card's rest.

    Facts are what the driver says; without `dram_bandwidth_bytes_per_s` the highest rate of the
    micro-measurements over the likest card's efficiency stands for it. `but` are cards that are not
    taken for the likest. Raises `ConfigError` for facts that are missing or make no device.
    """
    if missing := [name for name in _NEEDED if name not in facts]:
        raise ConfigError("card", [Problem("facts", "none of these", f"wanted {', '.join(missing)}")])
    like = _likest(facts, but)
    taken = like.model_dump(mode="json", exclude_none=True)
    numbers = {key: value for key, value in taken.items() if key not in _NOT_TAKEN}
    assumed = f"assumed: as {like.name}"
    sources = {key: assumed for key in numbers if key not in Device.unsourced()}
    said = {key: value for key, value in facts.items() if value is not None}
    numbers |= said
    driver = f"datasheet: what the driver says of {facts.get('description', facts['name'])}"
    sources |= {key: driver for key in said if key in sources or key not in Device.unsourced()}
    read = None if micro is None else Micro(micro)
    silent = "dram_bandwidth_bytes_per_s" not in said
    if silent and read is not None and (reached := _reached_bytes_per_s(read)):
        numbers["dram_bandwidth_bytes_per_s"] = short(reached / like.dram_efficiency)
        what = f"{_REACHED}, over the dram_efficiency of {like.name}"
        sources["dram_bandwidth_bytes_per_s"] = read.said(what)
    device = _device(numbers, sources)
    for keys, (value, source) in (
        {**direct(read, device), **of_memory(read, device)} if read else {}
    ).items():
        holder = numbers
        for key in keys[:-1]:
            holder[key] = dict(holder[key])
            holder = holder[key]
        holder[keys[-1]] = value
        sources[".".join(keys)] = source
    _device(numbers, sources)
    return _text(numbers, sources)


_NOT_TAKEN = frozenset({"name", "description", "sources"})


def _likest(facts: Mapping[str, Any], but: Sequence[str]) -> Device:
    """The catalogue's device of the same or the nearest architecture, of those the nearest in SMs."""
    asked = str(facts["arch"])
    cards = [catalog.device(name) for name in catalog.names("device") if name not in but]

    def apart(card: Device) -> tuple[bool, int, int]:
        numbers = [int("".join(filter(str.isdigit, arch)) or 0) for arch in (card.arch, asked)]
        other_vendor = card.vendor != facts.get("vendor", "nvidia")
        return other_vendor, abs(numbers[0] - numbers[1]), abs(card.num_sms - int(facts["num_sms"]))

    return min(cards, key=apart)


def _device(numbers: Mapping[str, Any], sources: Mapping[str, str]) -> Device:
    return catalog.validate(Device, Document("card", {**numbers, "sources": dict(sources)}, {}))


def _text(numbers: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """YAML, names first; every value as JSON, which YAML is a superset of."""
    first = ("name", "description", "vendor", "arch")
    order = [*(key for key in first if key in numbers), *(key for key in numbers if key not in first)]
    lines = [f"{key}: {_value(numbers[key])}" for key in order]
    lines += ["", "sources:", *(f"  {key}: {json.dumps(text)}" for key, text in sources.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """JSON whose exponents YAML reads as numbers: `1.0e-09`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return json.dumps(value)


def _by_ctas(curves: Mapping[str, Curve]) -> dict[int, Curve]:
    """Curves by the CTAs on an SM that their series says: `1024 threads, 2 CTAs per SM` is 2."""
    said = {name: re.search(r"\b([1-9][0-9]{0,3}) CTAs per SM", name) for name in curves}
    return {int(match[1]): curves[name] for name, match in said.items() if match}


def _slope_s(curve: Curve) -> float:
    """Time of one wave more, between the last two of a curve, s; 0 where there are no two."""
    if len(curve) < 2 or curve[-1][0] == curve[-2][0]:
        return 0.0
    (x0, us0, _), (x1, us1, _) = curve[-2:]
    return (us1 - us0) / (x1 - x0) * 1e-6
