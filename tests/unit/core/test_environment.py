"""What two runs differ in, and what follows for their numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pytest_llmbench.core.environment import differences, environment_of, gpus_of
from tests.unit.core.baselines import DESCRIPTION

HOST = DESCRIPTION["host"]


def _changed(path: str, value: Any) -> dict[str, Any]:
    """The description with one value replaced; None takes it away."""
    description = copy.deepcopy(DESCRIPTION)
    *parents, last = path.split("/")
    part = description
    for name in parents:
        part = part.setdefault(name, {})
    part[last] = value
    if value is None:
        del part[last]
    return description


def _found(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one.kind, one.what) for one in differences(environment_of(old), environment_of(new))]


@pytest.mark.parametrize(
    ("path", "value", "kind", "what"),
    [
        ("hardware/cpu", "Another CPU", "incomparable", "processor"),
        ("hardware/memory_bytes", 32 * 2**30, "incomparable", "main memory in GiB"),
        ("hardware/label", "rack 7", "incomparable", "label of the machine (LLMBENCH_HOST_LABEL)"),
        (f"sensors/{HOST}/facts/gpu_names", "H200", "incomparable", "GPUs"),
        ("hardware/os", "Linux-6.2", "doubtful", "operating system and kernel"),
        ("servers", ["embedded xllamacpp 1.1"], "doubtful", "version of the server"),
        ("software/python", "3.13.0", "doubtful", "version of python"),
        ("software/pytest-llmbench", "0.2.0", "doubtful", "version of pytest-llmbench"),
        (f"sensors/{HOST}/facts/governor", "powersave", "doubtful", "governor of the CPU frequency"),
        (f"sensors/{HOST}/facts/turbo", False, "doubtful", "turbo"),
        (f"sensors/{HOST}/facts/gpu_driver_version", "580.1", "doubtful", "GPU driver"),
        (f"sensors/{HOST}/facts/power_source", "battery", "doubtful", "power source"),
        (f"sensors/{HOST}", None, "doubtful", "sensors"),
        ("calibration/event_loop", "asyncio", "doubtful", "event loop of the client"),
        ("calibration/errors", [{"ttft_error_p99_ms": 4.0}], "doubtful", "error of times to first token in ms"),
        ("software/numpy", "2.1.0", "changed", "version of numpy"),
        ("git_commit", "f" * 40, "changed", "git commit"),
        ("mode", "quick", "changed", "mode"),
        ("configuration/embedded/default_threads", 2, "changed", "embedded.default_threads"),
        ("configuration/variants", [{"id": "q8", "cache_type_k": "q8_0"}], "changed", "variants[q8].cache_type_k"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_kind_of_change_is_told_as_what_it_is(path: str, value: Any, kind: str, what: str) -> None:
    found = _found(DESCRIPTION, _changed(path, value))
    assert (kind, what) in found
    assert {one for one, _ in found} == {kind}
    assert (kind, what) in _found(_changed(path, value), DESCRIPTION)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hardware/memory_bytes", 16 * 2**30 - 3_000_000),
        ("configuration/output/dir", "/elsewhere"),
        ("configuration/test_mode", "quick"),
        ("software/xllamacpp", "1.1"),  # the servers tell what ran
        ("servers", None),  # not known before a run has ended
        ("calibration/errors", [{"ttft_error_p99_ms": 0.8, "gap_error_p99_ms": 0.7}]),  # six readings, and as good
        ("sensors/fedcba9876543210", {"facts": {"governor": "powersave"}}),  # of a machine that only one of them used
        ("command_line", ["pytest", "-x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_no_number_depends_on_is_no_difference(path: str, value: Any) -> None:
    assert _found(DESCRIPTION, _changed(path, value)) == []


def test_two_clients_that_are_both_late_are_alike() -> None:
    old, new = (_changed("calibration/errors", [{"gap_error_p99_ms": error}]) for error in (4.0, 7.0))
    assert _found(old, new) == []


def test_what_weighs_most_comes_first_and_values_are_told() -> None:
    new = {**_changed("hardware/cpu", "Another CPU"), "git_commit": "f" * 40}
    first, last = differences(environment_of(DESCRIPTION), environment_of(new))
    assert first.sentence == "processor: A CPU → Another CPU"
    assert last.sentence == "git commit: c121bb9c7e90 → ffffffffffff"


def test_a_run_that_tells_nothing_is_doubtful_as_a_whole() -> None:
    (only,) = differences({}, environment_of(DESCRIPTION))
    assert only.kind == "doubtful"
    assert "the earlier run does not tell" in only.sentence


@pytest.mark.parametrize(
    "description",
    [
        {"hardware": 3, "software": [], "sensors": {"h": 1}, "calibration": {"errors": "none"}, "configuration": None},
        {"hardware": {"memory_bytes": float("nan"), "cpu": {"deep": [1, {"id": 2}]}}, "servers": {}, "mode": 7},
        {"calibration": {"errors": [[]]}, "sensors": [], "git_commit": 5, "clock": "now"},
    ],
)
def test_a_description_that_holds_anything_is_read(description: dict[str, Any]) -> None:
    environment = environment_of(description)
    assert all(isinstance(value, str | int | float | bool) for value in environment.values())
    assert gpus_of(environment, "h") is None
