"""vLLM's rule for when to use cascade attention, as a policy with its regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from calls import Call, Times, device_of

from leansim.checkout.pages import Part, Row, Rows, geometric_mean, tokens

PLAIN, CASCADE = "vllm_fa2", "vllm_cascade"
DEVICES = ("a100_sxm_80gb", "h100_sxm")
HEADS = ((32, 8), (32, 32))
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
PREFIXES = (128, 256, 512, 1024, 2048, 4096, 8192, 32768)
SUFFIXES = (128, 2048)
# Of vllm/v1/attention/backends/flash_attn.py, use_cascade_attention.
LEAST_PREFIX, LEAST_REQUESTS, TILE = 256, 8, 128
WORST = 6


def uses_cascade(
    num_requests: int, prefix_len: int, num_q_heads: int, num_kv_heads: int, num_sms: int
) -> bool:
    """Whether vLLM takes cascade attention for a decode batch without window or ALiBi.

    A prefix of 256 tokens and 8 requests at least. Where heads are not grouped FlashDecoding does not
    run, and cascade is taken. Else rounds of CTAs times their tiles of 128 decide: the prefix call has a
    CTA for each query head and 128 requests, and FlashDecoding spreads all tiles over all SMs.
    """
    if prefix_len < LEAST_PREFIX or num_requests < LEAST_REQUESTS:
        return False
    group_size = num_q_heads // num_kv_heads
    if group_size == 1:
        return True
    prefix_tiles = _rounds(prefix_len, TILE)
    cascade_ctas = num_q_heads * _rounds(num_requests, TILE)
    cascade = _rounds(cascade_ctas, num_sms) * prefix_tiles
    decoding_ctas = num_requests * num_kv_heads * _rounds(group_size, TILE) * prefix_tiles
    return cascade < _rounds(decoding_ctas, num_sms)


def _rounds(work: int, at_once: int) -> int:
    return -(-work // at_once)


def picked(cell: Call) -> Call:
    """The call that vLLM makes in a cell."""
    sms = device_of(cell.device).num_sms
    takes = uses_cascade(cell.batch_size, cell.prefix_len, cell.num_q_heads, cell.num_kv_heads, sms)
    return replace(cell, kernel=CASCADE if takes else PLAIN)


def cells() -> list[Call]:
    """The plain call of each cell."""
    grid = product(DEVICES, HEADS, SUFFIXES, BATCHES, PREFIXES)
    return [Call(device, PLAIN, b, p, s, *heads) for device, heads, s, b, p in grid]


def calls() -> list[Call]:
    """Both calls of each cell, and the plain one without pages in common."""
    return [one for cell in cells() for one in (cell, cell.apart, replace(cell, kernel=CASCADE))]


def regret(times: Times, cell: Call) -> float:
    """What vLLM's choice takes over the better of the two."""
    return times[picked(cell)] / min(times[cell], times[replace(cell, kernel=CASCADE)])


def regret_apart(times: Times, cell: Call) -> float:
    """The regret if requests had no page of the prefix in common, as without a prefix cache."""
    cascade = replace(cell, kernel=CASCADE)
    took = {cell: times[cell.apart], cascade: times[cascade]}
    return took[picked(cell)] / min(took.values())


def reason(cell: Call) -> str:
    """By which part of the rule the plain call is taken."""
    if cell.prefix_len < LEAST_PREFIX:
        return "prefix below 256"
    return "fewer than 8 requests" if cell.batch_size < LEAST_REQUESTS else "rounds of tiles"


