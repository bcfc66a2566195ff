"""The CPUs of this machine: how busy they are, how fast they run, and what rules their speed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.files import names_in, read_integer, read_word

_LEAST_SECONDS = 0.1  # per CPU, between two readings: ticks are 10 ms, and shares of fewer than ten of them noise
_MOST_READ = 16  # frequencies of CPUs at once: on some processors each one is asked for by an interrupt
_NO_FREQUENCY = (
    "the frequency of the CPUs can not be seen (no cpufreq in sysfs): in a virtual machine or a container ask on the "
    "host; what /proc/cpuinfo says there is a nominal one"
)


class Times(NamedTuple):
    """What a CPU has spent since it was started, in seconds. Busy is all but idle, waiting for a disk, and stolen."""

    busy: float
    stolen: float
    idle: float

    @classmethod
    def of_linux(cls, stat: str) -> dict[int, Times]:
        """Of each CPU that is online, from the text of ``/proc/stat``, see proc_stat(5).

        Its fields are user, nice, system, idle, iowait, irq, softirq and steal, in ticks; guests are in the first two.
        """
        second = os.sysconf("SC_CLK_TCK")
        found = {}
        for line in stat.splitlines():
            if not line.startswith("cpu"):
                break
            name, *fields = line.split()
            if name[3:].isdecimal() and len(fields) >= 8 and all(field.isdecimal() for field in fields):
                user, nice, system, idle, iowait, irq, softirq, steal = (int(field) / second for field in fields[:8])
                found[int(name[3:])] = cls(user + nice + system + irq + softirq, steal, idle + iowait)
        return found

    @classmethod
    def of_psutil(cls, times: Iterable[Any]) -> dict[int, Times]:
        """From ``psutil.cpu_times(percpu=True)``; macOS tells user, nice, system and idle."""
        return {cpu: cls(one.user + one.nice + one.system, 0.0, one.idle) for cpu, one in enumerate(times)}


class CpuShares:
    """How busy the CPUs were between two readings.

    Attributes:
        busy: the share of each CPU, 0 to 1, by its number; empty until there are two readings.
        busy_percent, steal_percent: of all CPUs together, 0 to 100; None until there are two readings.
    """

    def __init__(self) -> None:
        self.busy: dict[int, float] = {}
        self.busy_percent: float | None = None
        self.steal_percent: float | None = None
        self._last: Mapping[int, Times] = {}

    @property
    def percentages(self) -> dict[str, float]:
        """The two, as they are recorded."""
        if self.busy_percent is None or self.steal_percent is None:
            return {}
        return {"cpu_busy_percent": self.busy_percent, "cpu_steal_percent": self.steal_percent}

    def update(self, now: Mapping[int, Times]) -> None:
        """Compare with the reading before. One that follows too soon is left out: shares stay what they were."""
        last = self._last
        # The kernel says that its counts of waiting may fall a little.
        spent = {
            cpu: Times(*(max(0.0, new - old) for new, old in zip(times, last[cpu], strict=True)))
            for cpu, times in now.items()
            if cpu in last
        }
        total = sum(map(sum, spent.values()))
        if spent and total < _LEAST_SECONDS * len(spent):
            return
        self._last = now
        if spent:
            self.busy = {cpu: times.busy / sum(times) for cpu, times in spent.items() if sum(times) > 0}
            self.busy_percent = 100 * sum(times.busy for times in spent.values()) / total
            self.steal_percent = 100 * sum(times.stolen for times in spent.values()) / total


class Frequencies:
    """What cpufreq tells.

    Args:
        cpus: the folder of all CPUs in sysfs.
    """

    def __init__(self, cpus: Path) -> None:
        self._cpus = cpus
        names = [name for name in names_in(cpus) if name[:3] == "cpu" and name[3:].isdecimal()]
        self._files = {
            int(name[3:]): cpus / name / "cpufreq" / "scaling_cur_freq"
            for name in names
            if (cpus / name / "cpufreq" / "scaling_cur_freq").exists()
        }
        self.why_not: dict[str, str] = {} if self._files else {"cpu_frequency_mhz": _NO_FREQUENCY}

    def read_mhz(self, busy: Mapping[int, float]) -> float | None:
        """The frequency that work ran at: the mean over CPUs, each weighted with the share of time it was busy.

        An idle CPU may run as slowly as it likes; only the 16 busiest are asked.

        Args:
            busy: those shares, 0 to 1; with none of them, CPUs count alike.
        """
        weights = (
            {cpu: busy.get(cpu, 0.0) for cpu in self._files} if any(busy.values()) else dict.fromkeys(self._files, 1.0)
        )
        weighted = total = 0.0
        for cpu in sorted(weights, key=weights.__getitem__, reverse=True)[:_MOST_READ]:
            khz = read_integer(self._files[cpu]) if weights[cpu] > 0 else None
            if khz is not None:
                weighted += weights[cpu] * khz / 1000
                total += weights[cpu]
        return weighted / total if total else None

    def facts(self) -> Mapping[str, Primitive]:
        """What rules the speed; what differs between CPUs is joined with commas, what is not told is left out.

        ``governor``, ``frequency_driver``, ``energy_preference``; ``turbo``, whether the processor may go beyond its
        nominal frequency; ``frequency_limit_mhz``, the highest that is allowed, and ``frequency_most_mhz``, the highest
        that the processor has.
        """
        facts: dict[str, Primitive] = {
            "governor": self._words("scaling_governor"),
            "frequency_driver": self._words("scaling_driver"),
            "energy_preference": self._words("energy_performance_preference"),
            "turbo": self._turbo(),
            "frequency_limit_mhz": self._highest_mhz("scaling_max_freq"),
            "frequency_most_mhz": self._highest_mhz("cpuinfo_max_freq"),
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    def _words(self, name: str) -> str | None:
        words = {read_word(file.with_name(name)) for file in self._files.values()} - {None}
        return ", ".join(sorted(word for word in words if word)) or None

    def _highest_mhz(self, name: str) -> float | None:
        found = [read_integer(file.with_name(name)) for file in self._files.values()]
        return max((khz / 1000 for khz in found if khz is not None), default=None)

    def _turbo(self) -> bool | None:
        switched_off = read_integer(self._cpus / "intel_pstate" / "no_turbo")
        if switched_off is not None:
            return switched_off == 0
        switched_on = read_integer(self._cpus / "cpufreq" / "boost")
        return switched_on == 1 if switched_on is not None else None
