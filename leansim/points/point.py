"""One simulation, described by names and numbers: a `Point`, and what it resolves to.

The same fields serve YAML, CSV columns, command-line flags and Python keywords.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from leansim.errors import (
    ConfigError,
    FaultError,
    LeansimError,
    PartitionerError,
    Problem,
    WorkloadError,
    suggestion,
)
from leansim.files.strict_yaml import Document
from leansim.partitioners.registry import Partitioner, find, make, option_names, partitioners
from leansim.points.keys import result_key
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.specs import catalog
from leansim.specs.base import Count, DType, LaunchMode, Positive, Spec, TokenCount
from leansim.specs.device import Device
from leansim.specs.hf_config import read_hf_config
from leansim.specs.instance import Instance, instance_of
from leansim.specs.kernel import Kernel, PartitionerChoice, PartitionerSpec
from leansim.specs.model import Model
from leansim.specs.overrides import overridden
from leansim.specs.traces import find_trace, read_trace, sample_in_flight
from leansim.specs.workload import Cache, Workload, lognormal_lens
from leansim.tables import Row


def _split_lengths(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


Lengths = Annotated[tuple[TokenCount, ...], Field(min_length=1), BeforeValidator(_split_lengths)]


class Point(Spec):
    """A device, a kernel and a workload.

    The batch is given as `batch_size` and `context_len` (with `context_len_cv`, lengths drawn from
    a log-normal of that mean and coefficient of variation), as `context_lens`, or as `trace` and
    `batch_size` (requests in flight, drawn with `seed`). `context_scale` multiplies every length.
    The attention shape is given by heads and head dim, by `model`, or by a Hugging Face
    `model_config` file; `tensor_parallel` divides it. `overrides` changes any number of the device
    or kernel, as in `device.num_sms`.
    """

    device: str = Field(description="a GPU in configs/devices, or a path to its YAML")
    kernel: str = Field(description="a kernel in configs/kernels, or kernel+partitioner")
    partitioner: PartitionerChoice | None = Field(None, description="instead of the kernel's own")

    batch_size: Annotated[Count, Field(le=2**20)] | None = Field(
        None, description="requests in the batch"
    )
    context_len: TokenCount | None = Field(None, description="KV tokens of each request (32k, 1M)")
    context_len_cv: Annotated[Positive, Field(le=100)] | None = Field(
        None, description="log-normal spread of context_len"
    )
    context_lens: Lengths | None = Field(None, description="KV tokens of each request")
    trace: str | None = Field(None, description="a built-in trace or a trace file to draw requests from")
    seed: int = Field(0, ge=0, description="seed of the drawn requests")
    context_scale: Annotated[Positive, Field(le=2**30)] = Field(
        1.0, description="multiplies every context length"
    )
    max_context_len: TokenCount | None = Field(None, description="longest context the call is told of")

    model: str | None = Field(None, description="a model in configs/models")
    hf_config: str | None = Field(
        None, alias="model_config", description="path to a Hugging Face config.json"
    )
    tensor_parallel: Count = Field(1, description="GPUs the heads are divided over")
    num_q_heads: Count | None = Field(None, description="query heads")
    num_kv_heads: Count | None = Field(None, description="KV heads")
    head_dim: Count | None = Field(None, description="head dimension")
    head_dim_v: Count | None = Field(None, description="head dimension of V, if another")
    latent_kv: bool | None = Field(
        None, description="whether V is the leading part of K (MLA's latent KV cache)"
    )
    query_len: Count = Field(1, description="new tokens per request")
    window: TokenCount | None = Field(None, description="sliding window")
    q_dtype: DType = Field("bfloat16", description="dtype of Q and of the output")
    kv_dtype: DType = Field("bfloat16", description="dtype of K and V")
    page_tokens: Count = Field(16, description="tokens per page of the KV cache")
    cache: Cache = Field("cold", description="whether KV is in L2 from a replay (warm)")
    launch: LaunchMode = Field("graph", description="how kernels are launched")

    num_sms: Count | None = Field(None, description="SMs, instead of the device's")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="device.* and kernel.* numbers to change"
    )

    @property
    def policy(self) -> str:
        """Kernel and, where it is not the kernel's own, partitioner: the label of a table row."""
        if self.partitioner is None:
            return self.kernel
        options = ", ".join(f"{k}={v}" for k, v in sorted(self.partitioner.options.items()))
        return f"{self.kernel}+{self.partitioner.name}" + (f"({options})" if options else "")


POINT_KEYS: dict[str, str] = {field.alias or name: name for name, field in Point.model_fields.items()}


