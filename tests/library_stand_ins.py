"""Stand-ins for libraries: their entries' real names, arguments and layouts, computed by torch on a CPU.

Each checks what the real one would be handed, and attends in float64. Signatures are those that the
adapters' docstrings name.
"""

# ruff: noqa: ARG001, ARG002, ARG003
# Arguments are those of the real entries, used or not.

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest


def attend(
    q: Any, k: Sequence[Any], v: Sequence[Any], scale: float, causal: bool, left: int = -1
) -> Any:
    """`q [batch, new, heads, dim]` over `k`, `v` of each request `[tokens, kv heads, dim]`."""
    import torch

    out = []
    for i in range(len(k)):
        group = q.shape[2] // k[i].shape[1]
        keys, values = (x.double().repeat_interleave(group, 1) for x in (k[i], v[i]))
        scores = torch.einsum("mhd,nhd->hmn", q[i].double(), keys) * scale
        token = torch.arange(len(k[i]))
        at = len(k[i]) - q.shape[1] + torch.arange(q.shape[1])[:, None]
        hidden = (token > at) if causal else torch.zeros(q.shape[1], len(k[i]), dtype=torch.bool)
        if left >= 0:
            hidden = hidden | (token < at - left)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out.append(torch.einsum("hmn,nhd->mhd", weights, values))
    return torch.stack(out).to(q.dtype)


