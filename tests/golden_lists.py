"""Golden vectors with a list in a field, and what several of their tests count off a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from golden import assert_agree, read

from leansim.partitioners._least_loaded import DealtSplits
from leansim.schedule.schedule import Schedule
from leansim.specs.workload import Workload

Row = dict[str, Any]
Facts = dict[str, Any]
LISTS = ("kv_lens", "chunks_per_req", "num_splits_per_req")
HEADS = ("heads", "heads_q", "heads_kv", "head_dim")
CALL = ("qo_len", "s_q", "page_size", "cuda_graph", "window_left", "causal", "blocks_per_sm")
INPUTS = {"case", "num_SMs", "batch", "kv_lens", *HEADS, *CALL}


def table(name: str, rows: int) -> list[Row]:
    """Rows of a file: a number, or a list where numbers are separated by spaces."""
    found = read(name)
    assert len(found) == rows, "a truncated file would agree too easily"
    return [{key: parsed(key, text) for key, text in row.items()} for row in found]


def parsed(key: str, text: str) -> int | list[int]:
    if key in LISTS or key.startswith("part_"):
        return [int(part) for part in text.split()]
    return int(text)


def agree(rows: list[Row], facts: Callable[[Row], Facts]) -> None:
    """Every output column of every row."""
    assert set(facts(rows[0])) == set(rows[0]) - INPUTS
    assert_agree(rows, facts)


def workload_of(row: Row, **more: Any) -> Workload:
    shape = {"num_q_heads": row["heads_q"], "num_kv_heads": row["heads_kv"], "head_dim": 128}
    return Workload(tuple(row["kv_lens"]), **(shape | more))


def busy_ctas(schedule: Schedule) -> int:
    return schedule.num_ctas - schedule.num_empty_ctas


def tokens_of_cta(schedule: Schedule) -> np.ndarray[Any, Any]:
    tokens = schedule.grid.tokens(schedule.output_tile, schedule.start, schedule.stop)
    return np.bincount(schedule.cta, weights=tokens, minlength=schedule.num_ctas)


def spread(splits: DealtSplits) -> tuple[int, int, int, int]:
    """(most, fewest) works and (most, fewest) KV tokens of any worker."""
    works, tokens = splits.works_of_worker, splits.tokens_of_worker
    return int(works.max()), int(works.min()), int(tokens.max()), int(tokens.min())
