"""The split rules there are: every registered partitioner, as the kernels in the catalogue use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leansim.errors import PartitionerError, unknown
from leansim.partitioners.registry import (
    Partitioner,
    make,
    name_of,
    option_names,
    partitioners,
    split_count_option,
)
from leansim.points.point import Resolved
from leansim.specs import catalog
from leansim.specs.device import Device
from leansim.specs.kernel import PartitionerSpec


@dataclass(frozen=True)
class Rule:
    """A partitioner with its options, and the kernels of the catalogue that run it."""

    name: str
    partitioner: Partitioner
    used_by: tuple[str, ...] = ()


def rule_name(spec: PartitionerSpec) -> str:
    """`flash_decoding(sms_factor=1)`: a partitioner and the options given."""
    options = ", ".join(f"{key}={value}" for key, value in sorted(spec.options.items()))
    return spec.name + (f"({options})" if options else "")


def known_rules(resolved: Resolved) -> list[Rule]:
    """Every rule that is meant for such a workload and device, equal ones once, by name.

    Left out are rules of kernels for the other kind of KV cache (MLA or not) or for another vendor's
    GPUs, and partitioners that cannot be made without options.
    """
    found: dict[tuple[type, str], Rule] = {}
    elsewhere = set()
    archs = _archs(resolved.device)
    for kernel_name in catalog.names("kernel"):
        kernel = catalog.kernel(kernel_name)
        spec = kernel.partitioner
        if archs.isdisjoint(kernel.archs) or kernel.latent_kv != resolved.workload.latent_kv:
            elsewhere.add(spec.name)
            continue
        partitioner = make(spec.name, spec.options)
        key = _identity(partitioner)
        same = found.get(key, Rule(rule_name(spec), partitioner))
        found[key] = replace(same, used_by=(*same.used_by, kernel_name))
    used = {rule.name.partition("(")[0] for rule in found.values()}
    for name in partitioners():
        if name in elsewhere | used or not getattr(partitioners()[name], "chooses", True):
            continue
        try:
            partitioner = make(name)
        except PartitionerError:
            continue
        found.setdefault(_identity(partitioner), Rule(name, partitioner))
    return sorted(found.values(), key=lambda rule: rule.name)


def _identity(partitioner: Partitioner) -> tuple[type, str]:
    """What equal partitioners have in common; another package may have a class of the same name."""
    return type(partitioner), repr(partitioner)


def _archs(device: Device) -> set[str]:
    """Architectures of the vendor of a device, as far as the catalogue has them."""
    known = [catalog.device(name) for name in catalog.names("device")]
    return {other.arch for other in (*known, device) if other.vendor == device.vendor}


def chosen_rules(resolved: Resolved, names: Sequence[str] = ()) -> list[Rule]:
    """Rules by the names of partitioners or of kernels that run them; without names, all known.

    Raises `UnknownNameError` or what making a partitioner raises.
    """
    rules = known_rules(resolved)
    if not names:
        return rules
    _check_names(names, rules)
    chosen: list[Rule] = []
    for name in names:
        mine = [
            rule for rule in rules if name in (rule.name, rule.name.partition("(")[0], *rule.used_by)
        ]
        if not mine:
            mine = [_by_name(name)]
        chosen += [rule for rule in mine if rule not in chosen]
    return chosen


def _check_names(names: Sequence[str], rules: Sequence[Rule]) -> None:
    """Raise the error of all names that are no rule's."""
    mine = {name for rule in rules for name in (rule.name, rule.name.partition("(")[0], *rule.used_by)}
    known = {*partitioners(), *catalog.names("kernel")}
    wrong = [name for name in names if name not in mine and name not in known and not _is_file(name)]
    if wrong:
        raise unknown("split rule", wrong, known)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _by_name(name: str) -> Rule:
    if name in partitioners():
        return Rule(name, make(name))
    spec = catalog.kernel(name).partitioner
    return Rule(rule_name(spec), make(spec.name, spec.options), (name,))


def own_rule(resolved: Resolved) -> Rule:
    """The rule of the point itself."""
    for rule in known_rules(resolved):
        if rule.partitioner == resolved.partitioner:
            return rule
    point = resolved.point
    kernel, _, partitioner = point.kernel.partition("+")
    spec = point.partitioner or PartitionerSpec(name=partitioner or resolved.kernel.partitioner.name)
    return Rule(
        rule_name(spec), resolved.partitioner, () if partitioner or point.partitioner else (kernel,)
    )


def told(partitioner: Partitioner, count: int) -> Partitioner | None:
    """A partitioner told to use a number of splits, or None if it takes no such option.

    For some it is the most of counts that follow from the lengths. Raises `PartitionerError` for a
    count that the partitioner refuses.
    """
    option = split_count_option(type(partitioner))
    if option is None:
        return None
    given = {key: getattr(partitioner, key) for key in option_names(type(partitioner))}
    return make(name_of(type(partitioner)), {**given, option: count})


def heeds_count(resolved: Resolved) -> bool:
    """Whether a point's own partitioner, told a number of splits, uses it for this workload."""
    try:
        partitioner = told(resolved.partitioner, 2)
        return (
            partitioner is not None
            and replace(resolved, partitioner=partitioner).schedule.num_splits == 2
        )
    except PartitionerError:
        return False