def paged(pool: Any, table: Any, lens: Any) -> list[Any]:
    """Tokens of each request out of a pool `[pages, page tokens, heads, dim]`."""
    is_int32(table)
    return [
        pool[table[i, : -(-int(n) // pool.shape[1])].long()].flatten(0, 1)[: int(n)]
        for i, n in enumerate(lens)
    ]


def is_int32(*tensors: Any) -> None:
    import torch

    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in tensors)


def is_window(left: int, right: int) -> None:
    """All, or so many to the left and none to the right: (-1, 0) is a window to FlashAttention too."""
    assert (left, right) == (-1, -1) or (left >= 0 and right == 0)


def same_types(*tensors: Any) -> None:
    assert len({x.dtype for x in tensors}) == 1


# -- FlashAttention ------------------------------------------------------------------------------


def flash_attn_2(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0,
    return_softmax_lse=False,
):  # fmt: skip # type: ignore[no-untyped-def]
    assert q.ndim == 4
    same_types(q, k_cache, v_cache)
    is_int32(cache_seqlens)
    lens = cache_seqlens.tolist()
    if block_table is None:
        assert k_cache.shape[0] == q.shape[0]
        keys, values = ([x[i, :n] for i, n in enumerate(lens)] for x in (k_cache, v_cache))
    else:
        assert k_cache.shape[1] % 256 == 0
        keys, values = (paged(x, block_table, lens) for x in (k_cache, v_cache))
    is_window(*window_size)
    return attend(q, keys, values, softmax_scale, causal, window_size[0])


def flash_attn_3(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None,
    softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0,
    rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
    return_softmax_lse=False,
):  # fmt: skip # type: ignore[no-untyped-def]
    assert q.ndim == 4
    same_types(q, k_cache, v_cache)
    is_int32(cache_seqlens)
    lens = cache_seqlens.tolist()
    keys, values = (paged(x, page_table, lens) for x in (k_cache, v_cache))
    is_window(*window_size)
    return attend(q, keys, values, softmax_scale, causal, window_size[0])


def aten_flash(  # type: ignore[no-untyped-def]
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
    scale=None, window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
):  # fmt: skip
    left = -1 if window_size_left is None else window_size_left
    same_types(query, key, value)
    assert dropout_p == 0.0
    assert not return_debug_mask
    if cum_seq_q is None:
        assert (query.shape[1], key.shape[1]) == (max_q, max_k)
        out = attend(query, list(key), list(value), scale, is_causal, left)
        return out, None, None, None, None
    is_int32(cum_seq_q, cum_seq_k)
    ends = cum_seq_k.tolist()
    assert max(b - a for a, b in pairwise(ends)) == max_k
    keys, values = ([x[a:b] for a, b in pairwise(ends)] for x in (key, value))
    rows = query.view(len(ends) - 1, max_q, *query.shape[1:])
    return attend(rows, keys, values, scale, is_causal, left).flatten(0, 1), None, None, None, None


# -- vLLM's operators, by their schemas ------------------------------------------------------------

FA3_FWD = """fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out,
Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q,
Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx,
Tensor? leftpad_k, Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale,
Tensor? k_descale, Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left,
int window_size_right, float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata,
int num_splits, bool? pack_gqa, int sm_margin, Tensor? s_aux, int cp_world_size, int cp_rank,
Tensor? cp_tot_seqused_k) -> Tensor[]"""
FA3_METADATA = """get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k,
int num_heads, int num_heads_k, int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k,
Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q,
Tensor? leftpad_k, int? page_size, int max_seqlen_k_new, bool is_causal, int window_size_left,
int window_size_right, bool has_softcap, int num_splits, bool? pack_gqa, int sm_margin) -> Tensor"""
FA2_VARLEN = """varlen_fwd(Tensor! q, Tensor k, Tensor v, Tensor!? out, Tensor cu_seqlens_q,
Tensor cu_seqlens_k, Tensor? seqused_k, Tensor? leftpad_k, Tensor? block_table, Tensor? alibi_slopes,
int max_seqlen_q, int max_seqlen_k, float p_dropout, float softmax_scale, bool zero_tensors,
bool is_causal, int window_size_left, int window_size_right, float softcap, bool return_softmax,
int num_splits, Tensor? gen) -> Tensor[]"""


def _into(out: Any, found: Any) -> list[Any]:
    out.copy_(found.flatten(0, 1))
    return [out, out]


def _fa3_fwd(*given: Any) -> list[Any]:
    q, k, v, *_ = given
    out, starts, seen, most, table, scale, causal, left = (
        given[i] for i in (6, 7, 11, 12, 14, 23, 24, 25)
    )
    is_int32(starts, seen)
    is_window(given[25], given[26])
    assert given[28] is True  # is_rotary_interleaved
    assert given[29] is not None  # scheduler_metadata
    assert given[30] == 32  # num_splits
    assert given[34:36] == (1, 0)  # cp_world_size, cp_rank
    lens = seen.tolist()
    rows = q.view(len(lens), most, *q.shape[1:])
    return _into(out, attend(rows, paged(k, table, lens), paged(v, table, lens), scale, causal, left))


def _fa3_metadata(*given: Any) -> Any:
    import torch

    batch, seen = given[0], given[8]
    is_window(given[17], given[18])
    assert given[20] == 32
    assert given[14] == 16  # page_size
    assert len(seen) == batch
    return torch.zeros(batch + 1, dtype=torch.int32)


def _fa2_varlen(*given: Any) -> list[Any]:
    q, k, v, out, starts, _, seen = given[:7]
    table, most, scale, causal, left = (given[i] for i in (8, 10, 13, 15, 16))
    is_window(left, given[17])
    is_int32(starts, seen)
    lens = seen.tolist()
    rows = q.view(len(lens), most, *q.shape[1:])
    return _into(out, attend(rows, paged(k, table, lens), paged(v, table, lens), scale, causal, left))


_DEFINED: list[Any] = []


def define_vllm() -> None:
    """Register the operators, as loading the extensions does; once in a process."""
    import torch

    if _DEFINED:
        return
    for name, schemas in (
        ("_vllm_fa3_C", ((FA3_FWD, _fa3_fwd), (FA3_METADATA, _fa3_metadata))),
        ("_vllm_fa2_C", ((FA2_VARLEN, _fa2_varlen),)),
    ):
        library = torch.library.Library(name, "DEF")
        for schema, computed in schemas:
            library.define(" ".join(schema.split()))
            library.impl(schema.split("(")[0], computed, "CompositeExplicitAutograd")
        _DEFINED.append(library)


# -- FlashInfer ------------------------------------------------------------------------------------


class BatchDecode:
    """`BatchDecodeWithPagedKVCacheWrapper`."""

    def __init__(  # type: ignore[no-untyped-def]
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False,
        paged_kv_indptr_buffer=None, paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None,
        backend="auto", jit_args=None,
    ) -> None:  # fmt: skip
        assert kv_layout == "NHD"
        assert not use_cuda_graph  # as the files of both kernels plan
        self.tensor_cores = use_tensor_cores

    def plan(  # type: ignore[no-untyped-def]
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *,
        pos_encoding_mode="NONE", window_left=-1, window_right=0, logits_soft_cap=None,
        q_data_type="float16", kv_data_type=None, o_data_type=None, data_type=None, sm_scale=None,
        rope_scale=None, rope_theta=None, non_blocking=True, block_tables=None, seq_lens=None,
        fixed_split_size=None, disable_split_kv=False, q_len_per_req=1,
    ) -> None:  # fmt: skip
        is_int32(indptr, indices, last_page_len)
        self.ends, self.pages, self.tails = indptr.tolist(), indices.long(), last_page_len.tolist()
        self.heads = (num_qo_heads, num_kv_heads, head_dim)
        self.page, self.scale, self.left, self.dtype = page_size, sm_scale, window_left, q_data_type

    def run(  # type: ignore[no-untyped-def]
        self, q, paged_kv_cache, *args, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None,
        return_lse=False, enable_pdl=None, window_left=None, sinks=None,
    ) -> Any:  # fmt: skip
        assert (q.shape[1], paged_kv_cache[0].shape[2], q.shape[2]) == self.heads
        assert q.dtype == self.dtype
        keys, values = ([*self.tokens(pool)] for pool in paged_kv_cache)
        return out.copy_(attend(q[:, None], keys, values, self.scale, True, self.left)[:, 0])

    def tokens(self, pool: Any) -> Any:
        for i, tail in enumerate(self.tails):
            pages = self.pages[self.ends[i] : self.ends[i + 1]]
            yield pool[pages].flatten(0, 1)[: (len(pages) - 1) * self.page + tail]


class Batch:
    """`BatchAttention`."""

    made: ClassVar[list[Batch]] = []

    def __init__(self, kv_layout: str = "NHD", device: str = "cuda") -> None:
        import torch

        assert (kv_layout, device) == ("NHD", "cpu")
        self.float_workspace_buffer = torch.empty(2**12, dtype=torch.uint8)  # 384 MB of the real one
        Batch.made.append(self)

    def plan(  # type: ignore[no-untyped-def]
        self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_qo_heads, num_kv_heads, head_dim_qk,
        head_dim_vo, page_size, causal=False, sm_scale=None, logits_soft_cap=None, q_data_type=None,
        kv_data_type=None, use_profiler=False,
    ) -> None:  # fmt: skip
        is_int32(qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        self.ends, self.pages, self.lens = kv_indptr.tolist(), kv_indices.long(), kv_len_arr.tolist()
        self.new, self.scale, self.causal = int(qo_indptr[1]), sm_scale, causal

    def run(  # type: ignore[no-untyped-def]
        self, q, kv_cache, out=None, lse=None, k_scale=None, v_scale=None, logits_soft_cap=0.0,
        profiler_buffer=None, kv_cache_sf=None,
    ) -> Any:  # fmt: skip
        keys, values = ([*self.tokens(pool)] for pool in kv_cache)
        rows = q.view(len(self.lens), self.new, *q.shape[1:])
        return out.copy_(attend(rows, keys, values, self.scale, self.causal).flatten(0, 1)), lse

    def tokens(self, pool: Any) -> Any:
        for i, n in enumerate(self.lens):
            yield pool[self.pages[self.ends[i] : self.ends[i + 1]]].flatten(0, 1)[:n]


class BatchMla:
    """`BatchMLAPagedAttentionWrapper`."""

    def __init__(self, float_workspace_buffer, use_cuda_graph=False, backend="auto") -> None:  # type: ignore[no-untyped-def]
        assert backend == "auto"

    def plan(  # type: ignore[no-untyped-def]
        self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv, head_dim_kpe,
        page_size, causal, sm_scale, q_data_type, kv_data_type, use_profiler=False,
    ) -> None:  # fmt: skip
        is_int32(qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        self.ends, self.pages, self.lens = kv_indptr.tolist(), kv_indices.long(), kv_len_arr.tolist()
        self.widths, self.scale, self.causal = (head_dim_ckv, head_dim_kpe), sm_scale, causal

    def run(  # type: ignore[no-untyped-def]
        self, q_nope, q_pe, ckv_cache, kpe_cache, out=None, lse=None, return_lse=False,
    ) -> Any:  # fmt: skip
        import torch

        assert (q_nope.shape[-1], q_pe.shape[-1]) == self.widths
        assert (ckv_cache.shape[-1], kpe_cache.shape[-1]) == self.widths
        keys, values = [], []
        for i, n in enumerate(self.lens):
            pages = self.pages[self.ends[i] : self.ends[i + 1]]
            latent, rotary = (x[pages].flatten(0, 1)[:n, None] for x in (ckv_cache, kpe_cache))
            keys.append(torch.cat((latent, rotary), -1))
            values.append(latent)
        q = torch.cat((q_nope, q_pe), -1)[:, None]
        return out.copy_(attend(q, keys, values, self.scale, self.causal)[:, 0])


def xqa(  # type: ignore[no-untyped-def]
    query, kv_cache, workspace_buffer, block_tables, seq_lens, max_seq_len, bmm1_scale=1.0,
    bmm2_scale=1.0, window_left=-1, out=None, sinks=None, kv_layout="NHD", enable_pdl=None,
    q_len_per_req=1, o_scale=1.0, mask=None, kv_cache_sf=None, q_cu_seq_lens=None,
):  # fmt: skip
    assert not workspace_buffer.any()
    assert kv_layout == "NHD"
    assert max_seq_len == int(seq_lens.max())
    keys, values = (paged(pool, block_tables, seq_lens.tolist()) for pool in kv_cache)
    return out.copy_(attend(query[:, None], keys, values, bmm1_scale, True, window_left)[:, 0])


# -- others ----------------------------------------------------------------------------------------


def decode_attention_fwd(  # type: ignore[no-untyped-def]
    q, k_buffer, v_buffer, o, kv_indptr, kv_indices, attn_logits, attn_lse, num_kv_splits,
    max_kv_splits, sm_scale, k_scale, v_scale, logit_cap=0.0, sinks=None, xai_temperature_len=-1,
    has_mla=False, use_pdl=False,
) -> None:  # fmt: skip
    assert use_pdl  # as the server has it on Hopper, which rehearsals are as on
    assert max_kv_splits == attn_logits.shape[2]
    assert attn_lse.shape == attn_logits.shape[:3]
    is_int32(kv_indptr, num_kv_splits)
    assert int(num_kv_splits.min()) >= 1
    assert int(num_kv_splits.max()) <= max_kv_splits
    assert (k_scale, v_scale) == (1.0, 1.0)
    ends = kv_indptr.tolist()
    keys, values = ([pool[kv_indices[a:b]] for a, b in pairwise(ends)] for pool in (k_buffer, v_buffer))
    o.copy_(attend(q[:, None], keys, values, sm_scale, True)[:, 0])


def flash_mla() -> ModuleType:
    class SchedMeta:
        config: Any = None

    def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[SchedMeta, None]:
        return SchedMeta(), None

    def flash_mla_with_kvcache(  # type: ignore[no-untyped-def]
        q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
        softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None,
        extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
    ):  # fmt: skip
        assert isinstance(tile_scheduler_metadata, SchedMeta)
        config = (tuple(q.shape), tuple(k_cache.shape[1:]), causal)
        assert tile_scheduler_metadata.config in (None, config)
        tile_scheduler_metadata.config = config
        assert (head_dim_v, k_cache.shape[1]) == (512, 64)
        is_int32(cache_seqlens)
        keys = paged(k_cache, block_table, cache_seqlens.tolist())
        return attend(q, keys, [x[..., :512] for x in keys], softmax_scale, causal), None

    return module("flash_mla", **dict(list(locals().items())))


class PaddedKeys:
    """`BlockDiagonalCausalWithOffsetPaddedKeysMask`."""

    def __init__(self, q_seqlen: Any, kv_padding: int, kv_seqlen: Any) -> None:
        self.q, self.padding, self.kv = list(q_seqlen), kv_padding, list(kv_seqlen)

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_padding, kv_seqlen, causal_diagonal=None, *, device=None):  # type: ignore[no-untyped-def]
        return cls(q_seqlen, kv_padding, kv_seqlen)


class SplitKFwOp:
    """`triton_splitk.FwOp`."""


def xformers_forward(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):  # type: ignore[no-untyped-def]
    assert op is SplitKFwOp
    batch, new = len(attn_bias.q), attn_bias.q[0]
    one, rows, kv_heads, group, dim = query.shape
    assert (one, rows) == (1, batch * new)
    assert key.shape == (1, batch * attn_bias.padding, kv_heads, group, dim)
    assert key.stride(3) == 0  # expanded, not copied
    keys, values = (
        [
            x[0, i * attn_bias.padding :][:n].flatten(1, 2)
            for i, n in enumerate(attn_bias.kv)
        ]
        for x in (key, value)
    )  # fmt: skip
    q = query.view(batch, new, kv_heads * group, dim)
    return attend(q, keys, values, scale, True).view(query.shape)


def lean(  # type: ignore[no-untyped-def]
    q, k, v, Mp, Lp, Op, locks, batch_num_block_n, batch_size, sm_scale, causal=True,  # noqa: N803
    RAGGED_BATCH=False, config=None, program_count=None,  # noqa: N803
):  # fmt: skip
    assert not locks.any()
    locks.fill_(1)
    is_int32(batch_num_block_n)
    assert Mp.shape == Lp.shape == (program_count, config["BLOCK_SIZE_M"])
    assert Op.shape == (program_count, q.shape[0] // batch_size, q.shape[2])
    assert locks.numel() >= program_count
    ends = [0, *(batch_num_block_n * config["BLOCK_SIZE_N"]).tolist()]
    assert ends[-1] == len(k)
    assert (len({b - a for a, b in pairwise(ends)}) > 1) == RAGGED_BATCH
    keys, values = ([x[a:b] for a, b in pairwise(ends)] for x in (k, v))
    rows = q.view(batch_size, -1, *q.shape[1:])
    return attend(rows, keys, values, sm_scale, causal).flatten(0, 1), 0


def module(name: str, **names: Any) -> ModuleType:
    """A module of that name, itself a package."""
    made = ModuleType(name)
    made.__dict__.update(names)
    made.__dict__.setdefault("__path__", [])
    made.__dict__.setdefault("__version__", "0.1.stand-in")
    return made


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """All of them, as if they were installed."""
    modules = [
        module("flash_attn", flash_attn_with_kvcache=flash_attn_2, __version__="2.8.3"),
        module("flash_attn_interface", flash_attn_with_kvcache=flash_attn_3, __version__="3.0.0"),
        module("flashinfer", BatchDecodeWithPagedKVCacheWrapper=BatchDecode, BatchAttention=Batch),
        module("flashinfer.decode", xqa_batch_decode_with_kv_cache=xqa),
        module("flashinfer.mla", BatchMLAPagedAttentionWrapper=BatchMla),
        flash_mla(),
        module("xformers"),
        module("xformers.ops"),
        module("xformers.ops.fmha", memory_efficient_attention_forward=xformers_forward),
        module("xformers.ops.fmha.triton_splitk", FwOp=SplitKFwOp),
        module("xformers.ops.fmha.attn_bias", BlockDiagonalCausalWithOffsetPaddedKeysMask=PaddedKeys),
    ]
    for path, found in (
        ("sglang.srt.layers.attention.triton_ops.decode_attention", decode_attention_fwd),
        ("aiter.ops.triton.attention.lean_atten", lean),
    ):
        parts = path.split(".")
        modules += [module(".".join(parts[: i + 1])) for i in range(len(parts))]
        name = "decode_attention_fwd" if found is decode_attention_fwd else "persistent_lean_attention"
        modules[-1].__dict__[name] = found
    for one in modules:
        monkeypatch.setitem(sys.modules, one.__name__, one)
    _install_vllm(monkeypatch, folder)


def _install_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import torch

    place = folder / "vllm" / "vllm_flash_attn"
    place.mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise RuntimeError('vLLM itself must not be loaded')")
    files = [place / f"_vllm_fa{n}_C.abi3.so" for n in (2, 3)]
    for file in files:
        file.write_bytes(b"")
    info = folder / "vllm-0.24.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0\n")
    monkeypatch.syspath_prepend(str(folder))
    loaded: list[str] = []

    def load_library(path: str) -> None:
        assert Path(path) in files
        loaded.append(path)
        define_vllm()

    monkeypatch.setattr(torch.ops, "load_library", load_library)


def move_flash_mla_into_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only vLLM is installed, which brings a copy."""
    copy = sys.modules["flash_mla"]
    monkeypatch.setitem(sys.modules, "flash_mla", None)
    parts = ("vllm", "third_party", "flashmla")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, name, module(name))
    monkeypatch.setitem(sys.modules, "vllm.third_party.flashmla.flash_mla_interface", copy)


def with_aten(torch: Any) -> Any:
    """PyTorch whose FlashAttention-2 operator is the stand-in: a CPU has none."""
    operators = SimpleNamespace(aten=SimpleNamespace(_flash_attention_forward=aten_flash))
    return Patched(torch, operators)


class Patched:
    """PyTorch with other operators."""

    def __init__(self, torch: Any, ops: Any) -> None:
        self._torch, self.ops = torch, ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


Call = Callable[[int], Any]
