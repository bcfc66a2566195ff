"""What a source of readings is, and what profiles may ask of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from pytest_llmbench.core.records import TelemetryRecord
from pytest_llmbench.errors import Primitive


class Source(Protocol):
    """Sensors of one kind, read several times a second by one thread."""

    @property
    def name(self) -> str:
        """What it is, for people: ``NVIDIA``, ``RAPL``, …"""
        ...

    @property
    def why_not(self) -> Mapping[str, str]:
        """What can not be read here: name of a value (or of the source, where that is all of it) → why."""
        ...

    def read(self) -> Mapping[str, float]:
        """Values by name, now. What can not be read is left out. Raises nothing that is of this machine."""
        ...

    def facts(self) -> Mapping[str, Primitive]:
        """What does not change while a cell runs: governor, power source, names of devices. Read once per cell."""
        ...


@runtime_checkable
class SeldomRead(Protocol):
    """A source that is not read with every sample, though it may be asked for at any time.

    Attributes:
        least_seconds: between two readings.
    """

    least_seconds: float


@runtime_checkable
class FollowsServer(Protocol):
    """A source that reads about one server."""

    def follow(self, server_pid: int | None) -> None:
        """Read about this process, and all that descend from it, from now on; about none."""
        ...


class Telemetry(Protocol):
    """What the sensors say; times are of ``time.perf_counter_ns``."""

    @property
    def why_not(self) -> Mapping[str, str]:
        """What this machine does not tell: name → why."""
        ...

    def now(self) -> TelemetryRecord:
        """Read all sensors at once, in the thread that asks; takes some milliseconds, so never while one measures."""
        ...

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        """What was sampled of this cell in a span of time, in order."""
        ...


class NoTelemetry:
    """Where nothing is sampled: every value is missing."""

    @property
    def why_not(self) -> Mapping[str, str]:
        return {}

    def now(self) -> TelemetryRecord:
        """Nothing, with the time."""
        return TelemetryRecord(cell=None, t_ns=time.perf_counter_ns(), values={})

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        """Nothing at all."""
        return ()
