"""The ablation takes mechanisms out of the bundled sample, and finds what each earns there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from test_incidents import script

from leansim.errors import ConfigError
from leansim.files.strict_yaml import Document
from leansim.files.writing import write_between
from leansim.specs import catalog

pytest.importorskip("pandas")
DATA = Path(__file__).resolve().parent / "data" / "silicon"
FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "ablation"
RUN: ModuleType = script("ablation")
KNOWN = RUN.mechanisms()
CHOSEN = (
    "chain of pipelined loops",
    "order of tiles",
    "masks of windows everywhere",
    "harness: head dim 192",
)


@pytest.fixture(scope="module")
def rows() -> Any:
    return RUN.predicted(RUN.sampled(3, DATA))


@pytest.fixture(scope="module")
def found(rows: Any) -> Any:
    return RUN.errors(RUN.ablated([KNOWN[name] for name in CHOSEN], rows), rows)


def test_a_mechanism_is_taken_out_of_the_kernels_that_have_it(found: Any) -> None:
    kernels = found.groupby("mechanism")["kernel"].unique()
    assert list(kernels["masks of windows everywhere"]) == ["vllm_fa2"]
    chain = found[found["mechanism"] == "chain of pipelined loops"]
    assert set(chain["kernel"]) == {"trtllm_decode", "vllm_fa3"}
    assert (chain["touched"] <= chain["rows"]).all()


def test_what_a_mechanism_earns(found: Any) -> None:
    """XQA is bound by its chain; only head dim 192 has what that adds under SGLang."""
    assert found.loc[found["mechanism"] == "chain of pipelined loops", "earns"].max() > 3.0
    head_dim = found[found["mechanism"] == "harness: head dim 192"]
    assert head_dim.loc[head_dim["kind"] == "other head dim", "earns"].min() > 5.0
    assert (head_dim.loc[head_dim["kind"] == "plain", "earns"] == 0.0).all()
    assert found["with"].to_numpy() + found["earns"].to_numpy() == pytest.approx(
        found["without"].to_numpy(), abs=2e-3
    )


def test_published_errors_are_those_of_today() -> None:
    """Of one kernel on one card: `errors.csv`, whose published tables are not here."""
    published = pd.read_csv(FOLDER / "errors.csv")
    card = pd.concat(RUN.own_cards(), ignore_index=True)
    card = card[(card["table"] == "own_h100") & (card["kernel"] == "triton_lean")]
    rows = RUN.predicted(card.assign(kind="plain").head(100).reset_index(drop=True))
    two = ["chain of pipelined loops", "CTAs queue for the time of their SM"]
    found = RUN.errors(RUN.ablated([KNOWN[name] for name in two], rows), rows)
    mine = (published["table"] == "own_h100") & (published["kernel"] == "triton_lean")
    mine &= published["mechanism"].isin(two)
    assert found["mechanism"].tolist() == two
    pd.testing.assert_frame_equal(found, published[mine].reset_index(drop=True), atol=2e-3, rtol=0)


def test_the_rule(found: Any) -> None:
    verdicts = {row["mechanism"]: row["verdict"] for row in RUN.summary(list(KNOWN.values()), found)}
    assert verdicts["chain of pipelined loops"] == "earns its place"
    assert RUN.verdict(KNOWN["order of tiles"], 0.1) == "stays as a fact of the code"
    assert RUN.verdict(KNOWN["DRAM saturates gently"], 0.1) == "goes"


def test_every_mechanism_is_one_of_some_table(rows: Any) -> None:
    """Numbers exist, and rows of a measured table have them, or rows of kernels timed alone."""
    few = rows.groupby(RUN.GROUP, sort=False).head(1)
    idle = [name for name, one in KNOWN.items() if RUN.touched(one, few).empty]
    own = RUN.predicted(pd.concat(RUN.own_cards()).assign(kind="plain").groupby("kernel").head(2))
    assert [name for name in idle if RUN.touched(KNOWN[name], own).empty] == ["query in 8 bits"]


def test_a_fact_of_the_code_says_where_it_stands() -> None:
    assert all(one.source for one in KNOWN.values() if one.kind == "code")
    with pytest.raises(ValueError, match="wanted a source"):
        RUN.Mechanism(name="it", what="is so", kind="code")
    terms = {term.name for name in catalog.names("table") for term in catalog.table(name).harness}
    assert {term for one in KNOWN.values() for term in one.harness} <= terms
    document = Document("mine", {"mechanisms": [{"name": "it", "what": "is", "kind": "fact"}]}, {})
    with pytest.raises(ConfigError, match="wanted"):
        catalog.validate(RUN.Mechanisms, document)


def test_a_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- it -->\nold\n<!-- /it -->\nafter\n")
    write_between(page, "it", r"new \1")
    assert page.read_text() == "Before\n<!-- it -->\nnew \\1\n<!-- /it -->\nafter\n"
    with pytest.raises(ConfigError, match="wanted <!-- that -->"):
        write_between(page, "that", "")
