"""What is finished, and what is another run."""

from __future__ import annotations

from typing import get_args

import pytest

from pytest_llmbench.core.config import Config
from pytest_llmbench.core.records import Status
from pytest_llmbench.core.resuming import differences, is_finished, last_of_each
from tests.unit.factories import cell_record


@pytest.mark.parametrize("status", get_args(Status))
def test_only_verdicts_are_finished(status: Status) -> None:
    assert is_finished(cell_record(status=status)) == (status in {"passed", "failed"})


def test_the_last_record_of_a_cell_counts() -> None:
    records = [cell_record(nodeid=name, duration_seconds=seconds) for seconds, name in enumerate("abab")]
    found = last_of_each(records)
    assert {name: record.duration_seconds for name, record in found.items()} == {"a": 2, "b": 3}


def test_the_same_has_no_differences() -> None:
    data = {"mode": "full", "configuration": Config().model_dump(mode="json")}
    assert differences(data, data) == []


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"mode": "full"}, {"mode": "quick"}, "mode: 'full' → 'quick'"),
        ({"configuration": {"limits": {"a": 1}}}, {"configuration": {"limits": {"a": 2}}}, "limits.a: 1 → 2"),
        ({"configuration": {"a": None}}, {"configuration": {"a": {"b": 1}}}, "a: None → (absent)"),
        ({"models": {"models": [{"name": "x", "size": "1B"}]}}, {"models": {"models": []}}, "models[x]: removed"),
        ({"v": [{"id": "a", "t": 1}]}, {"v": [{"id": "a", "t": 2}]}, "v[a].t: 1 → 2"),
        ({"quants": ["Q4"]}, {"quants": ["Q4", "Q8"]}, "quants: ['Q4'] → ['Q4', 'Q8']"),
        ({"thresholds": {}}, {"thresholds": {"p": {"k": 1}}}, "thresholds.p.k: (absent) → 1"),
    ],
)
def test_differences_are_told_by_place(before: dict[str, object], now: dict[str, object], told: str) -> None:
    assert told in "\n".join(differences(before, now))


@pytest.mark.parametrize("part", ["output", "logging", "model_dir", "resume_from"])
def test_what_has_no_effect_on_numbers_is_none(part: str) -> None:
    assert differences({"configuration": {part: {"a": 1}}}, {"configuration": {part: {"a": 2}}}) == []


def test_a_model_that_is_added_is_told_alone() -> None:
    one, two = {"name": "x", "size": "1B"}, {"name": "y", "size": "2B"}
    told = differences({"models": {"models": [one]}}, {"models": {"models": [two, one]}})
    assert told == ["models[y]: added"]
    assert differences({"models": {"models": [two, one]}}, {"models": {"models": [one]}}) == ["models[y]: removed"]
