"""FlexDecoding as it is compiled for a GPU: what dynamo traces, recorded on a CPU, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from gpu_kit import interpreted, needs_triton

from leansim.gpu.inputs import draw
from leansim.gpu.libraries import flex_decoding
from leansim.gpu.libraries.running import UNREAD
from leansim.specs import catalog
from leansim.specs.workload import Workload

HEADS: dict[str, Any] = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "page_tokens": 16}
# Lengths of three batches of three requests, one of eight and two of one.
BATCHES = ((130, 65, 17), (700, 300, 513), (1000, 64, 22), (700,) + (22,) * 7, (500,), (900,))


@pytest.fixture
def dynamo() -> Iterator[Any]:
    """A compiler that has compiled nothing, with limits that may be changed."""
    interpreted()  # before dynamo loads Triton as compiled
    import torch._dynamo

    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}
    torch._dynamo.reset()
    with torch._dynamo.config.patch(**limits):
        yield torch._dynamo
    torch._dynamo.reset()


def as_on_a_gpu(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled on a GPU is compiled here, by a backend of the test's."""
    import torch

    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", partial(torch.compile, backend=backend))
        compiled = flex_decoding._attention.__wrapped__("cuda")
    monkeypatch.setattr(flex_decoding, "_attention", lambda _: compiled)


@needs_triton
def test_batch_and_heads_are_numbers_and_lengths_symbols(
    dynamo: Any,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inductor takes FlexDecoding only then; one batch size is not compiled for each length."""
    torch = interpreted().torch
    traced: list[tuple[Any, ...]] = []

    def record(graph: Any, _: Any) -> Any:
        (node,) = [one for one in graph.graph.nodes if "flex_attention" in str(one.target)]
        traced.append(tuple(tuple(one.meta["example_value"].shape) for one in node.args[:3]))
        return graph.forward

    as_on_a_gpu(record, monkeypatch)
    for lens in BATCHES:
        given = draw(torch, Workload(lens, **HEADS), "cpu", 3, 2, UNREAD)
        call = flex_decoding.FlexDecoding().prepare(given, catalog.device("h200_sxm"))
        for buffer in (0, 1):
            wanted = given.expected(buffer)
            found = call(buffer).reshape(wanted.shape).double()
            torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
    for q, k, v in traced:
        assert all(type(size) is int for size in q)
        assert [type(size) is int for size in k] == [type(size) is int for size in v]
        assert [type(size) for size in k] == [int, int, torch.SymInt, int]
        assert (q[1:], k[:2], k[3]) == ((8, 1, 64), (q[0], 2), 64)
    assert {q[0] for q, _, _ in traced} == {3, 8, 1}
    assert len(traced) < len(BATCHES)


@needs_triton
def test_all_shapes_are_compiled(dynamo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past dynamo's limits nothing is: they are raised, and higher ones stay."""
    as_on_a_gpu("eager", monkeypatch)
    limits = dynamo.config
    assert (limits.recompile_limit, limits.accumulated_recompile_limit) == (1024, 1024)
    limits.recompile_limit = 5000
    monkeypatch.undo()
    as_on_a_gpu("eager", monkeypatch)
    assert limits.recompile_limit == 5000
