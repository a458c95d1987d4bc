"""Numbers that say what they are: labels, key paths, what a file takes from its base, what is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from leansim.errors import ConfigError
from leansim.points.point import point, resolve
from leansim.report.show import described
from leansim.specs import catalog
from leansim.specs.base import SOURCE_LABELS, Positive, SourcedSpec, Spec, numbers, source_key

ROOT = Path(__file__).parent.parent
KINDS = ("device", "kernel", "model", "table")
EVERYTHING = [(kind, name) for kind in KINDS for name in catalog.names(kind)]  # type: ignore[arg-type]


class Leg(Spec):
    length: Positive
    span: dict[str, Positive] = Field(default_factory=dict)
    straight: bool = True


class Animal(SourcedSpec):
    kind: str = "cat"
    weight: Positive | None = None
    legs: tuple[Leg, ...] = ()
    tails: int = 0

    @classmethod
    def unsourced(cls) -> frozenset[str]:
        return super().unsourced() | {"tails"}


LEGS = [{"length": 1.0, "span": {"a": 2.0, "b": 3.0}}, {"length": 4.0, "straight": False}]


def animal(sources: dict[str, str], **fields: object) -> Animal:
    return Animal.model_validate({"name": "tom", "legs": LEGS, "tails": 1, **fields, "sources": sources})


def made(kind: str, name: str) -> SourcedSpec:
    spec: SourcedSpec = getattr(catalog, kind)(name)
    return spec


# Paths


def test_numbers_are_leaves_behind_their_keys_without_positions() -> None:
    assert numbers({"a": [{"b": 1}, {"b": 2.5}], "c": True, "d": None, "e": "5", 7: (3,)}) == [
        (("a", "b"), 1), (("a", "b"), 2.5), (("7",), 3),
    ]  # fmt: skip


def test_the_longest_key_is_a_numbers_source() -> None:
    sources = {"legs": "assumed: x", "legs.span.a": "measured: y"}
    assert source_key(sources, ("legs", "span", "b")) == "legs"
    assert source_key(sources, ("legs", "span", "a")) == "legs.span.a"
    assert source_key(sources, ("leg",)) is None
    one = animal(sources)
    assert one.numbers_by_source() == {
        "legs": [(("legs", "length"), 1.0), (("legs", "span", "b"), 3.0), (("legs", "length"), 4.0)],
        "legs.span.a": [(("legs", "span", "a"), 2.0)],
    }
    assert one.source_counts() == {
        "datasheet": 0, "measured": 1, "counted": 0, "fitted": 0, "assumed": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ({}, "wanted a source for each number, none for: legs$"),
        ({"legs.length": "counted: in a book"}, r"none for: legs\.span\.a, legs\.span\.b$"),
        ({"legs": "counted: in a book", "leg.span": "counted: so"},
         r"not here: leg\.span \(did you mean 'legs\.span'\?\)"),
        ({"legs": "counted: in a book", "weight": "counted: so"}, "not here: weight"),
        ({"legs": "counted: in a book", "tails": "counted: structure"}, "not here: tails"),
        ({"legs": "countd: in a book"}, r"sources\.legs\n.*did you mean 'counted'"),
        ({"legs": "counted:"}, r"sources\.legs\n.*wanted '<label>: reference', label in datasheet, "),
    ],
)  # fmt: skip
def test_mistakes_in_sources_are_named(sources: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        animal(sources)
    assert re.search(complaint, str(refused.value).partition(" [type=")[0], re.MULTILINE)


def test_a_wrong_label_is_shown_where_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "devices" / "l40s.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace('num_sms: "datasheet', 'num_sms: "datashet'))
    line = path.read_text().splitlines().index('  num_sms: "datashet: NVIDIA L40S datasheet"') + 1
    with pytest.raises(ConfigError, match=rf"mine\.yaml:{line}:12: sources\.num_sms: .*'datasheet'"):
        catalog.device(str(path))


def test_an_override_takes_the_place_of_every_source_below_it() -> None:
    one = {"device": "a100_sxm_80gb", "kernel": "fa2", "context_lens": (5,), "head_dim": 128,
           "num_q_heads": 8, "num_kv_heads": 8}  # fmt: skip
    part = resolve(point(**one, overrides={"kernel.compute.mma_efficiency.sm_80": 0.5})).kernel.sources
    assert part["compute.mma_efficiency.sm_80"].startswith("assumed: overridden")
    other = "compute.mma_efficiency.sm_90"
    assert part[other] == catalog.kernel("fa2").sources[other]
    whole = resolve(
        point(**one, overrides={"kernel.compute.mma_efficiency": {"sm_80": 0.5}})
    ).kernel.sources
    assert {key for key in whole if "mma" in key} == {"compute.mma_efficiency"}


# Bases


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of measured tables of one's own, before the shipped ones."""
    monkeypatch.setenv("LEANSIM_CONFIGS", str(tmp_path))
    (tmp_path / "tables").mkdir()
    return tmp_path / "tables"


