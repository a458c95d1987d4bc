"""Folders of artifacts: files of one run, and the manifest that lists them.

What an earlier run left there, by its manifest, is removed; files that no manifest lists are let alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from leansim.errors import StoreError
from leansim.files.writing import Content, staged, write_whole

# SHA-256 of each artifact, by its name in the folder.
Digests = Mapping[str, str]
# What a file shows, in the parts of its name.
Label = tuple[str, ...]

MANIFEST = "manifest.json"
_LISTED = "artifacts"
_MOST_BYTES = 120  # of a file's name without its ending; file systems take 255 and some 143
_DIGEST = 8


def write_artifacts(
    folder: Path,
    files: Mapping[str, Content],
    manifest: Mapping[str, Any],
    kept: Callable[[Digests, Digests], Collection[str]] = lambda _before, _now: (),
) -> list[Path]:
    """Write files by their names in a folder, list them in its manifest, and return all paths.

    Artifacts that the manifest listed before are removed, but those that `kept` names, which is told
    what was there and what is now written. A run that is killed leaves none that no manifest lists.
    """
    path = folder / MANIFEST
    with staged({folder / name: content for name, content in files.items()}) as ready:
        mine = {name: ready.digests[folder / name] for name in files}
        before = listed(folder)
        stay = {name: before[name] for name in kept(before, mine)}
        with staged({path: _text(manifest, {**stay, **mine})}) as last:
            if not mine.keys() <= before.keys():
                write_whole(path, _text(manifest, {**before, **mine}))
            for name in before.keys() - stay.keys() - mine.keys():
                _remove(folder, name)
            ready.put()
            last.put()
    return [*(folder / name for name in files), path]


def _text(manifest: Mapping[str, Any], artifacts: Mapping[str, str]) -> str:
    return json.dumps({**manifest, _LISTED: dict(sorted(artifacts.items()))}, indent=2) + "\n"


def _remove(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if path.parent != folder and not any(path.parent.iterdir()):
        path.parent.rmdir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `StoreError` where there is none, or something else."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: found {error}; wanted a manifest") from None
    if not isinstance(found, dict):
        raise StoreError(f"{path}: found {type(found).__name__}; wanted a manifest: a mapping")
    return found


def listed(folder: Path) -> dict[str, str]:
    """Artifacts that a folder's manifest lists and that are there, with the digest of each."""
    try:
        found = read_manifest(folder).get(_LISTED)
    except StoreError:
        return {}
    named = found.items() if isinstance(found, dict) else ()
    return {name: str(digest) for name, digest in named if _is_inside(folder, name)}


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is that of a file in the folder, whatever a manifest may say."""
    pure = PurePosixPath(name)
    plain = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in name
    if not plain or name == MANIFEST:
        return False
    path = folder / name
    return path.is_file() and path.resolve().parent.is_relative_to(folder.resolve())


def check_artifact(folder: Path, name: str) -> None:
    """Raise `StoreError` where a file is not the one that the manifest beside it lists."""
    digest = listed(folder).get(name)
    if digest is None:
        return
    with (folder / name).open("rb") as handle:
        if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
            wanted = f"wanted the one that {MANIFEST} lists: the command that wrote it puts it right"
            raise StoreError(f"{folder / name}: found a file that was changed or cut; {wanted}")


def file_names(labels: Iterable[Label]) -> dict[Label, str]:
    """A name for the file of each label, without an ending: no two alike, and none too long.

    A name is the parts of the label, with what file systems may not take replaced. Where that is not
    enough, a digest of the label ends it.
    """
    names = {label: "-".join(re.sub(r"[^\w.+-]+", "_", part) for part in label) for label in labels}
    taken = Counter(name.casefold() for name in names.values())
    return {
        label: name
        if taken[name.casefold()] == 1 and 0 < len(name.encode()) <= _MOST_BYTES
        else _with_digest(label, name)
        for label, name in names.items()
    }


def _with_digest(label: Label, name: str) -> str:
    digest = hashlib.sha256(repr(label).encode()).hexdigest()[:_DIGEST]
    short = name.encode()[: _MOST_BYTES - _DIGEST - 1].decode(errors="ignore")
    return f"{short}-{digest}".lstrip("-")
