"""Calls that a kernel has no instance for are refused, or what runs instead is named."""

from __future__ import annotations

from typing import Any

import pytest

from leansim.errors import ConfigError, PairingError, PartitionerError
from leansim.files.strict_yaml import parse
from leansim.points.point import point, resolve
from leansim.points.simulate import simulate
from leansim.report.show import described
from leansim.specs import catalog
from leansim.specs.kernel import Kernel
from leansim.specs.limits import Limit
from leansim.specs.workload import Workload

SHAPE: dict[str, Any] = {"num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128, "context_len": 1024}


def of(kernel: str, device: str = "h100_sxm", **fields: Any) -> Any:
    return point(**{"device": device, "kernel": kernel, "batch_size": 2, **SHAPE, **fields})


@pytest.mark.parametrize(
    ("kernel", "fields", "message"),
    [
        ("fa2", {"head_dim": 127}, "'fa2' has no instance for head dim 127, wanted .* 8, such as 128"),
        ("fa2", {"page_tokens": 17}, "pages of 17 tokens, wanted a multiple of 16, such as 32"),
        ("lean", {"head_dim": 127}, "'lean' has no instance for head dim 127"),
        ("fa3", {"head_dim": 100}, "head dim 100, wanted a multiple of 8, such as 104"),
        ("vllm_fa3", {"page_tokens": 17}, "pages of 17 tokens, wanted a multiple of 16"),
        ("vllm_unified", {"page_tokens": 17}, "pages of 17 tokens, wanted a multiple of 16"),
        ("vllm_paged_v2", {"page_tokens": 64}, "pages of 64 tokens, wanted one of 8, 16, 32"),
        ("vllm_paged_v1", {"head_dim": 100}, "head dim 100, wanted one of 32, 64"),
        ("flashinfer_decode", {"head_dim": 96}, "head dim 96, wanted one of 64, 128, 256, 512"),
        ("flashinfer_batch", {"head_dim": 96}, "head dim 96, wanted a multiple of 64, such as 128"),
        ("trtllm_xqa", {"head_dim": 120}, "head dim 120, wanted a multiple of 16, such as 128"),
        ("trtllm_xqa", {"page_tokens": 17}, "pages of 17 tokens, wanted one of 8"),
    ],
)
def test_calls_without_an_instance_are_refused(
    kernel: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(PairingError, match=message):
        simulate(of(kernel, **fields))


MANY: dict[str, Any] = {
    "context_len": 8192,
    "num_q_heads": 64,
    "num_kv_heads": 1,
    "page_tokens": 64,
    "cache": "warm",
}


@pytest.mark.parametrize("kernel", ["trtllm_xqa", "trtllm_decode"])
def test_a_refusal_names_what_runs_instead(kernel: str) -> None:
    wanted = (
        r"64 query heads per KV head, wanted at most 32; masked multi-head attention .* runs instead"
    )
    with pytest.raises(PairingError, match=wanted):
        simulate(of(kernel, **MANY))
    simulate(of(kernel, **{**MANY, "num_q_heads": 32}))


def test_a_kernel_that_not_all_run_is_answered_and_says_so() -> None:
    run = simulate(of("trtllm_gen", "b200_sxm", **MANY))
    assert run.grounds.extrapolated
    (note,) = run.notes()
    assert "64 query heads per KV head, wanted at most 32: a fallback of TensorRT-LLM" in note
    few = simulate(of("trtllm_gen", "b200_sxm", **{**MANY, "num_q_heads": 32}))
    assert "fallback" not in few.notes()[0]


def test_a_kernel_that_its_own_runtime_leaves_to_another_says_so() -> None:
    """TensorRT-LLM gives multi-head attention to MMHA, FlashInfer to XQA."""
    notes = [simulate(of("trtllm_xqa", num_q_heads=heads)).notes() for heads in (8, 16)]
    wanted = (
        "1 query heads per KV head, wanted at least 2: masked multi-head attention (MMHA) runs instead"
    )
    assert [wanted in "".join(said) for said in notes] == [True, False]


def test_a_head_dim_that_real_kernels_take_is_not_called_beyond_their_limits() -> None:
    """Rows of 512 were measured; what is missing is a tile here."""
    with pytest.raises(PairingError, match="no tile for head_dim 512; its largest is 256"):
        simulate(of("trtllm_gen", "b200_sxm", head_dim=512))


@pytest.mark.parametrize(
    ("kernel", "device", "pages"),
    [
        ("fa3", "h100_sxm", (1, 17, 64)),
        ("sglang_fa3", "h100_sxm", (1, 17)),
        ("flashinfer_decode", "h100_sxm", (1, 5)),
        ("trtllm_gen", "b200_sxm", (64, 256, 1024)),
        ("trtllm_xqa", "h100_sxm", (8, 128)),
    ],
)
def test_pages_that_real_kernels_take_are_taken(
    kernel: str, device: str, pages: tuple[int, ...]
) -> None:
    for tokens in pages:
        assert simulate(of(kernel, device, page_tokens=tokens)).result.latency_s > 0


def test_a_measured_kernel_stays_so_where_it_runs() -> None:
    """The table of SGLang's rows covers 32 query heads per KV head."""
    asked = of("trtllm_gen", "b200_sxm", num_q_heads=32, num_kv_heads=1, page_tokens=64, cache="warm")
    assert not resolve(asked).grounds.extrapolated


def test_a_head_dim_between_instances_names_the_one_that_runs() -> None:
    found = resolve(of("fa2", head_dim=80)).grounds
    assert found.extrapolated
    assert found.outside.endswith("in the instance for head dim 96")
    assert "instance" not in resolve(of("fa2", head_dim=96)).grounds.outside


def test_no_architecture_is_suggested_for_a_device() -> None:
    with pytest.raises(PairingError, match=r"for 'h100_sxm' \(sm_90\); it is built for sm_100$"):
        simulate(of("fa4"))


@pytest.mark.parametrize(
    "said",
    ["{of: head_dim}", "{of: head_dim, most: 3, multiple_of: 8}", "{of: head_dim, most: 3, least: 2}"],
)
def test_a_limit_says_one_thing(said: str) -> None:
    text = f"{said[:-1]}, source: 'counted: by hand'}}"
    with pytest.raises(ConfigError, match="wanted one of most, least, multiple_of and one_of"):
        catalog.validate(Limit, parse(text))


def test_every_limit_has_a_source_and_an_instance_within_it() -> None:
    for name in catalog.names("kernel"):
        kernel: Kernel = catalog.kernel(name)
        for limit in kernel.limits:
            assert limit.source.partition(":")[2].strip()
            if limit.of == "head_dim":
                loads = [Workload((1024,), 8, 8, tile.head_dim) for tile in kernel.tiles]
                assert all(limit.holds(load) for load in loads), name


def test_show_tells_every_limit_with_its_source() -> None:
    text = described("trtllm_gen")
    for limit in catalog.kernel("trtllm_gen").limits:
        (line,) = [row for row in text.splitlines() if row.startswith(f"limits.{limit.of} ")]
        assert line.endswith(limit.source)
    assert (
        "most: 32, instead: a fallback of TensorRT-LLM (up to 75 times as slow), kept_by: SGLang" in text
    )


def test_a_million_setup_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"setup_kernels: found 1000000; wanted .* 1024"):
        simulate(of("fa2", overrides={"kernel.ctas.setup_kernels": 1_000_000}))


@pytest.mark.parametrize("found", [True, False])
def test_options_of_partitioners_are_numbers(found: bool) -> None:
    split = {"name": "flash_decoding", "options": {"num_splits": found}}
    with pytest.raises(PartitionerError, match=f"num_splits: found {found}; wanted a number, not true"):
        simulate(of("fa2", partitioner=split))
