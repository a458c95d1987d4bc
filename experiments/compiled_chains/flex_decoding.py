"""Follows the loop of FlexDecoding as inductor writes it: instances and chains of flex_decoding.yaml.

TORCH_LOGS=output_code python ... 2> code.txt    # or any file of inductor's output code
python experiments/compiled_chains/flex_decoding.py CODE.py ...
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import run

WARPS = 2
TEMPLATE = re.compile(r"(triton_tem_\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.S)


class Warp(run.Warp):
    """One of two warps; KV is what is read 16 bytes at a time, lines of the mask lie in L1."""

    def through_shared(self, start: float, clocks: float) -> tuple[float, float]:
        """Start and latency, the share of two warps instead of four."""
        return super().through_shared(start, clocks * WARPS / 4)

    def _priced(self, base: str, operation: str, start: float) -> tuple[float, float, int]:
        if base == "LDG":
            return start, self.kv if ".128" in operation else run.L1, run.width(operation)
        if base == "STSM":
            start, latency = self.through_shared(start, 4.0 * run.width(operation))
            return start, latency, run.width(operation)
        return super()._priced(base, operation, start)


def compiled(name: str, text: str, arch: int) -> Any:
    """Compile the template's kernel as inductor would, without its autotuner."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    found = re.search(r"triton_meta=(\{.*\}),?\n", text)
    warps, stages = (re.search(rf"num_{what}=(\d+)", text) for what in ("warps", "stages"))
    assert found is not None
    assert warps is not None
    assert stages is not None
    meta = eval(re.sub(r"DeviceProperties\([^)]*\)", "None", found[1]))
    plain = re.sub(r"@triton_heuristics\..*?\n\)\n@triton.jit", "@triton.jit", text, flags=re.S)
    plain = plain.replace("triton_helpers.set_driver_to_gpu()", "")
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(plain)
        file.flush()
        module = run.imported(name, file.name)
    asked = ASTSource(
        fn=getattr(module, name), signature=meta["signature"], constexprs={}, attrs=meta["configs"][0]
    )
    options = {"num_warps": int(warps[1]), "num_stages": int(stages[1])}
    return compile(asked, target=GPUTarget("cuda", arch, 32), options=options)


def masked_loop(assembler: str) -> list[run.Instruction]:
    """The first long loop: blocks of which a mask is computed, as all are with one new token."""
    instructions, labels = run.parsed(assembler)
    loops = [
        (labels[goal[1]], at)
        for at, (_, operation, operands) in enumerate(instructions)
        if operation.startswith("BRA")
        and (goal := re.search(r"\((\.L_x?_?\w+)\)", " ".join(operands)))
        and labels.get(goal[1], at + 1) < at - 100
    ]
    first, last = min(loops)
    return instructions[first : last + 1]


def clocks(loop: list[run.Instruction], kv: float) -> float:
    """Clocks of one turn of the loop, once the first is over."""
    return run.turn_clocks(Warp(run.L1, kv, (1,), 1), loop)


def main(files: list[str]) -> None:
    """Print the instance of each file and architecture as the kernel file has it."""
    for path in files:
        for name, text in TEMPLATE.findall(Path(path).read_text()):
            options = {what: re.search(rf"'{what}': (\d+)", text) for what in ("BLOCK_M", "QK_HEAD_DIM")}
            sizes = " ".join(f"{what} {found[1]}" for what, found in options.items() if found)
            for arch in run.ARCHS:
                kernel = compiled(name, text, arch)
                assembler, usage = run.disassembled(kernel)
                loop = masked_loop(assembler)
                registers, stack = run.registers_and_stack(usage)
                print(
                    f"sm_{arch} {sizes}: {{clk: {clocks(loop, run.DRAM) - 2 * run.DRAM:.0f}, "
                    f"issue_clk: {len(loop) * WARPS / 4:.0f}, "
                    f"pipe_clk: {run.pipe_clocks(loop) * WARPS / 4:.0f}}}, {registers} registers, "
                    f"{stack} B of stack, {kernel.metadata.shared} B shared"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
