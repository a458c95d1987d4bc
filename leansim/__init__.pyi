"""The names of `leansim` as editors and type checkers see them; at run time each loads on first use.

A test holds this file and the table in `__init__.py` together, and `point` and the fields of `Point`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from leansim.api.plan import plan as plan
from leansim.api.predict import predict as predict
from leansim.api.silicon import calibrate as calibrate
from leansim.api.silicon import validate as validate
from leansim.api.step import step as step
from leansim.api.study import buckets as buckets
from leansim.api.study import explain as explain
from leansim.api.study import invariance as invariance
from leansim.api.study import oracle as oracle
from leansim.api.study import splits as splits
from leansim.api.study import tune as tune
from leansim.api.verify import verify as verify
from leansim.checkout.experiments import experiments as experiments
from leansim.checkout.running import experiment as experiment
from leansim.engine.program import Program as Program
from leansim.engine.result import Result as Result
from leansim.errors import LeansimError as LeansimError
from leansim.gpu.measure import measure as measure
from leansim.partitioners.registry import Partitioner
from leansim.points.grid import PointGrid as PointGrid
from leansim.points.grid import load as load
from leansim.points.grid import schema as schema
from leansim.points.names import list as list
from leansim.points.names import show as show
from leansim.points.point import Point as Point
from leansim.points.simulate import Simulation as Simulation
from leansim.points.simulate import simulate as simulate
from leansim.points.travel import RankMerge
from leansim.report.plots import plot as plot
from leansim.results.metrics import Metrics as Metrics
from leansim.schedule.schedule import Schedule as Schedule
from leansim.schedule.tiling import TileGrid as TileGrid
from leansim.silicon.certify import certify as certify
from leansim.specs.base import DType, LaunchMode
from leansim.specs.device import Device as Device
from leansim.specs.kernel import Kernel as Kernel
from leansim.specs.kernel import PartitionerSpec
from leansim.specs.model import Model as Model
from leansim.specs.node import Node as Node
from leansim.specs.workload import Cache
from leansim.specs.workload import Workload as Workload
from leansim.study.regret import regret as regret
from leansim.sweeps.merging import merge as merge
from leansim.sweeps.run import Run as Run
from leansim.sweeps.run import run as run
from leansim.sweeps.sweep import Sweep as Sweep
from leansim.sweeps.sweep import sweep as sweep

__version__: str

def point(
    *,
    device: str,
    node: str | None = None,
    kernel: str,
    partitioner: str | Mapping[str, Any] | PartitionerSpec | Partitioner | None = None,
    num_splits: int | None = None,
    batch_size: int | None = None,
    context_len: int | str | None = None,
    context_len_cv: float | None = None,
    context_lens: Sequence[int | str] | str | None = None,
    trace: str | None = None,
    seed: int = 0,
    context_scale: float = 1.0,
    max_context_len: int | str | None = None,
    model: str | None = None,
    model_config: str | None = None,
    layers: str | None = None,
    tensor_parallel: int = 1,
    num_q_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    head_dim_v: int | None = None,
    latent_kv: bool | None = None,
    query_len: int | str = 1,
    window: int | str | None = None,
    prefix_len: int | str | None = None,
    prefix_group: int | None = None,
    prefixes: Sequence[Mapping[str, Any]] | str | None = None,
    kv_budget: int | str | None = None,
    mask: str | Mapping[str, Any] | None = None,
    kv_ranks: int = 1,
    kv_rank_order: Literal["interleaved", "contiguous"] = "interleaved",
    kv_rank_merge: RankMerge = "all_gather",
    q_dtype: DType = "bfloat16",
    kv_dtype: DType = "bfloat16",
    page_tokens: int = 16,
    cache: Cache = "cold",
    launch: LaunchMode = "graph",
    num_sms: int | None = None,
    overrides: Mapping[str, Any] = ...,
) -> Point:
    """Build a point: a device, a kernel and a workload; see `Point`.

    Token counts are whole numbers or text such as 32k and 1M. Raises `ConfigError` naming every wrong
    keyword and value.
    """
