"""Clocks that are given, and once a process that is really stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pytest_llmbench.telemetry import clock as clock_module
from pytest_llmbench.telemetry.clock import Clocks, ClockWatch, Moment, is_stopped_now

S = 1_000_000_000


class World:
    """Time passes by hand, and the watch ticks by hand."""

    def __init__(self) -> None:
        self.now = Moment(1000 * S, 50 * S, 50 * S, 5 * S, 7 * S)
        self.stopped: set[int] = set()
        self.watch = ClockWatch(lambda: (7, 8), clocks=lambda: self.now, is_stopped=self.stopped.__contains__)
        self.watch.tick()

    def pass_(self, seconds: float, *, gained: float = 0, waited: float = 0, used: float = 0) -> int:
        """Let time pass and tick; returns the time then."""
        now = self.now
        self.now = Moment(
            now.now_ns + round(seconds * S),
            now.gained_least_ns + round(gained * S),
            now.gained_most_ns + round(gained * S),
            now.waited_ns + round(waited * S),
            now.used_ns + round(used * S),
        )
        self.watch.tick()
        return self.now.now_ns


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert "clock watch" not in [thread.name for thread in threading.enumerate()]


def test_nothing_happens(world: World) -> None:
    for _ in range(100):
        world.pass_(0.26, gained=0.00001, waited=0.01, used=0.01)
    assert world.watch.disturbance(0, world.now.now_ns) is None


class TestSuspended:
    def test_the_clock_that_counts_it_gains(self, world: World) -> None:
        before = world.pass_(0.25)
        after = world.pass_(0.25, gained=3600)
        found = world.watch.disturbance(before - S, after + S)
        assert found is not None
        assert (found.kind, found.seconds, found.begin_ns, found.end_ns) == ("suspended", 3600, before, after)
        assert found.sentence == "the machine was suspended for 3600.0 s; what was timed then is discarded"

    @pytest.mark.parametrize(("gained", "is_one"), [(0.1, False), (0.101, True), (-5, False)])
    def test_from_a_tenth_of_a_second_on(self, world: World, gained: float, is_one: bool) -> None:
        world.pass_(0.25, gained=gained)
        assert (world.watch.disturbance(0, world.now.now_ns) is not None) is is_one

    def test_clocks_that_were_read_far_apart_prove_nothing(self, world: World) -> None:
        """The thread was interrupted between the two: the difference is known only within bounds."""
        world.now = Moment(world.now.now_ns + S // 4, 50 * S, 53 * S, 5 * S, 7 * S)
        world.watch.tick()
        world.now = Moment(world.now.now_ns + S // 4, 50 * S, 50 * S, 5 * S, 7 * S)
        world.watch.tick()
        assert world.watch.disturbance(0, world.now.now_ns) is None


class TestStopped:
    @pytest.mark.parametrize(("seconds", "is_one"), [(1.25, False), (1.26, True), (60.25, True)])
    def test_a_tick_comes_more_than_a_second_late(self, world: World, seconds: float, is_one: bool) -> None:
        before = world.now.now_ns
        after = world.pass_(seconds)
        found = world.watch.disturbance(before, after)
        assert (found is not None) is is_one
        if found is not None:
            assert (found.kind, found.begin_ns, found.end_ns) == ("stopped", before, after)
            assert found.seconds == pytest.approx(seconds - 0.25)
            assert f"did not run for {seconds - 0.25:.1f} s" in found.sentence

    @pytest.mark.parametrize("spent", [{"waited": 5.0}, {"used": 5.0}, {"waited": 2.5, "used": 2.5}], ids=str)
    def test_not_where_it_waited_for_a_core_or_was_at_work(self, world: World, spent: dict[str, float]) -> None:
        world.pass_(5.5, **spent)
        assert world.watch.disturbance(0, world.now.now_ns) is None

    def test_a_stop_on_a_busy_machine_is_one_still(self, world: World) -> None:
        world.pass_(10, waited=2, used=1)
        found = world.watch.disturbance(0, world.now.now_ns)
        assert found is not None
        assert found.seconds == pytest.approx(6.75)


class TestSpans:
    def test_only_what_lies_in_the_span_counts(self, world: World) -> None:
        first = world.pass_(0.25)
        begin = world.pass_(20)
        end = world.pass_(0.25)
        assert world.watch.disturbance(begin + 1, end) is None
        assert world.watch.disturbance(0, first - 1) is None
        assert world.watch.disturbance(first, first) is not None  # it may have begun just then
        assert world.watch.disturbance(begin, end) is not None

    def test_the_longest_is_told(self, world: World) -> None:
        world.pass_(3)
        world.pass_(9)
        world.pass_(4)
        found = world.watch.disturbance(0, world.now.now_ns)
        assert found is not None
        assert found.seconds == pytest.approx(8.75)

    def test_what_is_remembered_is_bounded(self, world: World) -> None:
        for _ in range(1000):
            world.pass_(2)
        assert len(world.watch._found) == 256
        assert world.watch.disturbance(world.now.now_ns - S, world.now.now_ns) is not None


class TestServers:
    def test_one_stop_over_many_ticks_is_one(self, world: World) -> None:
        begin = world.pass_(0.25)
        world.stopped.add(8)
        for _ in range(40):
            middle = world.pass_(0.25)
        world.stopped.clear()
        end = world.pass_(0.25)
        world.pass_(0.25)
        (found,) = world.watch._found
        assert (found.kind, found.begin_ns, found.end_ns) == ("server_stopped", begin, end)
        assert found.sentence.startswith("the server was stopped (SIGSTOP, a debugger) for up to 10.2 s")
        assert world.watch.disturbance(middle, middle) == found
        assert world.watch.disturbance(end + 1, end + S) is None

    def test_it_counts_while_it_lasts(self, world: World) -> None:
        world.stopped.add(7)
        now = world.pass_(0.25)
        assert world.watch.disturbance(now, now) is not None

    def test_only_servers_count(self, world: World) -> None:
        world.stopped.add(9)
        assert world.watch.disturbance(0, world.pass_(0.25)) is None

    def test_a_real_one(self) -> None:
        child = subprocess.Popen(["sleep", "60"])
        try:
            assert not is_stopped_now(child.pid)
            os.kill(child.pid, signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            assert is_stopped_now(child.pid)
        finally:
            child.kill()
            child.wait()
        assert not is_stopped_now(child.pid)


class TestTheThread:
    def test_starts_once_and_sees_nothing(self) -> None:
        begin = time.perf_counter_ns()
        with ClockWatch(lambda: (os.getpid(),)) as watch:
            watch.start()
            assert [thread.name for thread in threading.enumerate()].count("clock watch") == 1
            assert watch.disturbance(begin, time.perf_counter_ns()) is None
        watch.stop()
        watch.start()
        watch.stop()

    def test_goes_on_after_an_error(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(clock_module, "_TICK_SECONDS", 0.01)
        fails = iter([True, False])

        def servers() -> tuple[int, ...]:
            if next(fails, False):
                raise RuntimeError
            return ()

        with ClockWatch(servers) as watch:
            assert watch.disturbance(0, time.perf_counter_ns()) is None
        assert "could not be watched just now" in caplog.text
        assert watch._last is not None

    def test_an_answer_waits_for_a_late_tick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a stop the thread that asks may run before the one that ticks."""
        moment = [Moment(100 * S)]
        watch = ClockWatch(clocks=lambda: moment[0])
        monkeypatch.setattr(clock_module, "_TICK_SECONDS", 60)
        watch.start()
        moment[0] = Moment(190 * S)
        found = watch.disturbance(100 * S, 190 * S)
        watch.stop()
        assert found is not None
        assert (found.kind, found.seconds) == ("stopped", 30)

    def test_an_answer_notices_that_the_machine_was_just_suspended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moment = [Moment(100 * S)]
        watch = ClockWatch(clocks=lambda: moment[0])
        monkeypatch.setattr(clock_module, "_TICK_SECONDS", 60)
        watch.start()
        moment[0] = Moment(100 * S + 1000, 9 * S, 9 * S)
        found = watch.disturbance(100 * S, 100 * S + 1000)
        watch.stop()
        assert found is not None
        assert (found.kind, found.seconds) == ("suspended", 9)


