"""The thread that reads all sensors: when it does, what it costs, and what it survives."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest

from pytest_llmbench.core.records import TelemetryRecord
from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry import sampler as sampler_module
from pytest_llmbench.telemetry.base import Telemetry
from pytest_llmbench.telemetry.sampler import Sampler
from pytest_llmbench.telemetry.sources import sources_here

ALWAYS = 1 << 62
Make = Callable[..., Sampler]


class FakeSource:
    """Counts how often it is read. ``seconds`` on a core is what that costs."""

    def __init__(self, name: str = "fake", seconds: float = 0.0, **values: float) -> None:
        self.name = name
        self.seconds = seconds
        self.values = values
        self.reads = 0
        self.why_not: dict[str, str] = {}

    def read(self) -> Mapping[str, float]:
        self.reads += 1
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return {"count": float(self.reads), **self.values}

    def facts(self) -> Mapping[str, Primitive]:
        return {f"{self.name}_fact": self.reads}


class Broken(FakeSource):
    def read(self) -> Mapping[str, float]:
        super().read()
        raise ZeroDivisionError

    def facts(self) -> Mapping[str, Primitive]:
        raise ZeroDivisionError


class Seldom(FakeSource):
    least_seconds = 1000.0


class Follower(FakeSource):
    def __init__(self) -> None:
        super().__init__()
        self.followed: list[int | None] = []

    def follow(self, server_pid: int | None) -> None:
        self.followed.append(server_pid)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def records() -> list[TelemetryRecord]:
    return []


@pytest.fixture
def make(records: list[TelemetryRecord]) -> Iterator[Make]:
    """A sampler that has been started; the sink is the list of records."""
    made: list[Sampler] = []

    def make(
        *sources: Any, sink: Callable[[TelemetryRecord], None] = records.append, interval: float = 0.005
    ) -> Sampler:
        made.append(Sampler(sources, sink, interval))
        made[-1].start()
        return made[-1]

    yield make
    for sampler in made:
        sampler.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is due with every sample, whatever it costs."""
    monkeypatch.setattr(sampler_module, "_SOURCES_SHARE", 1e9)
    monkeypatch.setattr(sampler_module, "_OWN_SHARE", 1e9)


@pytest.mark.usefixtures("unhurried")
class TestCells:
    def test_nothing_is_read_outside_of_a_cell(self, make: Make, records: list[TelemetryRecord]) -> None:
        source = FakeSource()
        sampler = make(source)
        time.sleep(0.02)
        assert (source.reads, sampler.between(0, ALWAYS)) == (0, [])
        sampler.begin_cell("a", None)
        until(lambda: len(records) > 3)
        sampler.end_cell()
        sampler.end_cell()
        reads, written = source.reads, len(records)
        time.sleep(0.03)
        assert len(records) == written
        assert source.reads <= reads + 1  # one may have been under way

    def test_what_is_kept_is_what_is_written(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource(a=5.0))
        before_ns = time.perf_counter_ns()
        sampler.begin_cell("tests.py::a", None)
        until(lambda: len(records) > 5)
        sampler.end_cell()
        assert sampler.between(0, ALWAYS) == records
        assert {record.cell for record in records} == {"tests.py::a"}
        assert [record.values for record in records[:2]] == [{"count": 1.0, "a": 5.0}, {"count": 2.0, "a": 5.0}]
        times = [record.t_ns for record in records]
        assert before_ns < times[0]
        assert times == sorted(set(times))
        assert sampler.between(times[1], times[3]) == records[1:4]

    def test_the_next_cell_has_its_own(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource())
        sampler.begin_cell("a", None)
        until(lambda: records)
        sampler.begin_cell("b", None)  # the other was not ended
        until(lambda: any(record.cell == "b" for record in records))
        assert {record.cell for record in sampler.between(0, ALWAYS)} == {"b"}

    def test_the_interval_of_a_cell(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource(), interval=1000.0)
        sampler.begin_cell("a", None)
        until(lambda: records)  # the first one is taken at once
        sampler.begin_cell("b", None, interval_seconds=0.002)
        until(lambda: len(records) > 5)

    def test_asked_for(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource(a=1.0), interval=1000.0)
        outside = sampler.now()
        assert (outside.cell, outside.values) == (None, {"count": 1.0, "a": 1.0})
        assert records == []
        sampler.begin_cell("a", None)
        until(lambda: records)
        inside = sampler.now()
        assert (inside.cell, inside.values["count"]) == ("a", 3.0)
        assert sampler.between(0, ALWAYS)[-1] is inside is records[-1]

    def test_the_server(self, make: Make, records: list[TelemetryRecord]) -> None:
        follower = Follower()
        sampler = make(FakeSource(), follower, interval=1000.0)
        sampler.begin_cell("a", None)
        until(lambda: records)
        sampler.follow(7)
        until(lambda: len(records) == 2)  # as soon as it is known
        sampler.begin_cell("b", 8)
        assert follower.followed == [None, 7, 8]

    def test_it_is_what_profiles_ask(self, make: Make) -> None:
        telemetry: Telemetry = make(FakeSource())
        assert telemetry.now().values

    def test_many_samples_are_thinned(
        self, make: Make, records: list[TelemetryRecord], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampler_module, "_MOST_SAMPLES", 10)
        sampler = make(interval=1000.0)
        sampler.begin_cell("a", None)
        until(lambda: records)
        while len(records) < 100:
            sampler.now()
        kept = sampler.between(0, ALWAYS)
        assert 5 <= len(kept) < 10
        places = [records.index(sample) for sample in kept]
        assert len({after - before for before, after in pairwise(places)}) == 1  # evenly


