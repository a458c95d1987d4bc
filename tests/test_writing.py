"""Files that leansim writes: whole or not at all, where the path leads, with names that cannot clash."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from leansim.errors import ConfigError, StoreError
from leansim.files import writing
from leansim.files.artifacts import (
    MANIFEST,
    check_artifact,
    file_names,
    listed,
    read_manifest,
    write_artifacts,
)
from leansim.files.writing import (
    check_file,
    check_folder,
    staged,
    write_between,
    write_together,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- where a path leads --------------------------------------------------------------------------


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to("there/file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_a_link_to_what_is_not_there_yet_makes_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new/file")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "new" / "file").read_text() == "text"


def test_a_linked_folder_and_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there", target_is_directory=True)
    check_folder(tmp_path / "out")
    write_artifacts(tmp_path / "out", {"a": "1"}, {})
    assert names(tmp_path / "there") == ["a", MANIFEST]
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links: '.*one'"):
        write_whole(tmp_path / "one", "text")


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    for path in (pipe, tmp_path / "link"):
        reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
        reader.start()
        write_whole(path, "µs")
        reader.join(timeout=20)
    assert heard == ["µs".encode()] * 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == []


STDOUT = """
from pathlib import Path
from leansim.files.writing import check_file, write_whole
check_file(Path({path!r}))
print("before")
write_whole(Path({path!r}), "within\\n")
print("after")
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")
@pytest.mark.parametrize("path", ["/proc/self/fd/1", "/dev/fd/1", "link"])
@pytest.mark.parametrize("to_a_file", [True, False])
def test_an_open_file_goes_on_where_it_is(tmp_path: Path, path: str, to_a_file: bool) -> None:
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    command = [sys.executable, "-c", STDOUT.format(path=path)]
    if to_a_file:
        with (tmp_path / "said").open("w") as said:
            subprocess.run(command, stdout=said, cwd=tmp_path, check=True)
        text = (tmp_path / "said").read_text()
    else:
        text = subprocess.run(
            command, stdout=subprocess.PIPE, cwd=tmp_path, check=True, text=True
        ).stdout
    assert text.splitlines() == ["before", "within", "after"]


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    write_whole(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    plain = tmp_path / "plain"
    write_whole(plain, "text")
    (tmp_path / "beside").write_text("text")
    assert plain.stat().st_mode == (tmp_path / "beside").stat().st_mode


@pytest.mark.parametrize("text", ["µs → ≤", "\ud800", "a\udcffb", "\0"])
def test_text_is_utf_8_whatever_it_holds(tmp_path: Path, text: str) -> None:
    write_whole(tmp_path / "file", text)
    assert (tmp_path / "file").read_bytes() == text.encode("utf-8", "backslashreplace")


# --- whole or not at all -------------------------------------------------------------------------


def full(part: BinaryIO) -> None:
    part.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), part.name)


@pytest.mark.parametrize("place", ["old", "new", "deep/er/new"])
def test_a_full_disk_changes_nothing_and_names_the_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(OSError, match=f"No space left on device: '.*{place}'"):
        write_together({tmp_path / "first": "text", tmp_path / place: full})
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_ends_the_writing_leaves_no_part(tmp_path: Path, error: type[BaseException]) -> None:
    def ended(_: BinaryIO) -> None:
        raise error

    with pytest.raises(error):
        write_whole(tmp_path / "file", ended)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal
from pathlib import Path
from leansim.files.writing import write_whole
def die(part):
    part.write(b"half"); part.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path("file"), die)