@dataclass(frozen=True, eq=False)
class Resolved:
    """A point with its names looked up."""

    point: Point
    device: Device
    kernel: Kernel
    workload: Workload
    partitioner: Partitioner

    @property
    def title(self) -> str:
        """Device, kernel and workload, as tables are titled."""
        return f"{self.point.device} {self.point.policy}, {self.workload.describe()}"

    @cached_property
    def instance(self) -> Instance:
        """What of the kernel runs for this call on the device, in plain numbers."""
        return instance_of(self.kernel, self.device, self.workload)

    @cached_property
    def grid(self) -> TileGrid:
        """The tiled workload."""
        return tile_grid(self.workload, self.instance, self.device)

    @cached_property
    def schedule(self) -> Schedule:
        """What the partitioner makes of it."""
        name = type(self.partitioner).__name__
        try:
            schedule = self.partitioner(self.grid, self.device)
        except LeansimError:
            raise
        except Exception as error:  # anything at all can go wrong in foreign code
            raise FaultError(f"partitioner {name} raised {type(error).__name__}: {error}") from error
        if not isinstance(schedule, Schedule) or schedule.grid is not self.grid:
            what = "a schedule of another grid" if isinstance(schedule, Schedule) else repr(schedule)
            raise FaultError(f"partitioner {name} returned {what}, wanted a Schedule of its grid")
        return schedule

    @cached_property
    def key(self) -> str:
        """Hash of everything the result depends on: numbers, not names, and versions."""
        return result_key(self.device, self.kernel, self.workload, self.partitioner)


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
    kernel_name, _, partitioner_name = point.kernel.partition("+")
    device, kernel = _overridden(point, catalog.device(point.device), catalog.kernel(kernel_name))
    chosen = point.partitioner
    if chosen is not None and partitioner_name:
        found = f"kernel {point.kernel!r} and partitioner {chosen.name!r}"
        raise PartitionerError(f"found {found}; wanted a partitioner in one place")
    if chosen is None:
        chosen = PartitionerSpec(name=partitioner_name) if partitioner_name else kernel.partitioner
    elif chosen.name == kernel.partitioner.name:
        chosen = PartitionerSpec(
            name=chosen.name, options={**kernel.partitioner.options, **chosen.options}
        )
    partitioner = make(chosen.name, chosen.options)
    return Resolved(point, device, kernel, workload_of(point), partitioner)


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
    shape = _shape(point)
    if point.context_len_cv is not None and point.context_len is None:
        raise WorkloadError("workload: context_len_cv spreads context_len; wanted context_len")
    lens = _context_lens(point)
    if point.context_scale != 1.0:
        lens = [max(1, round(n * point.context_scale)) for n in lens]
    return Workload(
        context_lens=tuple(lens),
        query_len=point.query_len,
        q_dtype=point.q_dtype,
        kv_dtype=point.kv_dtype,
        page_tokens=point.page_tokens,
        max_context_len=point.max_context_len,
        cache=point.cache,
        launch=point.launch,
        label=point.trace or "",
        **shape,
    )


def _shape(point: Point) -> dict[str, Any]:
    """Heads, head dims and window: the model's, with what the point itself says on top."""
    if point.model is not None and point.hf_config is not None:
        raise WorkloadError("workload: give model or model_config, not both")
    model: Model | None = None
    if point.hf_config is not None:
        model = read_hf_config(Path(point.hf_config))
    elif point.model is not None:
        model = catalog.model(point.model)
    shape: dict[str, Any] = dict.fromkeys(
        ("num_q_heads", "num_kv_heads", "head_dim", "head_dim_v", "window", "latent_kv")
    )
    if model is not None:
        share = model.divided(point.tensor_parallel)
        shape |= {name: getattr(share, name) for name in shape}
    elif point.tensor_parallel != 1:
        raise WorkloadError("workload: tensor_parallel divides a model; give model or model_config")
    shape |= {name: getattr(point, name) for name in shape if getattr(point, name) is not None}
    needed = ("num_q_heads", "num_kv_heads", "head_dim")
    if missing := [name for name in needed if shape[name] is None]:
        raise WorkloadError(f"workload: wanted {', '.join(missing)}, or a model")
    return shape | {"latent_kv": bool(shape["latent_kv"])}


def _context_lens(point: Point) -> list[int]:
    ways = {
        "context_len": point.context_len,
        "context_lens": point.context_lens,
        "trace": point.trace,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise WorkloadError(
            f"workload: wanted one of context_len, context_lens and trace, found {found}"
        )
    if point.context_lens is not None:
        if point.batch_size not in (None, len(point.context_lens)):
            raise WorkloadError(
                f"workload: batch_size is {point.batch_size}, "
                f"but context_lens has {len(point.context_lens)} requests"
            )
        return list(point.context_lens)
    if point.batch_size is None:
        raise WorkloadError(f"workload: wanted batch_size beside {given[0]}")
    if point.trace is not None:
        trace = read_trace(find_trace(point.trace))
        lens: list[int] = sample_in_flight(trace, point.batch_size, point.seed).tolist()
        return lens
    assert point.context_len is not None
    if point.context_len_cv is None:
        return [point.context_len] * point.batch_size
    return lognormal_lens(point.context_len, point.context_len_cv, point.batch_size, point.seed)


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

    A column named after an option of the row's partitioner sets it. Raises `ConfigError`.
    """
    given = {key: value.strip() for key, value in row.items() if value is not None and value.strip()}
    fields: dict[str, Any] = {key: value for key, value in given.items() if key in POINT_KEYS}
    options = {key: value for key, value in given.items() if key not in POINT_KEYS}
    if options and "kernel" in fields:
        kernel_name, _, partitioner_name = fields["kernel"].partition("+")
        kernel = catalog.kernel(kernel_name)
        name = fields.get("partitioner") or partitioner_name or kernel.partitioner.name
        mine = {key: _number(value) for key, value in options.items() if key in option_columns(name)}
        foreign = sorted(set(options) & all_option_columns() - set(mine))
        if foreign:
            known = ", ".join(option_columns(name)) or "no options"
            problem = Problem(foreign[0], repr(options[foreign[0]]), f"{name!r} has {known}")
            raise ConfigError(source, [problem])
        if mine:
            fields["partitioner"] = {"name": name, "options": mine}
            fields["kernel"] = kernel_name
    return validated(fields, source)


def _number(text: str) -> Any:
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false", "null") else text)
    except json.JSONDecodeError:
        return text


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
