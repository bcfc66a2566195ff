"""The probe that sleeps and notes how late it is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_llmbench.telemetry import responsiveness
from pytest_llmbench.telemetry.responsiveness import Responsiveness, is_unresponsive


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "responsiveness"]


def test_delays_are_what_the_sleep_was_too_long() -> None:
    extra = iter([0.0, 0.05, 0.0, 0.1])
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(seconds + next(extra, 0.0))

    probe = Responsiveness(sleep=sleep)
    probe.start()
    probe.start()
    until(lambda: len(probe.since(0)) >= 5)
    delays = probe.stop()
    assert delays[1] >= 50
    assert delays[3] >= 100
    assert all(delay >= 0 for delay in delays)
    assert len(delays) == len(asked)  # what was slept through is one delay
    assert probe.stop() == delays


def test_those_since_a_moment() -> None:
    probe = Responsiveness()
    probe.start()
    until(lambda: len(probe.since(0)) >= 2)
    moment_ns = time.perf_counter_ns()
    before = len(probe.since(0))
    until(lambda: len(probe.since(0)) >= before + 2)
    delays = probe.stop()
    late = probe.since(moment_ns)
    assert late == delays[len(delays) - len(late) :]
    assert 2 <= len(late) < len(delays)
    assert probe.since(time.perf_counter_ns()) == []


def test_waking_that_costs_much_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 ms on a core each time, at 0.19 % of one: every 105 ms."""
    spent = iter(range(1, 1000))
    monkeypatch.setattr(time, "thread_time", lambda: next(spent) / 5000)
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(0.001)

    probe = Responsiveness(sleep=sleep)
    probe.start()
    until(lambda: len(asked) >= 3)
    probe.stop()
    assert asked[0] <= 0.02
    assert 0.09 < asked[1] < 0.106
    assert 0.18 < asked[2] < 0.211  # the first of them was cut short by this test


def test_the_end_is_not_put_off_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "thread_time", lambda: 1000.0)
    asked: list[float] = []
    probe = Responsiveness(sleep=asked.append)
    probe.start()
    until(lambda: len(asked) >= 3)
    probe.stop()
    assert 0.4 < asked[1] <= 0.5


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responsiveness, "_MOST_KEPT", 10)
    probe = Responsiveness()
    for number in range(25):
        probe._note(number, float(number))
    assert probe.stop() == [20.0, 21.0, 22.0, 23.0, 24.0]  # when it is full, the older half goes
    assert probe.since(21) == [22.0, 23.0, 24.0]


def test_cost_is_told() -> None:
    probe = Responsiveness()
    probe.start()
    until(lambda: len(probe.since(0)) >= 3)
    probe.stop()
    assert 0 < probe.cost_seconds < 1


@pytest.mark.parametrize(
    ("delays_ms", "expected"),
    [
        ([], False),
        ([900.0] * 100, False),
        ([5000.0], False),
        ([0.1, 5001.0], True),
        ([1001.0, 1001.0, 0.1, 1001.0, 1001.0], False),
        ([0.1, 1001.0, 1001.0, 1001.0], True),
    ],
)
def test_unresponsive(delays_ms: list[float], expected: bool) -> None:
    assert is_unresponsive(delays_ms) is expected
