"""What the sensors said while a cell was measured is that cell's, up to the moment it is asked for."""

from __future__ import annotations

from typing import Any

from pytest_llmbench.adapters.sensing import Sensing
from pytest_llmbench.core.records import TelemetryRecord


class Sampler:
    """Its machine becomes hotter with each sample."""

    def __init__(self) -> None:
        self.why_not: dict[str, str] = {}
        self.samples: list[TelemetryRecord] = []

    def now(self) -> TelemetryRecord:
        celsius = 50.0 + len(self.samples)
        record = TelemetryRecord(cell="n", t_ns=len(self.samples), values={"cpu_temperature_celsius": celsius})
        self.samples.append(record)
        return record

    def between(self, begin_ns: int, end_ns: int) -> list[TelemetryRecord]:
        return [sample for sample in self.samples if begin_ns <= sample.t_ns <= end_ns]


def test_what_is_measured_a_second_time_has_its_own_samples_too() -> None:
    sensing, sampler = Sensing(enabled=True), Sampler()
    fake: Any = sampler
    sensing._sampler = fake
    assert sensing.metrics(10)["cpu_temperature_celsius"] == 50
    sensing.doubts()
    assert sensing.metrics(20)["cpu_temperature_celsius"] == 51


def test_that_nobody_was_to_look_is_a_reason_too() -> None:
    why = Sensing(enabled=False).why_missing()
    assert why["cpu_temperature_celsius"] == why["throttle_events"] == "measurement.telemetry is false"
