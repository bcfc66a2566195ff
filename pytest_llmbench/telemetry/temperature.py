"""Temperatures by sensor, and how often processors have throttled themselves because of heat (Linux)."""

from __future__ import annotations

import re
import sys as python
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.files import names_in, read_integer, read_word

# Chips and zones that are of a processor, or of the one chip it is part of: coretemp and x86_pkg_temp (Intel),
# k10temp, k8temp and zenpower (AMD), cpu_thermal, CPU-therm, soc-thermal and bigcore0-thermal (ARM).
_CPU = re.compile(r"core|k10temp|k8temp|zenpower|cpu|x86_pkg_temp|soc")
# And of a GPU beside it. Nothing else is read: a disk or radio has to be woken to be asked, and ACPI's zones and some
# laptops' fan controllers run the firmware's code, which stops all other work for milliseconds.
_READ = re.compile(rf"{_CPU.pattern}|gpu|tj[-_]therm")
_LEAST_CELSIUS, _MOST_CELSIUS = -40.0, 150.0  # what lies beyond is no temperature but a sensor without one
_NO_SENSOR = (
    "no temperature sensor of the CPU: this is a virtual machine or a container, where only the host knows, or its "
    "driver is not loaded; on a machine of your own try: sudo modprobe coretemp (Intel) or k10temp (AMD)"
)
_ONLY_ROOT = "macOS tells temperatures to root only; watch them with: sudo powermetrics --samplers thermal"
_NO_COUNTER = (
    "the kernel counts throttling for Intel processors only, and not in virtual machines; elsewhere it shows as a "
    "falling cpu_frequency_mhz at a high cpu_temperature_celsius"
)


@dataclass(frozen=True, slots=True)
class _Sensor:
    name: str
    file: Path
    is_cpu: bool


class Temperature:
    """See above; its sensors are looked for once.

    Args:
        sys: where sysfs is mounted.
    """

    name = "temperature"

    def __init__(self, *, sys: Path = Path("/sys")) -> None:
        self._sensors = _sensors(sys / "class")
        self._counters = _counters(sys / "devices" / "system" / "cpu")
        self.why_not: dict[str, str] = {}
        if not any(sensor.is_cpu for sensor in self._sensors):
            self.why_not["cpu_temperature_celsius"] = _ONLY_ROOT if python.platform == "darwin" else _NO_SENSOR
        if not self._counters:
            self.why_not["throttle_events_total"] = _NO_COUNTER

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`.

        Each sensor as ``temperature_<sensor>_celsius``; of those of the CPU the hottest again as
        ``cpu_temperature_celsius``. ``throttle_events_total`` is the sum over processors and their cores.
        """
        values: dict[str, float] = {}
        hottest: float | None = None
        for sensor in self._sensors:
            millidegrees = read_integer(sensor.file)
            if millidegrees is None or not _LEAST_CELSIUS <= millidegrees / 1000 <= _MOST_CELSIUS:
                continue
            celsius = values[f"temperature_{sensor.name}_celsius"] = millidegrees / 1000
            if sensor.is_cpu:
                hottest = celsius if hottest is None else max(hottest, celsius)
        if hottest is not None:
            values["cpu_temperature_celsius"] = hottest
        counts = [read_integer(file) for file in self._counters]
        if counts and None not in counts:  # a sum without some of them would look as if it had fallen
            values["throttle_events_total"] = sum(count for count in counts if count is not None)
        return values

    def facts(self) -> Mapping[str, Primitive]:
        """Which sensors there are."""
        names = ", ".join(sensor.name for sensor in self._sensors)
        return {"temperature_sensors": names} if names else {}


def _sensors(classes: Path) -> list[_Sensor]:
    """Those of hwmon, then thermal zones that are none of them under another name."""
    found: dict[str, _Sensor] = {}
    for chip, label, file in _inputs(classes / "hwmon"):
        _add(found, f"{chip}_{label}" if label else chip, file, is_cpu=bool(_CPU.search(chip)))
    has_package = any(name.startswith("coretemp") for name in found)
    for zone in names_in(classes / "thermal"):
        kind = (read_word(classes / "thermal" / zone / "type") or "").lower()
        is_known_already = _plain(kind) in found or (kind == "x86_pkg_temp" and has_package)
        if zone.startswith("thermal_zone") and _READ.search(kind) and not is_known_already:
            _add(found, kind, classes / "thermal" / zone / "temp", is_cpu=bool(_CPU.search(kind)))
    return list(found.values())


def _inputs(folder: Path) -> Iterator[tuple[str, str | None, Path]]:
    """Chip, label and file of each input of hwmon's chips that is worth its cost."""
    for name in names_in(folder):
        chip = (read_word(folder / name / "name") or "").lower()
        if not _READ.search(chip):
            continue
        inputs = [entry for entry in names_in(folder / name) if re.fullmatch(r"temp\d+_input", entry)]
        labels = {entry: read_word(folder / name / entry.replace("_input", "_label")) for entry in inputs}
        told = {label.lower() for label in labels.values() if label}
        for entry, label in labels.items():
            if not _is_repeated(label, told):
                yield chip, label, folder / name / entry


def _is_repeated(label: str | None, told: set[str]) -> bool:
    """Whether another input of the chip says it too: Intel's package is as hot as the hottest of its cores, and AMD's
    Tctl is Tdie, on some processors with an offset for the fans."""
    label = (label or "").lower()
    if label.startswith("core ") and any(other.startswith("package") for other in told):
        return True
    return label == "tctl" and "tdie" in told


def _add(found: dict[str, _Sensor], name: str, file: Path, *, is_cpu: bool) -> None:
    """Under a name of its own: two processors have the same labels."""
    plain = unique = _plain(name)
    number = 1
    while unique in found:
        number += 1
        unique = f"{plain}_{number}"
    found[unique] = _Sensor(unique, file, is_cpu)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _counters(cpus: Path) -> list[Path]:
    """One file per core and per package: threads of a core show the same count, as do all CPUs of a package."""
    found: dict[tuple[str, ...], Path] = {}
    for cpu in names_in(cpus):
        folder, topology = cpus / cpu / "thermal_throttle", cpus / cpu / "topology"
        package = read_word(topology / "physical_package_id") or ""
        core = read_word(topology / "core_id") or cpu
        for key, name in (((package, core), "core_throttle_count"), ((package,), "package_throttle_count")):
            if key not in found and (folder / name).exists():
                found[key] = folder / name
    return list(found.values())