def write(tables: Path, name: str, text: str) -> None:
    (tables / f"{name}.yaml").write_text(f"name: {name}\n{text}")


def terms(name: str) -> dict[str, float]:
    return {term.name: term.seconds for term in catalog.table(name).harness}


def test_items_are_merged_by_name_and_new_ones_follow(tables: Path) -> None:
    write(
        tables,
        "mine",
        "base: h100_sxm_vllm\n"
        "harness:\n"
        "  - {name: fp8_query, seconds: 2.0e-6, sources: {seconds: 'assumed: half of it'}}\n"
        "  - {name: nap, seconds: 1.0e-6, sources: {seconds: 'assumed: short'}}\n",
    )
    old = terms("h100_sxm_vllm")
    assert terms("mine") == {**old, "fp8_query": 2e-6, "nap": 1e-6}
    assert list(terms("mine")) == [*old, "nap"]
    (mine,) = (term for term in catalog.table("mine").harness if term.name == "fp8_query")
    (theirs,) = (term for term in catalog.table("h100_sxm_vllm").harness if term.name == "fp8_query")
    assert (mine.when, mine.description) == (theirs.when, theirs.description)
    assert mine.sources == {"seconds": "assumed: half of it"}


def test_an_item_may_have_a_base_of_its_own(tables: Path) -> None:
    write(tables, "slow", "base: l40s_vllm\nharness:\n  - {name: requests, base: a100_sxm_sglang}\n")
    (term,) = (term for term in catalog.table("slow").harness if term.name == "requests")
    (origin,) = (term for term in catalog.table("h100_sxm_sglang").harness if term.name == "requests")
    assert term == origin, "which a100_sxm_sglang has from there"


def test_a_changed_base_is_read_again(tables: Path) -> None:
    nap = "harness:\n  - {name: nap, seconds: %s, sources: {seconds: 'assumed: so'}}\n"
    write(tables, "first", "base: l40s_vllm\n" + nap % "1.0e-6")
    write(tables, "second", "base: l40s_vllm\nharness:\n  - {name: nap, base: first}\n")
    assert terms("second")["nap"] == 1e-6
    write(tables, "first", "base: l40s_vllm\n" + nap % "1.25e-6")
    assert terms("second")["nap"] == 1.25e-6


def test_a_source_goes_with_the_number_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: fa2\ncompute: {mma_efficiency: {sm_80: 0.5}}\n")
    with pytest.raises(ConfigError, match="none for: compute"):
        catalog.kernel(str(path))
    path.write_text(path.read_text() + "sources: {compute.mma_efficiency: 'assumed: half'}\n")
    assert catalog.kernel(str(path)).sources["compute.mma_efficiency"] == "assumed: half"
    path.write_text(
        "name: mine\nbase: fa2\nsources: {compute.softmax_fma_per_score: 'assumed: by me'}\n"
    )
    kernel = catalog.kernel(str(path))
    assert kernel.sources["compute.softmax_fma_per_score"] == "assumed: by me"
    assert kernel.compute == catalog.kernel("fa2").compute


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("base: h100_sxm_vlm\n", r":2:7: base: found 'h100_sxm_vlm'; .* \(did you mean 'h100_sxm_vllm'"),
        ("base: l40s_vllm\nharness:\n  - {name: nap, base: l40s}\n",
         r":4:23: harness\[0\]\.base: found 'l40s'; wanted the name of another table"),
        ("base: l40s_vllm\nharness:\n  - {name: request, base: h100_sxm_sglang}\n",
         r":4:12: harness\[0\]\.name: found 'request'; .*in harness \(did you mean 'requests'"),
        ("base: l40s_vllm\nharness:\n  - {name: copies, seconds: -1, sources: {seconds: 'counted: a'}}",
         r":4:29: harness\[4\]\.seconds: found -1; wanted"),
        ("base: l40s_vllm\nharness:\n  - {name: copies, page_tokens: 1}\n", r":4:33: .*an unknown key"),
        ("base: l40s_vllm\nharness:\n  - {name: nap}\n  - {name: nap}\n", "each harness term once"),
        ("base: l40s_vllm\nsources: [1]\n", ":3:10: sources: found"),
        ("base: l40s_vllm\npage_tokens: yes\n", ":3:14: page_tokens: found 'yes'"),
    ],
)  # fmt: skip
def test_mistakes_over_a_base_are_shown_where_they_stand(
    tables: Path, text: str, complaint: str
) -> None:
    write(tables, "mine", text)
    with pytest.raises(ConfigError, match=complaint):
        catalog.table("mine")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", r"theirs\.yaml:1:1: \(top level\): found nothing; wanted a mapping"),
     ("[1]", "found list; wanted a mapping"),
     ("name: theirs\npage_tokens: 010\n", r"theirs\.yaml:2:14: page_tokens: found '010'"),
     ("name: theirs\nsources: 5\nharness: 7\n", r"mine\.yaml")],
)  # fmt: skip
@pytest.mark.parametrize("own", ["base: theirs\n", "harness: [{name: nap, base: theirs}]\n"])
def test_mistakes_in_a_base_are_shown(tables: Path, own: str, text: str, complaint: str) -> None:
    (tables / "theirs.yaml").write_text(text)
    write(tables, "mine", own)
    with pytest.raises(ConfigError, match=complaint):
        catalog.table("mine")


