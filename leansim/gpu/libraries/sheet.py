"""Which points a campaign of libraries measures: shapes, and on each all adapters with a call for it.

Shapes are those of the Triton campaign, in its order, or of a file; so far as a run gets, all libraries
have been measured on a sample of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import CsvRow
from leansim.gpu.campaign import COLUMNS, shapes
from leansim.gpu.libraries.registry import Installed, Library
from leansim.gpu.libraries.running import ADAPTER
from leansim.points.point import point_from_row, resolve
from leansim.silicon.own import point_fields, read_measured
from leansim.specs.base import LaunchMode

LIBRARY = "library"
# Heads of DeepSeek's models on one GPU and on a rank of eight, over one latent KV head.
_LATENT_HEADS = (128, 16)
_LATENT_BATCHES, _LATENT_CONTEXTS = (1, 8, 32, 128), (1024, 4096, 16384)
_PAGE_TOKENS, _LATENT_PAGE_TOKENS = "16", "64"
# Columns that points have and batches need not.
_ANY = ("device=any", "kernel=any")


@dataclass(frozen=True)
class Sheet:
    """Rows to be measured, and how many shapes an adapter has no call for, by its reason."""

    rows: tuple[CsvRow, ...]
    not_theirs: Mapping[str, int]

    @property
    def columns(self) -> tuple[str, ...]:
        """What describes a row; all rows have them all."""
        return tuple(self.rows[0]) if self.rows else ()


def sheet(
    device: str,
    found: Installed,
    batches: str | None = None,
    sample: int | None = None,
    caches: Sequence[str] = ("cold",),
    launch: LaunchMode = "graph",
    rehearsal: bool = False,
) -> Sheet:
    """Lay out a campaign on a device. Raises `ConfigError` for a file that makes no sense.

    `batches` is a CSV of points whose kernel and device, if it has them, do not count; `sample` takes
    the first shapes.
    """
    chosen = _read(batches) if batches is not None else list(_campaign(rehearsal))
    if sample is not None:
        chosen = chosen[:sample]
    rows, not_theirs = [], dict[str, int]()
    for shape, cache in product(chosen, caches):
        for name, library in found.libraries.items():
            row = {
                "device": device,
                "kernel": library.kernel,
                ADAPTER: name,
                LIBRARY: found.versions[name],
                **{key: value for key, value in shape.items() if key not in ("device", "kernel")},
                "cache": cache,
                "launch": launch,
            }
            if reason := _no_call(row, library):
                not_theirs[f"{name}: {reason}"] = not_theirs.get(f"{name}: {reason}", 0) + 1
                continue
            rows.append(row)
    columns = dict.fromkeys(key for row in rows for key in row)
    return Sheet(tuple(dict.fromkeys(columns, "") | row for row in rows), not_theirs)


def _no_call(row: CsvRow, library: Library) -> str:
    """Why an adapter has no call for a row, or nothing."""
    try:
        item = resolve(point_from_row(point_fields(row), "libraries"))
        library.check(item.workload, item.device)
        _ = item.schedule  # a kernel of the catalog that has no instance, a rule that has no plan
    except LeansimError as error:
        return " ".join(str(error).split())
    return ""


def _campaign(rehearsal: bool) -> Iterator[CsvRow]:
    """Shapes of the Triton campaign, then those of latent caches."""
    blank = dict.fromkeys(name for name in COLUMNS if name not in ("device", "kernel"))
    for shape in shapes(rehearsal):
        yield _texts(blank | shape | {"page_tokens": _PAGE_TOKENS})
    if rehearsal:
        return
    for batch, context, heads in product(_LATENT_BATCHES, _LATENT_CONTEXTS, _LATENT_HEADS):
        latent = {"num_q_heads": heads, "num_kv_heads": 1, "head_dim": 576, "head_dim_v": 512}
        call = {"batch_size": batch, "context_len": context, "page_tokens": _LATENT_PAGE_TOKENS}
        types = {"q_dtype": "bfloat16", "kv_dtype": "bfloat16", "latent_kv": "true"}
        yield _texts(blank | latent | call | types)


def _texts(shape: Mapping[str, Any]) -> CsvRow:
    return {key: "" if value is None else str(value) for key, value in shape.items()}


def _read(file: str) -> list[CsvRow]:
    """Shapes of a CSV of points, each once."""
    rows = [point_fields(row) for row in read_measured(file, _ANY).records]
    plain = [{k: v for k, v in row.items() if k not in ("device", "kernel", "cache")} for row in rows]
    shapes = list({tuple(row.items()): row for row in plain}.values())
    if not shapes:
        raise ConfigError(file, [Problem("rows", "none", "wanted a batch in each row")])
    return shapes
