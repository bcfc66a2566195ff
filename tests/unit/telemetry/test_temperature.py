"""Sensors and throttle counters, on fake trees of known machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_llmbench.telemetry.temperature import Temperature
from tests.unit.telemetry.trees import write


def hwmon(root: Path, number: int, chip: str, inputs: dict[str | None, object]) -> None:
    """A chip; inputs by label, in millidegrees."""
    folder = root / f"class/hwmon/hwmon{number}"
    write(folder, {"name": chip})
    for index, (label, millidegrees) in enumerate(inputs.items(), 1):
        write(folder, {f"temp{index}_input": millidegrees, f"temp{index}_crit": 100000})
        if label is not None:
            write(folder, {f"temp{index}_label": label})


def zone(root: Path, number: int, kind: str, millidegrees: object) -> None:
    write(root / f"class/thermal/thermal_zone{number}", {"type": kind, "temp": millidegrees})


def throttling(root: Path, cpu: int, package: int, core: int, counts: tuple[int, int]) -> None:
    write(
        root / f"devices/system/cpu/cpu{cpu}",
        {
            "topology/physical_package_id": package,
            "topology/core_id": core,
            "thermal_throttle/core_throttle_count": counts[0],
            "thermal_throttle/package_throttle_count": counts[1],
        },
    )


class TestSensors:
    def test_intel_by_its_package(self, tmp_path: Path) -> None:
        hwmon(tmp_path, 0, "coretemp", {"Package id 0": 71000, "Core 0": 70000, "Core 1": 71000})
        hwmon(tmp_path, 1, "nvme", {"Composite": 40000})
        hwmon(tmp_path, 2, "iwlwifi_1", {None: 50000})
        hwmon(tmp_path, 3, "dell_smm", {"CPU": 72000})
        zone(tmp_path, 0, "acpitz", 27800)
        zone(tmp_path, 1, "x86_pkg_temp", 71000)
        source = Temperature(sys=tmp_path)
        assert source.read() == {
            "temperature_coretemp_package_id_0_celsius": 71.0,
            "cpu_temperature_celsius": 71.0,
        }
        assert source.facts() == {"temperature_sensors": "coretemp_package_id_0"}
        assert source.why_not.keys() == {"throttle_events_total"}

    def test_two_sockets_and_the_hottest_of_them(self, tmp_path: Path) -> None:
        hwmon(tmp_path, 0, "coretemp", {"Package id 0": 60000})
        hwmon(tmp_path, 1, "coretemp", {"Package id 1": 75500})
        assert Temperature(sys=tmp_path).read()["cpu_temperature_celsius"] == 75.5

    def test_sensors_of_one_name(self, tmp_path: Path) -> None:
        for number, millidegrees in enumerate((60000, 61000, 59000)):
            hwmon(tmp_path, number, "k10temp", {"Tctl": millidegrees})
        assert Temperature(sys=tmp_path).read() == {
            "temperature_k10temp_tctl_celsius": 60.0,
            "temperature_k10temp_tctl_2_celsius": 61.0,
            "temperature_k10temp_tctl_3_celsius": 59.0,
            "cpu_temperature_celsius": 61.0,
        }

    def test_amd_without_its_offset(self, tmp_path: Path) -> None:
        hwmon(tmp_path, 0, "k10temp", {"Tctl": 95000, "Tdie": 75000, "Tccd1": 74000})
        assert Temperature(sys=tmp_path).read() == {
            "temperature_k10temp_tdie_celsius": 75.0,
            "temperature_k10temp_tccd1_celsius": 74.0,
            "cpu_temperature_celsius": 75.0,
        }

    def test_intel_without_a_driver_for_its_cores(self, tmp_path: Path) -> None:
        zone(tmp_path, 0, "acpitz", 27800)
        zone(tmp_path, 1, "x86_pkg_temp", 66000)
        assert Temperature(sys=tmp_path).read()["cpu_temperature_celsius"] == 66.0

    def test_a_jetson(self, tmp_path: Path) -> None:
        for number, (kind, millidegrees) in enumerate(
            {"CPU-therm": 50500, "GPU-therm": 48000, "tj-therm": 51000, "PMIC-Die": 100000}.items()
        ):
            zone(tmp_path, number, kind, millidegrees)
        assert Temperature(sys=tmp_path).read() == {
            "temperature_cpu_therm_celsius": 50.5,
            "temperature_gpu_therm_celsius": 48.0,
            "temperature_tj_therm_celsius": 51.0,
            "cpu_temperature_celsius": 50.5,
        }

    def test_a_zone_that_hwmon_shows_too(self, tmp_path: Path) -> None:
        hwmon(tmp_path, 0, "cpu_thermal", {None: 61000})
        zone(tmp_path, 0, "cpu-thermal", 61000)
        assert Temperature(sys=tmp_path).facts() == {"temperature_sensors": "cpu_thermal"}

    @pytest.mark.parametrize("reading", ["", "-274000", "255000", "n/a"])
    def test_a_sensor_that_fails_just_now(self, tmp_path: Path, reading: str) -> None:
        hwmon(tmp_path, 0, "k10temp", {"Tdie": 75000, "Tccd1": reading})
        assert Temperature(sys=tmp_path).read()["cpu_temperature_celsius"] == 75.0
        assert len(Temperature(sys=tmp_path).read()) == 2

    @pytest.mark.parametrize(("platform", "word"), [("linux", "virtual machine"), ("darwin", "powermetrics")])
    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, word: str) -> None:
        monkeypatch.setattr(sys, "platform", platform)
        source = Temperature(sys=tmp_path)
        assert (source.read(), source.facts()) == ({}, {})
        assert word in source.why_not["cpu_temperature_celsius"]


class TestThrottling:
    def test_each_core_and_each_package_counts_once(self, tmp_path: Path) -> None:
        throttling(tmp_path, 0, package=0, core=0, counts=(3, 100))
        throttling(tmp_path, 1, package=0, core=1, counts=(4, 100))
        throttling(tmp_path, 2, package=0, core=0, counts=(3, 100))  # the other thread of the first core
        throttling(tmp_path, 3, package=1, core=0, counts=(5, 1000))
        source = Temperature(sys=tmp_path)
        assert source.read() == {"throttle_events_total": 3 + 4 + 5 + 100 + 1000}
        assert "throttle_events_total" not in source.why_not

    def test_a_core_that_is_switched_off_does_not_look_like_a_fall(self, tmp_path: Path) -> None:
        throttling(tmp_path, 0, package=0, core=0, counts=(3, 100))
        throttling(tmp_path, 1, package=0, core=1, counts=(4, 100))
        source = Temperature(sys=tmp_path)
        (tmp_path / "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count").unlink()
        assert source.read() == {}
