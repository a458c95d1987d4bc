"""A schedule and where it came from, without a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leansim.answers import Answers, Row, Tabled
from leansim.points.asked import batch_of, differences, label
from leansim.points.point import Resolved, plan_row
from leansim.schedule.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Plan(Tabled):
    """What a point's partitioner makes of it; `row` is what `leansim plan` adds to a point."""

    resolved: Resolved
    row: Row

    @property
    def schedule(self) -> Schedule:
        """The schedule."""
        return self.resolved.schedule

    def released(self) -> Plan:
        """The same plan without its schedule, which is made anew when it is looked at.

        So that many plans fit into memory.
        """
        return Plan(replace(self.resolved), self.row)

    def rows(self) -> list[Row]:
        """The schedule in one row."""
        schedule, point = self.schedule, self.resolved.point
        per_request = schedule.splits_of_request.tolist()
        few = len(set(per_request)) == 1
        return [
            {
                **label(point),
                **batch_of(self.resolved.workload),
                "partitioner": repr(self.resolved.partitioner),
                "tile": f"{schedule.grid.tile_rows}x{schedule.grid.tile_tokens}",
                "output_tiles": schedule.grid.num_output_tiles,
                "kv_tiles": schedule.grid.total_kv_tiles,
                "slots": schedule.grid.slots,
                **self.row,
                "wave_efficiency": round(schedule.wave_efficiency, 4),
                "empty_ctas": schedule.num_empty_ctas,
                "segments": schedule.num_segments,
                "tiles_per_cta": f"{schedule.tiles_of_cta.min()}-{schedule.tiles_of_cta.max()}",
                "combine": schedule.combine,
                "splits_of_request": str(per_request[0]) if few else " ".join(map(str, per_request)),
            }
        ]

    def records(self) -> list[Row]:
        """The same row, for programs."""
        return self.rows()

    def segments(self) -> list[Row]:
        """One row per segment: its CTA, output tile, and KV tiles from `start` up to `stop`.

        The tile is that of a `request` and a `head`: a KV head where query heads share tiles, else a
        query head; `row_block` says which of their query rows.
        """
        grid = self.schedule.grid
        names, where = ("request", "head", "row_block"), (grid.request, grid.head, grid.row_block)
        rows = []
        for segment in self.schedule.segments():
            number, cta, tile, start, stop = segment
            of_tile = {name: int(of[tile]) for name, of in zip(names, where, strict=True)}
            row = {"number": number, "cta": cta, "output_tile": tile, **of_tile}
            rows.append({**label(self.resolved.point), **row, "start": start, "stop": stop})
        return rows


@dataclass(frozen=True, eq=False)
class Plans(Answers[Plan]):
    """The plans of several points; of a CSV, its rows with what planning adds, and why some lack it."""

    given: tuple[Row, ...] = ()
    refused: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """One row per point: of a CSV, its row with what planning adds; else what points differ in."""
        return self.records() if self.given else self._told_apart([plan.rows() for plan in self])

    def segments(self) -> list[Row]:
        """One row per segment of every plan, with what the points differ in."""
        batches = [batch_of(plan.resolved.workload) if len(self) > 1 else {} for plan in self]
        return self._told_apart(
            [
                [{**label(plan.resolved.point), **batch, **row} for row in plan.segments()]
                for plan, batch in zip(self, batches, strict=True)
            ]
        )

    def _told_apart(self, rows: Sequence[Sequence[Row]]) -> list[Row]:
        """Rows of each plan under each other, the fields that points differ in behind their label."""
        points = [plan.resolved.point for plan in self]
        told = []
        for one, differing, point in zip(rows, differences(points), points, strict=True):
            for row in one:
                mine = label(point)
                told.append({**mine, **differing, **row})
        return told

    def records(self) -> list[Row]:
        """The same, for programs."""
        return [*self.given] or self.rows()

    def sections(self) -> dict[str, list[Row]]:
        """The rows, as one table."""
        return {"": [*self.rows()]}


def made(resolved: Resolved) -> Plan:
    """Plan a point. Raises a `LeansimError` where the partitioner refuses the workload."""
    return Plan(resolved, plan_row(resolved))