"""


def test_the_parts_of_a_killed_writer_go_with_the_next_and_no_others(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    assert [path.match(writing._PARTS) for path in tmp_path.iterdir()] == [True]
    with staged({tmp_path / "mine": "text"}) as ready:
        mine = set(tmp_path.glob(writing._PARTS))
        assert len(mine) == 1
        write_whole(tmp_path / "file", "whole")
        assert set(tmp_path.glob(writing._PARTS)) == mine, "that of a writer at work"
        ready.put()
    assert names(tmp_path) == ["file", "mine"]
    assert list(tmp_path.glob(writing._PARTS)) == []


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for work in (check_file, lambda path: write_whole(path, "text")):
        with pytest.raises(ConfigError, match=r"found the folder .*folder; wanted a file"):
            work(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"found the file .*file; wanted a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match="Not a directory"):
        check_folder(tmp_path / "file" / "deeper")


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_file(tmp_path / "a" / "b" / "file")
    check_folder(tmp_path / "c" / "d")
    (tmp_path / "there").write_text("text")
    check_file(tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "text"


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nothing can be made in, not even by root."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    make = Path.mkdir

    def refuse(path: Path, *args: int, **options: bool) -> None:
        if path.is_relative_to(folder) and path != folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    return folder


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize("place", ["out", "deep/er"])
def test_a_read_only_folder_is_noticed(
    read_only: Path, check: Callable[[Path], None], place: str
) -> None:
    with pytest.raises(OSError, match=f"Read-only file system: '.*{place}"):
        check(read_only / place)


def test_a_page_is_filled_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- it -->\nold\n<!-- /it -->\n")
    (tmp_path / "link.md").symlink_to("page.md")
    write_between(tmp_path / "link.md", "it", "µ")
    assert (tmp_path / "page.md").read_bytes() == "<!-- it -->\nµ\n<!-- /it -->\n".encode()


# --- folders of artifacts ------------------------------------------------------------------------


def test_artifacts_of_another_run_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    write_artifacts(tmp_path, {"a.csv": "1", "deep/b.json": "2", "c.png": "3"}, {"run": 1})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "deep" / "mine.txt").write_text("mine")
    written = write_artifacts(tmp_path, {"a.csv": "4"}, {"run": 2}, lambda *_: ["c.png"])
    assert written == [tmp_path / "a.csv", tmp_path / MANIFEST]
    assert names(tmp_path) == ["a.csv", "c.png", "deep/mine.txt", MANIFEST, "notes.txt"]
    assert read_manifest(tmp_path)["run"] == 2
    assert list(listed(tmp_path)) == ["a.csv", "c.png"]
    write_artifacts(tmp_path, {"deep/b.json": "5"}, {})
    (tmp_path / "deep" / "mine.txt").unlink()
    write_artifacts(tmp_path, {}, {})
    assert names(tmp_path) == [MANIFEST, "notes.txt"]
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "there/../../outside", "link/outside", MANIFEST, "", "a\0b", "."]
)
def test_a_manifest_has_nothing_removed_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("mine")
    folder = tmp_path / "folder"
    (folder / "there").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    text = json.dumps({"artifacts": {name.replace("/outside", f"{tmp_path}/outside", 1)
                                     if name.startswith("/") else name: ""}})  # fmt: skip
    (folder / MANIFEST).write_text(text)
    assert listed(folder) == {}
    write_artifacts(folder, {"a": "1"}, {})
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", '{"artifacts": null}', '{"artifacts": [1]}', "[" * 9000, "\ufeff{"]
)
def test_a_manifest_that_is_none_is_written_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert listed(tmp_path) == {}
    write_artifacts(tmp_path, {"a": "1"}, {})
    assert list(read_manifest(tmp_path)["artifacts"]) == ["a"]


@pytest.mark.parametrize("text", ["", "null", "[]", "7", "[" * 9000, "\ufeff{", '{"a":'])
def test_reading_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"manifest.json: found .*; wanted a manifest"):
        read_manifest(tmp_path)


def test_a_run_that_is_killed_leaves_no_artifact_that_no_manifest_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifacts(tmp_path, {"old": "1", "both": "1"}, {"run": 1})
    monkeypatch.setattr(writing.shutil, "rmtree", lambda *_, **__: None)
    replace, moved = Path.replace, []

    def dying(part: Path, place: Path) -> Path:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(place.name)
        return replace(part, place)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write_artifacts(tmp_path, {"new": "2", "both": "2"}, {"run": 2})
    assert moved == [MANIFEST, "new"]
    assert set(listed(tmp_path)) == {"new", "both"}


def test_a_full_disk_changes_no_artifact(tmp_path: Path) -> None:
    write_artifacts(tmp_path, {"old": "1", "both": "1"}, {"run": 1})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(OSError, match="No space left"):
        write_artifacts(tmp_path, {"new": "2", "both": full}, {"run": 2})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_an_artifact_that_was_changed_is_noticed(tmp_path: Path) -> None:
    write_artifacts(tmp_path, {"a": "1234"}, {})
    check_artifact(tmp_path, "a")
    for text in ("1235", "123", ""):
        (tmp_path / "a").write_text(text)
        with pytest.raises(StoreError, match="found a file that was changed or cut"):
            check_artifact(tmp_path, "a")
    check_artifact(tmp_path, "of an older version, which no manifest lists")


# --- names ---------------------------------------------------------------------------------------


def test_names_of_files_do_not_clash_and_are_not_too_long() -> None:
    labels = [
        ("h100", "fa2+lean"), ("a/b", "c"), ("a_b", "c"), ("a", "b-c"), ("a-b", "c"), ("A_b", "c"),
        ("long", "x" * 1000), ("long", "x" * 1001), ("é" * 200,), ("..",), ("",), ("\n",), ("a\0", "c"),
    ]  # fmt: skip
    found = file_names(labels)
    assert found["h100", "fa2+lean"] == "h100-fa2+lean"
    assert len({name.casefold() for name in found.values()}) == len(labels)
    assert all(0 < len(name.encode()) <= 120 for name in found.values())
    assert not any(set(name) & set("/\0\n") for name in found.values())
    assert file_names(labels) == found
