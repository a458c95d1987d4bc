"""Compiles the kernels for an architecture that need not be there, and says what they occupy.

Triton brings its assembler along, so a machine without a GPU can do this.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansim.errors import PairingError
from leansim.gpu import toolkit
from leansim.gpu.launching import Meta, attention_meta, combine_meta
from leansim.points.point import Resolved

_REGISTERS = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What one CTA of a compiled kernel occupies, and its PTX."""

    threads: int
    registers_per_thread: int
    smem_bytes: int
    stack_bytes: int
    ptx: str


def resources_of(resolved: Resolved, in_launch: bool) -> Resources:
    """Compile the attention kernel that a point takes, for the architecture of its device."""
    grid = resolved.grid
    meta = attention_meta(grid, resolved.kernel, resolved.device, in_launch)
    listed = grid.work is not None
    return compiled("attention", meta, resolved.workload.q_dtype, resolved.device.arch, listed)


def combine_resources(resolved: Resolved) -> Resources:
    """Compile the combine kernel that a point takes, for the architecture of its device."""
    meta, listed = combine_meta(resolved.grid, resolved.kernel), resolved.grid.work is not None
    return compiled("combine", meta, resolved.workload.q_dtype, resolved.device.arch, listed)


def compiled(name: str, meta: Meta, dtype: str, arch: str, listed: bool = False) -> Resources:
    """Compile a kernel by name, for work tiles if their rows are `listed`.

    Raises `PairingError` where it is compiled for no such architecture.
    """
    if not arch.startswith("sm_"):
        raise PairingError(f"found architecture {arch!r}; wanted one of NVIDIA's, such as sm_90")
    tools = toolkit.load(interpret=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(tools.kernels, name)
    absent = [] if listed else [one for one in function.arg_names if one in _OF_WORK_TILES]
    constants = {**meta.constants, **dict.fromkeys(absent)}
    signature, attributes = _signature(function.arg_names, constants, dtype)
    source = ASTSource(function, signature, constants, attributes)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = meta.options
    made = tools.triton.compile(source, target=target, options=options)
    registers, stack, _ = _usage(made.asm["cubin"])
    return Resources(meta.num_warps * 32, registers, made.metadata.shared, stack, made.asm["ptx"])


_OF_WORK_TILES = ("listed_rows", "states")
_POINTERS = {
    "pages": "*i32", "first_segment": "*i32", "last_segment": "*i32", "segments": "*i32",
    "merged_rows": "*i32", "listed_rows": "*i32", "states": "*i32", "flags": "*i32", "failed": "*i32",
    "partial_o": "*fp32", "partial_lse": "*fp32",
}  # fmt: skip
_DATA = ("q", "k", "v", "out")
_TYPES = {"bfloat16": "*bf16", "float16": "*fp16"}
_ALIGNED = ("most_pages", "k_page", "k_token", "k_head", "v_page", "v_token", "v_head")


def _signature(
    names: list[str], constants: Mapping[str, Any], dtype: str
) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types as at a launch: allocations, and the strides of even head dims, are multiples of 16."""
    signature, attributes = {}, {}
    for at, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        scalar = "fp32" if name == "scale_log2" else "i32"
        signature[name] = _TYPES[dtype] if name in _DATA else _POINTERS.get(name, scalar)
        if signature[name].startswith("*") or name in _ALIGNED:
            attributes[(at,)] = [["tt.divisibility", 16]]
    return signature, attributes


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and static shared memory of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _REGISTERS.search(text)
    assert found is not None, text
    registers, stack, shared = map(int, found.groups())
    return registers, stack, shared
