"""The GPU at hand: which device of the catalog it is, and what a measurement on it has to record.

Reads settings and changes none. What cannot be found out is left empty: no measurement fails for it.
"""

from __future__ import annotations

import csv
import subprocess
import time
from pathlib import Path
from typing import Any

from leansim import __version__
from leansim.errors import GpuError
from leansim.gpu.toolkit import Toolkit
from leansim.lazy import cached_property
from leansim.silicon.own import MACHINE_COLUMNS
from leansim.specs import catalog
from leansim.specs.device import Device

_QUERY = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
_STALE_S = 10.0
# Share by which a device's memory may differ from the catalog's: firmware keeps some of it.
_MEMORY_APART = 0.15


class Machine:
    """What stands beside each measurement."""

    def __init__(self, tools: Toolkit) -> None:
        """Of the libraries and the current CUDA device."""
        self.tools = tools
        self._asked: tuple[float, dict[str, str]] = (-_STALE_S, {})

    def columns(self) -> dict[str, str]:
        """Values of `MACHINE_COLUMNS`; clocks are as found a few seconds ago at most."""
        return dict.fromkeys(MACHINE_COLUMNS, "") | self._versions | self._smi()

    @cached_property
    def _versions(self) -> dict[str, str]:
        torch, triton = self.tools.torch, self.tools.triton
        gpu = "Triton's interpreter" if self.tools.interpreted else torch.cuda.get_device_name()
        return {
            "gpu": gpu,
            "cuda": str(torch.version.cuda or ""),
            "torch": str(torch.__version__),
            "triton": str(triton.__version__),
            "leansim": __version__,
            "commit": commit(),
        }

    def _smi(self) -> dict[str, str]:
        """What nvidia-smi says of the device, if it is there."""
        asked_s, values = self._asked
        if self.tools.interpreted or time.monotonic() - asked_s < _STALE_S:
            return values
        uuid = getattr(self.tools.torch.cuda.get_device_properties(), "uuid", "")
        chosen = [f"--id=GPU-{str(uuid).removeprefix('GPU-')}"] if uuid else []
        text = said(
            ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits", *chosen]
        )
        names = ("driver", "sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w")
        row = next(csv.reader(text.splitlines(), skipinitialspace=True), [])
        values = dict(zip(names, row, strict=True)) if len(row) == len(names) else {}
        self._asked = (time.monotonic(), values)
        return values


def said(command: list[str], folder: Path | None = None) -> str:
    """Standard output of a command, nothing where it fails or is not there."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit() -> str:
    """Commit of the checkout that leansim runs from, `+` after it where files have changed."""
    folder = Path(__file__).resolve().parent
    found = said(["git", "rev-parse", "--short=12", "HEAD"], folder)
    changed = found and said(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return found + ("+" if changed else "")


# What the driver says of a GPU: fields of `Device`, as torch calls them.
_FACTS = {
    "num_sms": "multi_processor_count",
    "warp_size": "warp_size",
    "max_threads_per_sm": "max_threads_per_multi_processor",
    "registers_per_sm": "regs_per_multiprocessor",
    "smem_bytes_per_sm": "shared_memory_per_multiprocessor",
    "smem_bytes_per_cta_max": "shared_memory_per_block_optin",
    "dram_bytes": "total_memory",
    "l2_bytes": "L2_cache_size",
}


def facts(torch: Any, name: str) -> dict[str, Any]:
    """What the driver says of the GPU at hand, by fields of `Device`; what it does not say is left out.

    Bandwidth is two transfers of the memory bus per clock. Raises `GpuError` where no clock is said.
    """
    properties = torch.cuda.get_device_properties()
    values = {field: getattr(properties, key, None) for field, key in _FACTS.items()}
    found: dict[str, Any] = {key: int(value) for key, value in values.items() if value}
    clock_hz = 1e3 * float(getattr(properties, "clock_rate", 0) or 0)
    if not clock_hz:
        text = said_by_smi("clocks.max.sm", properties)
        clock_hz = 1e6 * float(text) if text.replace(".", "", 1).isdigit() else 0.0
    if not clock_hz:
        raise GpuError(
            f"found no clock of {properties.name}; wanted what nvidia-smi calls clocks.max.sm"
        )
    bus, memory_khz = (
        getattr(properties, key, 0) or 0 for key in ("memory_bus_width", "memory_clock_rate")
    )
    if bus and memory_khz:
        found["dram_bandwidth_bytes_per_s"] = 2e3 * memory_khz * bus / 8
    arch = f"sm_{properties.major}{properties.minor}"
    return {"name": name, "description": properties.name, "arch": arch, "sm_clock_hz": clock_hz, **found}


def said_by_smi(field: str, properties: Any) -> str:
    """One field that nvidia-smi says of a GPU, nothing where it says none."""
    uuid = str(getattr(properties, "uuid", "")).removeprefix("GPU-")
    chosen = [f"--id=GPU-{uuid}"] if uuid else []
    return said(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", *chosen])


def recognised(torch: Any) -> str:
    """Name of the catalog's device that the GPU is: same architecture and SMs, nearest in memory.

    Raises `GpuError` where there is none.
    """
    properties = torch.cuda.get_device_properties()
    devices = [catalog.device(name) for name in catalog.names("device")]
    alike = [device for device in devices if not differences(device, properties)]
    apart = {device.name: _memory_apart(device, properties) for device in alike}
    nearest = min(apart, key=lambda name: apart[name], default="")
    if not nearest:
        raise GpuError(
            f"found {properties.name} ({properties.multi_processor_count} SMs, "
            f"{properties.total_memory / 1e9:.0f} GB); wanted a device of configs/devices like it: "
            "`leansim measure card -o NAME.yaml` begins a file for it, which --device may name"
        )
    return nearest


def _memory_apart(device: Device, properties: Any) -> float:
    """Share by which the GPU's memory is more or less than a device's."""
    return abs(float(properties.total_memory) / device.dram_bytes - 1.0)


def differences(device: Device, properties: Any) -> str:
    """What tells a device of the catalog from the GPU at hand, or nothing."""
    arch = f"sm_{properties.major}{properties.minor}"
    found = []
    if arch != device.arch:
        found.append(f"{arch}, not {device.arch}")
    if properties.multi_processor_count != device.num_sms:
        found.append(f"{properties.multi_processor_count} SMs, not {device.num_sms}")
    if _memory_apart(device, properties) > _MEMORY_APART:
        found.append(f"{properties.total_memory / 1e9:.0f} GB, not {device.dram_bytes / 1e9:.0f}")
    return " and ".join(found)
