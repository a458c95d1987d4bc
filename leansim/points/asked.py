"""What was asked for in words: all that is not as it would be by itself, and what is beyond a limit.

Of memory, ignores weights and activations, which share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leansim.answers import Row
from leansim.points.point import POINT_KEYS, Point, Resolved
from leansim.specs.workload import Workload

# Fields that tables show in columns of their own, and those that a workload says itself.
_SHOWN = frozenset(
    {
        *(
            "device",
            "kernel",
            "partitioner",
            "num_splits",
            "layers",
            "batch_size",
            "context_len",
            "context_lens",
        ),
        *("trace", "num_q_heads", "num_kv_heads", "head_dim", "latent_kv", "kv_dtype"),
    }
)


def label(point: Point) -> Row:
    """Columns that tell points of a table apart: device, kernel, and layers where they are picked."""
    layers = {} if point.layers is None else {"layers": point.layers}
    return {"device": point.device, "kernel": point.policy, **layers}


def batch_of(workload: Workload) -> Row:
    """The columns of a batch: its requests, and KV tokens of each, or of the least and the most."""
    least, most = min(workload.context_lens), max(workload.context_lens)
    return {
        "batch_size": len(workload.context_lens),
        "context_len": least if least == most else f"{least}-{most}",
    }


def call_columns(point: Point, workload: Workload) -> Row:
    """The columns of records that say which call it was: layers, batch, and what else was asked for."""
    layers = {} if point.layers is None else {"layers": point.layers}
    return {**layers, **batch_of(workload), "asked": ", ".join(asked(point)) or None}


def differences(points: Sequence[Point]) -> list[Row]:
    """For each point, the fields in which some differ and that tables do not show anyway."""
    shown = _SHOWN - {"trace", "num_q_heads", "num_kv_heads", "head_dim", "latent_kv", "kv_dtype"}
    names = [
        name
        for name in Point.model_fields
        if name not in shown and any(getattr(p, name) != getattr(points[0], name) for p in points)
    ]
    keys = {field: key for key, field in POINT_KEYS.items()}
    return [{keys[name]: _cell(getattr(point, name)) for name in names} for point in points]


def _cell(value: Any) -> Any:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else value


def described(resolved: Resolved) -> str:
    """The workload in a line, with every field of the point that is not as it would be by itself."""
    window, point = resolved.workload.window, resolved.point
    of_model = window is not None and point.window is None and point.layers is None
    return ", ".join(
        [
            resolved.workload.describe(),
            *asked(point),
            *([f"window {window:,} of the model"] if of_model else []),
        ]
    )


def titled(resolved: Resolved) -> str:
    """Device, kernel and workload, as tables are titled."""
    return f"{named(resolved.point)}, {described(resolved)}"


def named(point: Point) -> str:
    """Device and kernel, and layers where they are picked."""
    layers = "" if point.layers is None else f" {point.layers} layers"
    return f"{point.device} {point.policy}{layers}"


def asked(point: Point) -> list[str]:
    """Each field that is not as it would be by itself, and is not shown elsewhere: `window 512`."""
    return [told for name in Point.model_fields for told in _told(point, name)]


def _told(point: Point, name: str) -> list[str]:
    value = getattr(point, name)
    if name in _SHOWN or value == Point.model_fields[name].get_default(call_default_factory=True):
        return []
    if isinstance(value, Mapping):
        return [f"{key}={_text(one)}" for key, one in value.items()]
    keys = {field: key for key, field in POINT_KEYS.items()}
    return [f"{keys[name]} {_text(value)}"]


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cautions(resolved: Resolved) -> list[str]:
    """What a point asks for that its device or model does not have: memory, positions."""
    found = []
    point, held, memory = resolved.point, resolved.held_bytes, resolved.device.dram_bytes
    share = resolved.share
    if held > memory:
        whose = "one layer" if share is None else f"all {share.model.num_attending} attention layers"
        gpus = point.tensor_parallel * point.kv_ranks
        per_gpu = f" on each of {gpus} GPUs" if gpus > 1 else ""
        found.append(
            f"The KV cache of {whose} ({held / 1e9:,.1f} GB{per_gpu}) does not fit in the "
            f"{memory / 1e9:,.1f} GB of {point.device}."
        )
    if share is not None and (most := share.model.max_position_embeddings) is not None:
        longest = max(resolved.given_lens)
        if longest > most:
            found.append(
                f"A context of {longest:,} tokens is beyond max_position_embeddings "
                f"{most:,} of {share.model.name}."
            )
    return found
