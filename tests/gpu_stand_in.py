"""A stand-in for a GPU: kernels are interpreted, and a clock of its own is what events read.

Runs what only a GPU would run otherwise: graphs, events, buffers, what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from gpu_kit import interpreted

from leansim.gpu.toolkit import Toolkit

CALL_MS = 0.25


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.at_ms = cuda, 0.0

    def record(self) -> None:
        self.at_ms = self.cuda.now_ms

    def elapsed_time(self, end: Event) -> float:
        return end.at_ms - self.at_ms


class Graph:
    """Remembers what was called while it was captured, and takes the same time again."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.calls = cuda, list[Callable[[], None]]()

    def replay(self) -> None:
        self.cuda.replays += 1
        for call in self.calls:
            call()


@dataclass
class Cuda:
    """`torch.cuda` as far as leansim uses it; each launch of a kernel takes `CALL_MS`."""

    now_ms: float = 0.0
    launches: int = 0
    replays: int = 0
    captured: Graph | None = None
    names: list[str] = field(default_factory=list)

    def launched(self, call: Callable[[], None]) -> None:
        if self.captured is not None:
            self.captured.calls.append(lambda: self.launched(call))
            return
        self.launches += 1
        self.now_ms += CALL_MS
        call()

    def Event(self, enable_timing: bool) -> Event:  # noqa: N802 - torch's name
        assert enable_timing
        return Event(self)

    def CUDAGraph(self) -> Graph:  # noqa: N802
        return Graph(self)

    @contextmanager
    def graph(self, graph: Graph) -> Iterator[None]:
        self.captured = graph
        yield
        self.captured = None

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def _sleep(self, cycles: int) -> None:
        assert cycles > 0

    def get_device_name(self) -> str:
        return "a stand-in"

    def get_device_properties(self) -> SimpleNamespace:
        return SimpleNamespace(
            name="a stand-in", major=9, minor=0, multi_processor_count=132, total_memory=150_000_000_000
        )


class Launcher:
    """A kernel that is launched on the stand-in."""

    def __init__(self, kernel: Any, cuda: Cuda, registers: int) -> None:
        self.kernel, self.cuda, self.registers = kernel, cuda, registers

    def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., None]:
        return lambda *given, **named: self.cuda.launched(lambda: self.kernel[programs](*given, **named))

    def warmup(self, *_given: Any, **_named: Any) -> SimpleNamespace:
        metadata = SimpleNamespace(shared=36864)
        return SimpleNamespace(
            n_regs=self.registers, n_spills=0, metadata=metadata, _init_handles=lambda: None
        )


class StandIn(Toolkit):
    """The libraries with that GPU. Attention kernels must not wait: programs run one after another."""

    @property
    def where(self) -> str:
        return "cpu"


class Torch:
    """torch with another `cuda`."""

    def __init__(self, torch: Any, cuda: Cuda) -> None:
        self._torch, self.cuda = torch, cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def stand_in(registers: int = 100) -> StandIn:
    """A GPU whose attention kernel takes so many registers."""
    tools, cuda = interpreted(), Cuda()
    kernels = SimpleNamespace(
        attention=Launcher(tools.kernels.attention, cuda, registers),
        combine=Launcher(tools.kernels.combine, cuda, registers),
    )
    micro = SimpleNamespace(
        **{
            name: Launcher(getattr(tools.micro_kernels, name), cuda, registers)
            for name in ("read", "nothing", "hand_over")
        }
    )
    return StandIn(Torch(tools.torch, cuda), tools.triton, kernels, micro, interpreted=False)
