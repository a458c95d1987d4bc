"""The pages of docs name what there is: files, sections, functions, numbers of devices and kernels."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from leansim.specs.device import AROUND, Device
from leansim.specs.kernel import Kernel
from leansim.timing.loops.registry import loops

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = (ROOT / "docs" / "model.md").read_text()
# "`one`, `two` in [file.py](path)"
CODE = re.compile(r"((?:`[\w.]+`,? ?)+)\s*in\s+\[[\w.]+\]\(\.\./([\w/]+\.py)\)")


def anchors(text: str) -> set[str]:
    """Sections of a page, as links spell them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, section = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not section or section in anchors(file.read_text()), target


def test_the_model_names_functions_that_there_are() -> None:
    found = CODE.findall(MODEL)
    assert len(found) > 30
    for names, path in found:
        module: Any = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", names):
            thing = module
            for part in name.split("."):
                assert hasattr(thing, part), f"{name} in {path}"
                thing = getattr(thing, part)


def has(model: Any, path: list[str]) -> bool:
    """Whether a key path leads to a field of a spec, through optional and repeated ones."""
    if not path:
        return True
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(path[0])
        return field is not None and has(field.annotation, path[1:])
    return any(has(inner, path) for inner in get_args(model))


def test_the_model_names_numbers_that_there_are() -> None:
    named = re.findall(r"`(device|kernel):\s+([\w.]+)`", MODEL)
    assert len(named) > 70
    specs: dict[str, type[BaseModel]] = {"device": Device, "kernel": Kernel}
    wrong = [f"{of}: {path}" for of, path in named if not has(specs[of], path.split("."))]
    assert not wrong


# What a device's file says of it that the model has no use for.
NO_PRICE = {"name", "description", "sources", "vendor", "arch", "dram_bytes", "num_sms", "num_xcds"}
LIMITS = {"registers", "smem", "max_", "warp_size", "register_"}


def test_the_model_explains_every_number_of_a_device_and_a_loop() -> None:
    prices = {
        name for name in Device.model_fields if not any(name.startswith(start) for start in LIMITS)
    }
    named = set(re.findall(r"`device:\s+(\w+)`", MODEL))
    assert prices - NO_PRICE - AROUND - named == set()
    of_loops = {f"loops.{name}.{field.name}" for name, cls in loops().items() for field in fields(cls)}  # type: ignore[arg-type]
    assert of_loops - set(re.findall(r"`(loops\.[\w.]+)`", MODEL)) == set()


def test_the_model_explains_every_loop_and_mechanism() -> None:
    for name in loops():
        assert f"\n### {name}\n" in MODEL
    for mechanism in ("start", "ctas", "merge", "combine", "compute"):
        spec: Any = Kernel.model_fields[mechanism].annotation
        known = next(one for one in (spec, *get_args(spec)) if hasattr(one, "model_fields"))
        unnamed = [
            field
            for field in known.model_fields
            if not re.search(rf"`kernel:\s+{mechanism}\.{field}`", MODEL)
        ]
        assert set(unnamed) <= {"threads", "registers_per_thread", "smem_bytes"}, mechanism
