"""Follows the compiled decode kernels of FlashAttention-2: chains and fixed costs of fa2.yaml on sm_89.

python experiments/compiled_chains/flash_attention_2.py FOLDER/WITH/CUBINS
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import run

CLOCK_HZ, L2 = 2.49e9, 274.0
# m16n8k16: 4,096 FLOP at a quarter of an SM's 1,024 per clock (datasheet); A100's latency.
run.MMA_EVERY, run.MMA = 16.0, 33.0
TILE_TOKENS = {64: 256, 128: 128, 192: 64, 256: 64}
# Beside these reads and the first load, which the model has on its own: L2's latency and K's transfer.
READS_S, K_BYTES_PER_S = 2 * 1.10e-7, 64 * CLOCK_HZ
# Causal, window, ALiBi, even M and N, even K, softcap, split, append: one query, whole pages, one split.
INSTANCE = (
    r"_ZN5flash24flash_fwd_splitkv_kernelI23Flash_fwd_kernel_traitsILi{}ELi64ELi{}E[\w]*?bfloat16[\w]*?"
    r"EELb0ELb{}ELb0ELb0ELb1ELb0ELb0ELb0EEEvNS_16Flash_fwd_paramsE"
)


class Warp(run.Warp):
    """One whose every read of an index goes to L2."""

    def index_latency(self, start: float) -> float:  # noqa: ARG002
        """Latency of an index."""
        return self.l2


def instructions_of(assembler: str) -> tuple[list[run.Instruction], list[int | None]]:
    """Instructions, and where those that branch go."""
    found = re.findall(
        r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]+)\s*(.*?);", assembler
    )
    at = {int(address, 16): index for index, (address, *_) in enumerate(found)}
    instructions, goals = [], []
    for _, predicate, operation, text in found:
        operands = re.split(r",(?![^\[]*\])", text) if text else []
        instructions.append((predicate, operation, [part.strip() for part in operands]))
        goal = re.search(r"0x([0-9a-f]+)\s*$", text) if operation.startswith("BRA") else None
        goals.append(at.get(int(goal[1], 16)) if goal else None)
    return instructions, goals


def one_tile(instructions: list[run.Instruction], goals: list[int | None], per_tile: int) -> float:
    """Clocks of a CTA with one KV tile: its start, the first copy of the loop's body, and its end.

    A branch before the first tile that jumps over an end of the program is taken: there are tokens.
    """
    tensor = [at for at, (_, operation, _) in enumerate(instructions) if operation.startswith("HMMA")]
    warp, at = Warp(L2, L2, 1, 1), 0
    while True:
        predicate, operation, _ = instructions[at]
        warp.issue(instructions[at])
        goal = goals[at]
        if operation == "EXIT" and not predicate:
            return warp.now
        skipped = instructions[at + 1 : goal] if goal is not None and at < goal <= tensor[0] else []
        if any(operation == "EXIT" and not predicate for predicate, operation, _ in skipped):
            assert goal is not None
            at = goal
        else:
            at = tensor[-1] + 1 if at == tensor[per_tile - 1] else at + 1


def loop_clocks(instructions: list[run.Instruction], goals: list[int | None], per_tile: int) -> float:
    """Clocks of one turn of the loop over KV tiles, once the first are over."""
    for last, goal in enumerate(goals):
        if goal is None or goal > last:
            continue
        loop = instructions[goal : last + 1]
        if sum(operation.startswith("HMMA") for _, operation, _ in loop) == per_tile:
            return run.turn_clocks(Warp(L2, L2, 1, 1), loop)
    raise SystemExit("found no loop over KV tiles")


def main(folder: Path) -> None:
    """Print the costs of every instance."""
    for cubin in sorted(folder.glob("*.cubin")):
        names = cubin.read_bytes().decode("latin-1")
        for head_dim, tokens in TILE_TOKENS.items():
            for window in (0, 1):
                name = re.search(INSTANCE.format(head_dim, tokens, window), names)
                if name is None:
                    continue
                command = ["cuobjdump", "-sass", "-fun", name[0], cubin]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                instructions, goals = instructions_of(printed)
                per_tile = tokens * head_dim // 64  # of one warp, 16 rows by 8 columns by 16
                chain_s = loop_clocks(instructions, goals, per_tile) / CLOCK_HZ
                alone_s = one_tile(instructions, goals, per_tile) / CLOCK_HZ
                k_s = tokens * head_dim * 2 / K_BYTES_PER_S
                kind = "window" if window else "plain"
                print(
                    f"head dim {head_dim} {kind}: tile_chain_s {chain_s:.3g}, "
                    f"segment_overhead_s {alone_s - chain_s - READS_S - k_s:.3g}, one tile {alone_s:.3g}"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
