"""RelayAttention on an A40: rows with a shared prefix, by launch, in total and over plain rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from comparing import errors, predicted, read, said, shown
from relay import CALL, FILE, kernel_of

from leansim.checkout.pages import Part, Rows
from leansim.points.simulate import simulate_each

COLUMNS = ("nreqs", "ctxlen", "prefixlen", "relay", "attn_usr", "attn_sys", "relay_fusion")
SHAPE = ["n", "suffix", "prefix"]
# The kernels as the data has them, and the launches of the simulated call that they are.
LAUNCHES = {
    "attn_sys": ("prefix",),
    "attn_usr": ("attention", "combine"),
    "relay_fusion": ("merge",),
}


def rows_of(folder: Path, relay: bool) -> pd.DataFrame:
    """Rows with or without RelayAttention: requests, tokens, and us of each kernel."""
    table = read(folder, FILE, COLUMNS)
    table = table[table["relay"].astype(bool) == relay]
    names = {"nreqs": "n", "ctxlen": "suffix", "prefixlen": "prefix"}
    rows = table.rename(columns=names)[[*SHAPE, *LAUNCHES]].reset_index(drop=True)
    return rows.assign(measured_us=rows[list(LAUNCHES)].sum(axis=1).astype(float))


def with_plain(folder: Path) -> pd.DataFrame:
    """Plain rows, and what the kernel that vLLM's rule takes is simulated to take."""
    rows = rows_of(folder, relay=False)
    rows["kernel"] = [kernel_of(row.n, row.suffix + row.prefix) for row in rows.itertuples()]
    points = [CALL.point(row.kernel, [row.suffix + row.prefix] * row.n) for row in rows.itertuples()]
    return pd.concat([rows, predicted(points)], axis=1)


def with_relay(folder: Path) -> pd.DataFrame:
    """Rows of RelayAttention, and the simulated us of each kernel, gaps between launches left out."""
    rows = rows_of(folder, relay=True)
    points = [
        CALL.point("relay", [row.suffix + row.prefix] * row.n, prefix_len=row.prefix)
        for row in rows.itertuples()
    ]
    found = []
    for simulation in simulate_each(points):
        if isinstance(simulation, Exception):
            raise simulation
        program, result = simulation.program, simulation.result
        took = dict.fromkeys(LAUNCHES, 0.0)
        times = zip(program.launches, result.launch_begin, result.launch_end, strict=True)
        for launch, begin, end in times:
            (kernel,) = (kernel for kernel, names in LAUNCHES.items() if launch.name in names)
            took[kernel] += (end - begin - launch.gap_ps) / 1e6
        found.append(took)
    simulated = pd.DataFrame(found).add_suffix("_simulated")
    return pd.concat([rows, simulated], axis=1).assign(simulated_us=simulated.sum(axis=1))


def part(folder: Path) -> Part:
    """Errors of totals and of each kernel, and the speedup of relay over plain."""
    plain, relay = with_plain(folder), with_relay(folder)
    shared = relay[relay["n"] > 1]
    by_kernel = [
        errors(shared.assign(measured_us=shared[name], simulated_us=shared[f"{name}_simulated"])).assign(
            **{"rows of": f"{name} ({' + '.join(launches)})"}
        )
        for name, launches in LAUNCHES.items()
        if (shared[name] > 0).all()
    ]
    both = plain.merge(relay, on=SHAPE, suffixes=("_plain", "_relay"))
    groups = relay.assign(rows=relay["n"].map(lambda n: "one request" if n == 1 else "shared"))
    sentences = (
        "Rows with RelayAttention, kernel times in total. " + said(errors(relay)),
        "Plain rows (PagedAttention v1 or v2 by vLLM's rule). " + said(errors(plain)),
        "Nothing was fitted to either. Times are whole microseconds: the fusion kernel's, 1 to 7 "
        "us, cannot be compared closer than that. A single request shares nothing, so it is "
        "simulated as one plain call, where the card ran all three kernels: those rows are in the "
        "totals and not among the launches. The suffix runs PagedAttention v1 with so few tokens; "
        "`relay` has v2's CTAs, which with one partition are the same code and, as v1's are for "
        "such a context, small.",
    )
    tables = (
        ("Total, one request and several", _shown(errors(groups, "rows"))),
        ("Total, by requests", _shown(errors(relay, "n"))),
        ("Total, by prefix", _shown(errors(relay, "prefix"))),
        ("By kernel, rows of several requests", _shown(pd.concat(by_kernel)) if by_kernel else []),
        ("Plain rows, by kernel", _shown(errors(plain, "kernel"))),
        ("Speedup of RelayAttention, median over prefixes and suffixes", _speedups(both, "n")),
        ("The same by prefix, rows of several requests", _speedups(both[both["n"] > 1], "prefix")),
    )
    return Part("RelayAttention on an A40", sentences, tables)


def _shown(table: pd.DataFrame) -> Rows:
    rows: Rows = shown(table)
    return rows


def _speedups(both: pd.DataFrame, by: str) -> Rows:
    """Plain over relay, measured and simulated."""
    ratios = both.assign(
        measured=both["measured_us_plain"] / both["measured_us_relay"],
        simulated=both["simulated_us_plain"] / both["simulated_us_relay"],
    )
    ratios["off"] = (ratios["simulated"] / ratios["measured"] - 1.0).abs()
    return [
        {
            by: f"{value:,}",
            "rows": len(group),
            "measured": f"{group['measured'].median():.2f}x",
            "simulated": f"{group['simulated'].median():.2f}x",
            "largest measured": f"{group['measured'].max():.1f}x",
            "simulated there": f"{group.loc[group['measured'].idxmax(), 'simulated']:.1f}x",
            "mean error of the ratio": f"{group['off'].mean():.1%}",
        }
        for value, group in ratios.groupby(by)
    ]
