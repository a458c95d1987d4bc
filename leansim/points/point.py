"""One simulation, described by names and numbers: a `Point`, and what it resolves to.

The same fields serve YAML, CSV columns, command-line flags and Python keywords.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from leansim.answers import Row
from leansim.errors import ConfigError, FaultError, LeansimError, Problem, WorkloadError, suggestion
from leansim.files.strict_json import value_of
from leansim.files.strict_yaml import Document, scalar
from leansim.lazy import cached_property
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.partitioners.registry import Partitioner, find, make, option_names, partitioners
from leansim.plugins import described
from leansim.points.batch import BatchFields, context_lens_of
from leansim.points.call import CallFields, call_of
from leansim.points.held import in_chunks, kv_bytes_of
from leansim.points.kept import KeptFields, reads_of
from leansim.points.keys import result_key
from leansim.points.policy import PolicyFields, kernel_of, partitioner_of
from leansim.points.shape import ShapeFields, Share, given_of, shape_of, share_of
from leansim.points.travel import Travel
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.schedule.work import Level
from leansim.specs import catalog
from leansim.specs.base import Count
from leansim.specs.device import Device
from leansim.specs.evidence import Grounds, grounds
from leansim.specs.instance import Instance, instance_of
from leansim.specs.kernel import Kernel
from leansim.specs.kv_lists import Shard
from leansim.specs.limits import instead, refuse_beyond
from leansim.specs.node import Node
from leansim.specs.overrides import overridden
from leansim.specs.prefixes import Prefixes, SharedPages
from leansim.specs.workload import Workload


# Fields of the last part come first: device, kernel, ... overrides, as help and tables list them.
class Point(CallFields, KeptFields, ShapeFields, BatchFields, PolicyFields):
    """A device, a kernel and a workload, in one flat vocabulary.

    Each part says in which ways its fields may be given. `overrides` changes any number of the device or
    kernel, as in `device.num_sms`.
    """

    num_sms: Count | None = Field(None, description="SMs, instead of the device's")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="device.* and kernel.* numbers to change"
    )


# How the names of numbers begin that a point's `overrides` change.
OVERRIDDEN = ("device.", "kernel.")
POINT_KEYS: dict[str, str] = {field.alias or name: name for name, field in Point.model_fields.items()}


@dataclass(frozen=True, eq=False)
class Resolved:
    """A point with its names looked up."""

    point: Point
    device: Device
    kernel: Kernel
    workload: Workload
    partitioner: Partitioner
    level: Level = "all"
    share: Share | None = None
    node: Node | None = None

    @cached_property
    def instance(self) -> Instance:
        """What of the kernel runs for this call on the device, in plain numbers."""
        return instance_of(self.kernel, self.device, self._rows_together, self.is_split)

    @cached_property
    def grid(self) -> TileGrid:
        """The tiled workload."""
        if self.kernel.asks_split and self.is_split:
            return self._grid_if_split
        level = "suffix" if self.prefix_call is not None else self.level
        return tile_grid(self.workload, self.instance, self.device, level)

    @cached_property
    def prefix_call(self) -> Resolved | None:
        """The launch for what requests share, where that is one of its own, by another kernel."""
        how = self.kernel.prefix_call
        if how is None or not self.workload.prefixes or self.level != "all":
            return None
        kernel = catalog.kernel(how.kernel)
        said = how.partitioner or kernel.partitioner
        partitioner = make(said.name, said.options)
        return replace(self, kernel=kernel, partitioner=partitioner, level="prefix")

    @property
    def calls(self) -> list[Resolved]:
        """The launches that attend to KV, in order."""
        return [self] if self.prefix_call is None else [self.prefix_call, self]

    @cached_property
    def travel(self) -> Travel:
        """What GPUs that divide contexts send each other."""
        return Travel.of(self.workload, self.point.kv_ranks, self.point.kv_rank_merge)

    @property
    def _rows_together(self) -> Workload:
        """The call that decides which instance runs: of prefixes one with the rows of all that share."""
        if self.level != "prefix":
            return self.workload
        most = max(self.workload.prefixes, key=lambda one: len(one.requests))
        rows = len(most.requests) * self.workload.query_len
        return replace(
            self.workload,
            context_lens=(most.end + rows,),
            query_len=rows,
            max_context_len=None,
            reads=None,
        )

    @cached_property
    def schedule(self) -> Schedule:
        """What the partitioner makes of it."""
        if not self.kernel.asks_split:
            return self._partitioned(self.grid)
        return self._as_split if self.is_split else FlashAttention2()(self.grid, self.device)

    @cached_property
    def is_split(self) -> bool:
        """Whether the host splits the call, where that decides which instance runs; else true."""
        if not self.kernel.asks_split:
            return True
        if split_count := getattr(self.partitioner, "split_count", None):
            return bool(split_count(self._grid_if_split) > 1)
        return self._as_split.combine != "none"

    @cached_property
    def _grid_if_split(self) -> TileGrid:
        """The tiles of the entry for calls that are split."""
        instance = instance_of(self.kernel, self.device, self.workload)
        return tile_grid(self.workload, instance, self.device)

    @cached_property
    def _as_split(self) -> Schedule:
        """The schedule through that entry."""
        return self._partitioned(self._grid_if_split)

    def _partitioned(self, grid: TileGrid) -> Schedule:
        name = type(self.partitioner).__name__
        try:
            schedule = self.partitioner(grid, self.device)
        except (LeansimError, KeyboardInterrupt):
            raise
        except BaseException as error:  # anything at all can go wrong in foreign code
            raise FaultError(f"partitioner {name} raised {described(error)}") from error
        if not isinstance(schedule, Schedule) or schedule.grid is not grid:
            what = "a schedule of another grid" if isinstance(schedule, Schedule) else repr(schedule)
            raise FaultError(f"partitioner {name} returned {what}, wanted a Schedule of its grid")
        return schedule

    @cached_property
    def grounds(self) -> Grounds:
        """What its times rest on."""
        point = self.point
        changed = bool(point.overrides) or point.num_sms is not None
        found = grounds(point.policy, point.device, self.workload, changed)
        if what := instead(self.kernel.limits, self.workload):
            return found.beyond(what)
        wide = self.kernel.head_dim_for(self.workload.head_dim)
        if found.extrapolated and wide > self.workload.head_dim:
            return found.beyond(f"{found.outside}, in the instance for head dim {wide}")
        return found

    @cached_property
    def key(self) -> str:
        """Hash of everything the result depends on: numbers, not names, and versions."""
        held = None if self.share is None else self.held_bytes
        sent = None if self.node is None else f"{self.travel} {self.node.model_dump_json()}"
        return result_key(self.device, self.kernel, self.workload, self.partitioner, held, sent)

    @cached_property
    def held_bytes(self) -> int:
        """Bytes of KV that the batch holds on the device: of all layers of its model, else of one."""
        if self.share is None:
            return self.workload.kv_bytes
        load, lens = self.workload, self.given_lens
        kept = load.mask.of_rank if isinstance(load.mask, Shard) else None
        asked = self.point.prefix_len is not None or self.point.prefixes is not None
        reads = reads_of(self.point, len(lens), self.point.page_tokens) if asked else None
        shared = reads if isinstance(reads, Prefixes) else None
        model, given = self.share.model, given_of(self.point)
        return kv_bytes_of(model, lens, load.kv_dtype, given, kept, shared)

    @property
    def given_lens(self) -> tuple[int, ...]:
        """KV tokens of each request, those that layers in chunks do not see included."""
        chunked = self.share is not None and self.share.layers.chunk is not None
        return context_lens_of(self.point) if chunked else self.workload.context_lens


def point(**fields: Any) -> Point:
    """Build a point from keywords: the fields of `Point`, as YAML, CSV and flags name them.

    Raises `ConfigError` naming every wrong keyword and value. `leansim.point` is typed in
    `leansim/__init__.pyi`.
    """
    return validated(fields, "arguments")


def _keywords() -> inspect.Signature:
    """What `point` takes, for `help` and notebooks."""
    kind = inspect.Parameter.KEYWORD_ONLY
    fields = {key: Point.model_fields[name] for key, name in POINT_KEYS.items()}
    required = {key: inspect.Parameter.empty for key, field in fields.items() if field.is_required()}
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    return inspect.Signature(
        [inspect.Parameter(key, kind, default=value) for key, value in (defaults | required).items()],
        return_annotation=Point,
    )


point.__signature__ = _keywords()  # type: ignore[attr-defined]


def validated(fields: dict[str, Any], source: str) -> Point:
    """Validate a mapping as a point."""
    return catalog.validate(Point, Document(source, fields, {}))


def resolve(point: Point) -> Resolved:
    """Look up a point's names and build its workload. Raises a named `LeansimError`."""
    device, kernel = _overridden(point, catalog.device(point.device), kernel_of(point))
    share = share_of(point)
    workload = _workload(point, share)
    refuse_beyond(kernel.limits, workload, kernel.name)
    if workload.prefixes and not kernel.shares_prefixes:  # each request reads its context for itself
        workload = replace(workload, reads=SharedPages(workload.prefixes))
    partitioner = partitioner_of(point, kernel)
    return Resolved(point, device, kernel, workload, partitioner, share=share, node=_node(point))


