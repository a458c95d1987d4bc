"""What runs, and where: the fields of a point that name a device, a kernel and a partitioner."""

from __future__ import annotations

from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.registry import Partitioner, make
from leansim.specs import catalog
from leansim.specs.base import Spec
from leansim.specs.kernel import Kernel, PartitionerChoice, PartitionerSpec


class PolicyFields(Spec):
    """A device, and a kernel with its own partitioner or with another."""

    device: str = Field(description="a GPU in configs/devices, or a path to its YAML")
    kernel: str = Field(description="a kernel in configs/kernels, or kernel+partitioner")
    partitioner: PartitionerChoice | None = Field(None, description="instead of the kernel's own")

    @property
    def policy(self) -> str:
        """Kernel and, where it is not the kernel's own, partitioner: the label of a table row."""
        if self.partitioner is None:
            return self.kernel
        options = ", ".join(f"{k}={v}" for k, v in sorted(self.partitioner.options.items()))
        return f"{self.kernel}+{self.partitioner.name}" + (f"({options})" if options else "")


def kernel_of(fields: PolicyFields) -> Kernel:
    """Look the kernel up. Raises `UnknownNameError`, or `ConfigError` for a file that is none."""
    return catalog.kernel(fields.kernel.partition("+")[0])


def partitioner_of(fields: PolicyFields, kernel: Kernel) -> Partitioner:
    """Make the partitioner: the one that is named, else the kernel's own.

    Options lie over the kernel's where it is the same one. Raises `PartitionerError` for two names and
    for wrong options, and `UnknownNameError`.
    """
    name, chosen, own = fields.kernel.partition("+")[2], fields.partitioner, kernel.partitioner
    if chosen is not None and name:
        found = f"kernel {fields.kernel!r} and partitioner {chosen.name!r}"
        raise PartitionerError(f"found {found}; wanted a partitioner in one place")
    if chosen is None:
        chosen = PartitionerSpec(name=name) if name else own
    elif chosen.name == own.name:
        chosen = PartitionerSpec(name=chosen.name, options={**own.options, **chosen.options})
    return make(chosen.name, chosen.options)