class TestCost:
    def test_a_costly_source_is_read_less_often(
        self, make: Make, records: list[TelemetryRecord], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampler_module, "_OWN_SHARE", 1e9)
        cheap, costly = FakeSource("cheap"), FakeSource("costly", seconds=0.01)
        sampler = make(costly, cheap, interval=0.02)
        sampler.begin_cell("a", None)
        until(lambda: len(records) > 5)
        assert costly.reads == 1  # 10 ms at 0.35 % of a core: not again within three seconds
        assert cheap.reads > 3
        assert sampler.costs_seconds["costly"] >= 0.01
        assert sampler.costs_seconds.keys() == {"costly", "cheap", "sampler"}
        sampler.stop()
        assert sampler.cost_seconds == pytest.approx(sum(sampler.costs_seconds.values()))

    @pytest.mark.usefixtures("unhurried")
    def test_one_that_need_not_be_read_often(self, make: Make, records: list[TelemetryRecord]) -> None:
        seldom = Seldom()
        sampler = make(FakeSource("other"), seldom)
        sampler.begin_cell("a", None)
        until(lambda: len(records) > 5)
        assert seldom.reads == 1
        sampler.now()
        assert seldom.reads == 2

    @pytest.mark.usefixtures("unhurried")
    def test_what_is_too_costly_to_be_asked_for(self, make: Make) -> None:
        costly = Seldom(seconds=0.006)
        sampler = make(costly)
        assert sampler.now().values
        assert sampler.now().values == {}
        assert costly.reads == 1

    def test_records_that_cost_much_are_made_less_often(self, make: Make) -> None:
        written: list[TelemetryRecord] = []

        def sink(record: TelemetryRecord) -> None:
            written.append(record)
            end = time.thread_time() + 0.002
            while time.thread_time() < end:
                pass

        sampler = make(FakeSource(), sink=sink, interval=0.01)
        sampler.begin_cell("a", None)
        time.sleep(0.1)
        assert len(written) == 1  # 2 ms at 0.15 % of a core: not again within a second

    @pytest.mark.parametrize(
        ("demands", "share"),
        [
            ([0.001], 0.0035),
            ([0.5], 0.0035),
            ([0.5, 0.5], 0.00175),
            ([0.5, 0.0005, 0.5], 0.0015),  # what the cheap one leaves is for the others
            ([0.0, 0.0, 0.002, 0.002, 0.0], 0.00175),
            ([], 0.0035),
        ],
    )
    def test_shares(self, demands: list[float], share: float) -> None:
        assert sampler_module._largest_share(demands) == pytest.approx(share)

    @pytest.mark.parametrize("demands", [[0.1, 0.002, 0.0001], [0.001] * 10, [0.0], [0.0007, 0.0014, 0.0014]])
    def test_shares_never_exceed_the_bound(self, demands: list[float]) -> None:
        share = sampler_module._largest_share(demands)
        assert sum(min(demand, share) for demand in demands) <= 0.0035 + 1e-12

    def test_samples_that_were_missed_are_not_made_up_for(self) -> None:
        cell = sampler_module._Cell("a", interval_seconds=2.0, next_monotonic=100.0)
        cell.plan(100.5, 0.0)
        assert cell.next_monotonic == 102.0
        cell.plan(107.1, 0.0)
        assert cell.next_monotonic == 108.0
        cell.plan(108.5, 30.0)
        assert cell.next_monotonic == 138.5


