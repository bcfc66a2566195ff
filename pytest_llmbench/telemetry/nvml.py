"""NVIDIA GPUs, as their driver's library (NVML) tells. Needs ``nvidia-ml-py``: the extra ``nvidia``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_llmbench.errors import Primitive

# Bits of gpu_throttle_reasons, from nvml.h: what has lowered the clocks.
POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
_ENERGY = "gpu_energy_joules_total"
_NO_DRIVER = "no NVIDIA driver is loaded, so there is no GPU that it could tell of"
_NO_PACKAGE = "there is an NVIDIA driver, but not the package that asks it: pip install 'pytest-llmbench[nvidia]'"
_NO_GPU = "CUDA_VISIBLE_DEVICES shows no GPU, so this cell has none"
_NOT_TOLD = "this GPU's driver does not tell it"
_ONLY_A_PART = "this cell has a part (MIG) of a GPU, and the driver tells energy and power only of the whole"


@dataclass(frozen=True, slots=True)
class _Gpu:
    """``memory`` is the part's own handle where only a part of the GPU is used."""

    whole: Any
    memory: Any

    @property
    def is_part(self) -> bool:
        return self.whole is not self.memory


class NvidiaGpus:
    """The GPUs that a server started by us would see.

    The driver's library is loaded when something is first asked, and stays so: that takes a moment, and to end it too.

    Args:
        visible: what ``CUDA_VISIBLE_DEVICES`` says now, None where it is not set; it changes as devices are leased.
        driver: what exists where a driver is loaded (but on Windows' Linux); only to say what is missing.
    """

    name = "NVIDIA"

    def __init__(
        self,
        *,
        visible: Callable[[], str | None] = lambda: os.environ.get("CUDA_VISIBLE_DEVICES"),
        driver: Path = Path("/proc/driver/nvidia/version"),
    ) -> None:
        self._visible = visible
        self._driver = driver
        self._nvml: Any = None
        self._gpus: Sequence[_Gpu] = ()
        self._chosen_for: tuple[str | None] | None = None
        self._why_not: dict[str, str] = {}

    @property
    def why_not(self) -> Mapping[str, str]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`."""
        self._choose()
        return dict(self._why_not)

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`.

        Of several GPUs the hottest and the busiest, the slowest clock, all reasons, and sums of power, energy and
        memory. A value that one of them does not tell is left out: a sum without it would be another.
        """
        self._choose()
        gpus, nvml = self._gpus, self._nvml
        if not gpus:
            return {}
        questions: dict[str, tuple[Callable[[_Gpu], float], Callable[[list[float]], float]]] = {
            "gpu_temperature_celsius": (self._temperature, max),
            "gpu_memory_used_bytes": (lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu.memory).used, sum),
            "gpu_busy_percent": (lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu.whole).gpu, max),
            "gpu_clock_mhz": (lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu.whole, nvml.NVML_CLOCK_SM), min),
            "gpu_throttle_reasons": (self._throttle_reasons, _union),
        }
        if not any(gpu.is_part for gpu in gpus):
            questions["gpu_power_watts"] = (lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu.whole) / 1e3, sum)
            questions[_ENERGY] = (lambda gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.whole) / 1e3, sum)
        values = {}
        for name, (question, together) in questions.items():
            with suppress(nvml.NVMLError):
                values[name] = float(together([question(gpu) for gpu in gpus]))
        return values

    def facts(self) -> Mapping[str, Primitive]:
        """``gpu_names``, ``gpu_driver_version``, and ``gpu_power_limit_watts`` of all together."""
        self._choose()
        if not self._gpus:
            return {}
        nvml, gpus, facts = self._nvml, self._gpus, dict[str, Primitive]()
        with suppress(nvml.NVMLError):
            facts["gpu_names"] = ", ".join(_string(nvml.nvmlDeviceGetName(gpu.memory)) for gpu in gpus)
        with suppress(nvml.NVMLError):
            facts["gpu_driver_version"] = _string(nvml.nvmlSystemGetDriverVersion())
        with suppress(nvml.NVMLError):
            facts["gpu_power_limit_watts"] = sum(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu.whole) for gpu in gpus) / 1e3
        return facts

    def _open(self) -> str | None:
        """Load the library, unless it is loaded; why that can not be done."""
        if self._nvml is not None:
            return None
        has_driver = self._driver.exists()
        try:
            nvml = import_module("pynvml")
        except (ImportError, Warning):  # a deprecated namesake warns when imported, which may be an error
            return _NO_PACKAGE if has_driver else _NO_DRIVER
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            return f"the NVIDIA driver does not answer ({exc}); does nvidia-smi work?" if has_driver else _NO_DRIVER
        self._nvml = nvml
        return None

    def _choose(self) -> None:
        """Find the GPUs anew where others are to be seen now."""
        visible = self._visible()
        if self._chosen_for == (visible,):
            return
        self._chosen_for, self._gpus, self._why_not = (visible,), (), {}
        reason = self._open()
        if reason is None:
            with suppress(self._nvml.NVMLError):
                self._gpus = _visible_gpus(self._nvml, visible)
            reason = None if self._gpus else _NO_GPU
        if reason is not None:
            self._why_not = {"gpu_temperature_celsius": reason, _ENERGY: reason}
        elif any(gpu.is_part for gpu in self._gpus):
            self._why_not = {_ENERGY: _ONLY_A_PART}
        if self._gpus:
            told = self.read()
            for name in ("gpu_temperature_celsius", _ENERGY):
                if name not in told:
                    self._why_not.setdefault(name, _NOT_TOLD)

    def _temperature(self, gpu: _Gpu) -> float:
        """By the newer of two functions, where library and driver have it; the other one is to be removed."""
        nvml = self._nvml
        newer = getattr(nvml, "nvmlDeviceGetTemperatureV", None)
        if newer is not None:
            with suppress(nvml.NVMLError):
                return float(newer(gpu.whole, nvml.NVML_TEMPERATURE_GPU))
        return float(nvml.nvmlDeviceGetTemperature(gpu.whole, nvml.NVML_TEMPERATURE_GPU))

    def _throttle_reasons(self, gpu: _Gpu) -> float:
        """Likewise."""
        nvml = self._nvml
        newer = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        if newer is not None:
            with suppress(nvml.NVMLError):
                return float(newer(gpu.whole))
        return float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu.whole))


def _visible_gpus(nvml: Any, visible: str | None) -> list[_Gpu]:
    """All, or those named until the first that does not exist, which is how CUDA reads ``CUDA_VISIBLE_DEVICES``.

    Numbers are taken in the driver's order, in which CUDA counts where we start the server.

    Raises:
        NVMLError: not even their number is told.
    """
    present = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # fell off the bus
            present[str(index)] = nvml.nvmlDeviceGetHandleByIndex(index)
    if visible is None:
        return [_Gpu(handle, handle) for handle in present.values()]
    found = []
    for entry in (entry.strip() for entry in visible.split(",")):
        gpu = _named(nvml, entry, present)
        if gpu is None:
            break
        found.append(gpu)
    return found


def _named(nvml: Any, entry: str, present: Mapping[str, Any]) -> _Gpu | None:
    """The GPU, or part of one, that is meant by a number, by the begin of a UUID, or by a part's UUID."""
    if entry.startswith("MIG-"):
        try:
            part = nvml.nvmlDeviceGetHandleByUUID(entry)
            return _Gpu(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), part)
        except nvml.NVMLError:
            return None
    meant = [present[entry]] if entry in present else []
    if entry.startswith("GPU-"):
        for handle in present.values():
            with suppress(nvml.NVMLError):
                if _string(nvml.nvmlDeviceGetUUID(handle)).startswith(entry):
                    meant.append(handle)
    return _Gpu(meant[0], meant[0]) if len(meant) == 1 else None


def _union(reasons: list[float]) -> float:
    bits = 0
    for reason in reasons:
        bits |= int(reason)
    return bits


def _string(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text  # older bindings return bytes
