"""Libraries: every adapter against a stand-in of its library, the campaign of them, others' adapters."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import library_stand_ins
import pytest
from gpu_kit import Profile, interpreted, needs_triton
from gpu_stand_in import CALL_MS, stand_in

import leansim
from leansim.errors import ConfigError, GpuError, LeansimError, UnknownNameError
from leansim.gpu import timing
from leansim.gpu.execution import TOLERANCE
from leansim.gpu.inputs import draw
from leansim.gpu.libraries.registry import Installed, Library, installed, libraries
from leansim.gpu.libraries.running import ROUNDING, UNREAD, LibraryRunner
from leansim.gpu.libraries.sheet import sheet
from leansim.gpu.measuring import Measurer
from leansim.gpu.rows import Going, measure_rows
from leansim.points.point import point_from_row, resolve
from leansim.silicon.own import point_fields
from leansim.specs import catalog

ADAPTERS = (
    "aiter_lean", "flash_attn_2", "flash_attn_3", "flash_mla", "flashinfer_batch", "flashinfer_decode",
    "flashinfer_mla", "flashinfer_tc_decode", "flashinfer_xqa", "flex_decoding", "sglang_triton",
    "torch_flash_2", "vllm_flash_2", "vllm_flash_3", "xformers_split_k",
)  # fmt: skip
RAGGED = {"context_lens": "130 65 17", "num_q_heads": "4", "num_kv_heads": "2", "head_dim": "64"}
UNIFORM = {"batch_size": "2", "context_len": "192", "num_q_heads": "4", "num_kv_heads": "1",
           "head_dim": "64", "q_dtype": "float16", "kv_dtype": "float16"}  # fmt: skip
LATENT = {"context_lens": "70 150", "num_q_heads": "16", "num_kv_heads": "1", "head_dim": "576",
          "head_dim_v": "512", "latent_kv": "true", "page_tokens": "64"}  # fmt: skip
TILES = {"context_lens": "64 192", "num_q_heads": "4", "num_kv_heads": "4", "head_dim": "64"}
# What each adapter is called for; all others are called for RAGGED and UNIFORM.
BATCHES: dict[str, tuple[dict[str, str], ...]] = {
    "flash_mla": (LATENT,),
    "flashinfer_mla": (LATENT,),
    "aiter_lean": (TILES, UNIFORM),
}
DEVICES = {"aiter_lean": "mi300x"}


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def row_of(name: str, batch: dict[str, str]) -> dict[str, str]:
    device = DEVICES.get(name, "h100_sxm")
    return {"device": device, "kernel": libraries()[name].kernel, "adapter": name, **batch}


# -- without torch -----------------------------------------------------------------------------


def test_every_adapter_is_found_and_names_a_kernel_of_the_catalog() -> None:
    assert tuple(sorted(libraries())) == ADAPTERS
    for name, adapter in libraries().items():
        catalog.kernel(adapter.kernel)
        assert dataclasses.is_dataclass(adapter)
        assert adapter.__module__ == f"leansim.gpu.libraries.{name}"


def test_a_library_that_is_not_there_is_told_and_a_wrong_name_too() -> None:
    found = installed(["flash_mla"])
    assert not found.libraries
    assert "flash_mla" in found.absent["flash_mla"]
    with pytest.raises(UnknownNameError, match="did you mean 'flash_mla'"):
        installed(["flash_mlA"])


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("flash_mla", {}, "no call for K and V of their own"),
        ("vllm_flash_3", {"window": "40"}, None),
        ("xformers_split_k", {"window": "40"}, "no call for a window"),
        ("sglang_triton", {"query_len": "2"}, "no call for several new tokens"),
        ("vllm_flash_3", {"device": "a100_sxm_80gb"}, "runs on sm_90; found sm_80"),
        ("aiter_lean", {}, "contexts of whole tiles of 64"),
        ("flashinfer_batch", {"kv_budget": "64"}, "no call for prefixes or KV lists"),
    ],
)
def test_calls_that_a_library_has_not_are_refused(
    name: str, change: dict[str, str], complaint: str | None
) -> None:
    row = row_of(name, RAGGED) | change
    if name in ("flash_mla", "xformers_split_k", "sglang_triton", "flashinfer_batch"):
        row["kernel"] = "triton_fa2"  # the kernel of the catalog has no such call either
    item = resolve(point_from_row(point_fields(row), "test"))
    if complaint is None:
        libraries()[name]().check(item.workload, item.device)
        return
    with pytest.raises(LeansimError, match=complaint):
        libraries()[name]().check(item.workload, item.device)


def here(*names: str) -> Installed:
    """As if these were installed."""
    made: dict[str, Library] = {name: libraries()[name]() for name in names}
    return Installed(made, {name: f"{name} 1.0" for name in names}, {})


def test_a_sheet_has_every_library_that_has_a_call_for_a_shape() -> None:
    found = here("flash_attn_2", "vllm_flash_3", "flash_mla")
    asked = sheet("h200_sxm", found, sample=20, caches=("cold", "warm"))
    assert {row["adapter"] for row in asked.rows} == {"flash_attn_2", "vllm_flash_3"}
    assert len(asked.rows) == 20 * 2 * 2
    assert {tuple(row) for row in asked.rows} == {asked.columns}
    assert {row["library"] for row in asked.rows} == {"flash_attn_2 1.0", "vllm_flash_3 1.0"}
    assert sum(asked.not_theirs.values()) == 40
    latent = [row for row in sheet("h200_sxm", here("flash_mla")).rows if row["latent_kv"]]
    assert len(latent) == 24
    assert {row["page_tokens"] for row in latent} == {"64"}


def test_a_file_of_batches_is_measured_once_whatever_kernel_it_names(tmp_path: Path) -> None:
    points = tmp_path / "batches.csv"
    rows = [{"device": "h100_sxm", "kernel": kernel, **RAGGED} for kernel in ("fa3", "lean")]
    with points.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (row,) = sheet("h200_sxm", here("flash_attn_2"), str(points)).rows
    assert (row["device"], row["kernel"]) == ("h200_sxm", "flash_decoding")
    assert row["context_lens"] == RAGGED["context_lens"]


def test_batches_need_no_device_and_no_kernel(tmp_path: Path) -> None:
    points = tmp_path / "batches.csv"
    with points.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(RAGGED))
        writer.writeheader()
        writer.writerow(RAGGED)
    (row,) = sheet("h200_sxm", here("flash_attn_2"), str(points)).rows
    assert (row["device"], row["kernel"]) == ("h200_sxm", "flash_decoding")
    assert {key: row[key] for key in RAGGED} == RAGGED


def test_refused_points_hold_on_to_nothing(tmp_path: Path) -> None:
    """Not to what the call that failed had, though the errors are kept to be told at the end."""

    class Tensor: ...

    had: list[weakref.ref[Tensor]] = []

    def launch(tensor: Tensor) -> None:
        had.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    def measure(_row: dict[str, str], _source: str) -> dict[str, Any]:
        try:
            launch(Tensor())
        except RuntimeError as error:
            raise GpuError("the device gave up") from error
        return {}

    told: list[str] = []
    going = Going(
        SimpleNamespace(interpreted=True), None, True, None,
        lambda _done, _total: None, lambda _, error: told.append(str(error)),
    )  # type: ignore[arg-type] # fmt: skip
    measurer: Any = SimpleNamespace(measure=measure)
    found = measure_rows(going, measurer, [row_of("torch_flash_2", {})] * 2, tmp_path / "x.csv", "test")
    assert [str(error) for _, error in found.refused] == told == ["the device gave up"] * 2
    assert [one() for one in had] == [None, None]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cache": "tepid"}, "wanted cold or warm"),
        ({"sample": 0}, "wanted at least one shape"),
        ({"what": "campaign", "kernels": True}, "wanted libraries, or none of only"),
        ({"what": "pace", "only": "triton_fa2", "sample": 3}, "wanted libraries, or none of only"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        leansim.measure(**({"what": "libraries", "out": tmp_path} | options))


# -- against stand-ins -------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_calls_its_library_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments as the real entry takes them; the output is attention, of each buffer of KV."""
    library_stand_ins.install(monkeypatch, tmp_path)
    tools = interpreted()
    if name == "torch_flash_2":
        tools = dataclasses.replace(tools, torch=library_stand_ins.with_aten(tools.torch))
        found: Library = libraries()[name]()
    else:
        found = installed([name]).libraries[name]
    runner = LibraryRunner({name: found})
    for batch in BATCHES.get(name, (RAGGED, UNIFORM)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # FlexAttention, that it is not compiled
            measured = Measurer(tools, 3, runner).measure(row_of(name, batch), "test")
        assert 0.0 < float(measured["row_error"]) < 5e-3
        item = resolve(point_from_row(point_fields(row_of(name, batch)), "test"))
        measurer = Measurer(tools, 3, runner)
        monkeypatch.setattr(measurer, "_plan", lambda _: (1, 2))
        _, inputs = measurer._inputs(item.workload, 2)
        call = runner.execute(tools, item, row_of(name, batch), inputs)
        for buffer in (0, 1):
            call.poison()
            call.launch(buffer)
            call.check(buffer)
        with pytest.raises(GpuError, match="is not attention"):
            call.check(0)


@needs_triton
def test_windows_and_several_new_tokens_reach_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_stand_ins.install(monkeypatch, tmp_path)
    tools = interpreted()
    tools = dataclasses.replace(tools, torch=library_stand_ins.with_aten(tools.torch))
    for name in ("flash_attn_2", "flash_attn_3", "vllm_flash_2", "vllm_flash_3", "torch_flash_2"):
        runner = LibraryRunner({name: libraries()[name]()})
        for change in ({"window": "40"}, {"query_len": "3"}):
            Measurer(tools, 3, runner).measure(row_of(name, RAGGED | change), "test")


@needs_triton
def test_a_library_that_computes_something_else_is_found_out() -> None:
    """It forgets a tile of 17 tokens, then writes nothing at all, then an output of another shape."""
    tools = interpreted()

    class Wrong:
        kernel = "flash_decoding"

        def __init__(self, fault: str) -> None:
            self.fault = fault

        def version(self) -> str:
            return "wrong 1"

        def check(self, load: Any, device: Any) -> None: ...

        def prepare(self, given: Any, _device: Any) -> Any:
            out = given.q.clone()

            def call(_: int) -> Any:
                if self.fault == "other values":
                    out.copy_(given.q)
                return out[:1] if self.fault == "shape" else out

            return call

    for fault, complaint in (
        ("other values", "a row .*% off"),
        ("nothing", "rows that were never written"),
        ("shape", "found an output of"),
    ):
        runner = LibraryRunner({"wrong": Wrong(fault)})
        row = {"device": "h100_sxm", "kernel": "flash_decoding", "adapter": "wrong", **UNIFORM}
        with pytest.raises(GpuError, match=complaint):
            Measurer(tools, 3, runner).measure(row, "test")
    with pytest.raises(GpuError, match="wanted 'flash_decoding'"):
        Measurer(tools, 3, runner).measure(row | {"kernel": "fa3"}, "test")
    with pytest.raises(UnknownNameError, match="library"):
        Measurer(tools, 3, runner).measure(row | {"adapter": "wong"}, "test")


@needs_triton
@pytest.mark.parametrize(
    ("rounding", "off", "complaint"),
    [(None, 1.5, r"wanted 0.10%"), (2.0, 1.5, None), (2.0, 2.5, r"a row 0.25% off; wanted 0.20%")],
)
def test_an_output_is_held_to_what_its_adapter_says_of_rounding(
    rounding: float | None, off: float, complaint: str | None
) -> None:
    """Rows `off` times leansim's own tolerance away, of float16."""

    class Rounding:
        kernel = "flash_decoding"

        def version(self) -> str:
            return "rounding 1"

        def check(self, load: Any, device: Any) -> None: ...

        def prepare(self, given: Any, _device: Any) -> Any:
            return lambda buffer: given.expected(buffer) * (1.0 + off * TOLERANCE["float16"])

    library = Rounding()
    if rounding is not None:
        library.rounding = rounding  # type: ignore[attr-defined]
    row = {"device": "h100_sxm", "kernel": "flash_decoding", "adapter": "one", **UNIFORM}
    measurer = Measurer(interpreted(), 3, LibraryRunner({"one": library}))
    if complaint is None:
        assert float(measurer.measure(row, "test")["row_error"]) == pytest.approx(off * 1e-3, rel=0.01)
        return
    with pytest.raises(GpuError, match=complaint):
        measurer.measure(row, "test")


def test_adapters_that_round_more_say_so() -> None:
    found = {name: getattr(adapter, ROUNDING, 1.0) for name, adapter in libraries().items()}
    assert {name for name, times in found.items() if times != 1.0} == {"flashinfer_xqa", "sglang_triton"}


@needs_triton
def test_flash_mla_is_found_in_vllm_where_its_own_package_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_stand_ins.install(monkeypatch, tmp_path)
    assert installed(["flash_mla"]).versions == {"flash_mla": "flash-mla 0.1.stand-in"}
    library_stand_ins.move_flash_mla_into_vllm(monkeypatch)
    found = installed(["flash_mla"])
    assert found.versions == {"flash_mla": "vllm 0.24.0"}
    measurer = Measurer(interpreted(), 3, LibraryRunner(found.libraries))
    assert float(measurer.measure(row_of("flash_mla", LATENT), "test")["row_error"]) < 5e-3


@needs_triton
def test_buffers_of_batch_attention_share_its_partials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_stand_ins.install(monkeypatch, tmp_path)
    made: list[Any] = []
    monkeypatch.setattr(library_stand_ins.Batch, "made", made)
    item = resolve(point_from_row(point_fields(row_of("flashinfer_batch", RAGGED)), "test"))
    torch = interpreted().torch
    given = draw(torch, item.workload, "cpu", 3, 3, UNREAD)
    call = libraries()["flashinfer_batch"]().prepare(given, item.device)
    assert len(made) == given.buffers == 3
    assert len({id(one.float_workspace_buffer) for one in made}) == 1
    for buffer in range(3):
        wanted = given.expected(buffer)
        torch.testing.assert_close(
            call(buffer).reshape(wanted.shape).double(), wanted, rtol=0, atol=0.02
        )


@needs_triton
@pytest.mark.parametrize(
    ("grid", "contradicts"), [(8, ""), (9, "a grid of 9 x 1 x 1 = 9 CTAs, planned 8")]
)
def test_a_call_is_timed_and_its_kernels_are_looked_at(
    grid: int, contradicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stand-in for a GPU: two requests of four heads are eight CTAs of FlashAttention-2.

    Each call is one launch of `CALL_MS`. What a graph left at last is checked, not what was before.
    """
    monkeypatch.setattr(timing, "_MOST_CALLS", 4)
    monkeypatch.setattr(timing, "_MOST_SAMPLES", 12)
    tools = stand_in()
    cuda = tools.torch.cuda
    tools.torch.profiler = SimpleNamespace(
        profile=lambda **_: Profile(cuda, "attention", grid, 4.0, 5.0),
        ProfilerActivity=SimpleNamespace(CUDA="cuda"),
    )

    class OnTheStandIn:
        kernel = "fa2"
        fails_after = 10**9

        def version(self) -> str:
            return "stand-in 1"

        def check(self, load: Any, device: Any) -> None: ...

        def prepare(self, given: Any, _device: Any) -> Any:
            out = given.torch.empty(8, 64, dtype=given.q.dtype)

            def compute(buffer: int) -> None:
                if cuda.launches < self.fails_after:
                    out.copy_(given.expected(buffer))

            def call(buffer: int) -> Any:
                cuda.launched(lambda: compute(buffer))
                return out

            return call

    logged: list[dict[str, Any]] = []
    library = OnTheStandIn()
    row = {"device": "h200_sxm", "kernel": "fa2", "adapter": "one", **UNIFORM, "num_kv_heads": "4"}
    runner = LibraryRunner({"one": library})
    measurer = Measurer(tools, 1, runner, lambda _, kernels: logged.extend(kernels))
    found = measurer.measure(row, "test")
    assert found["measured_us"] == pytest.approx(CALL_MS * 1e3)
    assert (found["calls"], found["buffers"]) == (4, 4)
    (kernel,) = logged
    assert (kernel["duration_us"], kernel["gap_after_us"], kernel["calls"]) == (4.0, 1.0, 4)
    assert (kernel["planned_ctas"], kernel["contradicts"]) == (8, contradicts)
    library.fails_after = cuda.launches + 20  # the first calls are right, those of graphs write nothing
    with pytest.raises(GpuError, match="never written"):
        Measurer(tools, 1, runner).measure(row, "test")


# -- the whole of it ---------------------------------------------------------------------------

THEIRS = '''"""An adapter of another package: attention in torch, as a library might have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Mine:
    kernel: ClassVar[str] = "fa2"

    def version(self) -> str:
        return "mine 7"

    def check(self, load: Any, device: Any) -> None:
        """Takes whatever `fa2` takes."""

    def prepare(self, given: Any, device: Any) -> Any:
        return lambda buffer: given.expected(buffer).to(given.q.dtype)
'''


def elsewhere(folder: Path) -> dict[str, str]:
    """Another package with one file and an entry point, and the environment in which it is found."""
    (folder / "mine.py").write_text(THEIRS)
    info = folder / "mine-7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 7\n")
    (info / "entry_points.txt").write_text("[leansim.libraries]\nmine = mine:Mine\n")
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def test_a_new_library_takes_one_file(tmp_path: Path) -> None:
    script = "from leansim.gpu.libraries.registry import installed; print(installed(['mine']).versions)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=elsewhere(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'mine': 'mine 7'}"


@needs_triton
def test_a_campaign_of_libraries_is_rehearsed_and_goes_on(tmp_path: Path) -> None:
    """Another package's adapter and FlexDecoding, which a CPU runs too; the second call goes on."""
    environment, out = elsewhere(tmp_path), tmp_path / "out"

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "leansim", "measure", "libraries", "--interpret", "-o", str(out)]
        return subprocess.run(
            [*whole, "--only", "mine,flex_decoding", *more],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("--budget-s", "0")
    assert done.returncode == 0, done.stderr
    assert "mine (mine 7)" in done.stderr
    before = (out / "libraries.csv").read_text().splitlines()
    done = command()
    assert done.returncode == 0, done.stderr
    assert "8 of 8 points" in done.stdout
    rows = read(out / "libraries.csv")
    assert {(row["adapter"], row["kernel"]) for row in rows} == {
        ("mine", "fa2"), ("flex_decoding", "flex_decoding"),
    }  # fmt: skip
    assert all(0.0 < float(row["row_error"]) < 1e-2 for row in rows)
    assert (out / "libraries.csv").read_text().splitlines()[: len(before)] == before
    done = command("--fresh", "--sample", "1", "--cache", "cold,warm")
    assert "4 of 4 points" in done.stdout
    assert {row["cache"] for row in read(out / "libraries.csv")} == {"cold", "warm"}


def test_nothing_installed_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = SimpleNamespace(interpreted=True, torch=None)
    monkeypatch.setattr("leansim.gpu.measure.toolkit.cuda", lambda _: tools)
    with pytest.raises(GpuError, match=r"found none of the libraries.*flash_mla: ModuleNotFoundError"):
        leansim.measure("libraries", tmp_path, interpret=True, only="flash_mla")
