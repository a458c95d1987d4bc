"""Tries inputs of one reader for a while, in a process that may hang, and keeps what it finds.

A find is an input that ends otherwise than in data or in a named error that can be printed; one that
takes longer than `HANG_S` of work, or makes the process larger than `MOST_BYTES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from leansim.errors import LeansimError

from .readers import READERS

FINDS = Path(__file__).parent / "finds"
ROOT = Path(__file__).parent.parent.parent
HANG_S = 30.0
MOST_BYTES = 2 * 2**30
_INPUTS_AT_ONCE = 200


class TooLargeError(Exception):
    """An input made the process larger than it may be."""


def tried(reader: str, content: bytes, folder: Path) -> str:
    """`taken`, or the name of the error that refused an input. Raises what is a find."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        try:
            READERS[reader].read(content, folder)
            outcome = "taken"
        except LeansimError as error:
            str(error).encode()
            outcome = type(error).__name__
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MOST_BYTES:
        raise TooLargeError(f"more than {MOST_BYTES:,} bytes")
    return outcome


def place_of(error: BaseException) -> str:
    """Where an error comes from, for two inputs that find the same to be one find."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}leansim{os.sep}" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def batch(
    reader: str, number: int, folder: Path, stop_s: float, known: set[str], counts: dict[str, int]
) -> None:
    """Try some inputs; raises a find that is not `known`, after making its input as small as can be."""

    @seed(number)
    @settings(
        max_examples=_INPUTS_AT_ONCE,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def inputs(data: Any) -> None:
        content = READERS[reader].make(data.draw)
        if time.monotonic() > stop_s:
            return
        (folder / "last").write_bytes(content)
        try:
            outcome = tried(reader, content, folder)
        except Exception as error:
            outcome = place_of(error)
            if outcome not in known:
                raise
        counts[outcome] = counts.get(outcome, 0) + 1

    inputs()


def child(reader: str, seconds: float, first: int, folder: Path) -> None:
    """Try inputs until the time is up; prints one line of JSON with what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    stop_s, number = time.monotonic() + seconds, first
    known, counts, finds = set[str](), dict[str, int](), list[dict[str, str]]()
    while time.monotonic() < stop_s:
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
                batch(reader, number, folder, stop_s, known, counts)
        except Exception as error:
            place = place_of(error)
            known.add(place)
            finds.append({"what": f"{place}: {str(error)[:200]}", "file": keep(reader, folder)})
            if isinstance(error, TooLargeError):
                break  # a process does not become smaller again
        number += 1
        (folder / "so_far").write_text(json.dumps({"counts": counts, "finds": finds}))


def keep(reader: str, folder: Path) -> str:
    """Keep the last input as a find; its file."""
    content = (folder / "last").read_bytes()
    path = FINDS / reader / hashlib.sha256(content).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path.relative_to(ROOT))


def _worked_s(pid: int) -> float:
    """Seconds that a process has had of the processor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(reader: str, seconds: float, first: int) -> dict[str, Any]:
    """Try inputs of a reader in a process of its own; what came of them, by outcome, and the finds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "last").write_bytes(b"")
        (folder / "so_far").write_text('{"counts": {}, "finds": []}')
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--first", str(first),
                   "--seconds", str(seconds), reader]  # fmt: skip
        hung = False
        with subprocess.Popen(command, cwd=ROOT) as process:
            worked_s, last = 0.0, 0.0
            while process.poll() is None:
                time.sleep(0.5)
                if (now := (folder / "last").stat().st_mtime) != last:
                    worked_s, last = _worked_s(process.pid), now
                age_s = time.time() - (folder / "last").stat().st_mtime
                # A machine that is busy with others is no hang, unless it is for very long.
                if age_s > HANG_S and (
                    _worked_s(process.pid) - worked_s > HANG_S or age_s > 10 * HANG_S
                ):
                    hung = True
                    process.kill()
        found: dict[str, Any] = json.loads((folder / "so_far").read_text())
        if hung or process.returncode:
            what = "a hang" if hung else f"the process ended with {process.returncode}"
            found["finds"].append({"what": what, "file": keep(reader, folder)})
        return found
