"""Figures, summaries and timelines say what the results say, of what can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from leansim.errors import StoreError
from leansim.files.strict_yaml import Document
from leansim.points.grid import build
from leansim.report.figures import line_figure, winner_map
from leansim.report.plots import plot
from leansim.report.sheet import COLOURS, styles_of
from leansim.sweeps.compare import axes_of, compare, ticks, with_speedup, x_column
from leansim.sweeps.summary import speedup_summary
from leansim.sweeps.sweep import write_results

Refuse = Callable[[dict[str, Any]], bool]
ONE: dict[str, Any] = {"batch_size": [1], "context_len": [1024]}
LONG = "a name far too long for the figure it stands above, which therefore goes on to a second line"


def results(
    latency: Callable[[dict[str, Any]], float] = lambda p: 1e-6 * p["batch_size"],
    refuse: Refuse = lambda _: False,
    **axes: list[Any],
) -> pd.DataFrame:
    """A sweep's results, made up: the product of axes, with a latency or an error each."""
    given: dict[str, list[Any]] = {"device": ["d0"], "policy": ["k0", "k1"], "batch_size": [1, 2]}
    given |= {"context_len": [1024, 2048], "context_scale": [1.0], "overrides": [None], **axes}
    rows = []
    for values in itertools.product(*given.values()):
        point = dict(zip(given, values, strict=True))
        numbers = {
            "latency_s": latency(point),
            "sm_busy_fraction": 0.5,
            "mean_context_len": point["context_len"] * point["context_scale"],
        }
        error = {"error": "Refused: no"} if refuse(point) else {"error": None, **numbers}
        rows.append({**point, "kernel": point["policy"], **error})
    return pd.DataFrame(rows)


def folder(path: Path, table: pd.DataFrame, **config: Any) -> Path:
    settings = {"name": "made_up", "device": "h100_sxm", "kernel": ["fa2", "lean"], **config}
    write_results(path, build(Document("test", settings, {})), table)
    return path


def notes(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def curve(figure: Figure, panel: int, kernel: int) -> dict[float, float]:
    """The points of a kernel's line, found by its colour."""
    (line,) = [a for a in figure.axes[panel].lines if a.get_color() == COLOURS[kernel]]
    return dict(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))  # type: ignore[arg-type]


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def box(figure: Figure, artist: Artist) -> Any:
    return artist.get_window_extent(drawn(figure).get_renderer())


def drawn(figure: Figure) -> Any:
    if isinstance(figure.canvas, FigureCanvasAgg):
        return figure.canvas
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


# What is compared


def test_a_baseline_has_the_same_overrides() -> None:
    slow = '{"device.num_sms": 10}'
    table = results(lambda p: 8e-6 if p["overrides"] else 2e-6, overrides=[None, slow])
    assert with_speedup(table, "k0")["speedup"].tolist() == [1.0] * len(table)
    assert speedup_summary(table)["max"].tolist() == [1.0, 1.0]
    assert slow in notes(line_figure(table, "context_len", "latency_s", "t", None))


def test_means_are_over_points_that_every_kernel_finished() -> None:
    def refuse(p: dict[str, Any]) -> bool:
        return bool(p["policy"] == "k1" and p["batch_size"] == 16 and p["context_len"] == 2048)

    table = results(refuse=refuse, batch_size=[1, 4, 16])
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert curve(figure, 0, 0) == pytest.approx({1024: 4, 2048: 2})
    assert curve(figure, 0, 1) == pytest.approx(curve(figure, 0, 0))
    assert "left out: 1 of 6 points" in notes(figure)
    assert "geometric mean over batch_size 1-16" in notes(figure)
    faster = speedup_summary(table)
    assert faster["points"].tolist() == [5, 5]
    assert faster["geomean"].tolist() == pytest.approx([1, 1])


