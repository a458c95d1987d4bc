"""What to write to install an extra of this very installation: an index may not have it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAME = "leansim-attention"


def pip_install(extra: str) -> str:
    """The command that adds an extra: from where this was installed from, or the checkout that runs."""
    return f"pip install '{_requirement(extra)}'"


def _requirement(extra: str) -> str:
    root = Path(__file__).resolve().parents[2]
    try:
        said = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        said = None
    origin = json.loads(said) if said else {}
    url = str(origin.get("url", ""))
    if url.startswith("file://") and Path(url.removeprefix("file://")).is_dir():
        return f"{url.removeprefix('file://')}[{extra}]"
    if url:
        version_control = origin.get("vcs_info", {}).get("vcs")
        return f"{NAME}[{extra}] @ {f'{version_control}+' if version_control else ''}{url}"
    if (root / "pyproject.toml").is_file():
        return f"{root}[{extra}]"
    return f"{NAME}[{extra}]"
