"""What runs, and where: the fields of a point that name a device, a kernel and a partitioner."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from leansim.errors import LeansimError, PartitionerError, UnknownNameError, listing
from leansim.partitioners.registry import (
    Partitioner,
    find,
    is_partitioner,
    make,
    name_of,
    options_of,
    split_count_option,
)
from leansim.plugins import snake_case
from leansim.specs import catalog
from leansim.specs.base import Count, Spec
from leansim.specs.kernel import Kernel, PartitionerSpec


class GivenPartitioner(PartitionerSpec):
    """A partitioner that was given itself, found by name or not."""

    _object: Any = PrivateAttr()

    @classmethod
    def of(cls, partitioner: Any) -> GivenPartitioner:
        """One by the name that its class has, and those of its options that are not the default."""
        try:
            name = name_of(type(partitioner))
        except UnknownNameError:
            name = snake_case(type(partitioner).__name__)
        given = cls(name=name, options=options_of(partitioner))
        given._object = partitioner
        return given

    def partitioner(self) -> Partitioner:
        """What was given."""
        return self._object  # type: ignore[no-any-return]


def _as_spec(value: Any) -> Any:
    if is_partitioner(type(value)):
        return GivenPartitioner.of(value)
    if callable(value):
        raise ValueError("wanted a partitioner's name, or a frozen dataclass called with (grid, device)")
    return {"name": value} if isinstance(value, str) else value


Choice = Annotated[PartitionerSpec, BeforeValidator(_as_spec)]


class PolicyFields(Spec):
    """A device, maybe several of it on a node, and a kernel with its own partitioner or with another.

    `num_splits` becomes the option of the partitioner that sets how many splits there are, whatever its
    name; it stays where it is if there is no such option, or the kernel does not exist.
    """

    device: str = Field(description="a GPU in configs/devices, or a path to its YAML")
    node: str | None = Field(
        None, description="GPUs and links in configs/nodes: what travels between GPUs counts"
    )
    kernel: str = Field(description="a kernel in configs/kernels, or kernel+partitioner")
    partitioner: Choice | None = Field(None, description="instead of the kernel's own")
    num_splits: Count | None = Field(
        None, description="splits of each output tile, where the kernel's partitioner takes a count"
    )

    @model_validator(mode="after")
    def _count_is_an_option(self) -> PolicyFields:
        if self.num_splits is None:
            return self
        kernel, chosen = _chosen(self)
        option = None if chosen is None else split_count_option(find(chosen.name))
        if chosen is not None and option is not None and option not in chosen.options:
            options = {**chosen.options, option: self.num_splits}
            self.__dict__["kernel"] = kernel
            self.__dict__["partitioner"] = PartitionerSpec(name=chosen.name, options=options)
            self.__dict__["num_splits"] = None
            self.__pydantic_fields_set__.discard("num_splits")
            self.__pydantic_fields_set__.add("partitioner")
        return self

    @property
    def policy(self) -> str:
        """Kernel and, where it is not the kernel's own, partitioner: the label of a table row."""
        if self.partitioner is None:
            return self.kernel
        options = ", ".join(f"{k}={v}" for k, v in sorted(self.partitioner.options.items()))
        return f"{self.kernel}+{self.partitioner.name}" + (f"({options})" if options else "")


def _chosen(fields: PolicyFields) -> tuple[str, PartitionerSpec | None]:
    """The kernel, and its partitioner with the options that are given; None if there is none such."""
    kernel, _, name = fields.kernel.partition("+")
    if isinstance(fields.partitioner, GivenPartitioner):
        return fields.kernel, None
    try:
        chosen = fields.partitioner or PartitionerSpec(
            name=name or catalog.kernel(kernel).partitioner.name
        )
        find(chosen.name)
    except LeansimError:
        return fields.kernel, None
    return (fields.kernel if fields.partitioner else kernel), chosen


def kernel_of(fields: PolicyFields) -> Kernel:
    """Look the kernel up. Raises `UnknownNameError`, or `ConfigError` for a file that is none."""
    return catalog.kernel(fields.kernel.partition("+")[0])


def partitioner_of(fields: PolicyFields, kernel: Kernel) -> Partitioner:
    """Make the partitioner: the one that is named, else the kernel's own.

    Options lie over the kernel's where it is the same one. Raises `PartitionerError` for two names, for
    wrong options, and for a count of splits that it does not take, and `UnknownNameError`.
    """
    name, chosen, own = fields.kernel.partition("+")[2], fields.partitioner, kernel.partitioner
    if chosen is not None and name:
        found = f"kernel {fields.kernel!r} and partitioner {chosen.name!r}"
        raise PartitionerError(f"found {found}; wanted a partitioner in one place")
    if fields.num_splits is not None:
        _refuse_count(fields.num_splits, chosen or PartitionerSpec(name=name or own.name))
    if isinstance(chosen, GivenPartitioner):
        return chosen.partitioner()
    if chosen is None:
        chosen = PartitionerSpec(name=name) if name else own
    elif chosen.name == own.name:
        chosen = PartitionerSpec(name=chosen.name, options={**own.options, **chosen.options})
    return make(chosen.name, chosen.options)


def _refuse_count(count: int, chosen: PartitionerSpec) -> None:
    """Raise the error of a count of splits that is not an option, or is one twice."""
    if isinstance(chosen, GivenPartitioner):
        wanted = f"wanted the count among the options of {chosen.partitioner()!r}"
        raise PartitionerError(f"num_splits: found {count} beside a partitioner; {wanted}")
    if (option := split_count_option(find(chosen.name))) is not None:
        raise PartitionerError(
            f"found num_splits {count} and {option} {chosen.options.get(option)} of partitioner "
            f"{chosen.name!r}; wanted one of them"
        )
    takers = [
        kernel
        for kernel in catalog.names("kernel")
        if split_count_option(find(catalog.kernel(kernel).partitioner.name)) is not None
    ]
    raise PartitionerError(
        f"num_splits: found {count} for partitioner {chosen.name!r}, which takes no number of splits; "
        f"wanted a kernel whose partitioner does: {listing(takers)}"
    )