def test_winners_are_over_points_that_every_kernel_finished() -> None:
    def refuse(p: dict[str, Any]) -> bool:
        return bool(p["policy"] == "k1" and p["head_dim"] == 256)

    def latency(p: dict[str, Any]) -> float:
        return 1e-9 * float(p["head_dim"]) * (1.0 if p["policy"] == "k0" else 1.1)

    figure = winner_map(results(latency, refuse, head_dim=[64, 256]), "context_len", "batch_size", "t")
    assert set(texts(figure)) == {"1.10"}
    faces = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert len(faces) == 1
    assert "left out: 4 of 8 points" in notes(figure)


def test_a_kernel_without_results_at_a_place_hides_no_other() -> None:
    table = results(refuse=lambda p: p["policy"] == "k1" and p["context_len"] == 2048)
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert set(curve(figure, 0, 0)) == {1024, 2048}
    assert set(curve(figure, 0, 1)) == {1024}
    assert "left out" not in notes(figure)


def test_fields_zipped_with_the_kernel_do_not_hide_it() -> None:
    table = results()
    table["page_tokens"] = np.where(table["policy"] == "k0", 16, 256)
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert curve(figure, 0, 0) == curve(figure, 0, 1)
    assert "page_tokens differs by kernel" in notes(figure)


def test_a_summary_names_every_field_that_varies() -> None:
    table = results(num_sms=[100, 132], num_q_heads=[8]).assign(num_kv_heads=8)
    assert "num_sms=100" in speedup_summary(table)["best_at"][0]
    assert speedup_summary(results(refuse=lambda _: True)).empty


# Which axes are drawn


