"""How a machine bears a load: what its sensors say at intervals, and when it is time to stop.

Temperatures are judged by every sample that was taken meanwhile, several a second, so that heat is noticed at the next
moment between two requests. Rows are closed only there, too: to read all sensors takes some milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llmbench.core.statistics import median
from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.base import Telemetry
from pytest_llmbench.telemetry.responsiveness import SLUGGISH_IN_A_ROW, is_unresponsive

HOT_READINGS = 2  # in a row: a sensor may say nonsense once
THROTTLING_CELSIUS = 85.0  # at and above it, processors of desktops and laptops slow down to keep their temperature
FALLEN_FREQUENCY = 0.95
_SENSORS = {"cpu_temperature_celsius": "CPU", "gpu_temperature_celsius": "GPU"}


class Probe(Protocol):
    """Sleeps again and again, and notes how late it is woken, in ms; times are of ``time.perf_counter_ns``."""

    def start(self) -> object: ...
    def since(self, t_ns: int) -> list[float]: ...
    def stop(self) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a load ends before its time: a code, and a sentence for people."""

    code: str
    sentence: str


class Vitals:
    """Collects readings, one row per interval, and raises the alarm.

    Args:
        probe: runs already.
        began_ns: what minutes are counted from, of ``time.perf_counter_ns``.
        abort_celsius: a CPU or GPU hotter than this in two readings one after the other is an alarm.

    Attributes:
        rows: what the sensors said by interval; None is what they do not tell.
        alarm: why the load has to end, None while all is well.
    """

    def __init__(self, telemetry: Telemetry, probe: Probe, began_ns: int, abort_celsius: float) -> None:
        self.rows: list[dict[str, Primitive]] = []
        self.alarm: Ending | None = None
        self._telemetry = telemetry
        self._probe = probe
        self._began_ns = self._looked_ns = began_ns
        self._abort_celsius = abort_celsius
        before = telemetry.now()
        self._sampled_ns = before.t_ns
        self._throttled_before = before.values.get("throttle_events_total")
        self._sampled: list[Mapping[str, float]] = []
        self._delays: list[float] = []
        self._hot_in_a_row = dict.fromkeys(_SENSORS, 0)
        self._latest_delays: list[float] = []
        self._was_excused = False
        self._knows_pss = False

    def look(self, now_ns: int, *, stood_still: bool = False) -> None:
        """Judge what was sampled since the last look.

        Args:
            stood_still: the machine or this process did not run for a while, as when it is suspended: that is excused,
                but not twice in a row, because a machine that is out of memory looks like that, too.
        """
        for record in self._telemetry.between(self._sampled_ns + 1, now_ns):
            self._sampled.append(record.values)
            self._judge_heat(record.values)
        delays = self._probe.since(self._looked_ns)
        self._looked_ns = self._sampled_ns = now_ns
        self._delays += delays
        self._was_excused = stood_still and not self._was_excused
        self._judge_responsiveness([] if self._was_excused else delays)

    def close_row(self, tokens_per_second: float | None) -> None:
        """Read all sensors, and write down the interval since the last row. Takes milliseconds.

        Args:
            tokens_per_second: of this interval, None where nothing was answered in it.
        """
        now = self._telemetry.now()
        self._sampled_ns = now.t_ns  # it may be among the samples, and two readings at once are one
        if not self._sampled:
            self._judge_heat(now.values)
        readings = [*self._sampled, now.values]
        self._knows_pss = self._knows_pss or any("server_pss_bytes" in reading for reading in readings)
        memory = _newest(readings, "server_pss_bytes" if self._knows_pss else "server_rss_bytes")
        throttled = _newest(readings, "throttle_events_total")
        # While it works: at the moment of ``now`` it has nothing to do, and cores that idle slow down.
        frequencies = _all(self._sampled, "cpu_frequency_mhz") or _all(readings, "cpu_frequency_mhz")
        if self._throttled_before is None:
            self._throttled_before = throttled
        self.rows.append(
            {
                "minute": round((now.t_ns - self._began_ns) / 60e9, 3),
                "tokens_per_second": tokens_per_second,
                "cpu_temperature_celsius": max(_all(readings, "cpu_temperature_celsius"), default=None),
                "gpu_temperature_celsius": max(_all(readings, "gpu_temperature_celsius"), default=None),
                "cpu_frequency_mhz": median(frequencies) if frequencies else None,
                "memory_gb": _gigabytes(memory),
                "swap_gb": _gigabytes(_newest(readings, "server_swap_bytes")),
                "memory_available_gb": _gigabytes(min(_all(readings, "memory_available_bytes"), default=None)),
                "throttle_events": None if throttled is None else throttled - (self._throttled_before or 0.0),
                "scheduling_delay_ms": _percentile_95(self._delays),
            }
        )
        self._sampled, self._delays = [], []

    @property
    def throttled_from_minute(self) -> float | None:
        """The end of the first interval with a throttle event, or with heat and a lower frequency; None without one."""
        frequencies = _all(self.rows, "cpu_frequency_mhz")
        for row in self.rows:
            events, celsius, mhz = (
                _number(row, name) for name in ("throttle_events", "cpu_temperature_celsius", "cpu_frequency_mhz")
            )
            is_hot = celsius is not None and celsius >= THROTTLING_CELSIUS
            has_fallen = mhz is not None and mhz < FALLEN_FREQUENCY * frequencies[0]
            if (events or 0.0) > 0 or (is_hot and has_fallen):
                return _number(row, "minute")
        return None

    def _judge_heat(self, values: Mapping[str, float]) -> None:
        for name, device in _SENSORS.items():
            celsius = values.get(name)
            if celsius is None:
                continue
            self._hot_in_a_row[name] = self._hot_in_a_row[name] + 1 if celsius > self._abort_celsius else 0
            if self._hot_in_a_row[name] >= HOT_READINGS and self.alarm is None:
                self.alarm = Ending(
                    "temperature",
                    f"the {device} was at {celsius:.0f} °C, above the {self._abort_celsius:g} °C of "
                    "settings.stress.abort_temperature; see to its cooling before it is used like this",
                )

    def _judge_responsiveness(self, delays: Sequence[float]) -> None:
        row = [*self._latest_delays, *delays]
        self._latest_delays = row[1 - SLUGGISH_IN_A_ROW :]
        if self.alarm is None and is_unresponsive(row):
            self.alarm = Ending(
                "unresponsive",
                f"the machine no longer responded: a sleeping probe was woken up to {max(row) / 1000:.1f} s late; a "
                "smaller model or fewer threads would leave it some room",
            )


def _all(rows: Sequence[Mapping[str, object]], name: str) -> list[float]:
    return [value for row in rows if (value := _number(row, name)) is not None]


def _newest(readings: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((reading[name] for reading in reversed(readings) if name in reading), None)


def _number(row: Mapping[str, object], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _gigabytes(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e9


def _percentile_95(delays: Sequence[float]) -> float | None:
    """By the nearest rank, as it describes an interval however few there are."""
    if not delays:
        return None
    return sorted(delays)[-(-95 * len(delays) // 100) - 1]
