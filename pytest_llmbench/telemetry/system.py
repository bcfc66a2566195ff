"""The whole machine: memory, swap, stalls, load, and how busy and how fast its CPUs are.

None of it is about the server alone (that is ``server.py``): it tells what else there was while one measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.cpus import CpuShares, Frequencies, Times
from pytest_llmbench.telemetry.files import names_in, read_text, read_word
from pytest_llmbench.telemetry.pressure import MemoryPressure

_KIB = 1024
_NO_STALLS = "the kernel tells no stalls (PSI): it has to be 4.20 or later, and not be started with psi=0"


class System:
    """Linux, from procfs and sysfs.

    Args:
        proc: where procfs is mounted.
        sys: where sysfs is mounted.
        cgroups: where the cgroup hierarchies are mounted.
    """

    name = "system"

    def __init__(
        self, *, proc: Path = Path("/proc"), sys: Path = Path("/sys"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._proc = proc
        self._sys = sys
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._memory_pressure = MemoryPressure(proc=proc, cgroups=cgroups)
        self._shares = CpuShares()
        self._frequencies = Frequencies(sys / "devices" / "system" / "cpu")
        self.why_not: dict[str, str] = dict(self._frequencies.why_not)
        if self._memory_pressure() is None:
            self.why_not["memory_pressure_percent"] = _NO_STALLS
        if not self._cpu_pressure():
            self.why_not["cpu_pressure_percent"] = _NO_STALLS

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`.

        ``memory_pressure_percent`` is "full" of our control group, else of the machine; ``cpu_pressure_percent`` is
        "some" of the machine. Both are the kernel's averages over ten seconds.
        """
        self._shares.update(Times.of_linux(read_text(self._proc / "stat")))
        pressure = self._memory_pressure()
        frequency_mhz = self._frequencies.read_mhz(self._shares.busy)
        return {
            **self._memory(),
            **self._swapping(),
            **({"memory_pressure_percent": pressure.full_percent} if pressure is not None else {}),
            **self._cpu_pressure(),
            **self._load(),
            **self._shares.percentages,
            **({"cpu_frequency_mhz": frequency_mhz} if frequency_mhz is not None else {}),
        }

    def facts(self) -> Mapping[str, Primitive]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`.

        Beside how the CPUs are governed: ``cpu_count``, of those that are online; ``power_source``, ``mains`` or
        ``battery``, absent without a battery; ``platform_profile``, what a laptop's firmware was told to save.
        """
        profile = read_word(self._sys / "firmware" / "acpi" / "platform_profile")
        power = _power_source(self._sys / "class" / "power_supply")
        return {
            "cpu_count": len(Times.of_linux(read_text(self._proc / "stat"))) or psutil.cpu_count(),
            **self._frequencies.facts(),
            **({"power_source": power} if power is not None else {}),
            **({"platform_profile": profile} if profile is not None else {}),
        }

    def _memory(self) -> dict[str, float]:
        """From ``meminfo``."""
        sizes = {}
        for line in read_text(self._proc / "meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in {"MemAvailable", "SwapTotal", "SwapFree"}:
                with suppress(ValueError, IndexError):
                    sizes[name] = int(rest.split()[0]) * _KIB
        values: dict[str, float] = {}
        if "MemAvailable" in sizes:
            values["memory_available_bytes"] = sizes["MemAvailable"]
        if {"SwapTotal", "SwapFree"} <= sizes.keys():
            values["swap_used_bytes"] = sizes["SwapTotal"] - sizes["SwapFree"]
        return values

    def _swapping(self) -> dict[str, float]:
        """From ``vmstat``, which counts pages."""
        names = {"pswpin": "swapped_in_bytes_total", "pswpout": "swapped_out_bytes_total"}
        values: dict[str, float] = {}
        for line in read_text(self._proc / "vmstat").splitlines():
            if line.startswith("pswp"):
                name, _, pages = line.partition(" ")
                if name in names and pages.isdecimal():
                    values[names[name]] = int(pages) * self._page_bytes
        return values

    def _cpu_pressure(self) -> dict[str, float]:
        """Of the line ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
        for line in read_text(self._proc / "pressure" / "cpu").splitlines():
            if line.startswith("some avg10="):
                with suppress(ValueError):
                    return {"cpu_pressure_percent": float(line.split()[1].partition("=")[2])}
        return {}

    def _load(self) -> dict[str, float]:
        with suppress(ValueError):
            return {"load_1m": float(read_text(self._proc / "loadavg").partition(" ")[0])}
        return {}


class PsutilSystem:
    """macOS, which tells less."""

    name = "system"

    def __init__(self) -> None:
        self._shares = CpuShares()
        reason = "this system does not tell it without root; Linux does"
        self.why_not: dict[str, str] = dict.fromkeys(
            ("memory_pressure_percent", "cpu_pressure_percent", "cpu_steal_percent", "cpu_frequency_mhz"), reason
        )

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`."""
        values = {"memory_available_bytes": float(psutil.virtual_memory().available), "load_1m": os.getloadavg()[0]}
        with suppress(psutil.Error, OSError):
            swap = psutil.swap_memory()
            values["swap_used_bytes"] = swap.used
            values["swapped_in_bytes_total"], values["swapped_out_bytes_total"] = swap.sin, swap.sout
        self._shares.update(Times.of_psutil(psutil.cpu_times(percpu=True)))
        return {**values, "cpu_busy_percent": busy} if (busy := self._shares.busy_percent) is not None else values

    def facts(self) -> Mapping[str, Primitive]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`."""
        facts: dict[str, Primitive] = {"cpu_count": psutil.cpu_count()}
        battery = psutil.sensors_battery()
        if battery is not None and battery.power_plugged is not None:
            facts["power_source"] = "mains" if battery.power_plugged else "battery"
        return facts


def _power_source(supplies: Path) -> str | None:
    """``mains`` or ``battery``; None without a battery of the machine's own (a mouse has one too)."""
    has_battery = is_discharging = False
    for name in names_in(supplies):
        kind, status = read_word(supplies / name / "type"), read_word(supplies / name / "status")
        if kind in {"Mains", "USB"} and read_word(supplies / name / "online") == "1":
            return "mains"
        if kind == "Battery" and read_word(supplies / name / "scope") != "Device":
            has_battery = True
            is_discharging = is_discharging or status == "Discharging"
    if not has_battery:
        return None
    return "battery" if is_discharging else "mains"