def test_every_numeric_axis_is_drawn(tmp_path: Path) -> None:
    table = results(num_sms=[100, 132], tensor_parallel=[1, 2])
    assert axes_of(table) == ["context_len", "batch_size", "tensor_parallel", "num_sms"]
    table = results(seed=[0, 1], kv_dtype=["fp8", "bfloat16"], window=[512.0, 1024.0, None], **ONE)
    (path, busy) = plot(folder(tmp_path, table))
    assert (path.name, busy.name) == ("latency_window.png", "busy_window.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = line_figure(table, "window", "latency_s", "t", None)
    assert "not shown: 4 points without window" in notes(figure)
    assert "left out" not in notes(figure)
    assert "kv_dtype fp8/bfloat16" in notes(figure)


def test_of_axes_that_change_together_one_is_drawn() -> None:
    table = results(num_q_heads=[64, 8]).assign(num_kv_heads=lambda t: t["num_q_heads"] // 8)
    assert axes_of(table) == ["context_len", "batch_size", "num_q_heads"]
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert "num_q_heads 8-64 (with num_kv_heads)" in notes(figure)
    figure = line_figure(table, "num_q_heads", "latency_s", "t", None)
    assert "num_kv_heads changes with num_q_heads" in notes(figure)


def test_an_axis_needs_two_values_on_a_device() -> None:
    table = results(device=["d0", "d1"], context_len=[1024]).assign(
        num_sms=lambda t: t["device"].map({"d0": 108, "d1": 132})
    )
    assert axes_of(table) == ["batch_size"]


def test_context_scale_is_drawn_as_mean_lengths_only_if_they_are_one_thing() -> None:
    scaled = results(context_scale=[0.5, 1.0, 2.0], context_len=[1024])
    assert x_column(scaled, "context_scale") == "mean_context_len"
    figure = line_figure(scaled, "mean_context_len", "latency_s", "t", None)
    assert "context_scale" not in notes(figure)
    seeds = results(context_scale=[0.5, 1.0], context_len=[1000], seed=[0, 1])
    seeds["mean_context_len"] += 17 * seeds["seed"]
    assert axes_of(seeds) == ["batch_size", "context_scale"]
    figure = line_figure(seeds, "context_scale", "latency_s", "t", None)
    assert figure.axes[0].get_xlabel().startswith("context scale")


def test_nothing_to_draw_is_said_with_what_varies(tmp_path: Path) -> None:
    table = results(device=["d0", "d1"], **ONE)
    with pytest.raises(StoreError, match="what varies is device, kernel"):
        plot(folder(tmp_path, table))
    with pytest.raises(StoreError, match="every point was refused"):
        plot(folder(tmp_path, results(refuse=lambda _: True)))
    with pytest.raises(StoreError, match="there is one point"):
        plot(folder(tmp_path, results(policy=["k0"], **ONE)))


def test_one_kernel_has_no_map_and_no_speedup(tmp_path: Path) -> None:
    table = results(policy=["fa2"], context_len=[1024], head_dim=[64, 128])
    names = {path.name for path in plot(folder(tmp_path, table, baseline="fa2"))}
    assert names == {f"{what}_{axis}.png" for what in ("latency", "busy") for axis in axes_of(table)}


def test_a_baseline_without_results_is_refused_if_asked_for(tmp_path: Path) -> None:
    table = results(policy=["fa2", "lean"], context_len=[1024], refuse=lambda p: p["policy"] == "fa2")
    out = folder(tmp_path, table, baseline="fa2")
    assert not any("speedup" in path.name for path in plot(out))
    with pytest.raises(StoreError, match="no results for baseline 'fa2'"):
        plot(out, "fa2")


# How it looks


def test_many_kernels_all_look_different() -> None:
    kernels = [f"k{i}" for i in range(20)]
    table = results(lambda p: 1e-6 * (1 + kernels.index(p["policy"]) / 10), policy=kernels)
    styles = styles_of(table).values()
    assert len({(s.colour, s.dash) for s in styles}) == len({(s.colour, s.hatch) for s in styles}) == 20
    assert "999999" not in str(COLOURS)  # grey is for ties
    for figure in (
        winner_map(table, "context_len", "batch_size", "t"),
        line_figure(table, "context_len", "latency_s", "t", None),
    ):
        (legend,) = figure.legends
        around = box(figure, legend)
        assert not any(box(figure, axes).overlaps(around) for axes in figure.axes)
        assert around.y0 > 0
        assert "shaded" not in notes(figure)


def test_a_kernel_looks_the_same_wherever_others_are_missing() -> None:
    table = results(
        lambda p: {"k0": 1e-6, "k1": 2e-6, "k2": 3e-6}[p["policy"]],
        lambda p: p["device"] == "d1" and p["policy"] == "k0",
        device=["d0", "d1"],
        policy=["k0", "k1", "k2"],
    )
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert list(curve(figure, 1, 1).values()) == pytest.approx([2, 2])
    assert figure.axes[1].get_title() == "d1\nno results: k0"
    figure = line_figure(table, "context_len", "speedup", "t", "k1")
    assert list(curve(figure, 1, 2).values()) == pytest.approx([2 / 3, 2 / 3])
    figure = winner_map(table, "context_len", "batch_size", "t")
    (handle,) = [h for h in figure.legends[0].get_patches() if h.get_label() == "k1"]
    assert {patch.get_facecolor() for patch in figure.axes[1].patches} == {handle.get_facecolor()}


def test_a_device_without_the_baseline_says_so() -> None:
    table = results(refuse=lambda p: p["device"] == "d1" and p["policy"] == "k0", device=["d0", "d1"])
    figure = line_figure(table, "context_len", "speedup", "t", "k0")
    assert texts(figure, 1) == ["no results of the baseline k0"]
    assert texts(figure, 0) == []
    assert "left out" not in notes(figure)


@pytest.mark.parametrize(
    ("batches", "shaded"),
    [
        ([1], None),
        ([1, 2, 4], "the whole range"),
        ([2**i for i in range(9)], "the middle half"),
    ],
)
def test_the_caption_says_what_is_shaded(batches: list[int], shaded: str | None) -> None:
    table = results(batch_size=batches)
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert bool(figure.axes[0].collections) == (shaded is not None)
    assert f"shaded: {shaded}" in notes(figure) if shaded else "shaded" not in notes(figure)
    busy = line_figure(table, "context_len", "sm_busy_fraction", "t", None)
    assert "shaded" not in notes(busy)
    assert not busy.axes[0].collections
    assert ("arithmetic mean" in notes(busy)) == (len(batches) > 1)


def test_cells_tell_leads_ties_and_absence() -> None:
    factor = {1: 1.25, 2: 1.001}
    table = results(
        lambda p: 1e-6 * (factor[p["batch_size"]] if p["policy"] == "k1" else 1.0),
        lambda p: p["policy"] == "k1" and p["context_len"] == 2048 and p["batch_size"] == 1,
    )
    figure = winner_map(table, "context_len", "batch_size", "t")
    assert sorted(texts(figure)) == ["1.25", "tie", "tie"]
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    grey = [cell for cell in cells if len(set(cell.get_facecolor()[:3])) == 1]
    assert {cell.get_y() for cell in grey} == {0.5}
    assert len(grey) == 2
    assert "no number: only one kernel has results there" in notes(figure)


@pytest.mark.parametrize("kernel", ["k1", LONG.replace(" ", "_")])
@pytest.mark.parametrize("devices", [["d0"], ["d0", "d1"]])
def test_titles_and_notes_are_never_clipped(devices: list[str], kernel: str) -> None:
    hidden = {name: [100, 200] for name in ("query_len", "page_tokens", "head_dim", "max_context_len")}
    axes: dict[str, Any] = {"device": devices, "policy": ["k0", kernel], **hidden}
    table = results(**axes)
    for figure in (
        winner_map(table, "context_len", "context_scale", LONG),
        line_figure(table, "context_len", "speedup", f"{LONG} for $5 or $6", kernel),
    ):
        labels = [a for axes in figure.axes for a in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        for artist in (*figure.texts, *figure.legends, *labels):
            extent = box(figure, artist)
            assert extent.x0 >= 0
            assert extent.y0 >= 0
            assert extent.x1 <= figure.bbox.width
            assert extent.y1 <= figure.bbox.height + 1
        assert figure.get_suptitle().count(r"\$") == figure.get_suptitle().count("$")  # no formulas
        title = box(figure, figure.texts[0])
        assert not title.overlaps(box(figure, figure.legends[0]))


def test_ticks_are_plain_numbers() -> None:
    assert ticks([512, 1024, 1024**2], "window") == ["512", "1k", "1M"]
    assert ticks([2500, 256000], "context_len") == ["2,500", "256,000"]
    assert ticks([0.0625, 1.5, 1024], "batch_size") == ["0.0625", "1.5", "1,024"]
    table = results(lambda p: 6e-5 * p["batch_size"], batch_size=[1, 10], context_len=[1000, 300_000])
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    drawn(figure)
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(which="both"), axes.get_yticklabels(which="both")):
        said = [label.get_text() for label in labels if label.get_text()]
        assert len(said) >= 2
        assert all(text.replace(",", "").replace(".", "").isdigit() for text in said), said


def test_a_hundred_values_have_room() -> None:
    table = results(context_len=list(range(1000, 101_000, 1000)))
    for figure in (
        line_figure(table, "context_len", "latency_s", "t", None),
        winner_map(table, "context_len", "batch_size", "t"),
    ):
        drawn(figure)
        labels = [box(figure, label) for label in figure.axes[0].get_xticklabels() if label.get_text()]
        assert len(labels) > 3
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(labels))
        assert figure.get_figwidth() < 15


def test_places_that_nobody_shares_leave_a_panel_that_says_so() -> None:
    table = results(refuse=lambda p: (p["policy"] == "k0") == (p["batch_size"] == 1))
    assert compare(table, ("context_len",)).table.empty
    figure = line_figure(table, "context_len", "latency_s", "t", None)
    assert texts(figure) == ["no point that every kernel finished"]


def test_a_mean_outside_the_middle_half_is_on_the_axis() -> None:
    """One of eight points is 0.1: the geometric mean is 0.75, both quartiles 1."""

    def latency(point: dict[str, Any]) -> float:
        slow = point["policy"] == "k1" and point["seed"] == 0
        return 10e-6 if slow else 1e-6

    table = results(latency, seed=list(range(8)), batch_size=[1])
    figure = line_figure(with_speedup(table, "k0"), "context_len", "speedup", "t", "k0")
    middle = min(curve(figure, 0, 1).values())
    assert middle == pytest.approx(0.1 ** (1 / 8))
    assert figure.axes[0].get_ylim()[0] < middle