@pytest.mark.parametrize("text", ["base: loop\n", "harness: [{name: base, base: loop}]\n"])
def test_nothing_is_based_on_itself(tables: Path, text: str) -> None:
    write(tables, "loop", text)
    with pytest.raises(ConfigError, match="found 'loop'; wanted the name of another table"):
        catalog.table("loop")


# What is shipped


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_shipped_sources_all_answer_for_something_and_say_what(kind: str, name: str) -> None:
    spec = made(kind, name)
    for record in (spec, *spec.nested()):
        for key, found in record.numbers_by_source().items():
            text = record.sources[key]
            assert found, f"{key} of {record.name}: longer keys leave nothing to it"
            assert len(text) < 520, f"{key} of {record.name}: more than one mechanism?"
            assert "; else " not in text, f"{key} of {record.name}: two labels under one key"


def by_hand() -> dict[str, set[str]]:
    """Tables' files that numbers were chosen against by hand, and those numbers."""
    found: dict[str, set[str]] = {}
    for kind, name in EVERYTHING:
        spec = made(kind, name)
        for record in (spec, *spec.nested()):
            for key, text in record.sources.items():
                if text.startswith("fitted: by hand"):
                    files = re.findall(r"\w+/attention/\w+/[\w.]*\w", text)
                    assert files, f"{key} of {name}: chosen against which table?"
                    for file in files:
                        found.setdefault(file, set()).add(f"{record.name}.{key}")
    return found


def test_tables_that_numbers_were_chosen_against_are_named_in_the_docs() -> None:
    files = {catalog.table(name).file: name for name in catalog.names("table")}
    listed = (ROOT / "docs" / "accuracy.md").read_text().partition("chosen by hand")[2]
    for file, chosen in by_hand().items():
        assert f"`{files[file]}`" in listed, f"{chosen} were chosen against {file}"


def test_every_other_fitted_number_names_a_calibration_or_a_benchmark() -> None:
    known = ("leansim calibrate ", "gpu-benches ", "SemiAnalysis microbench", "slope of watts",
             "intercept of the power fit", "none, where calibration on ", "by hand, ",
             "to a published figure, ", "matrices of ")  # fmt: skip
    for kind, name in EVERYTHING:
        spec = made(kind, name)
        for record in (spec, *spec.nested()):
            for key, text in record.sources.items():
                if text.startswith("fitted: "):
                    assert text.removeprefix("fitted: ").startswith(known), f"{key} of {name}: {text}"


def test_most_numbers_of_compiled_kernels_are_counted() -> None:
    for name in ("fa2", "trtllm_xqa", "vllm_fa3", "sglang_triton", "flashinfer_decode"):
        counts = catalog.kernel(name).source_counts()
        assert counts["counted"] > sum(counts.values()) / 2, name
        measured = [t for t in catalog.kernel(name).sources.values() if t.startswith("measured: ")]
        assert all("leansim measure" in text for text in measured), f"{name}: who held a clock to it?"


# What is shown


def test_show_gives_each_mechanism_a_line_and_closes_with_the_counts() -> None:
    lines = described("trtllm_decode").splitlines()
    sources = catalog.kernel("trtllm_decode").sources
    shown = {line.split()[0] for line in lines if line}
    assert set(sources) <= shown
    (line,) = (line for line in lines if line.startswith("tiles.start.overhead_s "))
    assert "15 numbers, 1.78e-06 to 5.57e-06" in line
    assert "fitted: by hand" in line
    counts = catalog.kernel("trtllm_decode").source_counts()
    assert f"{counts['counted']} counted, {counts['fitted']} fitted" in lines[-1]


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_show_leaves_no_source_out(kind: str, name: str) -> None:
    spec = made(kind, name)
    lines = described(name).splitlines()
    for record, way in ((spec, ""), *((item, f"harness.{item.name}.") for item in spec.nested())):
        for key, text in record.sources.items():
            (line,) = (line for line in lines if line.startswith(f"{way}{key} "))
            assert line.endswith(text)


def test_show_takes_a_measured_table_apart_term_by_term() -> None:
    lines = described("h200_sxm_vllm").splitlines()
    (line,) = (line for line in lines if line.startswith("harness.evicted.seconds "))
    (evicted,) = (term for term in catalog.table("h100_sxm_sglang").harness if term.name == "evicted")
    assert f" {evicted.seconds:g} " in line
    assert "h100_sxm/attention/sglang/0.5.14" in line, "whose number it is"
    assert lines[-1] == "numbers: 2 counted, 3 fitted"


def test_labels() -> None:
    assert SOURCE_LABELS == ("datasheet", "measured", "counted", "fitted", "assumed")
