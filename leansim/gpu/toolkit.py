"""Loads PyTorch, Triton and the kernels, or says what is missing and how to get it.

Triton settles at its import whether kernels are compiled or interpreted, so a process does one of
the two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from leansim.errors import GpuError
from leansim.files.extras import pip_install

_INTERPRET = "TRITON_INTERPRET"


@dataclass(frozen=True)
class Toolkit:
    """The libraries, and the kernels as Triton made them."""

    torch: Any
    triton: Any
    kernels: Any
    micro_kernels: Any
    interpreted: bool

    @property
    def where(self) -> str:
        """Where tensors live, as torch calls it."""
        return "cpu" if self.interpreted else "cuda"


def load(interpret: bool) -> Toolkit:
    """Load the libraries and the kernels, compiled or interpreted on the CPU.

    Raises `GpuError` where a library is missing, or where this process has chosen the other way.
    """
    before = "triton" in sys.modules
    with _variable(_INTERPRET, "1" if interpret else "0"):
        try:
            torch, triton = import_module("torch"), import_module("triton")
        except ModuleNotFoundError as error:
            found = f"found no {error.name}"
            raise GpuError(
                f"{found}; wanted the extra that runs kernels (Linux): {pip_install('gpu')}"
            ) from None
        with suppress(ImportError):  # a part that Triton loads late, and that asks again
            import_module("triton.experimental.gluon")
        kernels = import_module("leansim.gpu.kernels")
        micro_kernels = import_module("leansim.gpu.micro_kernels")
    interpreted = type(kernels.attention).__name__ == "InterpretedFunction"
    if interpreted != interpret or _library_interprets(before) not in (None, interpret):
        found = "interpreted" if not interpret else "compiled"
        raise GpuError(f"this process has loaded Triton's kernels as {found}; wanted another process")
    return Toolkit(torch, triton, kernels, micro_kernels, interpreted)


def _library_interprets(loaded_before: bool) -> bool | None:
    """Whether Triton's own functions are interpreted, where somebody else may have decided that."""
    if not loaded_before:
        return None
    language = import_module("triton.language")
    return bool(type(language.sum).__name__ == "InterpretedFunction")


def cuda(interpret: bool = False) -> Toolkit:
    """The libraries with a GPU to run on, or interpreted on the CPU. Raises `GpuError`."""
    tools = load(interpret)
    if not interpret and not tools.torch.cuda.is_available():
        raise GpuError(
            f"found no CUDA device (torch {tools.torch.__version__}); wanted an NVIDIA GPU with its "
            f"driver and a CUDA build of torch ({pip_install('gpu')}). Without one, --interpret "
            "checks the kernels on the CPU and measures nothing"
        )
    return tools


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for as long as this lasts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
