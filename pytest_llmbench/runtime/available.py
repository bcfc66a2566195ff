"""How much memory a server may still take: of the machine, of the cgroups around us, of each GPU."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import psutil

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# cgroup v1 writes "no limit" as the largest count of pages in bytes, a little below 2**63 whatever the page size.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """What can be allocated now without swapping, being throttled or being killed.

    ``details`` holds what was found, all in bytes: ``machine_available`` and ``machine_total``; of the tightest cgroup
    level ``cgroup_available``, ``cgroup_limit``, ``cgroup_used`` and ``cgroup_reclaimable``; and ``max_memory``.
    """

    bytes: int
    bound_by: Literal["machine", "cgroup", "max_memory_gb"]
    details: dict[str, int]
    cgroup: str | None = None  # the folder of the tightest level, where any level has a limit


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one GPU. Where it is ``unified``, it is the machine's: the two must not be added up."""

    index: int  # as the driver and nvidia-smi count, which need not be the order in which CUDA does
    name: str
    total_bytes: int
    free_bytes: int
    unified: bool


@dataclass(frozen=True, slots=True)
class _Level:
    folder: Path
    limit_bytes: int
    used_bytes: int
    reclaimable_bytes: int

    @property
    def available_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes + self.reclaimable_bytes)


def available_memory(
    limit_bytes: int | None = None, *, proc: Path = _PROC, cgroups: Path = _CGROUPS
) -> AvailableMemory:
    """The smallest of what the machine, every cgroup around us and the configuration leave.

    Args:
        limit_bytes: ``limits.max_memory_gb`` in bytes. It limits what one cell may need, so what others use already is
            not taken off it.
        proc: where procfs is mounted.
        cgroups: where the cgroup hierarchies are mounted.
    """
    machine = psutil.virtual_memory()
    details = {"machine_available": machine.available, "machine_total": machine.total}
    bounds: list[tuple[int, Literal["machine", "cgroup", "max_memory_gb"]]] = [(machine.available, "machine")]
    tightest = min(_levels(proc, cgroups), key=lambda level: level.available_bytes, default=None)
    if tightest is not None:
        details["cgroup_available"] = tightest.available_bytes
        details["cgroup_limit"] = tightest.limit_bytes
        details["cgroup_used"] = tightest.used_bytes
        details["cgroup_reclaimable"] = tightest.reclaimable_bytes
        bounds.append((tightest.available_bytes, "cgroup"))
    if limit_bytes is not None:
        details["max_memory"] = limit_bytes
        bounds.append((limit_bytes, "max_memory_gb"))
    smallest, bound_by = min(bounds, key=lambda bound: bound[0])
    return AvailableMemory(smallest, bound_by, details, str(tightest.folder) if tightest else None)


