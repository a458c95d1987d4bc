"""Numbers as people write them: none is taken for another, and the unit that was meant is said."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

import leansim
from leansim.errors import ConfigError, LeansimError
from leansim.files.strict_yaml import parse, scalar
from leansim.points import grid as config
from leansim.points.point import point, point_from_row, resolve
from leansim.specs import catalog
from leansim.specs.base import Spec
from leansim.specs.overrides import overridden
from leansim.specs.units import of_other_units

ONE = {"device": "h100_sxm", "kernel": "flash_decoding", "num_q_heads": 8, "num_kv_heads": 2,
       "head_dim": 128, "batch_size": 2, "context_len": 4096}  # fmt: skip


def classes(base: type[Spec]) -> Iterator[type[Spec]]:
    for cls in base.__subclasses__():
        yield cls
        yield from classes(cls)


def every_class() -> list[type[Spec]]:
    for module in pkgutil.walk_packages(leansim.__path__, "leansim."):
        if module.name.split(".")[1] in ("specs", "points", "silicon"):
            importlib.import_module(module.name)
    ours = {cls for cls in classes(Spec) if cls.__module__.startswith("leansim.")}
    return sorted(ours, key=lambda cls: cls.__name__)


def plain_numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in plain_numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in plain_numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_true_is_no_number(cls: type[Spec]) -> None:
    for name, field in cls.model_fields.items():
        adapter = TypeAdapter(Annotated[field.annotation, *(field.metadata or [None])])  # type: ignore[valid-type]
        for value in (True, [True], [True, True], {"sm_90": True}, {"x": {"sm_90": True}}, {1: True}):
            try:
                found = adapter.validate_python(value)
            except ValidationError:
                continue
            assert 1 not in plain_numbers(found), f"{name} takes {value} for {found}"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"seed": True}, "seed: found True; wanted a number"),
        ({"context_scale": True}, "context_scale: found True"),
        ({"context_len_cv": True}, "context_len_cv: found True"),
        ({"overrides": {"device.dram_efficiency": True}}, "dram_efficiency: found True"),
        ({"overrides": {"kernel.start.overhead_s": True}}, "start.overhead_s: found True"),
        ({"overrides": {"kernel.loops.single_buffered.stages": True}}, "stages: found True"),
        ({"overrides": {"kernel.tiles.threads": True}}, "threads: found True"),
        ({"partitioner": {"name": "flash_decoding", "options": {"num_splits": True}}},
         "num_splits: found True; wanted a number"),
        ({"seed": 2**63}, "seed: found 9223372036854775808"),
        ({"num_sms": "1__0"}, "num_sms: found '1__0'"),
        ({"overrides": {"device.num_sms": "1__0"}}, "num_sms: found '1__0'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_number_is_named(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LeansimError, match=complaint):
        resolve(point(**{**ONE, **fields}))


@pytest.mark.parametrize("text", ["1__0", "_10", "10_", "1__0.5", "1_.5", "1._5", "1e1_0", "-_1"])
def test_an_underscore_stands_between_two_digits(text: str) -> None:
    assert scalar(text) == text
    assert parse(f"key: {text}").data["key"] == text


def test_underscores_between_digits_are_read() -> None:
    assert [scalar(text) for text in ("1_000", "-1_0", "1_0.2_5", "1_0e3")] == [1000, -10, 10.25, 1e4]


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("device.dram_bandwidth_bytes_per_s=4800", "4800.0; wanted bytes per second, as 4.8e12"),
        ("device.l2_bandwidth_bytes_per_s=5.5", "found 5.5; wanted bytes per second"),
        ("device.sm_clock_hz=1980", "found 1980.0; wanted hertz, as 1.98e9"),
        ("device.cta_launch_s=700", "found 700.0; wanted seconds, as 5e-6"),
        ("device.kernel_gap_s.graph=3", "kernel_gap_s.graph: found 3.0; wanted seconds"),
        ("device.dram_bytes=80", "found 80; wanted bytes, as 80e9"),
        ("device.smem_bytes_per_sm=228", "found 228; wanted bytes, as 228e3"),
        ("kernel.start.overhead_s.sm_90=2", "start.overhead_s.sm_90: found 2.0; wanted seconds"),
    ],
)
def test_a_number_in_another_unit_is_told_the_unit(setting: str, wanted: str) -> None:
    fields = {**ONE, "name": "x"}
    (chosen,) = config.build(parse(str(fields).replace("'", "")), [setting]).points()
    with pytest.raises(ConfigError) as raised:
        resolve(chosen)
    assert wanted in str(raised.value)
    assert len(raised.value.problems) == len(set(raised.value.problems))


@pytest.mark.parametrize("kind", ["device", "kernel", "table"])
def test_everything_shipped_is_in_its_units(kind: Any) -> None:
    for name in catalog.names(kind):
        spec = getattr(catalog, kind)(name)
        assert not list(of_other_units(spec)), name


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (2, "mma_efficiency: found 2; wanted less than or equal to 1"),
        ("abc", "mma_efficiency: found 'abc'; wanted a valid number"),
        ({"sm_90": 3}, "mma_efficiency.sm_90: found 3; wanted less than or equal to 1"),
        ([1], r"mma_efficiency: found \[1\]; wanted a valid number or a valid dictionary"),
    ],
    ids=str,
)
def test_a_number_that_may_differ_by_architecture_is_one_complaint(value: Any, complaint: str) -> None:
    """Not one for each kind of value that would do, in words of the library that checks them."""
    with pytest.raises(ConfigError, match=complaint) as raised:
        overridden(catalog.kernel("fa2"), {"compute.mma_efficiency": value})
    assert len(raised.value.problems) == 1


def test_where_of_a_calibration_is_one_complaint() -> None:
    from leansim.silicon.calibration import FitRows

    for value, wanted in (([1, 2, 3], "most 2 items"), ([1, "x"], "valid integer"), (None, " or ")):
        document = parse(f"where: {{batch_size: {value or 'null'}}}", "f.yaml")
        with pytest.raises(ConfigError) as raised:
            catalog.validate(FitRows, document)
        assert len(raised.value.problems) == 1
        assert wanted in str(raised.value)


def test_cells_of_a_csv_follow_the_same_rules() -> None:
    row = {key: str(value) for key, value in ONE.items()}
    for cells, complaint in (
        ({"seed": "true"}, "seed: found 'true'"),
        ({"num_splits": "true"}, "num_splits: found 'true'"),
        ({"batch_size": "1__0"}, "batch_size: found '1__0'"),
        ({"context_scale": "1__0"}, "context_scale: found '1__0'"),
    ):
        with pytest.raises(LeansimError, match=complaint):
            resolve(point_from_row({**row, **cells}, "p.csv"))
