"""Plug-ins that misbehave: named, left out or blamed, and nothing else ends with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeping import AXES, install, leansim

from leansim.plugins import Plugins

GOOD = """
from dataclasses import dataclass
from leansim.partitioners.flash_attention_2 import FlashAttention2

@dataclass(frozen=True)
class Faulty:
    '''A rule.'''
    def __call__(self, grid, device):
        {call}
        return FlashAttention2()(grid, device)
"""
ENDS = (
    "raise SystemExit(3)", "raise SystemExit", "import sys; sys.exit('bye')", "raise GeneratorExit",
    "raise type('Ended', (BaseException,), {})('over')", "import asyncio; raise asyncio.CancelledError",
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "raise MemoryError",
    "def f(): f()\nf()", "exit(4)",
)  # fmt: skip
POINT = ("--batch-size", "1", "--context-len", "1000", "--num-q-heads", "8", "--num-kv-heads", "8",
         "--head-dim", "128")  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_plug_in_that_ends_at_import_is_named_and_the_rest_goes_on(tmp_path: Path, end: str) -> None:
    install(tmp_path, end, package="faulty")
    done = leansim("list", "partitioners", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "flash_decoding" in done.stdout
    assert "faulty" not in done.stdout
    assert "partitioner 'faulty' (faulty:Faulty) failed to load: " in done.stderr


LOADED_LATE = """
class Odd(type):
    def __getattr__(cls, name):
        raise SystemExit(5)
class Faulty(metaclass=Odd):
    pass
"""


def test_a_plug_in_that_ends_when_it_is_looked_at(tmp_path: Path) -> None:
    install(tmp_path, LOADED_LATE, package="faulty")
    done = leansim("list", "partitioners", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failed to load: SystemExit: 5" in done.stderr


@pytest.mark.parametrize("text", ["x = \n", "x = y z : %\n", "../../x = os:path.join\n", "= b:c\n"])
def test_an_entry_point_that_makes_no_sense_breaks_nothing(tmp_path: Path, text: str) -> None:
    install(tmp_path, GOOD.format(call="pass"), package="faulty")
    info = tmp_path / "another-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[leansim.partitioners]\n{text}")
    args = ("run", "--device", "h100_sxm", "--kernel", "fa2+faulty", *POINT, "-o", "out")
    done = leansim(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["plugins"]["faulty"] == "1.0"


@pytest.mark.parametrize("end", ENDS[:5])
@pytest.mark.parametrize("verb", ["run", "plan", "explain"])
def test_a_plug_in_that_ends_when_it_is_called_is_blamed(tmp_path: Path, end: str, verb: str) -> None:
    install(tmp_path, GOOD.format(call=end), package="faulty")
    args = (verb, "--device", "h100_sxm", "--kernel", "fa2+faulty", *POINT)
    done = leansim(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: partitioner Faulty raised " in done.stderr


def test_a_plug_in_that_ends_when_it_is_made_is_blamed(tmp_path: Path) -> None:
    source = GOOD.format(call="pass") + "    def __post_init__(self):\n        raise SystemExit(3)\n"
    install(tmp_path, source, package="faulty")
    args = ("plan", "--device", "h100_sxm", "--kernel", "fa2+faulty", *POINT)
    done = leansim(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: partitioner 'faulty' raised SystemExit: 3" in done.stderr


LOOP = """
from dataclasses import dataclass
from leansim.timing.loops.single_buffered import SingleBuffered
@dataclass(frozen=True)
class Faulty(SingleBuffered):
    '''A loop.'''
    def price(self, tile):
        raise SystemExit(3)
    def fill_s(self, tile):
        return 0.0
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_sweep_loses_no_more_than_the_points_of_a_plug_in_that_ends(tmp_path: Path, jobs: str) -> None:
    install(tmp_path, GOOD.format(call="raise SystemExit(0)"), package="faulty")
    lens = [1000, 2000, 3000, 4000, 5000]
    axes = AXES | {"device": "h100_sxm", "kernel": ["fa2", "fa2+faulty"], "batch_size": [1, 2]}
    (tmp_path / "s.yaml").write_text(json.dumps(axes | {"context_len": lens}))
    args = ("sweep", "s.yaml", "-o", "out", "--no-plots", "-j", jobs)
    done = leansim(*args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "20 points in out: 10 simulated, 0 already there, 0 refused, 10 failed" in done.stdout
    assert "10 without a result: partitioner Faulty raised SystemExit: 0" in done.stdout


def test_a_loop_that_ends_is_blamed(tmp_path: Path) -> None:
    from leansim.specs import catalog

    install(tmp_path, LOOP, package="faulty")
    info = tmp_path / "faulty-1.0.dist-info"
    (info / "entry_points.txt").write_text("[leansim.loops]\nfaulty = faulty:Faulty\n")
    text = catalog.spec_path("kernel", "fa2").read_text()
    assert "loops: {single_buffered:" in text
    (tmp_path / "mine.yaml").write_text(text.replace("loops: {single_buffered:", "loops: {faulty:"))
    args = ("run", "--device", "h100_sxm", "--kernel", "mine.yaml", *POINT)
    done = leansim(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: a plug-in raised SystemExit: 3" in done.stderr


def test_a_module_of_the_package_that_ends_at_import_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is being written in a checkout may."""
    package = tmp_path / "some_rules"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ended.py").write_text("raise SystemExit(3)")
    (package / "half.py").write_text("def (")
    good = GOOD.format(call="pass").replace("Faulty", "Good")
    (package / "good.py").write_text(good)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = Plugins("rule", "some_rules", "some.rules", ("__call__",))
    with pytest.warns(UserWarning, match=r"some_rules\.(ended|half) failed to load: S\w+") as told:
        assert list(kind.found()) == ["good"]
    assert len(told) == 2
    with pytest.warns(UserWarning, match="some_rules.ended failed to load: SystemExit: 3"):
        assert kind.own("ended") is None