def part(times: Times) -> Part:
    """Regret by GPU, heads and suffix; and the worst cells."""
    found = cells()
    regrets = {cell: regret(times, cell) for cell in found}
    apart = {cell: regret_apart(times, cell) for cell in found}
    worst = sorted(found, key=regrets.__getitem__, reverse=True)
    wrong = [cell for cell in worst if picked(cell).kernel == CASCADE and regrets[cell] > 1.0]
    missed = [cell for cell in worst if picked(cell).kernel == PLAIN and regrets[cell] > 1.0]
    by_rounds = [cell for cell in missed if reason(cell) == "rounds of tiles"]
    taken = sum(picked(cell).kernel == CASCADE for cell in found)
    sure = [cell for cell in found if (regrets[cell] == 1.0) == (apart[cell] == 1.0)]
    sentences = (
        f"The rule on {len(found)} cells, `{CASCADE}` against `{PLAIN}`. It takes cascade in "
        f"{taken} of them. It is right in {len(found) - len(wrong) - len(missed)} and loses "
        f"{geometric_mean(regrets.values()) - 1.0:.1%} in the geometric mean: in {len(wrong)} cells "
        f"it takes cascade where the plain call is faster, at worst {_most(wrong, regrets)}, and in "
        f"{len(missed)} the plain call where cascade is, at worst {_most(missed, regrets)}. Of the "
        f"latter its two thresholds make {len(missed) - len(by_rounds)}, and its count of rounds "
        f"{len(by_rounds)}.",
        "vLLM's prefix cache keeps one copy of the prefix, so that requests of the plain call that "
        "run together read it from DRAM once (assumed). Had each request pages of its own, the rule "
        f"would lose {geometric_mean(apart.values()) - 1.0:.1%} in the mean, at worst "
        f"{max(apart.values()):.2f}x; in {len(sure)} cells the verdict is the same.",
        "Where it errs: the rule counts tiles of the prefix alone, while cascade "
        "has two launches and a merge besides, which short prefixes do not pay; and a round of its "
        "CTAs takes a tile's chain, not a tile's share of bandwidth. Without grouped heads it does "
        "not count at all.",
        "On an H100 vLLM runs FlashAttention-3 by default; this is its FlashAttention-2 there.",
    )
    lists = {
        "Cascade taken, plain faster": wrong,
        "Plain taken by a threshold, cascade faster": [one for one in missed if one not in by_rounds],
        "Plain taken by rounds of tiles, cascade faster": by_rounds,
    }
    tables = (
        ("By GPU, heads and suffix", _by_kind(found, regrets, apart)),
        *(
            (f"{caption}: worst cells", [_row(times, one) for one in some[:WORST]])
            for caption, some in lists.items()
        ),
    )
    return Part("vLLM's rule for cascade attention", sentences, tables)


def _most(some: Sequence[Call], regrets: dict[Call, float]) -> str:
    return f"{regrets[some[0]]:.2f}x" if some else "-"


def _by_kind(found: Sequence[Call], regrets: dict[Call, float], apart: dict[Call, float]) -> Rows:
    rows: Rows = []
    for device, heads, suffix in product(DEVICES, HEADS, SUFFIXES):
        mine = [
            cell
            for cell in found
            if (cell.device, (cell.num_q_heads, cell.num_kv_heads), cell.suffix_len)
            == (device, heads, suffix)
        ]
        most = max(mine, key=regrets.__getitem__)
        rows.append(
            {
                "device": device,
                "heads": "/".join(map(str, heads)),
                "suffix": tokens(suffix),
                "takes cascade": f"{sum(picked(one).kernel == CASCADE for one in mine) / len(mine):.0%}",
                "right": f"{sum(regrets[one] == 1.0 for one in mine) / len(mine):.0%}",
                "mean regret": f"{geometric_mean(regrets[one] for one in mine):.3f}x",
                "worst": f"{regrets[most]:.2f}x at {most.batch_size} x "
                f"({tokens(most.prefix_len)} + {tokens(suffix)})",
                "mean, own pages": f"{geometric_mean(apart[one] for one in mine):.3f}x",
            }
        )
    return rows


def _row(times: Times, cell: Call) -> Row:
    return {
        "device": cell.device,
        "heads": f"{cell.num_q_heads}/{cell.num_kv_heads}",
        "batch": cell.batch_size,
        "prefix": tokens(cell.prefix_len),
        "suffix": tokens(cell.suffix_len),
        "plain": f"{times[cell] / 1e3:.1f} us",
        "own pages": f"{times[cell.apart] / 1e3:.1f} us",
        "cascade": f"{times[replace(cell, kernel=CASCADE)] / 1e3:.1f} us",
        "regret": f"{regret(times, cell):.2f}x",
        "regret, own pages": f"{regret_apart(times, cell):.2f}x",
    }