def _node(point: Point) -> Node | None:
    """The node that is named, if one is. Raises `WorkloadError` where it has not the GPUs wanted."""
    if point.node is None:
        return None
    node = catalog.node(point.node)
    if point.device != node.device:
        raise WorkloadError(f"node: {node.name} has {node.device}; found device {point.device}")
    if (gpus := point.tensor_parallel * point.kv_ranks) > node.num_gpus:
        raise WorkloadError(
            f"node: found tensor_parallel {point.tensor_parallel} times kv_ranks {point.kv_ranks}, "
            f"which is {gpus} GPUs; wanted at most the {node.num_gpus} of {node.name}"
        )
    return node


def _overridden(point: Point, device: Device, kernel: Kernel) -> tuple[Device, Kernel]:
    changes: dict[str, dict[str, Any]] = {"device": {}, "kernel": {}}
    for key, value in point.overrides.items():
        kind, _, name = key.partition(".")
        if kind not in changes or not name:
            problem = Problem(key, repr(value), "wanted device.<number> or kernel.<number>")
            raise ConfigError("overrides", [problem])
        changes[kind][name] = value
    if point.num_sms is not None:
        changes["device"]["num_sms"] = point.num_sms
    return overridden(device, changes["device"]), overridden(kernel, changes["kernel"])


