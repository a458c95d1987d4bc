"""Which query rows attend to which KV together: what a call is made of where contexts are not dense.

A row may be served by several work items, as by a shared prefix and what follows it; partials of all
of them merge to its output. To a partitioner each item is a request of its own, so it sees one line of
work tiles, an item and a KV head each, and need not know what they are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from leansim.arrays import BoolArray, IntArray
from leansim.errors import ScheduleError
from leansim.lazy import cached_property
from leansim.specs.workload import Workload

Level = Literal["all", "prefix", "suffix"]


@dataclass(frozen=True, eq=False)
class Work:
    """Work items of a workload, `[items]` each, as a kernel tiles it.

    Item `i` attends to KV of request `source[i]`, of its head `head[i]` or of every head (-1): of the
    tokens `[begin[i], end[i])` those that the workload's mask keeps, `lens[i]` many. Its rows are
    `row[row_border[i] : row_border[i + 1]]`, row `r` being row `r % rows_per_head` of request
    `r // rows_per_head`. The rows of a request and a head are token by token where query heads are
    `packed`, which then has `rows_per_head` of them, else those of one query head.
    Kernels that launch once for what is shared and once more for the rest have a part of the items in
    each launch, its `level`; `shared` then says which have rows that others serve as well.
    Raises `ScheduleError` where the items of a row do not cover what it attends to once.
    """

    whole: Workload
    packed: bool
    source: IntArray
    head: IntArray
    begin: IntArray
    end: IntArray
    lens: IntArray
    row_border: IntArray
    row: IntArray
    level: Level = "all"
    shared: BoolArray | None = None

    def __post_init__(self) -> None:
        if self.is_part:
            return  # the whole was looked at
        if problem := next(self._cover_problems(), ""):
            raise ScheduleError(f"work items: {problem}")

    @classmethod
    def of(cls, workload: Workload, tile_rows: int, packed: bool, level: Level = "all") -> Work:
        """Items of no more rows than a tile has: of each prefix, then of what each request has alone.

        Where heads keep different numbers of tokens each has items of its own. Of a `level` those items
        only, of prefixes or of the rest.
        """
        items = [*_items(workload, tile_rows, packed)]
        whole = cls(workload, packed, *_columns(items))
        if level == "all":
            return whole
        ends = {(one.begin, one.end, one.requests[0]) for one in workload.prefixes}
        of_prefix = [(item[2], item[3], item[0]) in ends for item in items]
        chosen = np.flatnonzero(np.equal(of_prefix, level == "prefix"))
        mine = _columns([items[i] for i in chosen.tolist()])
        return cls(workload, packed, *mine, level, whole.is_shared[chosen])

    @property
    def is_part(self) -> bool:
        """Whether other items of the workload are in another launch."""
        return self.level != "all"

    @property
    def rows_per_head(self) -> int:
        """Query rows of a request and a head."""
        return self.whole.query_len * (self.whole.group_size if self.packed else 1)

    @property
    def rows(self) -> IntArray:
        """Rows of each item."""
        return np.diff(self.row_border)

    @cached_property
    def item_of_row(self) -> IntArray:
        """Item of each entry of `row`."""
        return np.repeat(np.arange(len(self.source)), self.rows)

    def rows_of(self, item: int) -> IntArray:
        """Rows of an item."""
        return self.row[self.row_border[item] : self.row_border[item + 1]]

    @property
    def by_head(self) -> bool:
        """Whether each item is of one KV head."""
        return bool(self.head[0] >= 0)

    @cached_property
    def call(self) -> Workload:
        """The call as a kernel sees it: each item a request with one new token.

        It is told the longest item, or what the workload says it is told. What lies together of a list
        is a page to it.
        """
        load = self.whole
        shape = {"num_q_heads": load.group_size, "num_kv_heads": 1} if self.by_head else {}
        run_tokens = load.page_tokens if load.mask is None else load.mask.run_tokens
        return replace(
            load,
            context_lens=tuple(self.lens.tolist()),
            query_len=1,
            reads=None,
            page_tokens=min(load.page_tokens, run_tokens),
            **shape,  # type: ignore[arg-type]
        )

    @cached_property
    def is_shared(self) -> BoolArray:
        """Which items have rows that other items serve as well."""
        if self.shared is not None:
            return self.shared
        cell = self._cell_of_row
        several: BoolArray = np.bincount(cell)[cell] > 1
        shared: BoolArray = np.logical_or.reduceat(several, self.row_border[:-1])
        return shared

    def states_of_rows(self, states: IntArray) -> IntArray:
        """Partials that merge to each row of the output, of as many as each work tile leaves.

        `states` `[items, heads]`; `[requests * heads * rows_per_head]`, a request's rows together.
        """
        load, item = self.whole, self.item_of_row
        heads = load.num_kv_heads if self.packed else load.num_q_heads
        first = np.maximum(self.head, 0) * states.shape[1]
        head = first[item, None] + np.arange(states.shape[1])
        left = np.zeros((load.batch_size * self.rows_per_head, heads), dtype=np.int64)
        np.add.at(left, (self.row[:, None], head), states[item])
        by_request = left.reshape(load.batch_size, self.rows_per_head, heads)
        of_rows: IntArray = by_request.transpose(0, 2, 1).ravel()
        return of_rows

    def items_of(self, request: int) -> IntArray:
        """Items that serve rows of a request."""
        return np.unique(self.item_of_row[self.row // self.rows_per_head == request])

    @cached_property
    def distinct_share(self) -> float:
        """Share of the KV that items attend to that no item before them did, 0 to 1."""
        if len(self.whole.query_blocks) > 1:
            return float(self.whole.kept_lens.sum() / self.lens.sum())
        spans = np.stack([self.source, self.head, self.begin, self.end])
        _, first = np.unique(spans, axis=1, return_index=True)
        return float(self.lens[first].sum() / self.lens.sum())

    def kept(self, item: int, head: int) -> IntArray:
        """The tokens of the source's context that an item attends to, for a KV head; they rise."""
        if self.whole.mask is None:
            return np.arange(self.begin[item], self.end[item])
        place = int(self.rows_of(item)[0]) % self.rows_per_head
        token = np.array(place // (self.whole.group_size if self.packed else 1))
        return self.whole.kept(int(self.source[item]), head, int(self.whole.block_of(token)))

    @cached_property
    def _cell_of_row(self) -> IntArray:
        """A number for each row and head, the same for items that serve the same."""
        if not self.by_head:
            return self.row
        return self.row * self.whole.num_kv_heads + self.head[self.item_of_row]

    def _cover_problems(self) -> Iterator[str]:
        """What of a row's context its items cover not at all, or twice."""
        if len(self.lens) == 0 or self.lens.min() < 1:
            yield "an item without tokens"
            return
        cell, item = self._cell_of_row, self.item_of_row
        order = np.lexsort((self.begin[item], cell))
        cell, row, item = cell[order], self.row[order], item[order]
        opens = np.r_[True, cell[1:] != cell[:-1]]
        expected = np.r_[0, self.end[item][:-1]]
        expected[opens] = 0
        if (wrong := np.flatnonzero(self.begin[item] != expected)).size:
            at = int(wrong[0])
            what = "leave a gap before" if self.begin[item][at] > expected[at] else "overlap at"
            yield f"those of row {row[at]} {what} token {self.begin[item][at]}"
        closes = np.r_[opens[1:], True]
        wanted = self._ends_of_rows(row[closes])
        if (wrong := np.flatnonzero(self.end[item][closes] < wanted)).size:
            at = int(wrong[0])
            found = self.end[item][closes][at]
            yield f"those of row {row[closes][at]} end at token {found}, wanted {wanted[at]}"
        if self.whole.mask is None and len(np.unique(cell)) < self.whole.batch_size * self.rows_per_head:
            yield "a row that none serves"

    def _ends_of_rows(self, row: IntArray) -> IntArray:
        """The token after the last that each row attends to."""
        request, place = np.divmod(row, self.rows_per_head)
        group = self.whole.group_size if self.packed else 1
        ends: IntArray = self.whole.lens[request] - (self.whole.query_len - 1 - place // group)
        return ends


_Item = tuple[int, int, int, int, int, IntArray]  # source, head, begin, end, tokens, rows


_Columns = tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray, IntArray]


def _columns(items: list[_Item]) -> _Columns:
    numbers = np.array([item[:5] for item in items], dtype=np.int64).reshape(-1, 5).T
    source, head, begin, end, tokens = numbers
    rows = [item[5] for item in items]
    border = np.cumsum([0, *map(len, rows)])
    return source, head, begin, end, tokens, border, np.concatenate(rows) if rows else border[:0]


def _items(load: Workload, tile_rows: int, packed: bool) -> Iterator[_Item]:
    """Items of each prefix, then of what each request has alone."""
    group = load.group_size if packed else 1
    per_head = load.query_len * group
    own_begin = np.zeros(load.batch_size, dtype=np.int64)
    for one in load.prefixes:
        members = np.array(one.requests)
        own_begin[members] = np.maximum(own_begin[members], one.end)
        rows = (members[:, None] * per_head + np.arange(per_head)).ravel()
        for at in range(0, len(rows), tile_rows):
            some = rows[at : at + tile_rows]
            yield one.requests[0], -1, one.begin, one.end, one.end - one.begin, some
    lens = load.block_lens
    heads = range(-1, 0) if lens.shape[1] == 1 else range(lens.shape[1])
    for request, begin in enumerate(own_begin.tolist()):
        for block, tokens in enumerate(load.query_blocks):
            for rows in _cut(tokens.start * group, tokens.stop * group, tile_rows):
                # A list is read whole, and what of it a row must not see is masked.
                newest = int(rows[-1]) // group if load.mask is None else tokens[-1]
                end = load.context_lens[request] - (load.query_len - 1 - newest)
                for head in heads:
                    kept = int(lens[request, max(head, 0), block])
                    if load.mask is None:
                        kept = end - begin
                    if kept:
                        yield request, head, begin, end, kept, request * per_head + rows


def _cut(begin: int, end: int, tile_rows: int) -> Iterator[IntArray]:
    """Rows in runs of no more than a tile has."""
    for at in range(begin, end, tile_rows):
        yield np.arange(at, min(at + tile_rows, end))