STOPPED = """
import json, os, time
from pytest_llmbench.telemetry import clock
clock._STOPPED_SECONDS = 0.3
from pytest_llmbench.telemetry.clock import ClockWatch
with ClockWatch() as watch:
    begin = time.perf_counter_ns()
    print("ready", flush=True)
    while time.perf_counter_ns() - begin < 1_200_000_000:
        time.sleep(0.01)
    found = watch.disturbance(begin, time.perf_counter_ns())
    before = watch.disturbance(begin - 10**9, begin - 1)
print(json.dumps([found and [found.kind, found.seconds], before is None]))
"""


def test_a_process_that_is_stopped_and_continued_knows() -> None:
    child = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.3)  # some ticks, so that what was before is known to be whole
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.8)
        os.kill(child.pid, signal.SIGCONT)
        found, nothing_before = json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()
    assert found is not None
    assert found[0] == "stopped"
    assert 0.3 < found[1] < 30
    assert nothing_before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its clocks are Linux's")
def test_the_clocks_of_this_machine_agree() -> None:
    clocks = Clocks()
    first, second = clocks(), clocks()
    assert first.now_ns <= second.now_ns
    assert first.gained_least_ns <= second.gained_most_ns
    assert second.gained_least_ns - first.gained_most_ns < S // 10
    assert second.used_ns >= first.used_ns > 0
    assert second.waited_ns >= first.waited_ns >= 0
