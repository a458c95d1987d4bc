"""Follows the compiled loops of SGLang's Triton decode kernels: the chains of sglang_triton.yaml.

python experiments/compiled_chains/run.py PATH/TO/decode_attention.py
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ARCHS = (80, 89, 90, 100)
HEAD_DIMS = (64, 128, 256)
GROUPED_TOKENS, PLAIN_TOKENS = 32, 64
L1, L2, DRAM = 41.0, 343.0, 650.0
ALU, MMA, SHARED, SHUFFLE, SPECIAL, BARRIER = 4.5, 24.1, 29.0, 24.0, 23.0, 28.0
MMA_EVERY = 4 / 0.629
QUEUED = 16  # clocks of shared-memory work that may wait in line
INDICES_PER_SECTOR = 4  # of 8 B in 32 B: what a miss of L1 brings

Instruction = tuple[str, str, list[str]]  # predicate, operation, operands


def source(path: Path) -> ModuleType:
    """Import the kernels' file alone: all it needs of sglang is to know that this is not AMD."""
    utils = ModuleType("sglang.srt.utils")
    utils.is_hip = lambda: False  # type: ignore[attr-defined]
    for name in ("sglang", "sglang.srt"):
        sys.modules[name] = ModuleType(name)
    sys.modules["sglang.srt.utils"] = utils
    return imported("decode_attention", path)


