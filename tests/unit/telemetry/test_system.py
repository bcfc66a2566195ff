"""The whole machine, on fake trees, and once here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pytest_llmbench.telemetry.system import PsutilSystem, System
from tests.unit.telemetry.trees import write

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NAMES = {
    "memory_available_bytes",
    "swap_used_bytes",
    "swapped_in_bytes_total",
    "swapped_out_bytes_total",
    "memory_pressure_percent",
    "cpu_pressure_percent",
    "load_1m",
    "cpu_busy_percent",
    "cpu_steal_percent",
    "cpu_frequency_mhz",
}


def machine(root: Path) -> System:
    return System(proc=root / "proc", sys=root / "sys", cgroups=root / "cgroup")


def stat(busy: int, idle: int, steal: int) -> str:
    return f"cpu  0\ncpu0 {busy} 0 0 {idle} 0 0 0 {steal} 0 0\nintr 1"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A machine that tells everything."""
    write(
        tmp_path / "proc",
        {
            "meminfo": "MemTotal: 16 kB\nMemAvailable:   1000 kB\nSwapTotal:  500 kB\nSwapFree:  100 kB\nHugePages: 0",
            "vmstat": "nr_free_pages 9\npswpin 3\npswpout 7\npswpout_zero 1\n"
            + "\n".join(f"x{i} 1" for i in range(9000)),
            "pressure/memory": "some avg10=9.00 avg60=0.00\nfull avg10=2.50 avg60=0.00",
            "pressure/cpu": "some avg10=12.25 avg60=0.00\nfull avg10=0.00 avg60=0.00",
            "loadavg": "1.75 1.00 0.50 2/300 12345",
            "stat": stat(0, 0, 0),
        },
    )
    write(
        tmp_path / "sys/devices/system/cpu/cpu0/cpufreq",
        {"scaling_cur_freq": 2_500_000, "scaling_governor": "schedutil"},
    )
    return tmp_path


class TestLinux:
    def test_everything(self, whole: Path) -> None:
        source = machine(whole)
        assert source.why_not == {}
        assert source.read().keys() == NAMES - {"cpu_busy_percent", "cpu_steal_percent"}  # these need two readings
        write(whole / "proc", {"stat": stat(30, 50, 20)})
        assert source.read() == pytest.approx(
            {
                "memory_available_bytes": 1000 * 1024,
                "swap_used_bytes": 400 * 1024,
                "swapped_in_bytes_total": 3 * PAGE_BYTES,
                "swapped_out_bytes_total": 7 * PAGE_BYTES,
                "memory_pressure_percent": 2.5,
                "cpu_pressure_percent": 12.25,
                "load_1m": 1.75,
                "cpu_busy_percent": 30,
                "cpu_steal_percent": 20,
                "cpu_frequency_mhz": 2500,
            }
        )

    def test_nothing(self, tmp_path: Path) -> None:
        source = machine(tmp_path)
        assert source.read() == {}
        assert source.why_not.keys() == {"cpu_frequency_mhz", "memory_pressure_percent", "cpu_pressure_percent"}
        assert all(reason for reason in source.why_not.values())
        assert source.facts() == {"cpu_count": psutil.cpu_count()}

    @pytest.mark.parametrize("file", ["meminfo", "vmstat", "pressure/memory", "pressure/cpu", "loadavg", "stat"])
    @pytest.mark.parametrize("text", ["", "some avg10=", "MemAvailable: much kB\nSwapTotal:", "pswpin x", "\0\xff"])
    def test_a_file_that_says_something_else(self, whole: Path, file: str, text: str) -> None:
        write(whole / "proc", {file: text})
        source = machine(whole)
        source.read()
        assert source.read().keys() < NAMES

    def test_facts(self, whole: Path) -> None:
        write(whole / "sys", {"firmware/acpi/platform_profile": "low-power"})
        assert machine(whole).facts() == {"cpu_count": 1, "governor": "schedutil", "platform_profile": "low-power"}

    @pytest.mark.parametrize(
        ("supplies", "source"),
        [
            ({"AC": {"type": "Mains", "online": 1}, "BAT0": {"type": "Battery", "status": "Charging"}}, "mains"),
            ({"AC": {"type": "Mains", "online": 0}, "BAT0": {"type": "Battery", "status": "Discharging"}}, "battery"),
            ({"BAT0": {"type": "Battery", "status": "Full"}}, "mains"),
            ({"BAT0": {"type": "Battery", "status": "Discharging"}, "ucsi": {"type": "USB", "online": 1}}, "mains"),
            ({"mouse": {"type": "Battery", "status": "Discharging", "scope": "Device"}}, None),
            ({"AC": {"type": "Mains", "online": 0}}, None),
        ],
    )
    def test_power(self, tmp_path: Path, supplies: dict[str, dict[str, object]], source: str | None) -> None:
        for name, files in supplies.items():
            write(tmp_path / "sys/class/power_supply" / name, files)
        assert machine(tmp_path).facts().get("power_source") == source

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_here(self) -> None:
        source = System()
        values = source.read()
        assert NAMES >= values.keys() >= {"memory_available_bytes", "swap_used_bytes", "load_1m"}
        assert 0 < values["memory_available_bytes"] <= psutil.virtual_memory().total
        assert source.facts()["cpu_count"] == psutil.cpu_count()


class TestElsewhere:
    def test_what_psutil_tells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        swap = SimpleNamespace(used=5, sin=6, sout=7)
        idle, worked = {"user": 0.0, "nice": 0.0, "system": 0.0, "idle": 0.0}, {"user": 1.0, "system": 0.5, "idle": 0.5}
        times = iter([SimpleNamespace(**idle), SimpleNamespace(**idle | worked)])
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
        monkeypatch.setattr(psutil, "swap_memory", lambda: swap)
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [next(times)])
        monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0, 0))
        source = PsutilSystem()
        source.read()
        assert source.read() == {
            "memory_available_bytes": 1000,
            "load_1m": 0.5,
            "swap_used_bytes": 5,
            "swapped_in_bytes_total": 6,
            "swapped_out_bytes_total": 7,
            "cpu_busy_percent": 75,
        }
        assert "cpu_frequency_mhz" in source.why_not

    @pytest.mark.parametrize(("plugged", "expected"), [(True, "mains"), (False, "battery"), (None, None)])
    def test_power(self, monkeypatch: pytest.MonkeyPatch, plugged: bool | None, expected: str | None) -> None:
        monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(power_plugged=plugged), raising=False)
        assert PsutilSystem().facts().get("power_source") == expected
