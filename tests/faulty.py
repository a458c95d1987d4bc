"""Runs a verb with a fault at each of its dealings with files in turn: a script, and a library for it.

An audit hook counts what the verb opens, makes, renames and removes in its working folder, and at the
n-th of these kills the process, or has the call fail as on a full disk or a read-only one. A process
that has imported leansim forks for each n, in a folder that is a copy of the one given.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAULTS = ("kill", "full", "read_only")
WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Trap:
    """Counts dealings with files below a folder, and springs at the `at`-th."""

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.folder, self.fault, self.at, self.count = str(folder), fault, at, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in WATCHED or not args or not isinstance(args[0], str | bytes):
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100 - what the call sees
        if not path.startswith(self.folder):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            return  # a full disk can be cleaned
        number = errno.ENOSPC if self.fault == "full" else errno.EROFS
        raise OSError(number, os.strerror(number), path)


def in_fork(work: Callable[[], None], log: Path) -> int:
    """Do something in a fork, its output to a file, and return its status: 0, an exit code, or -9."""
    reading, writing = os.pipe()  # not to the file itself, which a limit may keep from growing
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        log.write_bytes(said.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def verb(args: list[str], folder: Path) -> None:
    from leansim.cli.main import main

    os.chdir(folder)
    sys.argv = ["leansim", *args]
    main()


def trapped(args: list[str], folder: Path, fault: str, at: int) -> None:
    sys.addaudithook(trap := Trap(folder, fault, at))
    try:
        verb(args, folder)
    finally:
        if trap.count < at:
            (folder.parent / "untouched").touch()


def limited(args: list[str], folder: Path, most_bytes: int) -> None:
    """Files may grow to so many bytes: the system's own way of being full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    verb(args, folder)


def main() -> None:
    """`faulty.py ARGS.json FOLDER OUT FAULT STEP`: print the status of each run, its folder is OUT/n.

    FAULT is one of `FAULTS`, or the name of a limit in bytes: `bytes:4096,65536`. STEP is how many
    dealings to go on by from one run to the next.
    """
    args, folder, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    fault, step = sys.argv[4], int(sys.argv[5])
    import leansim.cli.main
    import leansim.report.plots
    import leansim.report.run  # noqa: F401

    sizes = [int(size) for size in fault.partition(":")[2].split(",") if size]
    found = {}
    for number in range(1, 10_000):
        at = sizes[number - 1] if sizes else 1 + (number - 1) * step
        copy = out / str(number) / "work"
        shutil.copytree(folder, copy)
        log = copy.parent / "log"
        if sizes:
            status = in_fork(lambda at=at, copy=copy: limited(args, copy, at), log)
        else:
            status = in_fork(lambda at=at, copy=copy: trapped(args, copy, fault, at), log)
        found[number] = status
        if (copy.parent / "untouched").exists() or number == len(sizes):
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
