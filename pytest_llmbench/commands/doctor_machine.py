"""Whether this machine is fit to measure on, and what can be seen of it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pytest_llmbench.commands.check import Check, absent, ok, problem
from pytest_llmbench.runtime import host

_ASK_SECONDS = 15.0
_IDLE_LOAD_PER_CORE = 0.25
_CPUS = Path("/sys/devices/system/cpu")
_DRI = Path("/dev/dri")


def check_software() -> Iterator[Check]:
    """Versions that can change a number."""
    versions = host.describe_software()
    python = versions.pop("python")
    yield ok("python", f"{platform.python_implementation()} {python}, {sys.executable}")
    if "pytest-llmbench" not in versions:
        yield problem("packages", "pytest-llmbench is not installed, only importable", "pip install pytest-llmbench")
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if importlib.util.find_spec("uvloop") is None:
        advice = "pip install uvloop where there is a wheel for it; times are stamped earlier then"
        yield absent("event loop", "the standard library's", advice)
    else:
        yield ok("event loop", "uvloop")


def check_machine() -> Iterator[Check]:
    """What speaks against measuring here, and what can be observed."""
    yield _gpu()
    yield _temperature()
    yield _load()
    yield _swap()
    yield _governor()


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return absent("GPU", "nvidia-smi does not answer", "check the driver")
        lines = result.stdout.strip().splitlines()
        if result.returncode == 0 and lines:
            return ok("GPU", "; ".join(lines))
        said = (result.stdout + result.stderr).strip().splitlines()[-1:] or [f"status {result.returncode}"]
        return absent("GPU", f"nvidia-smi finds none: {said[0][:200]}")
    devices = sorted(path.name for path in _DRI.glob("renderD*"))
    if devices:
        return ok("GPU", f"/dev/dri/{', '.join(devices)}; used only by an engine that is built for it")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ok("GPU", "the one of this Apple processor")
    return absent("GPU", "none found; models run on the CPU")


def _temperature() -> Check:
    name = "temperature"
    read = getattr(psutil, "sensors_temperatures", None)
    sensors: Mapping[str, Sequence[Any]] = {}
    with suppress(OSError):
        sensors = read() if read is not None else {}
    shown = [f"{chip} {max(entry.current for entry in entries):.0f} °C" for chip, entries in sensors.items() if entries]
    if shown:
        return ok(name, ", ".join(shown))
    return absent(name, "no sensor can be read; throttling by heat would not be seen")


def _load() -> Check:
    load, cores = os.getloadavg()[0], host.usable_cores()
    found = f"{load:.1f} on {cores} cores in the last minute"
    if load < _IDLE_LOAD_PER_CORE * cores:
        return ok("load", found)
    return absent("load", found, "close other programs; their work is in every number, also in those below")


def _swap() -> Check:
    used = psutil.swap_memory().used
    if not used:
        return ok("swap", "none in use")
    return absent("swap", f"{used / 1e6:.0f} MB in use", "close what uses much memory; a swapped model is slow")


def _governor() -> Check:
    name, governors = "CPU governor", set()
    for file in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            governors.add(file.read_text(encoding="ascii").strip())
        except OSError:
            continue
    if not governors:
        return absent(name, "can not be read here; frequencies may change unseen")
    if governors == {"performance"}:
        return ok(name, "performance")
    advice = "for steadier numbers: sudo cpupower frequency-set -g performance"
    return absent(name, ", ".join(sorted(governors)), advice)
