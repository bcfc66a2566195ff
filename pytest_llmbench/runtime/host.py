"""What machine this is: hardware, software, clock, and the exclusive right to measure on it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import mmap
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from pytest_llmbench.errors import CellError


def runtime_dir() -> Path:
    """Where locks shared by all runs of this user live; ``LLMBENCH_RUNTIME_DIR`` overrides it.

    ``/tmp``, whatever ``TMPDIR`` says, because all processes of one user on one machine have to agree on it.
    """
    configured = os.environ.get("LLMBENCH_RUNTIME_DIR")
    path = Path(configured or f"/tmp/pytest-llmbench-{os.getuid()}")  # noqa: S108 -- its owner is checked below
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK) and (configured is not None or path.stat().st_uid == os.getuid())
    except OSError:
        usable = False
    if not usable:
        raise CellError(
            "runtime_dir_unusable",
            f"locks can not be kept in {path}: it is not ours or can not be written; set LLMBENCH_RUNTIME_DIR",
        )
    return path


def device_lock() -> FileLock:
    """The right to be alone on this host's CPUs, as :mod:`~pytest_llmbench.runtime.devices` leases it; ends with us."""
    return FileLock(runtime_dir() / "device-cpu.lock")


def usable_cores() -> int:
    """Physical cores this process may really use: what its CPU affinity and its cgroup's quota leave of them."""
    limits = [psutil.cpu_count(logical=False) or psutil.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limits.append(math.ceil(int(quota) / int(period)))  # "max" is no number: no quota
    return max(1, min(limits))


def describe_hardware() -> dict[str, Any]:
    """CPU, cores, memory, operating system: primitives only; and ``LLMBENCH_HOST_LABEL``, where machines are alike."""
    label = os.environ.get("LLMBENCH_HOST_LABEL")
    return {
        **({"label": label} if label else {}),
        "cpu": _cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "machine": platform.machine(),
        "os": platform.platform(),
    }


def fingerprint(hardware: dict[str, Any]) -> str:
    """A stable, anonymous name for this hardware: the same after a reboot and an update, no serial number in it."""
    memory_gib = round(hardware["memory_bytes"] / 2**30)
    parts = [hardware["cpu"], hardware["physical_cores"], hardware["logical_cores"], memory_gib, hardware["machine"]]
    if "label" in hardware:
        parts.append(hardware["label"])
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def describe_software() -> dict[str, str]:
    """Versions that can change a number."""
    versions = {"python": platform.python_version()}
    for name in ("pytest-llmbench", "pytest", "pytest-xdist", "xllamacpp", "numpy", "scipy", "httptools"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def describe_clock() -> dict[str, Any]:
    """The clock that timestamps tokens, and a wall time that only labels."""
    info = time.get_clock_info("perf_counter")
    return {
        "name": "time.perf_counter_ns",
        "implementation": info.implementation,
        "resolution_seconds": info.resolution,
        "monotonic": info.monotonic,
    }


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, None outside a repository or without git."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 -- git is looked up on PATH as every tool does
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def page_cache_percent(path: Path) -> float | None:
    """Share of a file that is in the page cache (``mincore(2)``), None where that can not be known."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            pages = (len(mapped) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
            resident = (ctypes.c_ubyte * pages)()
            anchor = ctypes.c_char.from_buffer(mapped)
            try:
                failed = ctypes.CDLL(None, use_errno=True).mincore(
                    ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped)), resident
                )
            finally:
                del anchor  # the map can not be closed while something points into it
    except (OSError, ValueError):
        return None
    return None if failed else 100 * sum(flag & 1 for flag in bytes(resident)) / pages


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@functools.cache
def repacked_types() -> tuple[tuple[str, int], ...]:
    """Tensor types that llama.cpp keeps a rearranged copy of on this CPU, with the rows its kernels need them in.

    From ``ggml_repack_get_optimal_repack_type`` in llama.cpp's ggml/src/ggml-cpu/repack.cpp, release b11434.
    """
    return repacked_types_of(platform.machine(), _cpu_flags())


def repacked_types_of(machine: str, flags: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """The same for any CPU, by ``platform.machine()`` and the flags of ``/proc/cpuinfo``."""
    if machine in {"aarch64", "arm64"} and (flags & {"asimddp", "i8mm"} or sys.platform == "darwin"):
        k_quants = [(name, 8) for name in ("Q4_K", "Q5_K", "Q6_K")]
        return (*k_quants, *((name, 4) for name in ("Q4_0", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0")))
    if machine in {"x86_64", "AMD64"} and "avx2" in flags:
        names = ["Q4_0", "Q4_K", "IQ4_NL", "MXFP4", *(["Q2_K"] if "avx512f" in flags else [])]
        return tuple((name, 8) for name in names)
    return ()


def _cpu_flags() -> frozenset[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
