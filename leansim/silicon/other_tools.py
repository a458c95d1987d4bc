"""Rows like those that other tools were compared on, and what those tools came to on them.

What is compared, and every number of another tool, is data: `leansim/data/other_tools`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from leansim.files.csv import read_csv
from leansim.files.strict_yaml import read
from leansim.silicon.rows import SHAPE, digest
from leansim.specs import catalog
from leansim.specs.base import Count, Seed, Spec

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent.parent / "data" / "other_tools"


class Sample(Spec):
    """Test rows of some tables, as many of each, that have one of some values in each column."""

    name: str
    description: str
    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Count
    seed: Seed
    where: dict[str, tuple[int | str, ...]]


@cache
def sample() -> Sample:
    """The rows that the tools are compared on."""
    return catalog.validate(Sample, read(FOLDER / "sample.yaml"))


def comparison_sample(validated: pd.DataFrame, rows: int | None = None) -> pd.DataFrame:
    """Rows of a validation that are like the tools', chosen by hash among those with a prediction.

    `rows` in all, by default as many as the tools were run on.
    """
    import pandas as pd

    like = sample()
    kept = validated["table"].isin(like.tables) & ~validated["fit"] & (validated["refused"] == "")
    for column, values in like.where.items():
        kept &= validated[column].isin(values)
    found = validated[kept]
    shapes = [",".join(map(str, shape)) for shape in found[["table", *SHAPE]].itertuples(index=False)]
    hashes = [digest(f"{like.seed},{shape}") for shape in shapes]
    order = pd.Series(hashes, index=found.index, dtype=object).sort_values()
    each = (rows or like.rows) // len(like.tables)
    return found.loc[order.index].groupby("table").head(each).sort_index()


def errors_of_tools() -> list[dict[str, str]]:
    """A row per tool: the size of its error in percent, by the columns of `tools.csv`."""
    return [row for _, row in read_csv(str(FOLDER / "tools.csv"))[1]]