def devices() -> list[DeviceMemory]:
    """The GPUs a server started by us would see, in the order of ``CUDA_VISIBLE_DEVICES`` where it is set.

    None without a driver or without the ``nvidia-ml-py`` package. A GPU that does not tell its memory shares the
    machine's (Jetson, GB10). One that is cut up (MIG) counts only by the parts that ``CUDA_VISIBLE_DEVICES`` names.
    Apple silicon is one device with the machine's memory; that Metal lets a GPU have only a part of it is not counted.
    """
    if sys.platform == "darwin":
        return [_unified(0, "Apple GPU")] if platform.machine() == "arm64" else []
    try:
        nvml = import_module("pynvml")
    except (ImportError, Warning):  # a deprecated namesake warns when imported, which may have been made an error
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or no right to ask it
        return []
    try:
        chosen = _chosen(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        found = [_device(nvml, index, handle) for index, handle in chosen]
        return [device for device in found if device is not None]
    except nvml.NVMLError:
        return []
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _levels(proc: Path, cgroups: Path) -> Iterator[_Level]:
    """Every cgroup level with a limit, from our own up, in both versions (a hybrid system has memory in one of them).

    ``/proc/self/cgroup`` names our path as the host or as our namespace sees it, and a container may have mounted only
    its own part of the tree. Levels of the path that do not exist below the mount are therefore passed over; the mount
    itself is always the last level.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts, read = [cgroups, cgroups / "unified"], _level_v2
        elif "memory" in controllers.split(","):
            mounts, read = [cgroups / "memory", cgroups / controllers], _level_v1
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # we are outside of our namespace's own part: only the mount is known to be ours
            parts = []
        for mount in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                level = read(mount.joinpath(*parts[:depth]))
                if level is not None:
                    yield level


def _level_v2(folder: Path) -> _Level | None:
    """``memory.max`` kills; ``memory.high`` throttles, so that a server beyond it would not be worth timing."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    return _level(folder, limits, "memory.current", "inactive_file")


def _level_v1(folder: Path) -> _Level | None:
    """The limit of the levels above, which a container may not see, is told in the level's own statistics."""
    limits = [_number(folder / "memory.limit_in_bytes"), _statistic(folder, "hierarchical_memory_limit")]
    return _level(folder, limits, "memory.usage_in_bytes", "total_inactive_file")


def _level(folder: Path, limits: list[int | None], usage: str, inactive: str) -> _Level | None:
    """A level, None without a limit.

    The usage counts file pages that nobody has touched for a while, such as a model that was copied or checked. The
    kernel drops them before it refuses an allocation, so they count as free, as container tools show it too. Active
    file pages do not: they may be the mapped weights of a server that works.
    """
    real = [limit for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES]
    if not real:
        return None
    used = _number(folder / usage) or 0  # a limit whose usage can not be read still is a limit
    return _Level(folder, min(real), used, min(used, _statistic(folder, inactive) or 0))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max" is none


def _statistic(folder: Path, name: str) -> int | None:
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # a null character in a path
        return ""


def _chosen(nvml: Any, visible: str | None) -> list[tuple[int, Any]]:
    """Index and handle of each GPU that CUDA would show: all, or those named until the first that does not exist."""
    present = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # fell off the bus
            present[index] = nvml.nvmlDeviceGetHandleByIndex(index)
    named = list(present.items())
    if visible is not None:
        uuids = {index: _string(_ask(nvml.NVMLError, nvml.nvmlDeviceGetUUID, handle, "")) for index, handle in named}
        named = []
        for entry in (entry.strip() for entry in visible.split(",")):
            one = _named(nvml, entry, present, uuids)
            if one is None:
                break
            named.append(one)
    whole = present.get  # a part is not asked whether it is cut up
    return [(index, gpu) for index, gpu in named if gpu is not whole(index) or not _is_cut_up(nvml, gpu)]


def _named(nvml: Any, entry: str, present: dict[int, Any], uuids: dict[int, str]) -> tuple[int, Any] | None:
    """The GPU, or part of one, that an entry of ``CUDA_VISIBLE_DEVICES`` means: an index, or the begin of a UUID."""
    if entry.startswith("MIG-"):
        try:
            part = nvml.nvmlDeviceGetHandleByUUID(entry)
            return nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)), part
        except nvml.NVMLError:
            return None
    if entry.startswith("GPU-"):
        meant = [index for index, uuid in uuids.items() if uuid.startswith(entry)]
    else:
        meant = [index for index in present if entry == str(index)]
    return (meant[0], present[meant[0]]) if len(meant) == 1 else None


def _device(nvml: Any, index: int, handle: Any) -> DeviceMemory | None:
    name = _string(_ask(nvml.NVMLError, nvml.nvmlDeviceGetName, handle, "GPU"))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return _unified(index, name)
    except nvml.NVMLError:  # lost, or no right to ask
        return None
    return DeviceMemory(index, name, int(memory.total), int(memory.free), unified=False)


def _is_cut_up(nvml: Any, handle: Any) -> bool:
    """Whether the GPU is in MIG mode: no server can use it as a whole."""
    current, _ = _ask(nvml.NVMLError, nvml.nvmlDeviceGetMigMode, handle, (0, 0))  # most GPUs know no such mode
    return bool(current)


def _ask(error: type[Exception], question: Callable[[Any], Any], handle: Any, otherwise: Any) -> Any:
    """The driver's answer about a device, ``otherwise`` where it has none."""
    try:
        return question(handle)
    except error:
        return otherwise


def _unified(index: int, name: str) -> DeviceMemory:
    machine = psutil.virtual_memory()
    return DeviceMemory(index, name, machine.total, machine.available, unified=True)


def _string(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text  # older bindings return bytes
