"""The kernels compile for GPUs that are not here, take what their files say, and order stores."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from gpu_kit import needs_triton

from leansim.specs import catalog
from leansim.specs.tile_choice import per_arch

pytestmark = needs_triton
# A process compiles or interprets, so this one starts another. Windows and several tokens take most.
SCRIPT = """
import json, sys
from leansim.gpu.compiling import combine_resources, resources_of
from leansim.points.point import point, resolve
device, head_dim, listed = sys.argv[1], int(sys.argv[2]), bool(sys.argv[3])
found = []
for in_launch in (False, True):
    item = resolve(point(device=device, kernel="triton_flash_decoding", batch_size=2, context_len=1000,
                         num_q_heads=8, num_kv_heads=2, head_dim=head_dim,
                         kv_budget=512 if listed else None,
                         window=512 if in_launch and not listed else None))
    found.append(vars(resources_of(item, in_launch)))
found.append(vars(combine_resources(item)))
print(json.dumps(found))
"""


def compiled(device: str, head_dim: int, listed: bool = False) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", SCRIPT, device, str(head_dim), "listed" * listed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("device", ["a100_sxm_80gb", "h200_sxm", "b200_sxm"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_cta_takes_what_the_kernel_file_says(device: str, head_dim: int, listed: bool) -> None:
    """Work tiles too, whose rows are listed."""
    kernel, gpu = catalog.kernel("triton_fa2"), catalog.device(device)
    tile = next(tile for tile in kernel.tiles if tile.head_dim == head_dim)
    *attention, combine = compiled(device, head_dim, listed)
    for found in attention:
        assert found["threads"] == tile.threads
        assert found["registers_per_thread"] <= per_arch(tile.registers_per_thread, kernel, gpu)
        assert found["smem_bytes"] == tile.smem_bytes
        assert found["stack_bytes"] <= 32
        assert ("atom" in found["ptx"]) == (found is attention[1])  # waits only where CTAs wait
    assert kernel.combine is not None
    assert combine["threads"] == kernel.combine.threads
    assert combine["smem_bytes"] == kernel.combine.smem_bytes
    if head_dim == 128:
        assert combine["registers_per_thread"] <= kernel.combine.registers_per_thread


def test_partials_are_published_and_seen_in_order() -> None:
    """The CTA's barrier stands between a partial's last store and the release; loads pass L1 by."""
    ptx = compiled("h200_sxm", 128)[1]["ptx"]
    lines = [line.strip() for line in ptx.splitlines()]
    kinds = [
        ("store", r"st\.global"),
        ("barrier", r"bar\.sync"),
        ("release", r"(atom|red)\.global\.gpu\.release\.add"),
        ("acquire", r"(ld|atom)\.global\.(gpu\.)?acquire"),
        ("past_l1", r"ld\.global\.cg"),
    ]
    order = [name for line in lines for name, pattern in kinds if re.search(pattern, line)]
    release = order.index("release")
    assert order[release - 1] == "barrier"
    assert "store" in order[:release]
    assert order.index("acquire") < order.index("past_l1")
    assert order.count("release") == 1


def test_k_and_v_are_loaded_ahead() -> None:
    """Asynchronous copies into two stages: the page table read a tile ahead lets Triton overlap them."""
    assert compiled("h200_sxm", 128)[0]["ptx"].count("cp.async.c") >= 3 * 16


# A driver that knows a target and nothing else: enough for Triton to bind arguments and compile.
LAUNCH = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = get_current_stream = lambda self, *_: 0
    utils = None

driver.set_active(Driver())
from leansim.gpu import execution, inputs, launching, toolkit
from leansim.points.point import point, resolve

class OnTheCpu(toolkit.Toolkit):
    where = "cpu"

class Compiled(execution.Execution):
    def _compile(self):
        given, named = self._arguments(0), execution._keywords(self.attention)
        return self.tools.kernels.attention.warmup(*given, grid=(len(self.work.first),), **named)

found = toolkit.load(interpret=False)
tools = OnTheCpu(found.torch, found.triton, found.kernels, found.micro_kernels, False)
calls = (
    ("triton_flash_decoding", {}), ("triton_lean", {}), ("triton_flash_decoding", {"kv_budget": 8000}),
    ("triton_lean_cascade", {"batch_size": 2, "prefix_len": 8000}),
)
for kernel, fields in calls:
    item = resolve(point(**{"device": "h200_sxm", "kernel": kernel, "batch_size": 1, "context_len": 9000,
                            "num_q_heads": 8, "num_kv_heads": 1, "head_dim": 128, **fields}))
    drawn = inputs.draw(torch, item.workload, "cpu", 0)
    run = Compiled(tools, item.schedule, item.kernel, item.device, drawn)
    print(kernel, run.resources.metadata.shared, run.resources.metadata.maxnreg)
    if len(run.work.merged_rows):
        named = execution._keywords(launching.combine_meta(item.grid, item.kernel))
        given = (run.partial_o, run.partial_lse, run.out, run.lists["merged_rows"], run.lists["states"])
        print("combine", tools.kernels.combine.warmup(*given, grid=(1,), **named).metadata.num_warps)
data = torch.zeros(64, dtype=torch.int32)
micro = tools.micro_kernels
for warps, size in ((4, 2**13), (8, 2**14)):
    micro.read.warmup(data, data, 1000, BLOCK=size, num_warps=warps, grid=(3,))
micro.nothing.warmup(data, num_warps=32, grid=(3,))
micro.hand_over.warmup(data, data, 1000, 2**20, num_warps=4, grid=(2,))
"""


def test_triton_takes_our_arguments_as_at_a_launch() -> None:
    """All but the launch itself: what it specialises, and the options it is told."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert found == [
        "triton_flash_decoding 71680 168", "combine 1", "triton_lean 71680 168",
        "triton_flash_decoding 71680 168", "combine 1", "triton_lean_cascade 71680 168", "combine 1",
    ]  # fmt: skip
