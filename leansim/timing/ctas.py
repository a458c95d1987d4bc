"""What CTAs cost beside their segments: to begin, to fetch work from a queue, to have none."""

from __future__ import annotations

import numpy as np

from leansim.arrays import BoolArray, IntArray, Ints
from leansim.engine.program import MOST_PS, out_of_range, picoseconds, rounded_ps
from leansim.schedule.schedule import Schedule, changes
from leansim.specs.device import Device
from leansim.specs.instance import Instance, NoCombine
from leansim.timing import memory
from leansim.timing.prices import prologue_s


def arrival_ps(schedule: Schedule, instance: Instance, device: Device) -> IntArray | int:
    """How long each CTA takes to begin, ps: a launch, or, for those fetched from a queue, finding them.

        launch + overhead                                  of a grid, and of a queue's first wave
        atomic + looks * scan_s * (S_i - S_(i - slots))    of item i of a queue, S_i = requests // q

    `q` is `scan_requests`, `requests` those begun before item i. An item is found by an atomic, and a
    walk over the requests between it and the last one of the same slot (about `slots` items back), `q`
    at a time. CTAs without KV tiles have found that out by then. Source: flash-attention
    hopper/tile_scheduler.hpp.
    """
    idle_ps = picoseconds(_empty_s(schedule, instance, device)) if schedule.num_empty_ctas else 0
    launched_ps = picoseconds(device.cta_launch_s + instance.ctas.overhead_s)
    if not idle_ps and schedule.dispatch == "grid":
        return launched_ps
    arrival = np.full(schedule.num_ctas, launched_ps)
    if idle_ps:
        arrival[_is_empty(schedule)] += idle_ps
    if schedule.dispatch == "queue":
        slots = schedule.grid.slots
        arrival[slots:] = picoseconds(device.atomic_s)
        begins = changes(schedule.grid.request[schedule.output_tile[changes(schedule.cta)]])
        together = instance.ctas.scan_requests
        if np.count_nonzero(begins) > together and len(begins) == schedule.num_ctas:
            scanned = (np.cumsum(begins) - 1) // together
            scanned[slots:] -= scanned[:-slots].copy()
            # A kernel built for splits looks up how many each request has as well.
            looks = 2 if schedule.combine == "kernel" else 1
            scan_ps = looks * picoseconds(instance.ctas.scan_s)
            if int(scanned.max()) * scan_ps >= MOST_PS:
                raise out_of_range()
            arrival += scanned * scan_ps
    return arrival


def _is_empty(schedule: Schedule) -> BoolArray:
    """Which CTAs have no KV tiles."""
    return np.equal(np.diff(schedule.segments_of_cta), 0)


def _empty_s(schedule: Schedule, instance: Instance, device: Device) -> float:
    """What a CTA without KV tiles does beside coming and going, s."""
    ctas = instance.ctas
    if not ctas.empty_prologues:
        return ctas.empty_s
    alike_s = float(prologue_s(schedule.grid, instance, device, 0.0))
    return ctas.empty_s + ctas.empty_prologues * alike_s


def empty_cta_bytes(schedule: Schedule, instance: Instance) -> IntArray | None:
    """What a CTA without KV tiles writes: a zero partial where a combine kernel will read it."""
    writes = schedule.combine == "kernel" and instance.ctas.empty in ("write", "prepare")
    if not (writes and schedule.num_empty_ctas):
        return None
    row_bytes = memory.partial_row_bytes(schedule.grid.workload, instance.partial_dtype)
    written: IntArray = _is_empty(schedule) * (int(schedule.grid.rows.max()) * row_bytes)
    return written


def idle_partials(schedule: Schedule, instance: Instance) -> IntArray | None:
    """Partials of each output tile by CTAs without KV tiles, `[output tiles]`; None for none.

    Those that prepare all the same leave one for the last CTA, which does not know them from others
    (TensorRT-LLM mha.cu); a grid launches as many CTAs for every tile.
    """
    prepares = instance.ctas.empty == "prepare" and isinstance(instance.combine, NoCombine)
    if not (prepares and schedule.num_empty_ctas):
        return None
    return schedule.num_ctas // schedule.grid.num_output_tiles - schedule.segments_of_tile


def store_ps(size: Ints, device: Device) -> Ints:
    """Time to issue stores: their bytes at the SM's rate. Nobody waits for them to land."""
    seconds = size / device.sm_load_bytes_per_s
    return picoseconds(seconds) if isinstance(seconds, float) else rounded_ps(seconds)
