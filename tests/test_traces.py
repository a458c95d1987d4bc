"""Trace readers, sampling, and the statistics of the samples that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leansim.errors import ConfigError, UnknownNameError, WorkloadError
from leansim.specs.traces import (
    BUILTIN_FOLDER,
    MOST_PROBLEMS,
    Trace,
    builtin_traces,
    derive_sample,
    find_trace,
    read_trace,
    sample_in_flight,
)

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.97,4808,10\r\n2023,110,0"
MOONCAKE = (
    '{"timestamp": 0, "input_length": 4808, "output_length": 10, "hash_ids": [0, 1]}\n'
    '{"timestamp": 3, "input_length": 110, "output_length": 0, "hash_ids": []}\n'
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,4808,10,4818,Conversation log\n45,GPT-4,110,0,110,API log\n"
)
VIDUR = (
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n4808,10,4818,480.8\n110,0,110,inf\n"
)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.trace"
    path.write_bytes(text.encode())
    return path


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_trace(file(tmp_path, text))
    path = str(tmp_path / "some.trace")
    assert str(error.value).startswith(path)
    return str(error.value).replace(path, "")


def trace(input_len: list[int], output_len: list[int], in_flight: bool = False) -> Trace:
    return Trace("toy", "a test", np.array(input_len), np.array(output_len), in_flight)


# Reading


@pytest.mark.parametrize(
    "text", [AZURE, MOONCAKE, BURST, VIDUR], ids=["azure", "mooncake", "burst", "vidur"]
)
def test_each_layout_is_recognised_by_its_columns(tmp_path: Path, text: str) -> None:
    got = read_trace(file(tmp_path, text))
    assert got.input_len.tolist() == [4808, 110]
    assert got.output_len.tolist() == [10, 0]
    assert (got.name, got.source) == ("some", str(tmp_path / "some.trace"))
    assert (got.in_flight, len(got)) == (False, 2)
    assert not got.input_len.flags.writeable
    assert not got.output_len.flags.writeable


def test_plain_lengths_are_in_flight(tmp_path: Path) -> None:
    got = read_trace(file(tmp_path, "# a comment\n\ncontext_len\n7\n# another\n 9 \n"))
    assert got.input_len.tolist() == [7, 9]
    assert got.output_len.tolist() == [0, 0]
    assert got.in_flight


def test_column_order_byte_order_mark_and_quotes_do_not_matter(tmp_path: Path) -> None:
    text = '\ufeff"GeneratedTokens","note","ContextTokens"\n"3","a, b","5"\n'
    got = read_trace(file(tmp_path, text))
    assert (got.input_len.tolist(), got.output_len.tolist()) == ([5], [3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1:1: file: found no lines but comments; wanted a header and at least one request"),
        ("# only\n\n", ":1:1: file: found no lines but comments"),
        ("\ncontext_len\n", ":2:1: file: found a header and no rows; wanted at least one request"),
        ("context_len\n5\n-3\n", ":3:1: context_len: found -3; wanted a whole number of tokens"),
        ("context_len\n5.5\n", ":2:1: context_len: found '5.5'; wanted a whole number of tokens"),
        ("context_len\n1e3\n", ":2:1: context_len: found '1e3'; wanted a whole number of tokens"),
        ("context_len\n0\n", ":2:1: context_len: found 0; wanted at least 1 token"),
        ("context_len\n99999999999999\n", ":2:1: context_len: found 99999999999999; wanted a"),
        ("4808\n3180\n", ":1:1: columns: found '4808'; wanted one of: ContextTokens and"),
        ("[1, 2]\n", ":1:1: columns: found '[1', '2]'; wanted one of: ContextTokens and"),
        (
            "#\nTIMESTAMP,ContextTokens,GeneratdTokens\n0,1,2\n",
            ":2:1: columns: found 'GeneratdTokens' (did you mean 'GeneratedTokens'?); "
            "wanted a column 'GeneratedTokens' (Azure 2023)",
        ),
        (
            "contexttokens,generatedtokens\n1,2\n",
            "found 'contexttokens' (did you mean 'ContextTokens'?)",
        ),
        (
            "num_prefill_tokens,pd_ratio\n1,2\n",
            ":1:1: columns: found 'num_prefill_tokens', 'pd_ratio'; "
            "wanted a column 'num_decode_tokens' (Vidur)",
        ),
        ("contxt_len\n1\n", "found 'contxt_len' (did you mean 'context_len'?); wanted a column"),
        ("context_len,context_len\n1,2\n", "wanted each column once, of one layout only"),
        (
            "context_len,input_length,output_length\n1,2,3\n",
            "one layout only (Mooncake, plain lengths)",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,x\n",
            ":2:5: GeneratedTokens: found 'x'; wanted a whole number of tokens",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,,3\n",
            ":2:3: ContextTokens: found ''; wanted a whole number of tokens",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5\n0,1,200,3\n",
            ":2:1: row: found 2 fields; wanted 3, as in the header",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,1\n0,0,0\n",
            ":3:3: ContextTokens + GeneratedTokens: found 0; wanted at least 1 token",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,0\n0,7,0\n",
            ":1:1: GeneratedTokens: found 0 in every row; wanted at least one request with an",
        ),
        (
            '{"input_length": 5, "output_length": 1}\n{"input_length": 5, "outputlength": 1}\n',
            ":2:1: output_length: found no such key; wanted it in every row "
            "(did you mean 'outputlength'?)",
        ),
        (
            '{"input_length": 5, "output_length": 1.0}\n',
            ":1:21: output_length: found 1.0; wanted a whole number of tokens",
        ),
        (
            '{"input_length": true, "output_length": 1}\n',
            ":1:2: input_length: found True; wanted a whole number of tokens",
        ),
        (
            '{"input_length": 5, "output_length": null}\n',
            ":1:21: output_length: found None; wanted a whole number of tokens",
        ),
        ('{"input_length" 5}\n', ":1:17: syntax: found expecting ':' delimiter; wanted one JSON"),
        (
            '{"input_length": 5, "output_length": 1}\n\n[5, 1]\n',
            ":3:1: row: found a list; wanted a JSON object",
        ),
        (
            '{"input_len": 5, "output_length": 1}\n',
            "found 'input_len' (did you mean 'input_length'?); wanted a column 'input_length'",
        ),
    ],
)
def test_broken_files_say_where_what_and_what_was_wanted(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in error_of(tmp_path, text)


def test_all_mistakes_come_at_once_up_to_a_limit(tmp_path: Path) -> None:
    assert error_of(tmp_path, "context_len\n-1\n5\n-2\n").count("wanted") == 2
    many = error_of(tmp_path, "context_len\n" + "x\n" * 100).splitlines()
    assert len(many) == MOST_PROBLEMS + 1
    assert "found 84 more like these" in many[-1]


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file: found no such file or directory"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="file: found a folder"):
        read_trace(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"context_len\n\xff\n")
    with pytest.raises(ConfigError, match="bytes that are not UTF-8"):
        read_trace(tmp_path / "bytes.csv")


def test_an_enormous_field_is_an_error_not_a_crash(tmp_path: Path) -> None:
    message = error_of(tmp_path, "x" * 200_000 + "\n1\n")
    assert "wanted one of" in message
    assert len(message) < 1000


# Sampling


def test_a_context_is_the_input_plus_a_step_before_the_output_length() -> None:
    """One request, 100 in and 4 out: the steps see 100, 101, 102 and 103 tokens, equally often."""
    drawn = sample_in_flight(trace([100], [4]), 40_000, seed=1)
    contexts, counts = np.unique(drawn, return_counts=True)
    assert contexts.tolist() == [100, 101, 102, 103]
    assert counts == pytest.approx(np.full(4, 10_000), rel=0.05)


def test_requests_are_drawn_by_their_time_in_flight() -> None:
    """Outputs 1, 3 and 0: a quarter, three quarters, and never."""
    drawn = sample_in_flight(trace([10, 1000, 5000], [1, 3, 0]), 40_000, seed=2)
    assert (drawn == 10).mean() == pytest.approx(0.25, abs=0.01)
    assert ((drawn >= 1000) & (drawn < 1003)).mean() == pytest.approx(0.75, abs=0.01)


def test_a_zero_output_request_first_or_last_is_never_drawn() -> None:
    drawn = sample_in_flight(trace([7, 100, 9], [0, 2, 0]), 1000, seed=0)
    assert set(drawn.tolist()) == {100, 101}


def test_no_context_is_empty() -> None:
    """Nothing in, 2 out: the first step would see 0 tokens, but counts as 1."""
    assert set(sample_in_flight(trace([0], [2]), 100, seed=0).tolist()) == {1}


def test_plain_lengths_are_drawn_evenly_with_replacement() -> None:
    drawn = sample_in_flight(trace([5, 50, 500], [0, 0, 0], in_flight=True), 30_000, seed=3)
    contexts, counts = np.unique(drawn, return_counts=True)
    assert contexts.tolist() == [5, 50, 500]
    assert counts == pytest.approx(np.full(3, 10_000), rel=0.05)


def test_the_same_seed_gives_the_same_batch_and_another_does_not() -> None:
    azure = read_trace(find_trace("azure_2023_conv"))
    first = sample_in_flight(azure, 64, seed=5)
    assert first.tolist() == sample_in_flight(azure, 64, seed=5).tolist()
    assert first.tolist() != sample_in_flight(azure, 64, seed=6).tolist()
    assert first.shape == (64,)
    assert first.dtype == np.dtype(np.int64)


@pytest.mark.parametrize(("batch_size", "seed"), [(0, 0), (-1, 0), (4, -1)])
def test_impossible_batches_are_refused(batch_size: int, seed: int) -> None:
    with pytest.raises(WorkloadError, match=f"found batch_size {batch_size}, seed {seed}"):
        sample_in_flight(trace([1], [1]), batch_size, seed)


def test_a_trace_without_decode_steps_is_refused() -> None:
    with pytest.raises(WorkloadError, match="trace toy: found no decode step"):
        sample_in_flight(trace([5, 6], [0, 0]), 4, seed=0)


def test_a_derived_sample_reads_back_as_drawn(tmp_path: Path) -> None:
    raw = trace([10, 1000], [5, 50])
    text = derive_sample(raw, 20, seed=4, comments=["from a test", ""])
    assert text.startswith("# from a test\n#\ncontext_len\n")
    got = read_trace(file(tmp_path, text))
    assert got.in_flight
    assert got.input_len.tolist() == sample_in_flight(raw, 20, seed=4).tolist()


# The samples that ship

PUBLISHED = {
    # mean context in flight, median longest / mean of a batch of 32, longest context of any step
    "azure_2023_code": (2_131, 3.40, 7_437 + 1_899),
    "azure_2023_conv": (1_225, 3.08, 14_050 + 1_000),
    "mooncake_conversation": (13_096, 5.01, 126_195 + 2_000),
    "mooncake_synthetic": (7_343, 5.31, 191_378 + 893),
    "arxiv_summarization": (2_423, 1.61, 4_096),
}
"""Measured on the full public traces, 2,000 batches each, apart from this code."""


def test_every_published_trace_ships() -> None:
    assert builtin_traces() == tuple(sorted(PUBLISHED))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shipped_samples_keep_the_statistics_of_the_full_traces(name: str) -> None:
    """Within 10 %: a sample of 2,048 has few of the longest requests (mooncake_synthetic: +9 %)."""
    mean, max_over_mean, longest = PUBLISHED[name]
    shipped = read_trace(find_trace(name))
    assert shipped.in_flight
    assert len(shipped) == 2048
    assert shipped.input_len.max() <= longest
    assert shipped.input_len.mean() == pytest.approx(mean, rel=0.05)
    batches = sample_in_flight(shipped, 2000 * 32, seed=11).reshape(2000, 32)
    ragged = np.median(batches.max(axis=1) / batches.mean(axis=1))
    assert ragged == pytest.approx(max_over_mean, rel=0.10)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shipped_samples_state_source_licence_and_attribution(name: str) -> None:
    lines = find_trace(name).read_text(encoding="utf-8").splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    for word in ("derive_sample", "Source:", "commit", "Licence:", "Attribution:"):
        assert word in header
    assert f"`{name}.csv`" in (BUILTIN_FOLDER / "README.md").read_text(encoding="utf-8")


def test_traces_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_trace("mooncake_synthetic") == BUILTIN_FOLDER / "mooncake_synthetic.csv"
    path = file(tmp_path, AZURE)
    assert find_trace(path) == path
    assert find_trace(str(path)) == path


def test_unknown_traces_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown trace 'azure_conv'.*did you mean 'azure_"):
        find_trace("azure_conv")