def imported(name: str, path: str | Path) -> ModuleType:
    """Import a file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(kernels: ModuleType, arch: int, head_dim: int, grouped: bool, fp8: bool) -> Any:
    """Compile stage 1 as SGLang calls it: two heads in a group, or one."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = kernels._fwd_grouped_kernel_stage1 if grouped else kernels._fwd_kernel_stage1
    constants: dict[str, Any] = {
        "kv_group_num": 2 if grouped else 1, "q_head_num": 16, "BLOCK_DMODEL": head_dim, "BLOCK_DPE": 0,
        "BLOCK_DV": head_dim, "BLOCK_N": GROUPED_TOKENS if grouped else PLAIN_TOKENS, "BLOCK_H": 16,
        "MIN_BLOCK_KV": 32, "logit_cap": 0.0, "xai_temperature_len": -1, "Lk": head_dim, "Lv": head_dim,
        "HAS_MLA": False, "USE_PDL": arch >= 90,
    }  # fmt: skip
    names = list(function.arg_names)
    cache = "*fp8e4nv" if fp8 else "*bf16"
    types = {
        "Q": "*bf16", "K_Buffer": cache, "V_Buffer": cache, "sm_scale_withk": "fp32",
        "kv_indptr": "*i32", "kv_indices": "*i64", "Att_Out": "*fp32", "Att_Lse": "*fp32",
        "num_kv_splits": "*i32",
    }  # fmt: skip
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if signature[name] == "i32" or signature[name].startswith("*")
    }
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    asked = ASTSource(fn=function, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": 4, "num_stages": 2}
    return compile(asked, target=GPUTarget("cuda", arch, 32), options=options)


def parsed(assembler: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions, and where each label stands."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in assembler.splitlines():
        if label := re.match(r"\s*(\.L_x?_?\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(
            r"/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]+)\s*(.*?);", line
        ):
            operands = re.split(r",(?![^\[]*\])", found[3]) if found[3] else []
            instructions.append((found[1] or "", found[2], [text.strip() for text in operands]))
    return instructions, labels


def loop_of(instructions: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    """The longest loop of a kernel: between a backward branch and its label."""
    loops = [
        (labels[goal[1]], at)
        for at, (_, operation, operands) in enumerate(instructions)
        if operation.startswith("BRA")
        and (goal := re.search(r"\((\.L_x?_?\w+)\)", " ".join(operands)))
        and labels.get(goal[1], at + 1) <= at
    ]
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return instructions[first : last + 1]


def start_clocks(instructions: list[Instruction]) -> float:
    """Clocks from the start of a CTA to the branch that asks whether it has tokens, beside its reads."""
    first = next(at for at, (_, operation, _) in enumerate(instructions) if operation.startswith("BRA"))
    warp = Warp(0.0, 0.0, (1,), 1)
    for instruction in instructions[: first + 1]:
        warp.issue(instruction)
    return max(warp.now, *warp.ready.values())


def registers(text: str, count: int) -> list[str]:
    """Names of `count` registers from the one that an operand names."""
    found = re.search(r"(?<![U\w])R(\d+)", text)
    return [f"R{int(found[1]) + more}" for more in range(count)] if found else []


def width(operation: str) -> int:
    """Registers that an instruction fills."""
    if matrices := re.match(r"(?:LD|ST)SM.*\.(\d)$", operation):
        return int(matrices[1])
    if ".128" in operation:
        return 4
    return 2 if ".64" in operation or ".WIDE" in operation or operation.startswith("CS2R") else 1


@dataclass
class Warp:
    """One of four warps in lockstep: when registers are there, and when its pipes are free."""

    l2: float
    kv: float
    index_loads: tuple[int, ...]  # of K and of V, or of both at once: each reads every index once
    tokens: int
    now: float = 0.0
    shared_free: float = 0.0
    mma_free: float = 0.0
    copied: float = 0.0
    ready: dict[str, float] = field(default_factory=dict)
    sectors: dict[int, float] = field(default_factory=dict)
    read: int = 0

    def begin_turn(self) -> None:
        """Forget which indices are there: the next tile has others."""
        self.sectors.clear()
        self.read = 0

    def through_shared(self, start: float, clocks: float) -> tuple[float, float]:
        """Start and latency of what passes the pipe of shared memory, other warps' share included."""
        start = max(start, self.shared_free - QUEUED)
        self.shared_free = max(self.shared_free, start) + clocks
        return start, max(SHARED, self.shared_free - start + SHARED - clocks)

    def index_latency(self, start: float) -> float:
        """Latency of an index: L2's for the first of a sector, then L1's or what is left of it."""
        at = self.read % sum(self.index_loads)
        self.read += 1
        for loads in self.index_loads:
            if at < loads:
                break
            at -= loads
        tokens = self.tokens // loads
        sectors = range(at * tokens // INDICES_PER_SECTOR, -(-(at + 1) * tokens // INDICES_PER_SECTOR))
        there = max(self.sectors.setdefault(sector, start + self.l2) for sector in sectors)
        return max(L1, there - start)

    def issue(self, instruction: Instruction) -> None:
        """Issue one instruction, no earlier than what it reads."""
        predicate, operation, operands = instruction
        base, text = operation.split(".")[0], " ".join(operands)
        reads = {*re.findall(r"(?<![U\w])R\d+", text), *re.findall(r"\bU?P\d\b", predicate + " " + text)}
        reads |= set(re.findall(r"\bUR\d+", text))
        if base == "HMMA":
            reads |= {*registers(operands[1], 4), *registers(operands[2], 2), *registers(operands[3], 4)}
        elif base in ("STS", "STG", "LDGSTS"):
            reads |= {name for text in operands[1:] for name in registers(text, width(operation))}
        start = max([self.now, *(self.ready.get(name, 0.0) for name in reads)])
        start, latency, fills = self._priced(base, operation, start)
        self.now = start + 1
        if base in ("STS", "STG", "LDGSTS", "BAR", "BRA") or not operands:
            return
        filled = registers(operands[1] if base == "SHFL" else operands[0], fills)
        for text in operands[:2]:
            filled += re.findall(r"^!?(U?P\d)\b", text)
        filled += re.findall(r"^(UR\d+)", operands[0])
        self.ready.update(dict.fromkeys(filled, start + latency))

    def _priced(self, base: str, operation: str, start: float) -> tuple[float, float, int]:
        """Start, latency and registers filled."""
        latency, fills = ALU, width(operation)
        if base == "HMMA":
            start = max(start, self.mma_free)
            self.mma_free, latency, fills = start + MMA_EVERY, MMA, 4
        elif base in ("LDS", "LDSM", "STS"):
            start, latency = self.through_shared(start, 4.0 * width(operation))
        elif base == "LDGSTS":
            start, _ = self.through_shared(start, 16.0)
            self.copied = max(self.copied, start + self.kv)
        elif base == "DEPBAR":
            start = max(start, self.copied)
        elif base == "LDG":
            latency = self.index_latency(start) if operation == "LDG.E.64" else self.kv
        elif base == "SHFL":
            start, _ = self.through_shared(start, 4.0)
            latency = SHUFFLE
        elif base in ("MUFU", "I2F", "F2I"):
            latency = SPECIAL
        elif base in ("LDC", "ULDC", "S2R", "S2UR"):
            latency = SHARED
        elif base == "BAR":
            start = self.now + BARRIER
        return start, latency, fills


def pipe_clocks(loop: list[Instruction]) -> int:
    """Clocks that a turn of the loop takes of the SM's pipe of loads and stores, four warps in all."""
    taken = 0
    for _, operation, _ in loop:
        base = operation.split(".")[0]
        if base in ("LDS", "LDSM", "STS", "STSM", "LDGSTS") or operation.startswith("LDG.E.128"):
            taken += 4 * width(operation)
        elif base in ("LDG", "SHFL"):
            taken += 4  # an index that the lanes share
    return taken


def clocks(loop: list[Instruction], tokens: int, grouped: bool, l2: float, kv: float) -> float:
    """Clocks of one turn of the loop, once the first is over."""
    names = [operation for _, operation, _ in loop]
    indices = names.count("LDG.E.64")
    loads: tuple[int, ...] = (indices,)
    if grouped:  # an index for each copy, those of K first
        of_k = sum(name.startswith("LDGSTS") for name in names[: names.index("LDGDEPBAR")])
        loads = (of_k, indices - of_k)
    return turn_clocks(Warp(l2, kv, loads, tokens), loop)


def turn_clocks(warp: Warp, loop: list[Instruction]) -> float:
    """Clocks of one turn of a loop, once the first are over."""
    ends = []
    for _ in range(4):
        warp.begin_turn()
        for instruction in loop:
            warp.issue(instruction)
        ends.append(warp.now)
    return ends[-1] - ends[-2]


def disassembled(kernel: Any) -> tuple[str, str]:
    """What Triton's own tools print of a compiled kernel: its instructions, and what it uses."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        assembler, usage = (
            subprocess.run([tools / name, how, file.name], capture_output=True, text=True, check=True)
            for name, how in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    return assembler.stdout, usage.stdout


def registers_and_stack(usage: str) -> tuple[str, str]:
    """Registers of a thread, and bytes of its stack, of what `disassembled` says is used."""
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert used is not None
    return used[1], used[2]


def main(path: Path) -> None:
    """Print every chain as the kernel file has it."""
    kernels = source(path)
    cases = [
        (a, d, g, f) for a in ARCHS for d in HEAD_DIMS for g in (True, False) for f in (False, True)
    ]
    for arch, head_dim, grouped, fp8 in cases:
        if fp8 and arch == 80:
            continue  # Triton has no e4m3 there
        kernel = compiled(kernels, arch, head_dim, grouped, fp8)
        assembler, usage = disassembled(kernel)
        instructions, labels = parsed(assembler)
        loop = loop_of(instructions, labels)
        tokens = GROUPED_TOKENS if grouped else PLAIN_TOKENS
        near, far, all_far = (
            clocks(loop, tokens, grouped, l2, kv) for l2, kv in ((L1, 0.0), (L2, 0.0), (L2, DRAM))
        )
        reads = (far - near) / (L2 - L1)
        registers_used, _ = registers_and_stack(usage)
        print(
            f"sm_{arch} head dim {head_dim} {'grouped' if grouped else 'plain'} "
            f"{'fp8' if fp8 else 'bfloat16'}: {{clk: {far - reads * L2:.0f}, issue_clk: {len(loop)}, "
            f"pipe_clk: {pipe_clocks(loop)}, kv_reads: {(all_far - far) / DRAM:.2f}, "
            f"index_reads: {reads:.2f}}}, "
            f"{registers_used} registers, {kernel.metadata.shared} B shared, "
            f"start {start_clocks(instructions):.0f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
