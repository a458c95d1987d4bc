"""Writes files whole or not at all: whoever reads one sees the old content or the new.

What is written goes to a folder of parts beside its place first, and takes its place once all is there.
A link is followed to the file that it names. What is no regular file, a pipe or `/dev/stdout`, is
written to and never replaced. Text is UTF-8.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leansim.errors import ConfigError, Problem

if sys.platform != "win32":
    import fcntl

# A text, or what writes the content to an open file.
Content = str | Callable[[BinaryIO], object]

_PARTS = ".leansim-*.part"
_MOST_LINKS = 40
_PROC = "/proc"  # its links to open files name no file that could be replaced


def write_whole(path: Path, content: Content) -> None:
    """Write a file, and its folder where there is none, so that it is there whole or not at all."""
    write_together({path: content})


def write_together(files: Mapping[Path, Content]) -> None:
    """Write several files so that a failure before the last moment changes none of them.

    Another process may be writing them too: the last one wins, file by file.
    """
    with staged(files) as ready:
        ready.put()


def write_between(path: Path, mark: str, text: str) -> None:
    """Replace what stands in a page between `<!-- mark -->` and `<!-- /mark -->`, each on its line.

    Raises `ConfigError` where the page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    filled, count = block.subn(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", page)
    if not count:
        wanted = f"wanted <!-- {mark} --> and <!-- /{mark} -->"
        raise ConfigError(str(path), [Problem("marks", "none of that name", wanted)])
    write_whole(path, filled)


def check_file(path: Path) -> None:
    """Raise, as writing it would, where a file cannot be written; nothing is left of the attempt."""
    with staged({path: ""}):
        pass


def check_folder(folder: Path) -> None:
    """Raise where files cannot be written into a folder, which need not be there yet."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("command line", [Problem("--out", f"the file {folder}", "wanted a folder")])
    check_file(folder / "manifest.json")


@dataclass(frozen=True)
class Staged:
    """Files written in full that are not in their places yet.

    `digests` has the SHA-256 of each. `put` moves them, in the order given.
    """

    digests: Mapping[Path, str]
    put: Callable[[], None]


@contextmanager
def staged(files: Mapping[Path, Content]) -> Iterator[Staged]:
    """Write files in full, each beside its place; what is not put there by the end is gone.

    Raises `ConfigError` where one is a folder, `OSError` where one cannot be written.
    """
    digests: dict[Path, str] = {}
    moves: list[Callable[[], object]] = []
    folders: dict[Path, Path] = {}
    with ExitStack() as stack:
        for number, (path, content) in enumerate(files.items()):
            with _blamed_on(path):
                place = _place_of(path)
                if _is_written_to(place):
                    digests[path], move = _held(place, content)
                else:
                    if (folder := place.parent) not in folders:
                        stack.enter_context(_made(folder))
                        folders[folder] = stack.enter_context(_parts(folder))
                    digests[path], move = _beside(folders[folder] / str(number), place, content)
                moves.append(move)

        def put() -> None:
            for path, move in zip(files, moves, strict=True):
                with _blamed_on(path):
                    move()

        yield Staged(digests, put)


def _beside(part: Path, place: Path, content: Content) -> tuple[str, Callable[[], object]]:
    """Write a part; the digest of what is in it, and what moves it to its place."""
    with part.open("xb") as handle:
        _fill(handle, content)
    if place.exists():
        shutil.copymode(place, part)
    with part.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest(), lambda: part.replace(place)


def _held(place: Path, content: Content) -> tuple[str, Callable[[], object]]:
    """Keep a content for what has no part beside it: its digest, and what writes it there."""
    held = io.BytesIO()
    _fill(held, content)

    def write() -> None:
        with _opened(place) as handle:
            handle.write(held.getvalue())

    return hashlib.sha256(held.getvalue()).hexdigest(), write


def _fill(handle: BinaryIO, content: Content) -> None:
    if isinstance(content, str):
        handle.write(content.encode("utf-8", "backslashreplace"))
    else:
        content(handle)


def _place_of(path: Path) -> Path:
    """The file that a path leads to by its links. Raises where nothing can be written there."""
    place = path
    for _ in range(_MOST_LINKS):
        if _is_open_file(place) or not place.is_symlink():
            break
        place = place.parent / place.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if place.is_dir():
        raise ConfigError("command line", [Problem("--out", f"the folder {path}", "wanted a file")])
    if place.exists() and not os.access(place, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return place


def _is_open_file(path: Path) -> bool:
    return path.parent.resolve().is_relative_to(_PROC)


def _is_written_to(place: Path) -> bool:
    return _is_open_file(place) or (place.exists() and not place.is_file())


def _opened(place: Path) -> BinaryIO:
    """Open what is no regular file; a file of our own that is open goes on where it is."""
    if place.parent.resolve() == Path(f"{_PROC}/{os.getpid()}/fd") and place.name.isdigit():
        sys.stdout.flush()
        return os.fdopen(os.dup(int(place.name)), "wb")
    return place.open("wb")


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Name the file that was to be written in an error, not a part of it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; the ones that stay empty are removed."""
    if folder.exists() and not folder.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in missing:
            with suppress(OSError):
                one.rmdir()


@contextmanager
def _parts(folder: Path) -> Iterator[Path]:
    """A folder for parts, in the folder that they are meant for.

    It is locked for as long as its writer lives, so that the next one can tell which are left over.
    """
    for left in folder.glob(_PARTS):
        _remove_if_left(left)
    path, lock = _locked(folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> tuple[Path, int | None]:
    """A new folder for parts and the lock on it, None where nothing can be locked."""
    while True:
        path = folder / _PARTS.replace("*", secrets.token_hex(8))
        path.mkdir()
        lock = _lock(path)
        if path.exists():  # another writer may have taken it for one that is left over
            return path, lock
        if lock is not None:
            os.close(lock)


def _remove_if_left(path: Path) -> None:
    lock = _lock(path)
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path) -> int | None:
    """Lock a folder, unless another process has, or no folder can be locked here."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
