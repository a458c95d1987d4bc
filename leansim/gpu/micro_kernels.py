# mypy: ignore-errors
"""Triton kernels that do one thing each: read memory, do nothing, hand a flag over.

Import through `toolkit`, as `kernels`.
"""

import triton
import triton.language as tl


@triton.jit
def read(data, sums, blocks, BLOCK: tl.constexpr):
    """Program `p` of `P` adds up blocks `p, p + P, ...` of int32 `data`; one block is in flight.

    `data` has fewer than 2^31 elements.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for block in range(program, blocks, programs):
        total += tl.load(data + block * BLOCK + lanes)
    tl.store(sums + program, tl.sum(total, 0))


@triton.jit
def nothing(mark):
    """A CTA that comes and goes; the first one leaves a mark."""
    if tl.program_id(0) == 0:
        tl.store(mark, 1)


@triton.jit
def hand_over(flags, seen, rounds, most_looks):
    """Two CTAs take turns: each waits for the other's flag and raises its own, `rounds` times.

    As a peer and its host do: a release, and looks with acquire. Flags are a cache line apart and
    zero before. `seen` counts the turns of each; a CTA that waits in vain stops.
    """
    me = tl.program_id(0)
    mine, other = flags + me * 32, flags + (1 - me) * 32
    turns = 0
    waiting = 1
    while (turns < rounds) & (waiting > 0):
        looks = 0
        if me == 1:
            there = tl.atomic_add(other, 0, sem="acquire", scope="gpu")
            while (there <= turns) & (looks < most_looks):
                there = tl.atomic_add(other, 0, sem="acquire", scope="gpu")
                looks += 1
        tl.debug_barrier()
        tl.atomic_add(mine, 1, sem="release", scope="gpu")
        if me == 0:
            there = tl.atomic_add(other, 0, sem="acquire", scope="gpu")
            while (there <= turns) & (looks < most_looks):
                there = tl.atomic_add(other, 0, sem="acquire", scope="gpu")
                looks += 1
        waiting = (looks < most_looks).to(tl.int32)
        turns += waiting
    tl.store(seen + me, turns)
