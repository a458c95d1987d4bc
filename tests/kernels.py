"""Which kernels go with which devices and workloads: shared by the tests of all of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from leansim.engine.program import Program
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.instance import instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.workload import Workload
from leansim.timing.lowering import lower

LATENT: dict[str, Any] = {"num_kv_heads": 1, "head_dim": 576, "head_dim_v": 512, "latent_kv": True}


def devices_of(kernel: str) -> list[str]:
    """Devices a kernel is built for, by the architectures in its file."""
    built = catalog.kernel(kernel).archs
    return [name for name in catalog.names("device") if catalog.device(name).arch in built]


def device_for(kernel: str, wanted: str = "h100_sxm") -> str:
    """The device wanted where the kernel is built for it, else the first that it is built for."""
    found = devices_of(kernel)
    return wanted if wanted in found else found[0]


def kernels_and_devices() -> list[tuple[str, str]]:
    """Each kernel with each device it is built for."""
    return [(kernel, device) for kernel in catalog.names("kernel") for device in devices_of(kernel)]


def thorough_beyond_one_device(pairs: list[tuple[str, str]]) -> list[Any]:
    """Pairs of a kernel and a device as parameters: of each kernel one, the others thorough."""
    few = kernels_and_a_few_devices(1)
    thorough = pytest.mark.thorough
    return [pytest.param(*pair, marks=() if pair in few else (thorough,)) for pair in pairs]


def kernels_and_a_few_devices(most: int) -> list[tuple[str, str]]:
    """Each kernel with `most` devices at most, of different architectures: those least had so far.

    All architectures have their turn, without every kernel on each.
    """
    had: Counter[str] = Counter()
    chosen = []
    for kernel in catalog.names("kernel"):
        of_arch = {catalog.device(name).arch: name for name in devices_of(kernel)}
        for arch in sorted(of_arch, key=lambda arch: (had[arch], arch))[:most]:
            had[arch] += 1
            chosen.append((kernel, of_arch[arch]))
    return chosen


def suited(workload: Workload, kernel: str) -> Workload:
    """The workload as it is, or with a latent cache where the kernel reads one."""
    return dataclasses.replace(workload, **LATENT) if catalog.kernel(kernel).latent_kv else workload


def tiled(workload: Workload, kernel: Kernel, device: Device) -> TileGrid:
    """The tiles of a workload as a kernel has them on a device."""
    return tile_grid(workload, instance_of(kernel, device, workload), device)


def lowered(schedule: Schedule, kernel: Kernel, device: Device) -> Program:
    """A schedule priced with what a kernel and a device say, though its grid be made by hand."""
    grid = schedule.grid
    instance = instance_of(kernel, device, grid.workload)
    named = dataclasses.replace(instance.shape, kernel=grid.kernel)
    return lower(schedule, dataclasses.replace(instance, shape=named), device)
