"""The Triton kernels: attention over the segments of a schedule, and the merge of partials.

Import through `toolkit`: Triton decides at its import whether kernels are compiled or interpreted.
Columns of `segments` and `merged_rows` are those of `worklist`, of `listed_rows` and `states` those of
`listed`; the latter are None where contexts are dense, and such kernels then know nothing of them.
"""

# mypy: ignore-errors
# Triton gives these functions their types when it compiles them, and reads no annotations of ours.

import triton
import triton.language as tl

from leansim.gpu import listed, worklist

LOG2_E = tl.constexpr(1.4426950408889634)

SEGMENT_COLUMNS = tl.constexpr(worklist.SEGMENT_COLUMNS)
(
    TILE, REQUEST, HEAD, FIRST_ROW, ROWS, KV_BEGIN, KV_END, FIRST_TILE, TILES, ORIGIN,
    SLOT, PEERS, FIRST_SLOT, CONTEXT, STATE,
) = (tl.constexpr(worklist.SEGMENT.index(name)) for name in worklist.SEGMENT)  # fmt: skip
MERGED_COLUMNS = tl.constexpr(worklist.MERGED_COLUMNS)
M_FIRST_SLOT, M_SLOTS, M_ROW, M_OUT_ROW = (
    tl.constexpr(worklist.MERGED.index(name)) for name in worklist.MERGED
)
LISTED_COLUMNS, STATE_COLUMNS = map(tl.constexpr, (listed.LISTED_COLUMNS, listed.STATE_COLUMNS))
L_OUT_ROW, L_LAST_TOKEN = (tl.constexpr(listed.LISTED.index(name)) for name in listed.LISTED)
S_SLOT, S_ROW = (tl.constexpr(listed.STATE.index(name)) for name in listed.STATE)


@triton.jit
def _above(m, top):
    """`2^(m - top)`, and 0 instead of NaN where both are -inf."""
    return tl.exp2(m - tl.where(top == -float("inf"), 0.0, top))


@triton.jit
def _wait(flags, failed, tile, peers, most_looks):
    """Wait until `peers` CTAs have published partials of a tile, and set its flag back to zero.

    One thread looks and tells the others, so all leave the loop together. Its acquire pairs with the
    release of each peer; the flag is zero again for the next launch, so none needs a memset. After
    `most_looks` it gives up and says so in `failed`: a hang must not hold the device.
    """
    looks = 0
    seen = tl.atomic_add(flags + tile, 0, sem="acquire", scope="gpu")
    while (seen < peers) & (looks < most_looks):
        seen = tl.atomic_add(flags + tile, 0, sem="acquire", scope="gpu")
        looks += 1
    if seen < peers:
        tl.atomic_max(failed, tile + 1)
    tl.atomic_xchg(flags + tile, 0, sem="relaxed", scope="gpu")


