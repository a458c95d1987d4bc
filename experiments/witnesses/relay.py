"""RelayAttention's plain rows: vLLM's PagedAttention on an A40, as its host code chose v1 or v2."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from comparing import Call, Part, band_of, errors, predicted, read, said

from leansim.specs import catalog

FILE = "relay_attention_NVIDIA-A40.csv"
COLUMNS = ("nreqs", "ctxlen", "prefixlen", "relay", "attn_usr")
CALL = Call("a40", 52, 52, "warm", "float16")
# vLLM's rule: v1 up to this length, where one partition is all or there are this many CTAs.
LONGEST_V1, PARTITION, MANY_CTAS = 8192, 512, 512


def kernel_of(requests: int, context_len: int, heads: int = CALL.num_q_heads) -> str:
    """Which of its two kernels vLLM's host code ran."""
    enough = context_len <= PARTITION or requests * heads > MANY_CTAS
    return "vllm_paged_v1" if context_len <= LONGEST_V1 and enough else "vllm_paged_v2"


def rows_of(folder: Path) -> pd.DataFrame:
    """Rows without a shared prefix: requests, tokens of each, and the attention kernels' time."""
    table = read(folder, FILE, COLUMNS)
    table = table[~table["relay"].astype(bool)]
    rows = pd.DataFrame(
        {
            "n": table["nreqs"],
            "context_len": table["ctxlen"] + table["prefixlen"],
            "measured_us": table["attn_usr"].astype(float),
        }
    ).reset_index(drop=True)
    rows["kernel"] = [kernel_of(row.n, row.context_len) for row in rows.itertuples()]
    return rows


def part(folder: Path) -> tuple[Part, pd.DataFrame]:
    """What there is to say of these rows, and the rows with their predictions."""
    rows = rows_of(folder)
    points = [CALL.point(row.kernel, [row.context_len] * row.n) for row in rows.itertuples()]
    done = pd.concat([rows, predicted(points)], axis=1)
    done["band"] = band_of(done["measured_us"])
    device = catalog.device(CALL.device)
    kv_bytes = done["n"] * done["context_len"] * CALL.num_kv_heads * 128 * 2 * 2
    largest = kv_bytes.idxmax()
    share = kv_bytes[largest] / done["measured_us"][largest] / 1e-6 / device.dram_bandwidth_bytes_per_s
    sentences = (
        said(errors(done)),
        f"The largest call reads its KV at {share:.1%} of the datasheet's bandwidth; the device file "
        f"assumes {device.dram_efficiency:.1%}, which alone is an error of "
        f"{share / device.dram_efficiency - 1.0:+.0%} where bandwidth is all. Pages are drawn at random "
        "with repetition, so that some are read twice.",
    )
    tables = (
        ("By kernel", errors(done, "kernel")),
        ("By measured latency", errors(done, "band")),
    )
    return Part("vLLM's PagedAttention on an A40 (RelayAttention)", sentences, tables), done