@pytest.mark.usefixtures("unhurried")
class TestTrouble:
    def test_a_sink_that_fails(self, make: Make) -> None:
        written: list[TelemetryRecord] = []

        def sink(record: TelemetryRecord) -> None:
            written.append(record)
            if len(written) == 3:
                raise OSError("no space left")

        source = FakeSource()
        sampler = make(source, sink=sink)
        sampler.begin_cell("a", None)
        until(lambda: source.reads > 6)
        assert len(written) == 3
        assert isinstance(sampler.trouble, OSError)
        assert len(sampler.between(0, ALWAYS)) > 4  # profiles may still ask

    def test_no_trouble(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource())
        sampler.begin_cell("a", None)
        until(lambda: len(records) > 2)
        assert sampler.trouble is None

    def test_a_source_that_fails_is_read_no_more(
        self, make: Make, records: list[TelemetryRecord], caplog: pytest.LogCaptureFixture
    ) -> None:
        broken, source = Broken("broken"), FakeSource()
        sampler = make(broken, source)
        sampler.begin_cell("a", None)
        until(lambda: len(records) > 4)
        assert broken.reads == 1
        assert source.reads > 3
        assert "ZeroDivisionError" in sampler.why_not["broken"]
        assert sum("broken is no longer read" in message for message in caplog.messages) == 1
        assert sampler.facts().keys() == {"fake_fact"}

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_what_is_no_number_is_left_out(self, make: Make, value: float) -> None:
        assert make(FakeSource(a=value, b=1.0)).now().values == {"count": 1.0, "b": 1.0}

    def test_what_is_not_available_is_told_once(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        source = FakeSource()
        source.why_not = {"a": "no sensor"}
        sampler = make(source)
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                sampler.begin_cell("a", None)
                sampler.end_cell()
        assert sampler.why_not == {"a": "no sensor"}
        assert [message for message in caplog.messages if "no sensor" in message] == ["not available: a: no sensor"]

    def test_facts(self, make: Make) -> None:
        assert make(FakeSource("a"), FakeSource("b")).facts() == {"a_fact": 0, "b_fact": 0}


class TestEnds:
    def test_twice_and_never_begun(self, make: Make) -> None:
        sampler = make(FakeSource())
        sampler.start()
        sampler.begin_cell("a", None)
        sampler.stop()
        sampler.stop()
        Sampler([], print).stop()

    def test_it_can_be_started_again(self, make: Make, records: list[TelemetryRecord]) -> None:
        sampler = make(FakeSource())
        sampler.stop()
        sampler.start()
        sampler.begin_cell("a", None)
        until(lambda: records)

    def test_before_it_is_started(self, records: list[TelemetryRecord]) -> None:
        sampler = Sampler([FakeSource()], records.append)
        sampler.begin_cell("a", None)
        assert sampler.now().cell == "a"
        sampler.stop()
        assert len(records) == 1

    def test_a_sensor_that_hangs_does_not_hold_up_the_end(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(sampler_module, "_JOIN_SECONDS", 0.02)
        reading, leave = threading.Event(), threading.Event()

        class Hanging(FakeSource):
            def read(self) -> Mapping[str, float]:
                reading.set()
                leave.wait(10)
                return {}

        sampler = make(Hanging())
        sampler.begin_cell("a", None)
        assert reading.wait(10)
        sampler.stop()
        assert any("takes over" in message for message in caplog.messages)
        leave.set()
        until(lambda: not any(thread.name == "telemetry" for thread in threading.enumerate()))


def test_all_sensors_of_this_machine(make: Make, records: list[TelemetryRecord]) -> None:
    sampler = make(*sources_here())
    sampler.begin_cell("a", os.getpid())
    until(lambda: any({"server_rss_bytes", "memory_available_bytes"} <= record.values.keys() for record in records))
    assert sampler.trouble is None
    assert all(sampler.why_not.values())
    assert "cpu_count" in sampler.facts()
    for metric in ("cpu_temperature_celsius", "package_energy_joules_total", "gpu_temperature_celsius"):
        assert metric in sampler.now().values or metric in sampler.why_not  # never neither