@triton.jit
def _placed(
    i, first_tile, tiles, origin, pages, kv_begin, kv_end, tokens_n,
    TILE_TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_TOKENS: tl.constexpr, BACKWARD: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """Tokens of a segment's `i`-th KV tile, which of them lie in `[kv_begin, kv_end)`, and their pages.

    Past the last tile none do, and the page table is not read.
    """
    at = first_tile + i
    if BACKWARD:
        at = first_tile + tiles - 1 - i
    n = at * TILE_TOKENS + tokens_n
    if SHIFTED:  # else the compiler knows that a tile begins at a multiple of its length
        n += origin
    there = (n >= kv_begin) & (n < kv_end)
    if BLOCK_N != TILE_TOKENS:
        there = there & (tokens_n < TILE_TOKENS)
    return n, there, tl.load(pages + n // PAGE_TOKENS, mask=there, other=0).to(tl.int64)


@triton.jit
def _store_partial(
    partial_o, partial_lse, slot, m, l, o, rows_m, dims_v, valid, written,
    VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write a normalised O and its natural lse to a slot."""
    total = tl.where(l > 0, l, 1.0)
    lse = tl.where(l > 0, m / LOG2_E + tl.log(total), -float("inf"))
    place = slot.to(tl.int64) * BLOCK_M + rows_m
    tl.store(partial_lse + place, lse, mask=valid)
    at_o = partial_o + place[:, None] * VALUE_DIM + dims_v[None, :]
    tl.store(at_o, o / total[:, None], mask=written)


@triton.jit
def attention(
    q, k, v, out, pages, first_segment, last_segment, segments, partial_o, partial_lse, flags, failed,
    scale_log2, window, query_len, num_q_heads, most_pages, most_looks,
    k_page, k_token, k_head, v_page, v_token, v_head, listed_rows,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TILE_TOKENS: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    GROUP: tl.constexpr, HEADS_PER_KV: tl.constexpr,
    WINDOWED: tl.constexpr, BACKWARD: tl.constexpr, SHIFTED: tl.constexpr,
    IN_LAUNCH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One CTA: its segments, each folded tile by tile and then written, published or merged.

    Program `p` does segments `[first_segment[p], last_segment[p])`. A segment with a slot is stored as
    a normalised O and its natural lse; one with peers first waits for theirs and adds them to its own.
    Where there are `listed_rows` a segment's rows are of these, and what it merges may be a partial too.
    """
    program = tl.program_id(0)
    rows_m, tokens_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    dims_d, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    for segment in range(tl.load(first_segment + program), tl.load(last_segment + program)):
        data = segments + segment * SEGMENT_COLUMNS
        tile, request, head = tl.load(data + TILE), tl.load(data + REQUEST), tl.load(data + HEAD)
        first_row, rows = tl.load(data + FIRST_ROW), tl.load(data + ROWS)
        kv_begin, kv_end = tl.load(data + KV_BEGIN), tl.load(data + KV_END)
        first_tile, tiles = tl.load(data + FIRST_TILE), tl.load(data + TILES)
        origin = tl.load(data + ORIGIN)
        slot, peers = tl.load(data + SLOT), tl.load(data + PEERS)
        first_slot, context = tl.load(data + FIRST_SLOT), tl.load(data + CONTEXT)

        valid = rows_m < rows
        row = first_row + rows_m
        if listed_rows is not None:
            at_row = listed_rows + row * LISTED_COLUMNS
            position = tl.load(at_row + L_LAST_TOKEN, mask=valid, other=-1)
            out_row = tl.load(at_row + L_OUT_ROW, mask=valid, other=0).to(tl.int64)
        else:
            token = row // GROUP
            position = context - query_len + token
            new_token = (request * query_len + token).to(tl.int64)
            out_row = new_token * num_q_heads + head * GROUP + row % GROUP
        q_tile = tl.load(
            q + out_row[:, None] * HEAD_DIM + dims_d[None, :],
            mask=valid[:, None] & (dims_d[None, :] < HEAD_DIM),
            other=0.0,
        )
        if WIDEN:  # the interpreter multiplies bfloat16 as whole numbers
            q_tile = q_tile.to(tl.float32)
        kv_head = (head // HEADS_PER_KV).to(tl.int64)
        my_pages = pages + request.to(tl.int64) * most_pages

        m = tl.full([BLOCK_M], -float("inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        o = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        at, there, page = _placed(
            0, first_tile, tiles, origin, my_pages, kv_begin, kv_end, tokens_n,
            TILE_TOKENS, BLOCK_N, PAGE_TOKENS, BACKWARD, SHIFTED,
        )  # fmt: skip
        for i in range(0, tiles):
            # The page table is read a tile ahead, so that Triton may load K and V ahead too.
            n, seen, mine = at, there, page
            at, there, page = _placed(
                i + 1, first_tile, tiles, origin, my_pages, kv_begin, kv_end, tokens_n,
                TILE_TOKENS, BLOCK_N, PAGE_TOKENS, BACKWARD, SHIFTED,
            )  # fmt: skip
            inside = (n % PAGE_TOKENS).to(tl.int64)
            k_tile = tl.load(
                k + kv_head * k_head + (mine * k_page + inside * k_token)[None, :] + dims_d[:, None],
                mask=seen[None, :] & (dims_d[:, None] < HEAD_DIM),
                other=0.0,
            )
            if WIDEN:
                k_tile = k_tile.to(tl.float32)
            score = tl.dot(q_tile, k_tile) * scale_log2
            visible = seen[None, :] & (n[None, :] <= position[:, None])
            if WINDOWED:
                visible = visible & (n[None, :] > position[:, None] - window)
            score = tl.where(visible, score, -float("inf"))
            top = tl.maximum(m, tl.max(score, 1))
            p = _above(score, top[:, None])
            kept = _above(m, top)
            v_tile = tl.load(
                v + kv_head * v_head + (mine * v_page + inside * v_token)[:, None] + dims_v[None, :],
                mask=seen[:, None] & (dims_v[None, :] < VALUE_DIM),
                other=0.0,
            )
            l = l * kept + tl.sum(p, 1)
            p = p.to(v_tile.dtype)
            if WIDEN:
                p, v_tile = p.to(tl.float32), v_tile.to(tl.float32)
            o = tl.dot(p, v_tile, o * kept[:, None])
            m = top

        written = valid[:, None] & (dims_v[None, :] < VALUE_DIM)
        if slot >= 0:
            _store_partial(
                partial_o, partial_lse, slot, m, l, o, rows_m, dims_v, valid, written,
                VALUE_DIM, BLOCK_M,
            )  # fmt: skip
            if IN_LAUNCH:
                tl.debug_barrier()  # all threads have stored before one of them says so
                tl.atomic_add(flags + tile, 1, sem="release", scope="gpu")
        else:
            if IN_LAUNCH:
                if peers > 0:
                    _wait(flags, failed, tile, peers, most_looks)
                    for peer in range(0, peers):
                        place = (first_slot + peer).to(tl.int64) * BLOCK_M + rows_m
                        # From L2: this SM's L1 may hold what an earlier launch left there.
                        lse = tl.load(
                            partial_lse + place, mask=valid, other=-float("inf"), cache_modifier=".cg"
                        )
                        at_o = partial_o + place[:, None] * VALUE_DIM + dims_v[None, :]
                        theirs = tl.load(at_o, mask=written, other=0.0, cache_modifier=".cg")
                        lse2 = lse * LOG2_E
                        top = tl.maximum(m, lse2)
                        kept, added = _above(m, top), _above(lse2, top)
                        l = l * kept + added
                        o = o * kept[:, None] + theirs * added[:, None]
                        m = top
            if listed_rows is not None:
                state = tl.load(data + STATE)
                if state >= 0:
                    _store_partial(
                        partial_o, partial_lse, state, m, l, o, rows_m, dims_v, valid, written,
                        VALUE_DIM, BLOCK_M,
                    )  # fmt: skip
                written = written & (rows_m[:, None] < tl.where(state < 0, rows, 0))
            total = tl.where(l > 0, l, 1.0)
            at_out = out + out_row[:, None] * VALUE_DIM + dims_v[None, :]
            tl.store(at_out, (o / total[:, None]).to(out.dtype.element_ty), mask=written)


@triton.jit
def _place(first_slot, at, some, slots, row, states, BLOCK_M: tl.constexpr):
    """Where partials `at + some` of a row are: in slots one after another, or as `states` say."""
    slot = (first_slot + at + some).to(tl.int64)
    if states is not None:
        state, there = states + slot * STATE_COLUMNS, at + some < slots
        slot = tl.load(state + S_SLOT, mask=there, other=0).to(tl.int64)
        row = tl.load(state + S_ROW, mask=there, other=0)
    return slot * BLOCK_M + row


@triton.jit
def combine(
    partial_o, partial_lse, out, merged_rows, states,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One query row: the joint lse of its partials, then their weighted sum, `BLOCK_S` at a time."""
    data = merged_rows + tl.program_id(0) * MERGED_COLUMNS
    first_slot, slots = tl.load(data + M_FIRST_SLOT), tl.load(data + M_SLOTS)
    row, out_row = tl.load(data + M_ROW), tl.load(data + M_OUT_ROW)
    some, dims_v = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_V)
    if slots > 0:
        top = -float("inf")
        total = 0.0
        for at in range(0, slots, BLOCK_S):
            place = _place(first_slot, at, some, slots, row, states, BLOCK_M)
            lse2 = tl.load(partial_lse + place, mask=at + some < slots, other=-float("inf")) * LOG2_E
            higher = tl.maximum(top, tl.max(lse2, 0))
            total = total * _above(top, higher) + tl.sum(_above(lse2, higher), 0)
            top = higher
        joint = top + tl.log2(tl.where(total > 0, total, 1.0))
        o = tl.zeros([BLOCK_V], tl.float32)
        for at in range(0, slots, BLOCK_S):
            there = at + some < slots
            place = _place(first_slot, at, some, slots, row, states, BLOCK_M)
            lse2 = tl.load(partial_lse + place, mask=there, other=-float("inf")) * LOG2_E
            theirs = tl.load(
                partial_o + place[:, None] * VALUE_DIM + dims_v[None, :],
                mask=there[:, None] & (dims_v[None, :] < VALUE_DIM),
                other=0.0,
            )
            o += tl.sum(_above(lse2, joint)[:, None] * theirs, 0)
        at_out = out + out_row.to(tl.int64) * VALUE_DIM + dims_v
        tl.store(at_out, o.to(out.dtype.element_ty), mask=dims_v < VALUE_DIM)
