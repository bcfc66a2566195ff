"""A plan as data: what scripts read, and what is counted once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llmbench.core.plan import PLAN_VERSION, Plan, PlannedCell, PlannedMemory, Room, total_bytes
from pytest_llmbench.core.records import MemoryRecord, Reason

ROOM = Room(available_bytes=8_000, bound_by="machine", model_dir="models", free_bytes=9_000)
KEYS = {
    *("nodeid", "model", "quantization", "profile", "variant", "backend", "starts_server", "predicted_bytes"),
    *("required_bytes", "available_bytes", "device_bytes", "method", "fits", "parts", "download_bytes", "source"),
    *("expected", "reason", "expected_seconds", "size_rule_bytes"),
}


def cell(name: str = "tiny", **changes: Any) -> PlannedCell:
    fields: dict[str, Any] = {
        "nodeid": f"suites/test_a.py::test_a[{name}-Q8_0]",
        "model": name,
        "quantization": "Q8_0",
        "profile": "interactive",
        "variant": None,
        "backend": "embedded",
    }
    return PlannedCell(**{**fields, **changes})


def fetched(file: str, size: int | None, **changes: Any) -> PlannedCell:
    return cell(file=file, download_bytes=size, source="somewhere", **changes)


def test_the_keys_are_there_whatever_is_known() -> None:
    memory = PlannedMemory(MemoryRecord(method="header", predicted_bytes=5, parts={"kv_bytes": 5}), fits=None)
    reason = Reason(code="does_not_fit", message="too big", evidence={"a": 1})
    for one in (cell(), cell(memory=memory, reason=reason, expected="skip")):
        assert set(one.as_json()) == KEYS
        assert json.loads(json.dumps(one.as_json())) == one.as_json()
    assert one.as_json()["parts"] == {"kv_bytes": 5}
    assert one.as_json()["reason"] == {"code": "does_not_fit", "message": "too big", "evidence": {"a": 1}}
    assert cell().as_json()["parts"] == {}


def test_the_id_of_a_cell_is_what_stands_between_brackets() -> None:
    assert cell().id == "tiny-Q8_0"
    assert cell(nodeid="a[b]/c.py::T::test[x-Q4]").id == "x-Q4"


@pytest.mark.parametrize(("low", "high", "exact"), [(1, 1, True), (1, 2, False)])
def test_bounds_are_no_point(low: int, high: int, exact: bool) -> None:
    record = MemoryRecord(predicted_low_bytes=low, predicted_high_bytes=high)
    assert PlannedMemory(record, fits=True).exact is exact


def test_each_file_is_counted_once_and_only_where_it_would_be_fetched() -> None:
    plan = Plan(
        (
            fetched("a", 10),
            fetched("a", 10, variant="other"),
            fetched("b", 1),
            fetched("unknown", None),
            fetched("refused", 100, expected="skip"),
            cell(file="here", download_bytes=0),
            cell(),
        ),
        ROOM,
    )
    assert plan.downloads == {"a": 10, "b": 1, "unknown": None}
    assert total_bytes(plan.downloads) == 11
    totals = plan.as_json()["totals"]
    assert (totals["download_bytes"], totals["downloads_of_unknown_size"]) == (11, 1)


def test_totals() -> None:
    plan = Plan(
        (
            cell(starts_server=True, expected_seconds=2.5),
            cell(expected_seconds=1.5),
            cell(starts_server=True),
            cell(expected="skip"),
            cell(expected="error"),
        ),
        ROOM,
        other_tests=4,
    )
    assert plan.as_json()["schema_version"] == PLAN_VERSION
    assert len(plan.as_json()["cells"]) == 5
    assert plan.as_json()["totals"] == {
        "cells": 5,
        "to_run": 3,
        "to_skip": 1,
        "in_error": 1,
        "other_tests": 4,
        "server_starts": 2,
        "download_bytes": 0,
        "downloads_of_unknown_size": 0,
        "model_dir": "models",
        "free_disk_bytes": 9_000,
        "disk_suffices": True,
        "expected_seconds": 4.0,
        "cells_of_known_duration": 2,
        "available_bytes": 8_000,
        "bound_by": "machine",
    }


def test_an_unknown_duration_is_no_number() -> None:
    totals = Plan((cell(),), ROOM).as_json()["totals"]
    assert (totals["expected_seconds"], totals["cells_of_known_duration"]) == (None, 0)


def test_a_disk_that_does_not_suffice() -> None:
    room = Room(available_bytes=1, bound_by="cgroup", model_dir="m", free_bytes=1, disk_warning="full")
    assert Plan((), room).as_json()["totals"]["disk_suffices"] is False