def workload_of(point: Point) -> Workload:
    """Build a point's workload. Raises `WorkloadError` for missing or contradictory fields."""
    return _workload(point, share_of(point))


def _workload(point: Point, share: Share | None) -> Workload:
    lens, longest = context_lens_of(point), point.max_context_len
    if share is not None and (chunk := share.layers.chunk) is not None:
        lens = in_chunks(lens, chunk, point.query_len)
        longest = None if longest is None else max(min(longest, chunk), point.query_len)
    return Workload(
        context_lens=lens,
        reads=reads_of(point, len(lens), point.page_tokens),
        max_context_len=longest,
        label=point.trace or "",
        **shape_of(point, share),
        **call_of(point),
    )


PLAN_COLUMNS = ("num_splits", "num_ctas", "num_waves", "ctas_per_sm")


def plan_row(resolved: Resolved) -> Row:
    """What a plan adds to a point: splits, CTAs launched, waves, CTAs per SM."""
    schedule = resolved.schedule
    return {
        "num_splits": schedule.num_splits,
        "num_ctas": schedule.num_ctas,
        "num_waves": round(schedule.num_waves, 6),
        "ctas_per_sm": schedule.grid.ctas_per_sm,
    }


def point_from_row(row: dict[str, str], source: str) -> Point:
    """Read a point from a CSV row; empty cells mean the default.

    A column named after an option of the row's partitioner sets it, one named `device.<number>` or
    `kernel.<number>` overrides that. Raises `ConfigError`.
    """
    given = {key: value.strip() for key, value in row.items() if value is not None and value.strip()}
    fields: dict[str, Any] = {key: value for key, value in given.items() if key in POINT_KEYS}
    options = {key: value for key, value in given.items() if key not in POINT_KEYS}
    changed = {key: options.pop(key) for key in list(options) if key.startswith(OVERRIDDEN)}
    if changed or "overrides" in fields:
        written = scalar(fields.get("overrides", "{}"))
        numbers = {key: scalar(value) for key, value in changed.items()}
        fields["overrides"] = {**written, **numbers} if isinstance(written, dict) else written
    if options and "kernel" in fields:
        kernel_name, _, partitioner_name = fields["kernel"].partition("+")
        kernel = catalog.kernel(kernel_name)
        name = fields.get("partitioner") or partitioner_name or kernel.partitioner.name
        mine = {key: value_of(value) for key, value in options.items() if key in option_columns(name)}
        foreign = sorted(set(options) & all_option_columns() - set(mine))
        if foreign:
            known = ", ".join(option_columns(name)) or "no options"
            problem = Problem(foreign[0], repr(options[foreign[0]]), f"{name!r} has {known}")
            raise ConfigError(source, [problem])
        if mine:
            fields["partitioner"] = {"name": name, "options": mine}
            fields["kernel"] = kernel_name
    return validated(fields, source)


def option_columns(partitioner: str) -> list[str]:
    """Option names of a partitioner."""
    return option_names(find(partitioner))


def all_option_columns() -> set[str]:
    """Option names of every partitioner."""
    return {option for name in partitioners() for option in option_columns(name)}


def check_columns(columns: list[str], source: str) -> list[str]:
    """Return columns that mean nothing here and are carried along.

    Raises `ConfigError` for one that looks like a misspelt known column, or a missing one.
    """
    known = set(POINT_KEYS) | all_option_columns() | {"id", *PLAN_COLUMNS}
    problems = []
    foreign = []
    for position, column in enumerate(columns, start=1):
        if column in known:
            continue
        if column.startswith(OVERRIDDEN):
            kind, name = column.split(".")[:2]
            numbers = (Device if kind == "device" else Kernel).model_fields
            if name not in numbers:
                wanted = f"wanted a number of a {kind}{suggestion(name, numbers)}"
                problems.append(Problem(f"column {position}", repr(column), wanted, 1, position))
            continue
        hint = suggestion(column, known, cutoff=0.8)
        if hint:
            wanted = f"wanted a known column{hint}"
            problems.append(Problem(f"column {position}", repr(column), wanted, 1, position))
        else:
            foreign.append(column)
    for needed in ("device", "kernel"):
        if needed not in columns:
            problems.append(Problem("header", "no such column", f"wanted a column {needed!r}", 1, 1))
    if problems:
        raise ConfigError(source, problems)
    return foreign
