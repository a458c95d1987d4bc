"""What travels between GPUs that divide each context, and how long that takes on a node.

Answers "what comes before a GPU's attention, and after it?" for the ways in which systems merge the
partials of ranks. Ignores what hides behind other work, but for the hops of a ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from leansim.engine.execute import execute
from leansim.engine.result import Result
from leansim.engine.sequence import joined
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.node import Collective, Node
from leansim.specs.workload import Workload
from leansim.timing.launches import waiting

RankMerge = Literal["all_gather", "all_to_all", "helix", "tree", "ring"]
RANK_MERGES: tuple[RankMerge, ...] = get_args(RankMerge)
_LSE_BYTES = 4
Message = tuple[Collective, int]


@dataclass(frozen=True)
class Travel:
    """Collectives before and after the attention of `ranks` GPUs: which, and bytes of the vector.

    `hop_bytes` of KV go round a ring, of which each rank attends to one part after the other.
    """

    ranks: int
    before: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    hop_bytes: int = 0

    @classmethod
    def of(cls, workload: Workload, ranks: int, merge: RankMerge) -> Travel:
        """What each way of merging sends for a call, of which the workload is one rank's share.

        - `all_gather`: Q is gathered, then log-sum-exps, and outputs are reduced and scattered (vLLM);
        - `all_to_all`: Q is gathered, outputs and log-sum-exps are exchanged at once (SGLang);
        - `helix`: the exchange alone, as every rank has all of Q (Helix, arXiv 2507.07120);
        - `tree`: maxima, weighted outputs and weights are all-reduced (Zyphra/tree_attention);
        - `ring`: nothing is merged, KV goes round (Ring Attention, arXiv 2310.01889).
        """
        if ranks == 1:
            return cls(1)
        q_bytes, o_bytes = workload.q_bytes, workload.o_bytes
        lse_bytes = workload.num_query_rows * _LSE_BYTES
        gather: Message = ("all_gather", q_bytes)
        exchange: Message = ("all_to_all", o_bytes + lse_bytes)
        if merge == "ring":
            return cls(ranks, hop_bytes=workload.kv_bytes)
        if merge == "tree":
            weighted = workload.num_query_rows * workload.value_dim * DTYPE_BYTES["float32"]
            sizes = (lse_bytes, weighted, lse_bytes)
            return cls(ranks, after=tuple(("all_reduce", size) for size in sizes))
        if merge == "all_gather":
            scatter: Message = ("reduce_scatter", o_bytes)
            return cls(ranks, (gather,), (("all_gather", lse_bytes * ranks), scatter))
        return cls(ranks, () if merge == "helix" else (gather,), (exchange,))

    def before_s(self, node: Node) -> float:
        """Seconds before the attention."""
        return sum(node.collective_s(op, self.ranks, size) for op, size in self.before)

    def after_s(self, node: Node, attention_s: float) -> float:
        """Seconds after it: of a ring `(ranks - 1) * max(attention, hop)`, as a hop hides behind one."""
        seconds = sum(node.collective_s(op, self.ranks, size) for op, size in self.after)
        if self.hop_bytes:
            seconds += (self.ranks - 1) * max(attention_s, node.hop_s(self.hop_bytes))
        return seconds

    def least_s(self, node: Node) -> float:
        """Seconds before and after it, however short the attention."""
        return self.before_s(node) + self.after_s(node, 0.0)

    def around(self, attention: Result, node: Node, device: Device) -> Result:
        """What happened with what travels as launches of their own, of which no SM has work."""
        after_s = self.after_s(node, attention.latency_s)
        before, after = (
            [execute(waiting("travel", seconds, device))] if seconds else []
            for seconds in (self.before_s(node), after_s)
        )
        return joined([*before, attention, *after])
