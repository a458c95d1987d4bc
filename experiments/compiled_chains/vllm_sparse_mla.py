"""Follows vLLM's sparse MLA decode in Triton: the chain of sparse_decode/kernels/vllm_sparse_mla.yaml.

python experiments/compiled_chains/vllm_sparse_mla.py PATH/TO/sm12x_sparse_mla_attn.py
"""

from __future__ import annotations

import ast
import sys
import tempfile
from pathlib import Path
from typing import Any

import run

ARCH = 120
KERNEL = "_fused_gather_dequant_attn_kernel"
TOKENS = 32
INDEX_READS = 8  # of a warp, all of its tile's tokens; it reads them twice more, in other layouts
# As vLLM launches it for 8 query heads.
CONSTANTS: dict[str, Any] = {
    "stride_q_h": 576, "stride_q_d": 1, "stride_idx_k": 1, "stride_state_h": 1, "stride_acc_h": 512,
    "stride_acc_d": 1, "num_heads": 8, "nope_dim": 512, "rope_dim": 64, "quant_tile": 128,
    "scale_byte_off": 512, "rope_byte_off": 528, "scale": 576**-0.5, "HEAD_BLOCK": 16,
    "BLOCK_N": TOKENS, "BLOCK_NOPE": 512, "BLOCK_ROPE": 64,
}  # fmt: skip
TYPES = {
    "q_ptr": "*bf16", "cache_ptr": "*u8", "indices_ptr": "*i32", "lens_ptr": "*i32",
    "max_score_ptr": "*fp32", "denom_ptr": "*fp32", "acc_ptr": "*fp32",
}  # fmt: skip
NOT_ALIGNED = "stride_state_t"  # as many as there are heads
# m16n8k16: 4,096 FLOP at a quarter of an SM's rate (datasheets, FP32 accumulation), and until its result
# is there as in flash_attention_2.py.
FLOP_PER_CLK = {"RTX 5090": 512, "RTX PRO 6000": 1024}
MMA = 33.0


class Warp(run.Warp):
    """One of four warps: KV is what is read 16 bytes at a time, and scales byte by byte.

    The four bytes of a scale lie in one sector: three are there with the first. Indices that were read
    before lie in L1.
    """

    def __init__(self, l2: float, kv: float) -> None:
        super().__init__(l2, kv, (INDEX_READS,), TOKENS)
        self.scales: dict[tuple[str, str], float] = {}

    def begin_turn(self) -> None:
        """Forget the scales of the tile before, too."""
        super().begin_turn()
        self.scales.clear()

    def issue(self, instruction: run.Instruction) -> None:
        """Issue one instruction; a byte of a scale that is on its way already is not asked for again."""
        predicate, operation, operands = instruction
        self.address = (predicate, operands[1].partition("+")[0]) if operation == "LDG.E.U8" else None
        super().issue(instruction)

    def _priced(self, base: str, operation: str, start: float) -> tuple[float, float, int]:
        fills = run.width(operation)
        if self.address:
            there = self.scales.setdefault(self.address, start + self.kv)
            return start, max(0.0, there - start), fills
        if base == "LDG":
            if ".128" in operation:
                return start, self.kv, fills
            self.read += 1
            return start, self.l2 if self.read <= INDEX_READS else run.L1, fills
        if base == "STSM":
            return *self.through_shared(start, 4.0 * fills), fills
        return super()._priced("LDC" if base == "LDCU" else base, operation, start)


def kernel_of(path: Path) -> Any:
    """The kernel of a file, without what the rest of the file needs of vLLM."""
    text = path.read_text()
    (found,) = (at for at in ast.parse(text).body if getattr(at, "name", "") == KERNEL)
    lines = text.splitlines()[found.lineno - 1 : found.end_lineno]
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "kernel.py"
        head = ("import triton", "import triton.language as tl", "@triton.jit")
        alone.write_text("\n".join([*head, *lines]) + "\n")
        return compiled(getattr(run.imported("kernel", alone), KERNEL))


def compiled(function: Any) -> Any:
    """Compile it as vLLM does."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = list(function.arg_names)
    signature = {name: "constexpr" if name in CONSTANTS else TYPES.get(name, "i32") for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if name not in CONSTANTS and name != NOT_ALIGNED
    }
    values = {(names.index(name),): value for name, value in CONSTANTS.items()}
    asked = ASTSource(fn=function, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": 4, "num_stages": 1}
    return compile(asked, target=GPUTarget("cuda", ARCH, 32), options=options)


def start_clocks(instructions: list[run.Instruction], loop: list[run.Instruction]) -> float:
    """Clocks from the start of a CTA to its loop, beside its reads."""
    warp = Warp(0.0, 0.0)
    for instruction in instructions[: next(at for at, one in enumerate(instructions) if one is loop[0])]:
        warp.issue(instruction)
    return max(warp.now, *warp.ready.values())


def main(path: Path) -> None:
    """Print the chain for either rate of tensor cores, and what a CTA occupies."""
    kernel = kernel_of(path)
    assembler, usage = run.disassembled(kernel)
    instructions, labels = run.parsed(assembler)
    loop = run.loop_of(instructions, labels)
    registers, stack = run.registers_and_stack(usage)
    print(f"{registers} registers, {stack} B of stack, {kernel.metadata.shared} B shared")
    run.MMA = MMA
    for card, flop_per_clk in FLOP_PER_CLK.items():
        run.MMA_EVERY = 4096 / (flop_per_clk / 4)
        near, far, all_far = (
            run.turn_clocks(Warp(l2, kv), loop)
            for l2, kv in ((run.L1, 0.0), (run.L2, 0.0), (run.L2, run.DRAM))
        )
        reads = (far - near) / (run.L2 - run.L1)
        print(
            f"{card}: {{clk: {far - reads * run.L2:.0f}, issue_clk: {len(loop)}, "
            f"pipe_clk: {run.pipe_clocks(loop)}, kv_reads: {(all_far - far) / run.DRAM:.2f}, "
            f"index_reads: {reads:.2f}}}, start {start_clocks(instructions, loop):.0f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
