"""What the tests of sweeps share: a small grid, the command line, a plug-in that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from leansim.files.strict_yaml import Document
from leansim.points.grid import PointGrid, build
from leansim.sweeps.store import Store
from leansim.sweeps.sweep import RESULTS

AXES: dict[str, Any] = {
    "name": "small",
    "device": ["a100_sxm_80gb", "h100_sxm"],
    "kernel": ["fa2", "lean", "lean_aiter"],  # the last is refused: built for neither
    "batch_size": [1, 2, 3],
    "context_len": [1000, 2000, 3000, 4000],
    "num_q_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 128,
}
TOTAL = 2 * 3 * 3 * 4


def grid(**changes: Any) -> PointGrid:
    return build(Document("test", {**AXES, **changes}, {}))


def leansim(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leansim", *args]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120, env=env
    )


def results(folder: Path) -> bytes:
    return (folder / RESULTS).read_bytes()


def runs(folder: Path) -> list[int]:
    with Store(folder, create=False) as store:
        return sorted(store.runs().values())


# A plug-in that dies: once, where it finds no marker yet, or whenever the batch has a certain size.
DEADLY = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from leansim.partitioners.flash_attention_2 import FlashAttention2

@dataclass(frozen=True)
class Deadly:
    '''Kills its process.'''
    def __call__(self, grid, device):
        batch = grid.workload.batch_size
        if batch == 2 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if batch == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if batch == 4:
            raise ZeroDivisionError("a fault")
        return FlashAttention2()(grid, device)
"""


def install(
    folder: Path, source: str, version: str = "1.0", package: str = "deadly", cls: str = ""
) -> None:
    """Put a plug-in with one partitioner into a folder, as an installed distribution.

    The entry point has the name of the package; so has the class, unless `cls` says another.
    """
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    entry = f"[leansim.partitioners]\n{package} = {package}:{cls or package.title()}\n"
    (info / "entry_points.txt").write_text(entry)
