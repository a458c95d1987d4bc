"""What a tile loop is given, a full KV tile in parts, and what it gives: the tile's price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from leansim.arrays import Floats
from leansim.timing.memory import Reads


@dataclass(frozen=True)
class TileWork:
    """A full KV tile in parts: its bytes, what computing takes by kind, s, and how loads come.

        transfer = (K bytes + V bytes) / load rate,    compute = max(softmax, qk + shown + pv) + stall

    A row in shared memory has `load_bytes_per_s` of the call's own bytes, padding being written with
    them. `page_lines` cache lines of the page table say where the tile's pages are. Where single tokens
    are gathered, a load waits `lookup_s` for the lines of the list that name them.
    """

    tokens: int
    k_bytes: int
    v_bytes: int
    page_lines: float
    reads: Reads
    clk_s: float
    sm_bytes_per_s: float
    load_bytes_per_s: float
    qk_s: float
    pv_s: float
    softmax_s: float
    compute_s: float
    stall_s: float
    first_stall_s: float
    lookup_s: float = 0.0

    @property
    def tile_bytes(self) -> int:
        """K and V, or K alone of a latent cache."""
        return self.k_bytes + self.v_bytes

    @property
    def transfer_s(self) -> float:
        """The tile at the pace of an SM's loads, s."""
        return self.tile_bytes / self.load_bytes_per_s


@dataclass(frozen=True)
class TileCost:
    """One full KV tile on one CTA that has its SM to itself: n tiles take `n * tile_s + fill_s`.

    `tile_s` is the time per tile in a long segment; of a tile with masked tokens, reading takes so much
    less of `read_s`. A segment works on its first tile when `first_bytes` of its KV are there, of
    `ahead` times as much that it asks for at once, and when its last load is there `last_s` of its last
    tiles are left to do. Its SM has `sm_s` for nothing else, of which computing is `compute_s`. What it
    has in flight would bring `offered_bytes_per_s` from an unloaded memory (Little's law). `busy_s` is
    how long a tile keeps units of the SM for which CTAs queue, such as its schedulers. `tiles_at_once`
    are computed together, masked ones too.
    """

    tile_s: float
    sm_s: float
    compute_s: float
    offered_bytes_per_s: float
    first_bytes: int = 0
    ahead: int = 1
    last_s: float = 0.0
    read_s: float = 0.0
    busy_s: tuple[float, ...] = ()
    tiles_at_once: int = 1


@dataclass(frozen=True, kw_only=True)
class Paced:
    """A loop whose CTAs have a pace of their own: what a tile takes however fast memory and SM are.

    A CTA takes `chain_s` from one tile to the next, as what it does with one depends on itself. Its SM
    is kept busy for `busy_s` of that, for which CTAs that share the SM queue (`prices.queueing_s`).
    Source: measured on kernels timed alone, or counted in their machine code.
    """

    chain_s: float = 0.0
    busy_s: float = 0.0

    def paced(
        self,
        work: TileWork,
        tile_s: float,
        offered_bytes_per_s: float,
        first_bytes: int,
        ahead: int = 1,
        last_s: float = 0.0,
    ) -> TileCost:
        """The price of a tile that would take `tile_s` by its loads and by what is computed."""
        return TileCost(
            tile_s=max(tile_s, self.chain_s),
            sm_s=max(work.compute_s, work.transfer_s, self.busy_s),
            compute_s=work.compute_s,
            offered_bytes_per_s=offered_bytes_per_s,
            first_bytes=first_bytes,
            ahead=ahead,
            last_s=last_s,
            busy_s=(self.busy_s,) if self.busy_s else (),
        )


class TileLoop(Protocol):
    """How a kernel goes from KV tile to KV tile. A frozen dataclass; its fields are its numbers."""

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile."""
        ...  # pragma: no cover

    def fill_s(self, work: TileWork, loaded: Floats) -> Floats:
        """What a segment takes beyond its tiles and its first bytes, s.

        Of its first tile `loaded` is not masked: the more, the longer or the shorter throughout. Below 0
        where that tile is cheaper than the others.
        """
        ...  # pragma: no cover
