"""NVIDIA GPUs, on a fake of the driver's library."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmbench.telemetry import nvml as nvml_module
from pytest_llmbench.telemetry.nvml import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, POWER_CAP, SW_THERMAL, NvidiaGpus

GIB = 2**30
Gpu = dict[str, Any]


class NVMLError(Exception):
    """As the library's; its message is the driver's."""


class Nvml:
    """As much of the module ``pynvml`` as is used; a GPU is a dictionary, a key that is missing is not supported."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1

    def __init__(self, *gpus: Gpu, parts: dict[str, tuple[int, Gpu]] | None = None, fails: str = "") -> None:
        self.gpus = gpus
        self.parts = parts or {}
        self.fails = fails
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802 -- the library's name, as below
        self.started += 1
        if self.fails:
            raise NVMLError(self.fails)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        if "lost" in self.gpus[index]:
            raise NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:  # noqa: N802
        if uuid not in self.parts:
            raise NVMLError("Not Found")
        return self.parts[uuid][1]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: Gpu) -> Gpu:  # noqa: N802
        return next(self.gpus[index] for index, one in self.parts.values() if one is part)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def __getattr__(self, name: str) -> Any:
        keys = {
            "nvmlDeviceGetName": "name",
            "nvmlDeviceGetUUID": "uuid",
            "nvmlDeviceGetMemoryInfo": "memory",
            "nvmlDeviceGetUtilizationRates": "utilization",
            "nvmlDeviceGetClockInfo": "clock",
            "nvmlDeviceGetPowerUsage": "milliwatts",
            "nvmlDeviceGetTotalEnergyConsumption": "millijoules",
            "nvmlDeviceGetEnforcedPowerLimit": "limit_milliwatts",
            "nvmlDeviceGetTemperature": "celsius",
            "nvmlDeviceGetTemperatureV": "celsius_newer",
            "nvmlDeviceGetCurrentClocksThrottleReasons": "reasons",
            "nvmlDeviceGetCurrentClocksEventReasons": "reasons_newer",
        }
        if name not in keys:
            raise AttributeError(name)

        def ask(gpu: Gpu, *_: object) -> Any:
            if keys[name] not in gpu:
                raise NVMLError("Not Supported")
            return gpu[keys[name]]

        return ask


