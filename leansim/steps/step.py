"""One decode step of a model: attention of all layers as simulated, and the rest of the layers.

Answers "how long is a step, what share of it is attention, what does the schedule change end to end?"
on one GPU or several of a node. Ignores the host between steps, sampling, layers without softmax
attention, and that parts of a step could run beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leansim.answers import Answers, Row, Tabled
from leansim.errors import WorkloadError, suggestion
from leansim.lazy import cached_property
from leansim.points.asked import asked, call_columns
from leansim.points.point import Point, Resolved
from leansim.points.shape import kinds_of_layers
from leansim.points.simulate import Simulation, simulate_each
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.evidence import told
from leansim.specs.model import Model
from leansim.specs.weights import Matrix, Weights
from leansim.steps.energy import Energy, energy
from leansim.steps.kernels import ACTIVATION_BYTES, Spent, matmul, share, small_kernel, weight_bytes

# Kernels between the matrices of a layer, and elements of the hidden state that each moves, in
# multiples of its width: a norm reads what is added, adds it, writes both.
NORMS = (4, 4)
ROUTING = (1, 2, 2)  # the choice of experts, then tokens to them and back
LEAST_TOLD = 0.02  # share of a step that is worth a sentence
# What a record says came out, where the rest says what was asked.
_FOUND = (
    *("step_s", "attention_s", "linear_s", "small_s", "collective_s", "attention_share"),
    *("tokens_per_s", "tokens_per_s_per_user", "tokens_per_s_per_gpu"),
    *("energy_low_j_per_token", "energy_high_j_per_token"),
)


@dataclass(frozen=True, eq=False)
class Step(Tabled):
    """A decode step under one kernel: `attention` has a simulation for each kind of layer.

    Seconds, bytes and FLOP are of one GPU, and all GPUs do alike.
    """

    attention: tuple[Simulation, ...]
    weight_dtype: str

    @property
    def _first(self) -> Resolved:
        return self.attention[0].resolved

    @property
    def point(self) -> Point:
        """What was asked for, of the first kind of layer."""
        return self._first.point

    @cached_property
    def model(self) -> Model:
        """The whole model, but for its heads, which are one GPU's."""
        share = self._first.share
        assert share is not None
        return share.model

    @property
    def _weights(self) -> Weights:
        weights = self.model.weights
        assert weights is not None
        return weights

    @property
    def num_gpus(self) -> int:
        """GPUs that the model is divided over."""
        return self.point.tensor_parallel * self.point.kv_ranks

    @property
    def tokens(self) -> int:
        """New tokens of all requests."""
        return self._first.workload.batch_size * self.point.query_len

    @property
    def attention_spent(self) -> Spent:
        """Attention of all layers, what travels between GPUs for it included."""
        total = Spent()
        for one in self.attention:
            count = _layers(one)
            flop = float(one.resolved.workload.flop)
            total += Spent(one.metrics.latency_s, one.metrics.dram_bytes, flop).times(count)
        return total

    @cached_property
    def matrices(self) -> list[tuple[int, Matrix]]:
        """Matrices of one GPU, each with how many layers have it."""
        found = []
        for one in self.attention:
            load = one.resolved.workload
            heads = (load.num_q_heads, load.num_kv_heads, load.head_dim, load.value_dim)
            # Heads are a GPU's share already, which ranks have in common and divide once more.
            matrices = self._weights.attention(*heads)
            found += [(_layers(one), share(matrix, self.point.kv_ranks)) for matrix in matrices]
        for count, behind in self._weights.feed_forwards(self.model.num_layers):
            found += [(count, share(matrix, self.num_gpus)) for matrix in behind]
        return [*found, (1, share(self._weights.head, self.num_gpus))]

    @cached_property
    def linear_spent(self) -> Spent:
        """Matrices of all layers, and the one that makes logits."""
        total = Spent()
        for count, matrix in self.matrices:
            total += matmul(matrix, self.tokens, self._first.device, self.weight_dtype).times(count)
        return total

    @cached_property
    def small_spent(self) -> Spent:
        """Norms, positions, activations and routing of all layers."""
        hidden, launch = self._weights.hidden_size, self.point.launch
        row = self.tokens * ACTIVATION_BYTES
        moved = [times * hidden for times in NORMS]
        total = Spent()
        for one in self.attention:
            load = one.resolved.workload
            rotated = 2 * (load.num_q_heads + load.num_kv_heads) * load.head_dim
            appended = 2 * load.num_kv_heads * (load.head_dim + load.value_dim)
            for elements in (*moved, rotated, appended):
                kernel = small_kernel(elements * row, self._first.device, launch)
                total += kernel.times(_layers(one))
        for count, behind in self._weights.feed_forwards(self.model.num_layers):
            wide = sum(share(m, self.num_gpus).columns * m.per_token for m in behind if "_in" in m.name)
            mixture = any(matrix.experts > 1 for matrix in behind)
            routed = [times * hidden for times in ROUTING if mixture]
            for elements in (wide + wide // 2, *routed):  # two halves in, one out
                total += small_kernel(elements * row, self._first.device, launch).times(count)
        return total + small_kernel(NORMS[0] * hidden * row, self._first.device, launch)

    @cached_property
    def collective_s(self) -> float:
        """Two all-reduces of the hidden state in each layer, and the gathering of the logits.

        Of embeddings one more is needed, and is left out: it is one in a hundred.
        """
        return self._collectives_s(None)

    @property
    def nccl_longer(self) -> float:
        """By what share the step is longer with NCCL's collectives; 0 where none was measured."""
        node = self._first.node
        tables = () if node is None else node.collectives
        if ("nccl", self.num_gpus) not in {(one.library, one.num_gpus) for one in tables}:
            return 0.0
        return (self._collectives_s("nccl") - self.collective_s) / self.seconds

    def _collectives_s(self, library: str | None) -> float:
        """Seconds of the collectives: the fastest that were measured, or those of a library."""
        if self.num_gpus == 1:
            return 0.0
        node = self._first.node
        assert node is not None
        hidden = self.tokens * self._weights.hidden_size * ACTIVATION_BYTES
        logits = self.tokens * self._weights.vocab_size * ACTIVATION_BYTES
        reduced = node.collective_s("all_reduce", self.num_gpus, hidden, library)
        gathered = node.collective_s("all_gather", self.num_gpus, logits, library)
        return 2 * self.model.num_layers * reduced + gathered

    @property
    def seconds(self) -> float:
        """The whole step."""
        apart = (self.attention_spent, self.linear_spent, self.small_spent)
        return sum(spent.seconds for spent in apart) + self.collective_s

    @property
    def attention_share(self) -> float:
        """Attention's share of the step."""
        return self.attention_spent.seconds / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all requests a second."""
        return self.tokens / self.seconds

    @property
    def energy(self) -> Energy:
        """Joules of a step on all GPUs."""
        busy = self.attention_spent + self.linear_spent + self.small_spent
        of_one = energy(busy + Spent(self.collective_s), self._first.device)
        return Energy(of_one.low_j * self.num_gpus, of_one.high_j * self.num_gpus)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of weights on one GPU, the embedding's included."""
        embedding = share(self._weights.head, self.num_gpus)
        matrices = [*self.matrices, (1, embedding)]
        return sum(count * weight_bytes(matrix, self.weight_dtype) for count, matrix in matrices)

    @property
    def fits(self) -> bool:
        """Whether weights and KV fit in a GPU's memory."""
        return self.weight_bytes + self._first.held_bytes <= self._first.device.dram_bytes

    @property
    def title(self) -> str:
        """Model, dtype of the weights, and what else was asked."""
        point = self.point.model_copy(update={"layers": None, "model": None, "hf_config": None})
        return ", ".join([f"{self.model.name}, {self.weight_dtype} weights", *asked(point)])

    def rows(self) -> list[Row]:
        """The numbers a person compares first, in one row."""
        record = self.records()[0]
        times = ("step", "attention", "linear", "small", "collective")
        joules = self.energy
        return [
            {
                **{
                    key: record[key] for key in ("device", "gpus", "kernel", "batch_size", "context_len")
                },
                **{f"{name}_ms": f"{record[f'{name}_s'] * 1e3:.3f}" for name in times},
                "attention": f"{self.attention_share:.0%}",
                "tokens/s": f"{self.tokens_per_s:,.0f}",
                "/s/user": f"{self.point.query_len / self.seconds:,.1f}",
                "J/token": f"{joules.low_j / self.tokens:.3g}-{joules.high_j / self.tokens:.3g}",
                "GB": f"{(self.weight_bytes + self._first.held_bytes) / 1e9:.1f}"
                + ("" if self.fits else " (too much)"),
            }
        ]

    def records(self) -> list[Row]:
        """One flat record, in SI units."""
        point, joules = self.point, self.energy
        return [
            {
                "device": point.device,
                "node": point.node,
                "model": self.model.name,
                "gpus": self.num_gpus,
                "tensor_parallel": point.tensor_parallel,
                "kv_ranks": point.kv_ranks,
                "kernel": point.policy,
                **call_columns(point.model_copy(update={"layers": None}), self._first.workload),
                "mean_context_len": float(self._first.workload.lens.mean()),
                "weight_dtype": self.weight_dtype,
                "step_s": self.seconds,
                "attention_s": self.attention_spent.seconds,
                "linear_s": self.linear_spent.seconds,
                "small_s": self.small_spent.seconds,
                "collective_s": self.collective_s,
                "attention_share": self.attention_share,
                "tokens_per_s": self.tokens_per_s,
                "tokens_per_s_per_user": point.query_len / self.seconds,
                "tokens_per_s_per_gpu": self.tokens_per_s / self.num_gpus,
                "energy_low_j_per_token": joules.low_j / self.tokens,
                "energy_high_j_per_token": joules.high_j / self.tokens,
                "weight_bytes_per_gpu": self.weight_bytes,
                "kv_bytes_per_gpu": self._first.held_bytes,
                "fits": self.fits,
            }
        ]

    def left_out(self) -> list[str]:
        """What of the model is in no step."""
        left = ", ".join(f"{count} x {name}" for name, count in self.model.left_out.items())
        return [f"Left out of the step of {self.model.name}: attention of {left}."] if left else []

    def notes(self) -> list[str]:
        """What is left out, whose collectives are counted, and what attention's times rest on."""
        rests_on = told([(self.point.policy, one.grounds) for one in self.attention])
        return [*self.left_out(), *_collectives_told([self]), rests_on]


@dataclass(frozen=True, eq=False)
class Steps(Answers[Step]):
    """Steps of several points, beside each other where they differ in the kernel alone.

    `refused` says which points could not be steps, and why.
    """

    refused: tuple[str, ...] = ()

    def records(self) -> list[Row]:
        """Records of all steps, with their speedup over the first kernel of the same question."""
        found, first = super().records(), dict[str, float]()
        for record in found:
            asked = {key: record[key] for key in record if key not in ("kernel", *_FOUND)}
            record["speedup"] = first.setdefault(repr(asked), record["step_s"]) / record["step_s"]
        return found

    def rows(self) -> list[Row]:
        """Rows of all steps; with their speedup, where there are several kernels."""
        several = len({record["kernel"] for record in self.records()}) > 1
        return [
            {**row, **({"speedup": f"{record['speedup']:.3f}"} if several else {})}
            for row, record in zip(super().rows(), self.records(), strict=True)
        ]

    def sections(self) -> dict[str, list[Row]]:
        """A table for each model, under what else was asked."""
        tables: dict[str, list[Row]] = {}
        for step, row in zip(self.answers, self.rows(), strict=True):
            tables.setdefault(step.title, []).append(row)
        return tables

    def notes(self) -> list[str]:
        """What every step says, once, and what was refused."""
        rest = [(one.point.policy, part.grounds) for one in self.answers for part in one.attention]
        left = [note for one in self.answers for note in one.left_out()]
        refused = (f"refused: {text}" for text in self.refused)
        return [*dict.fromkeys(left), *_collectives_told(self.answers), told(rest), *refused]


def _collectives_told(steps: Sequence[Step]) -> list[str]:
    """What collectives are taken to be, where NCCL's would make a difference."""
    longer = sorted(one.nccl_longer for one in steps)
    if not longer or longer[-1] < LEAST_TOLD:
        return []
    by = f"{longer[-1]:.0%}" if len(longer) == 1 else f"{longer[0]:.0%} to {longer[-1]:.0%}"
    return [f"Collectives are the fastest that were measured; with NCCL's a step is {by} longer."]


def steps_of(
    points: Sequence[Point], weight_dtype: str = "bfloat16"
) -> Iterator[tuple[Point, Step | Exception]]:
    """The step of each point, which names a model; points of one that differ in `layers` are one step.

    What cannot be a step is the reason instead: a `WorkloadError` where a point has no model, its model
    no weights, or GPUs divide the model and no node says how they are linked. Raises that for a dtype.
    """
    if weight_dtype not in DTYPE_BYTES:
        hint = suggestion(weight_dtype, DTYPE_BYTES)
        wanted = f"wanted {', '.join(DTYPE_BYTES)}{hint}"
        raise WorkloadError(f"weight_dtype: found {weight_dtype!r}; {wanted}")
    whole: dict[str, Point] = {}
    for point in points:
        unpicked = point.model_copy(update={"layers": None})
        whole.setdefault(unpicked.model_dump_json(), unpicked)
    parts = [
        (point, [point.model_copy(update={"layers": kind}) for kind in kinds_of_layers(point)])
        for point in whole.values()
    ]
    done = simulate_each([point for _, kinds in parts for point in kinds])
    for point, kinds in parts:
        yield point, _step([next(done) for _ in kinds], weight_dtype)


def _step(found: Sequence[Simulation | Exception], weight_dtype: str) -> Step | Exception:
    for one in found:
        if isinstance(one, Exception):
            return one
        try:
            _check(one.resolved)
        except WorkloadError as error:
            return error
    return Step(tuple(one for one in found if isinstance(one, Simulation)), weight_dtype)


def _check(resolved: Resolved) -> None:
    point, of = resolved.point, resolved.share
    if of is None:
        raise WorkloadError("step: wanted a model or model_config, of which a step has all layers")
    if of.model.weights is None:
        raise WorkloadError(
            f"step: {of.model.name} says nothing of its weights; wanted weights in its file: "
            "hidden_size, vocab_size, and intermediate_size or experts"
        )
    gpus = point.tensor_parallel * point.kv_ranks
    if gpus > 1 and resolved.node is None:
        raise WorkloadError(f"step: {gpus} GPUs divide the model; wanted the node they are on")


def _layers(one: Simulation) -> int:
    of = one.resolved.share
    assert of is not None
    return of.layers.count
