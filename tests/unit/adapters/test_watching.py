"""What a process watches: counted once for each cell, and only between beginning and end."""

from __future__ import annotations

import pytest

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.watching import Watches
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.config import LimitsConfig
from pytest_llmbench.core.records import Reason
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.guard import Observed
from pytest_llmbench.telemetry.clock import Disturbance


class Guard:
    """Saw a server that was stopped, in every cell."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin_cell(self) -> None:
        self.calls.append("begin")

    def end_cell(self) -> Observed:
        self.calls.append("end")
        errors = (ServerError("memory_exhausted", "first", {"observed_bytes": 7}), ServerError("swapping", "second"))
        return Observed(
            swapped_bytes=4096,
            machine_swapped_bytes=8192,
            pressure_percent=12.5,
            least_left_bytes=1 << 20,
            stopped=errors,
        )

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")


class Clock:
    def disturbance(self, begin_ns: int, end_ns: int) -> Disturbance:
        return Disturbance("stopped", 3.0, begin_ns, end_ns)

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def watches(guard: Guard) -> Watches:
    watches = Watches(LimitsConfig())
    watches.__dict__ |= {"_guard": guard, "_clock": Clock()}  # where cached properties keep what they made
    return watches


def cell_run() -> CellRun:
    cell = Cell(model="tiny", quantization="Q4_K_M", profile="interactive")
    return CellRun(cell, "n", started_at="2026-01-31T23:59:59.000+00:00", started_monotonic=0.0)


def test_a_cell_that_never_got_as_far_is_told_nothing(watches: Watches, guard: Guard) -> None:
    run = cell_run()
    watches.end_cell(run)
    assert (guard.calls, run.memory, run.stopped) == ([], None, None)


def test_what_was_seen_is_told_once_and_the_first_stop_is_the_reason(watches: Watches, guard: Guard) -> None:
    run = cell_run()
    watches.begin_cell(run)
    watches.end_cell(run)
    watches.end_cell(run)
    assert guard.calls == ["begin", "end"]
    assert run.stopped == Reason(code="memory_exhausted", message="first", evidence={"observed_bytes": 7})
    assert run.memory is not None
    assert (run.memory.machine_swapped_bytes, run.memory.least_left_bytes) == (8192, 1 << 20)


def test_clocks_are_only_asked_between_beginning_and_end(
    watches: Watches, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_llmbench.adapters import watching

    monkeypatch.setattr(watching, "reap_orphans", lambda: ())
    monkeypatch.setattr(watching, "sentence", lambda _: None)
    assert watches.disturbance(1, 2) is None
    watches.begin(print)
    watches.begin(print)
    assert watches.disturbance(1, 2) is not None
    watches.end()
    watches.end()
    assert watches.disturbance(1, 2) is None
    assert guard.calls == ["start", "stop"]