def gpu(number: int = 0, **changes: Any) -> Gpu:
    whole: Gpu = {
        "name": "H200",
        "uuid": f"GPU-{number}{number}-abc",
        "memory": SimpleNamespace(used=GIB),
        "utilization": SimpleNamespace(gpu=70),
        "clock": 1500,
        "milliwatts": 300_000,
        "millijoules": 5_000_000,
        "limit_milliwatts": 700_000,
        "celsius": 60,
        "reasons": 0,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The file that is there while a driver is loaded."""
    (tmp_path / "version").touch()
    return tmp_path / "version"


def source_of(
    monkeypatch: pytest.MonkeyPatch, driver: Path, library: Nvml | None, visible: str | None = None
) -> NvidiaGpus:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return NvidiaGpus(visible=lambda: visible, driver=driver)


def test_one(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    library = Nvml(gpu(reasons=POWER_CAP | HW_THERMAL))
    source = source_of(monkeypatch, driver, library)
    assert source.read() == {
        "gpu_temperature_celsius": 60,
        "gpu_memory_used_bytes": GIB,
        "gpu_busy_percent": 70,
        "gpu_clock_mhz": 1500,
        "gpu_throttle_reasons": POWER_CAP | HW_THERMAL,
        "gpu_power_watts": 300,
        "gpu_energy_joules_total": 5000,
    }
    assert source.why_not == {}
    assert source.facts() == {"gpu_names": "H200", "gpu_driver_version": "580.1", "gpu_power_limit_watts": 700}
    assert library.started == 1


def test_several_together(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    second = gpu(1, celsius=80, clock=900, reasons=SW_THERMAL, utilization=SimpleNamespace(gpu=10), milliwatts=50_000)
    source = source_of(monkeypatch, driver, Nvml(gpu(reasons=POWER_CAP), second))
    assert source.read() == {
        "gpu_temperature_celsius": 80,
        "gpu_memory_used_bytes": 2 * GIB,
        "gpu_busy_percent": 70,
        "gpu_clock_mhz": 900,
        "gpu_throttle_reasons": POWER_CAP | SW_THERMAL,
        "gpu_power_watts": 350,
        "gpu_energy_joules_total": 10_000,
    }


@pytest.mark.parametrize(
    ("visible", "celsius"),
    [
        (None, 63),
        ("0", 60),
        ("1, 2", 62),
        ("GPU-11", 61),
        ("GPU-22-abc,GPU-00", 62),
        ("0,7,2", 60),  # those until the first that does not exist
        ("1,GPU-", 61),  # which does not name one
    ],
)
def test_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, driver: Path, visible: str | None, celsius: float
) -> None:
    library = Nvml(*(gpu(number, celsius=60 + number) for number in range(4)))
    assert source_of(monkeypatch, driver, library, visible).read()["gpu_temperature_celsius"] == celsius


@pytest.mark.parametrize("visible", ["-1", "", "9", "NoDevFiles", "MIG-unknown"])
def test_none_is_visible(monkeypatch: pytest.MonkeyPatch, driver: Path, visible: str) -> None:
    source = source_of(monkeypatch, driver, Nvml(gpu()), visible)
    assert (source.read(), source.facts()) == ({}, {})
    assert "CUDA_VISIBLE_DEVICES" in source.why_not["gpu_temperature_celsius"]


def test_what_is_visible_changes(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(gpu(0, celsius=50), gpu(1, celsius=70)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    source = NvidiaGpus(driver=driver)
    assert source.read()["gpu_temperature_celsius"] == 50
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert source.read()["gpu_temperature_celsius"] == 70
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert source.read() == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert source.why_not == {}


def test_a_part_of_one(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    part = {"name": "H200 MIG 1g", "memory": SimpleNamespace(used=5)}
    library = Nvml(gpu(utilization=None), parts={"MIG-7": (0, part)})
    source = source_of(monkeypatch, driver, library, "MIG-7")
    assert source.read() == {
        "gpu_temperature_celsius": 60,
        "gpu_memory_used_bytes": 5,
        "gpu_clock_mhz": 1500,
        "gpu_throttle_reasons": 0,
    }
    assert "MIG" in source.why_not["gpu_energy_joules_total"]
    assert source.facts()["gpu_names"] == "H200 MIG 1g"


def test_newer_functions_come_first(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    library = Nvml(gpu(celsius_newer=65, reasons_newer=HW_SLOWDOWN))
    values = source_of(monkeypatch, driver, library).read()
    assert (values["gpu_temperature_celsius"], values["gpu_throttle_reasons"]) == (65, HW_SLOWDOWN)


def test_a_library_without_the_newer_functions(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    class Older(Nvml):
        def __getattr__(self, name: str) -> Any:
            if name in {"nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"}:
                raise AttributeError(name)
            return super().__getattr__(name)

    values = source_of(monkeypatch, driver, Older(gpu(reasons=POWER_BRAKE))).read()
    assert (values["gpu_temperature_celsius"], values["gpu_throttle_reasons"]) == (60, POWER_BRAKE)


def test_what_one_does_not_tell(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    source = source_of(monkeypatch, driver, Nvml(gpu(), gpu(1, millijoules=None, celsius=None, limit_milliwatts=None)))
    assert source.read().keys() & {"gpu_energy_joules_total", "gpu_temperature_celsius"} == set()
    assert source.read()["gpu_power_watts"] == 600
    assert source.why_not.keys() == {"gpu_energy_joules_total", "gpu_temperature_celsius"}
    assert "gpu_power_limit_watts" not in source.facts()


def test_one_that_is_lost(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    source = source_of(monkeypatch, driver, Nvml({"lost": True}, gpu(1, celsius=44)))
    assert source.read()["gpu_temperature_celsius"] == 44


@pytest.mark.parametrize(
    ("has_driver", "library", "word"),
    [
        (False, None, "no NVIDIA driver"),
        (True, None, "pytest-llmbench[nvidia]"),
        (False, Nvml(fails="Driver Not Loaded"), "no NVIDIA driver"),
        (True, Nvml(fails="Driver/library version mismatch"), "version mismatch"),
    ],
)
def test_none_at_all(
    monkeypatch: pytest.MonkeyPatch, driver: Path, has_driver: bool, library: Nvml | None, word: str
) -> None:
    if not has_driver:
        driver.unlink()
    source = source_of(monkeypatch, driver, library)
    assert (source.read(), source.facts()) == ({}, {})
    assert source.why_not.keys() == {"gpu_temperature_celsius", "gpu_energy_joules_total"}
    assert all(word in reason for reason in source.why_not.values())


def test_the_library_is_loaded_when_first_asked(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    library = Nvml(gpu())
    source = source_of(monkeypatch, driver, library)
    assert library.started == 0
    source.read()
    assert library.started == 1


def test_bits_are_those_of_the_library() -> None:
    pynvml = pytest.importorskip("pynvml", reason="the extra nvidia is not installed")
    for name, bit in {
        "SwPowerCap": nvml_module.POWER_CAP,
        "HwSlowdown": nvml_module.HW_SLOWDOWN,
        "SwThermalSlowdown": nvml_module.SW_THERMAL,
        "HwThermalSlowdown": nvml_module.HW_THERMAL,
        "HwPowerBrakeSlowdown": nvml_module.POWER_BRAKE,
    }.items():
        assert getattr(pynvml, f"nvmlClocksThrottleReason{name}") == bit
