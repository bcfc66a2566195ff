"""What is watched while cells run: the memory of our servers, swap, and clocks that stand still."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_llmbench.runtime.guard import Guard, Observed
from pytest_llmbench.telemetry.clock import ClockWatch, Disturbance
from tests.plugin.bench import Bench

GREEDY = """
import time

kept = []
while True:
    if len(kept) < 35:
        kept.append(bytearray(b"x") * 10_000_000)
    time.sleep(0.02)
"""


def test_a_server_that_takes_all_memory_is_stopped_and_larger_ones_are_not_tried(bench: Bench) -> None:
    greedy = bench.write("greedy.py", GREEDY)
    bench.config["openai"] = {"command": [sys.executable, str(greedy), "{port}"]}
    bench.config["limits"] = {"max_memory_gb": 0.2, "max_load_time": 60}
    bench.models["models"] = [{"name": "tiny", "size": "1B", "served": {"Q4_K_M": "small", "Q8_0": "large"}}]
    bench.run("suites/")
    small, large = bench.cells()
    assert (small["status"], small["reason"]["code"]) == ("error", "memory_exhausted")
    evidence = small["reason"]["evidence"]
    assert evidence["bound_by"] == "max_memory_gb"
    assert 200_000_000 < evidence["observed_bytes"] < 400_000_000
    assert "limits.max_memory_gb" in small["reason"]["message"]
    assert (large["status"], large["reason"]["code"]) == ("blocked", "blocked_by_load")
    assert large["reason"]["evidence"]["cell"] == small["nodeid"]
    assert small["memory"]["machine_swapped_bytes"] is not None


@pytest.fixture
def stood_still(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Some requests, by number (0: the warm-up), fall into a suspension."""

    def at(*numbers: int) -> None:
        asked: list[int] = []

        def disturbance(_watch: ClockWatch, begin_ns: int, end_ns: int) -> Disturbance | None:
            asked.append(begin_ns)
            return Disturbance("suspended", 60.0, begin_ns, end_ns) if len(asked) - 1 in numbers else None

        monkeypatch.setattr(ClockWatch, "disturbance", disturbance)

    return at


def test_a_request_that_fell_into_a_suspension_is_no_sample(bench: Bench, stood_still: Callable[..., None]) -> None:
    stood_still(2)
    bench.run("suites/").assert_outcomes(passed=1)
    (cell,) = bench.cells()
    requests = bench.requests()
    assert len(requests) == 8
    assert [(r["usable"], "stood_still" in r["flags"]) for r in requests[1:4]] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert "stood_still" in cell["flags"]
    assert any("the machine was suspended for 60.0 s" in note for note in cell["notes"])
    assert cell["metrics"]["ttft_seconds"]["n"] == 6
    assert cell["sampling"]["rejected"] == 1


def test_a_request_that_failed_in_a_suspension_is_no_error(bench: Bench, stood_still: Callable[..., None]) -> None:
    stood_still(2)
    bench.fake.fault["fake"], bench.fake.faulty_requests = "truncated", {2}
    bench.run("suites/").assert_outcomes(passed=1)
    assert [r["ok"] for r in bench.requests()] == [True, True, False, True, True, True, True, True]


def test_standing_still_again_and_again_is_no_measurement(bench: Bench, stood_still: Callable[..., None]) -> None:
    stood_still(*range(1, 20))
    bench.run("suites/")
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("invalid", "stood_still")


@pytest.mark.parametrize("swapped_bytes", [0, 1 << 30])
def test_swap_that_is_allowed_is_a_doubt(bench: Bench, monkeypatch: pytest.MonkeyPatch, swapped_bytes: int) -> None:
    seen = Guard.end_cell

    def end_cell(guard: Guard) -> Observed:
        return replace(seen(guard), swapped_bytes=swapped_bytes, machine_swapped_bytes=swapped_bytes)

    monkeypatch.setattr(Guard, "end_cell", end_cell)
    bench.config["limits"] = {"allow_swap": True}
    bench.run("suites/").assert_outcomes(passed=1)
    (cell,) = bench.cells()
    assert ("swapped" in cell["flags"]) == (swapped_bytes > 0)
    assert cell["memory"]["machine_swapped_bytes"] == swapped_bytes
