"""Golden: split counts of serving engines' decode kernels; what those refuse, and the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import Facts, Row, assert_agree, device_with, numbers, read
from kernels import tiled

from leansim.errors import PairingError, PartitionerError
from leansim.partitioners import registry as partitioners
from leansim.partitioners.flex_decoding import FlexDecoding
from leansim.partitioners.sglang_triton import SglangTriton, dynamic_splits, head_groups
from leansim.partitioners.trtllm_gen import TrtllmGen
from leansim.partitioners.trtllm_xqa import TrtllmXqa
from leansim.partitioners.vllm_paged import VllmPagedV1, VllmPagedV2
from leansim.partitioners.vllm_unified import VllmUnified
from leansim.partitioners.xformers_split_k import XformersSplitK
from leansim.schedule.schedule import Schedule
from leansim.specs import catalog
from leansim.specs.workload import Workload
from leansim.testing import check_partitioner

ARCHS = {"80": "a100_sxm_80gb", "90": "h100_sxm"}


def planned(
    kernel: str, workload: Workload, device: Any = "h100_sxm", partitioner: Any = None
) -> Schedule:
    """The schedule of a kernel file, with its own partitioner unless another is given."""
    where = catalog.device(device) if isinstance(device, str) else device
    spec = catalog.kernel(kernel)
    chosen = partitioner or partitioners.make(spec.partitioner.name, spec.partitioner.options)
    return chosen(tiled(workload, spec, where), where)


def busy_ctas(schedule: Schedule) -> int:
    return schedule.num_ctas - schedule.num_empty_ctas


def splits_of(schedule: Schedule) -> int:
    assert schedule.num_splits is not None
    return schedule.num_splits


# -- every row of the hosts' own numbers -----------------------------------------------------------


def test_xqa_counts_sub_sequences_as_its_host_code_does() -> None:
    def facts(row: Row) -> Facts:
        workload = Workload.uniform(
            row["batch"],
            row["max_past_kv_length"],
            num_q_heads=8 * row["heads_kv"],
            num_kv_heads=row["heads_kv"],
            head_dim=128,
        )
        schedule = planned("trtllm_xqa", workload, device_with(row["num_SMs"]))
        return {"multi_block_count": splits_of(schedule), "grid_ctas": schedule.num_ctas}

    assert_agree(numbers("trtllm_xqa_multiblock", 653), facts)


def test_sglang_splits_as_its_triton_kernel_does() -> None:
    """`num_group` is one in plain decode: the tokens of a request that share its count."""
    rows: list[dict[str, Any]] = []
    for text in read("sglang_kv_splits"):
        lists = {key: [int(n) for n in text.pop(key).split()] for key in ("kv_lens", "num_kv_splits")}
        rows.append({key: int(value) for key, value in text.items()} | lists)
    assert len(rows) == 972
    assert {row["num_group"] for row in rows} == {1}

    def facts(row: dict[str, Any]) -> dict[str, Any]:
        lens, most = row["kv_lens"], row["max_kv_splits"]
        workload = Workload(tuple(lens), row["heads_q"], row["heads_kv"], 128)
        schedule = planned(
            "sglang_triton", workload, device_with(row["num_SMs"]), SglangTriton(max_kv_splits=most)
        )
        groups = head_groups(row["heads_q"], row["heads_kv"])
        assert groups * row["batch"] == schedule.grid.num_output_tiles
        counts = dynamic_splits(np.array(lens), groups * len(lens), row["num_SMs"], most)
        return {
            "batch": len(lens),
            "block_h": int(schedule.grid.rows.max()),
            "grid_ctas_launched": schedule.num_ctas,
            "nonempty_ctas": busy_ctas(schedule),
            "num_kv_splits": counts.tolist(),
        }

    assert_agree(rows, facts)  # type: ignore[arg-type]


def test_flex_decoding_splits_as_inductor_does() -> None:
    def facts(row: Row) -> Facts:
        heads = row["Hkv"]
        workload = Workload.uniform(
            row["B"], row["Mk"], num_q_heads=4 * heads, num_kv_heads=heads, head_dim=128
        )
        return {"split_k": splits_of(planned("flex_decoding", workload, device_with(row["num_SMs"])))}

    assert_agree(numbers("flexdecoding_split_k", 604), facts)


def test_xformers_splits_as_its_operator_does() -> None:
    """G are the KV heads of a point, G * H its query heads, Mq its new tokens per request."""

    def facts(row: Row) -> Facts:
        workload = Workload.uniform(
            row["B"],
            row["Mk"],
            num_q_heads=row["G"] * row["H"],
            num_kv_heads=row["G"],
            head_dim=128,
            query_len=row["Mq"],
        )
        return {"split_k": splits_of(planned("xformers_split_k", workload))}

    assert_agree(numbers("xformers_split_k", 717), facts)


# -- the compiled kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("group", "name"), [(1, "normal"), (4, "grouped"), (8, "grouped")])
def test_sglang_kernel_file_describes_the_compiled_kernels(group: int, name: str, arch: str) -> None:
    """Shared memory exactly, registers within what the group sizes compile to."""
    kernel, device = catalog.kernel("sglang_triton"), catalog.device(ARCHS[arch])
    rows = [
        row
        for row in read("kernel_resources")
        if row["kernel"] == f"sglang_triton_stage1_{name}" and row["arch"] == arch
    ]
    dims = {64, 128, 256} & {int(row["head_dim"]) for row in rows}
    assert dims >= {64, 128}
    for dim in dims:
        compiled = [row for row in rows if int(row["head_dim"]) == dim]
        (tile,) = (
            tile
            for tile in kernel.tiles
            if tile.head_dim == dim
            and (tile.tile_rows == 1) == (group == 1)
            and "bfloat16" in (tile.only.kv_dtypes or ())
        )
        assert {int(row["smem_bytes"]) for row in compiled} == {tile.smem_bytes}
        assert {int(row["threads"]) for row in compiled} == {tile.threads}
        registers = [int(row["registers"]) for row in compiled]
        assert min(registers) <= tile.registers_per_thread[device.arch] <= max(registers)
        grid = tiled(Workload((4096,), 8 * group, 8, dim), kernel, device)
        assert grid.ctas_per_sm in {int(row["ctas_per_sm"]) for row in compiled}


def ctas_per_sm(kernel: str, device: str, **shape: Any) -> int:
    load = Workload((4096,), shape.pop("heads", 32), 8, shape.pop("head_dim", 128), **shape)
    return tiled(load, catalog.kernel(kernel), catalog.device(device)).ctas_per_sm


def test_xqa_fits_as_often_as_its_compiled_kernels() -> None:
    """145,024 B at head dim 128 leave room for one CTA.

    Hopper's 8-bit kernel has 47 registers for each of 384 threads: 12 warps of 1,536 registers, 10
    warps per quarter, 40 // 12 = 3 CTAs.
    """
    assert ctas_per_sm("trtllm_xqa", "a100_sxm_80gb") == 1
    assert ctas_per_sm("trtllm_xqa", "l40s") == 1
    assert ctas_per_sm("trtllm_xqa", "h100_sxm") == 1
    assert ctas_per_sm("trtllm_xqa", "h100_sxm", kv_dtype="fp8") == 3
    assert ctas_per_sm("trtllm_xqa", "h100_sxm", kv_dtype="fp8", heads=256) == 2
    assert ctas_per_sm("trtllm_gen", "b200_sxm") == 1
    assert ctas_per_sm("trtllm_gen", "b200_sxm", head_dim=64) == 1


# -- what they refuse, and the contract ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "changes", "said"),
    [
        ("trtllm_xqa", {"num_q_heads": 64, "num_kv_heads": 1}, "at most 32"),
        ("sglang_triton", {"query_len": 2}, "one new token"),
        ("vllm_paged_v1", {"query_len": 2}, "one new token"),
        ("vllm_paged_v1", {"window": 100}, "no sliding window"),
        ("vllm_paged_v1", {"max_context_len": 60_000}, "240,000 B"),
        ("vllm_paged_v2", {"window": 100}, "no sliding window"),
        ("flex_decoding", {"query_len": 128}, "at most 127 new tokens"),
        ("xformers_split_k", {"window": 100}, "no sliding window"),
    ],
)
def test_refusals_say_why(kernel: str, changes: dict[str, Any], said: str) -> None:
    shape = {"num_q_heads": 8, "num_kv_heads": 8, "head_dim": 64} | changes
    with pytest.raises((PairingError, PartitionerError), match=said):
        planned(kernel, Workload((1000,), **shape))


def test_partitions_must_end_where_kv_tiles_do() -> None:
    with pytest.raises(PartitionerError, match="multiple of the kernel's 64-token KV tile"):
        planned("vllm_paged_v2", Workload((1000,), 8, 8, 64), partitioner=VllmPagedV2(100))


@pytest.mark.parametrize(
    ("partitioner", "kernel", "device"),
    [
        (TrtllmXqa(num_splits=5), "trtllm_xqa", "h100_sxm"),
        (TrtllmXqa(tokens_per_block=512), "trtllm_xqa", "l40s"),
        (TrtllmXqa(rule="flashinfer"), "trtllm_xqa", "a100_sxm_80gb"),
        (TrtllmGen(step_tokens=128, steps_per_cta=1), "trtllm_gen", "b200_sxm"),
        (SglangTriton(max_kv_splits=16), "sglang_triton", "h100_sxm"),
        (SglangTriton(mode="static"), "sglang_triton", "a100_sxm_80gb"),
        (SglangTriton(mode="deterministic"), "sglang_triton", "a100_sxm_80gb"),
        (VllmPagedV1(), "vllm_paged_v1", "h100_sxm"),
        (VllmPagedV2(partition_tokens=256), "vllm_paged_v2", "h100_sxm"),
        (VllmUnified(force_3d=True), "vllm_unified", "h100_sxm"),
        (VllmUnified(force_3d=False), "vllm_unified", "a100_sxm_80gb"),
        (FlexDecoding(num_splits=7), "flex_decoding", "h100_sxm"),
        (XformersSplitK(num_splits=3), "xformers_split_k", "a100_sxm_80gb"),
    ],
    ids=repr,
)
@pytest.mark.thorough
def test_options_conform(partitioner: Any, kernel: str, device: str) -> None:
    """The defaults are checked with every kernel file, by its being there."""
    check_partitioner(partitioner, kernel, (device,))
