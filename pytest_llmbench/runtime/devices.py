"""The devices of this host, leased one cell at a time: one pool for all runs and all their workers.

A device is what a cell is measured on: the CPUs, which are one device, or one GPU, or several GPUs used together. Who
leases the CPUs is alone on the host. Who leases a GPU shares the CPUs with those who lease other GPUs.

The leases are ``flock(2)`` locks, so the kernel ends them with the process that holds them, however it ends:

==========================  ============================================================================
``device-queue.lock``       somebody waits for the CPUs, or for who has them alone; no lease begins before theirs
``device-cpu.lock``         exclusive: the CPUs are leased; shared: a GPU is
``gpu-<GPU>.lock``          this GPU is leased
==========================  ============================================================================

They are taken in this order. The queue's is given back when the CPUs are had, and nobody waits for a GPU's while
holding any other, so there is no deadlock. Without the queue, GPU cells that follow each other closely would keep a CPU
cell waiting for ever, and a worker could lease again before one that waits has noticed.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

import psutil

from pytest_llmbench.errors import CellError
from pytest_llmbench.runtime import available, host

CPUS = "cpu"
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 2.0
_START_TOLERANCE_SECONDS = 2.0  # psutil derives the start from the time of day, which may be set meanwhile
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, as it says itself."""

    pid: int
    started: float  # seconds since the epoch
    run_id: str
    since: float  # seconds since the epoch

    @property
    def lives(self) -> bool:
        """Whether that process still runs; another one that got its number is not it."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < _START_TOLERANCE_SECONDS
        except psutil.Error:
            return False

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, tz=timezone.utc).astimezone()
        return f"run {self.run_id}, process {self.pid}, since {since:%H:%M:%S}"


class Lease:
    """The right to measure on a device, until it is released or this process ends.

    Attributes:
        name: ``cpu``, or the GPU or GPUs as CUDA_VISIBLE_DEVICES names them.
        environment: variables that show a server this device and no other.
    """

    def __init__(self, name: str, locks: ExitStack) -> None:
        self.name = name
        self.environment: Mapping[str, str] = MappingProxyType(_environment(name))
        self._locks = locks

    def release(self) -> None:
        """Give the device back; a second time does nothing."""
        self._locks.close()


class DevicePool:
    """Leases of the devices that a run may use on this host.

    Args:
        configured: ``cpu``; ``auto``, the GPUs that a server started by us would see; or GPUs by name, each entry one
            device. GPUs that are listed need not be known here.
        one_each: with ``auto``, whether each GPU is a device by itself, as workers side by side need it, or all of
            them together are one.
        run_id: tells other workers of this run from other runs.
        when_busy: what to do about another run's lease.
    """

    def __init__(
        self, configured: str | Sequence[str], *, one_each: bool, run_id: str, when_busy: Literal["wait", "fail"]
    ) -> None:
        self._configured = configured
        self._one_each = one_each
        self._run_id = run_id
        self._when_busy = when_busy

    @functools.cached_property
    def gpus(self) -> tuple[str, ...]:
        """Names of the pool's GPU devices; none where cells run on the CPUs."""
        found = _configured_gpus(self._configured)
        together = self._configured == "auto" and not self._one_each
        return (",".join(found),) if found and together else found

    def lease(self, uses_gpu: bool, told: Callable[[str], None]) -> Lease:
        """A device for one cell: any free GPU of the pool, or the CPUs where there is none or none is used.

        Waits as long as the device is another's.

        Args:
            told: gets a sentence when another run has been waited for, once.

        Raises:
            CellError: ``device_busy``, another run measures and ``when_busy`` is ``fail``; ``runtime_dir_unusable``.
        """
        waiting = _Waiting(self._run_id, self._when_busy, told)
        known = self.gpus  # asked for before a lease of the CPUs hides them from this process
        gpus = known if uses_gpu else ()
        while True:
            with ExitStack() as locks:
                self._lock_cpus(locks, waiting, shared=bool(gpus))
                if not gpus:
                    return self._begun(CPUS, locks)
                obstacles = []
                for name in gpus:
                    obstacle = self._lock_gpu(name, locks)
                    if obstacle is None:
                        return self._begun(name, locks)
                    obstacles.append([obstacle])
            waiting.pause(obstacles)

    def _begun(self, name: str, locks: ExitStack) -> Lease:
        self._when_busy = "wait"  # from now on it is the others who came too late
        return Lease(name, locks.pop_all())

    def _lock_cpus(self, locks: ExitStack, waiting: _Waiting, *, shared: bool) -> None:
        queue, cpus = _folder() / "device-queue.lock", _folder() / "device-cpu.lock"
        if shared:
            with ExitStack() as turn:  # where nobody waits there is no queue to stand in
                if _take(queue, turn, shared=True) and _take(cpus, locks, shared=True):
                    return
        with ExitStack() as turn:
            while not _take(queue, turn):
                waiting.pause([[queue, cpus]])
            _sign(queue, self._run_id, turn, alone=True)
            while not _take(cpus, locks, shared=shared):
                waiting.pause([[cpus]])
        if not shared:
            _sign(cpus, self._run_id, locks, alone=True)

    def _lock_gpu(self, name: str, locks: ExitStack) -> Path | None:
        """Lock the GPUs of a device, beside the CPUs; where that is not possible, return what is in the way."""
        with ExitStack() as parts:
            paths = _gpu_locks(name)
            for path in paths:
                if not _take(path, parts):
                    return path
            for path in paths:
                _sign(path, self._run_id, parts, alone=True)
            _sign(_folder() / "device-cpu.lock", self._run_id, parts, alone=False)
            locks.push(parts.pop_all())
        return None


def device_count(configured: str | Sequence[str]) -> int:
    """How many cells can be measured side by side here: the GPUs, each by itself, or 1 for the CPUs."""
    return max(1, len(_configured_gpus(configured)))


class _Waiting:
    """One wait for a device: says so once, or gives up."""

    def __init__(self, run_id: str, when_busy: str, told: Callable[[str], None]) -> None:
        self._run_id = run_id
        self._when_busy = when_busy
        self._tell: Callable[[str], None] | None = told
        self._began = self._unexplained = time.monotonic()

    def pause(self, obstacles: Sequence[Sequence[Path]]) -> None:
        """Wait a moment, because each of these devices has locks in its way.

        A lock without a living holder's note is being passed on, or is held by something that leaves no notes, such
        as a process in another container: that only counts when it lasts.
        """
        now = time.monotonic()
        found = [[holder for path in paths for holder in _holders(path)] for paths in obstacles]
        others = [[holder for holder in holders if holder.run_id != self._run_id] for holders in found]
        if any(found):
            self._unexplained = now
        other = next((holder for holders in others for holder in holders), None)
        nobody_known = now - self._unexplained >= _PATIENCE_SECONDS
        if self._when_busy == "fail" and (all(others) or nobody_known):
            raise _busy(other)
        if self._tell and (nobody_known or (other and now - self._began >= _PATIENCE_SECONDS)):
            self._tell(f"{_who(other)} measures on this machine; waiting for it")
            self._tell = None
        time.sleep(_POLL_SECONDS)


def _who(holder: Holder | None) -> str:
    return f"another benchmark ({holder})" if holder else "another benchmark, which left no note of itself,"


def _busy(holder: Holder | None) -> CellError:
    return CellError(
        "device_busy",
        f"{_who(holder)} measures on this machine; run again when it is done, or with --llmbench-when-busy=wait",
        {"holder_pid": holder.pid, "holder_run": holder.run_id} if holder else {},
    )


def _folder() -> Path:
    return host.runtime_dir()


def _gpu_locks(name: str) -> list[Path]:
    """Of each GPU, by the identity the driver knows: one run may name it by its number, another by its UUID."""
    parts = {_identity(part) for part in name.split(",")}
    return [_folder() / f"gpu-{quote(part, safe='')}.lock" for part in sorted(parts)]


def _take(path: Path, locks: ExitStack, *, shared: bool = False) -> bool:
    """Lock a file if that is possible at once; the stack unlocks it.

    The file is closed in programs we start. A copy of this process would share the lock, so it is unlocked, not only
    closed. It is never deleted: somebody may wait for it.

    Raises:
        CellError: ``runtime_dir_unusable``.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        text = f"{path} can not be opened ({exc.strerror}); free space, or set LLMBENCH_RUNTIME_DIR to another folder"
        raise CellError("runtime_dir_unusable", text) from exc
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    except OSError as exc:
        os.close(file)
        text = f"{path} can not be locked ({exc.strerror}); set LLMBENCH_RUNTIME_DIR to a folder on a local disk"
        raise CellError("runtime_dir_unusable", text) from exc
    locks.callback(os.close, file)
    locks.callback(fcntl.flock, file, fcntl.LOCK_UN)
    return True


def _sign(lock: Path, run_id: str, locks: ExitStack, *, alone: bool) -> None:
    """Leave a note of who holds a lock; the stack removes it.

    Who holds it alone knows that all other notes are of processes that were killed.
    """
    if alone:
        for other in _notes(lock):
            other.unlink(missing_ok=True)
    note = lock.with_name(f"{lock.stem}@{os.getpid()}-{next(_numbers)}.json")
    locks.callback(note.unlink, missing_ok=True)
    text = {"pid": os.getpid(), "started": psutil.Process().create_time(), "run_id": run_id, "since": time.time()}
    with suppress(OSError):  # a full disk: others learn less
        note.write_text(json.dumps(text), encoding="utf-8")


def _notes(lock: Path) -> Iterator[Path]:
    return lock.parent.glob(f"{lock.stem}@*.json")


def _holders(lock: Path) -> list[Holder]:
    """Living processes that say they hold a lock."""
    found = []
    for note in _notes(lock):
        with suppress(OSError, ValueError, TypeError, KeyError):  # gone, or not written yet
            text = json.loads(note.read_bytes())
            found.append(Holder(int(text["pid"]), float(text["started"]), str(text["run_id"]), float(text["since"])))
    return [holder for holder in found if holder.lives]


def _configured_gpus(configured: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the GPU devices, each for CUDA_VISIBLE_DEVICES."""
    if configured == CPUS:
        return ()
    return _visible_gpus() if configured == "auto" else tuple(configured)


def _visible_gpus() -> tuple[str, ...]:
    """By UUID where there is one: numbers change with what is visible. Parts of a GPU (MIG) are named by us already."""
    found = available.devices()
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if any(entry.startswith("MIG-") for entry in visible):
        return tuple(visible[: len(found)])
    uuids = _uuids() if found else {}
    return tuple(uuids.get(gpu.index, str(gpu.index)) for gpu in found)


def _identity(part: str) -> str:
    """The UUID of the GPU that a number or the begin of a UUID means; the name itself where the driver knows none."""
    uuids = _uuids()
    if part.isdecimal():
        return uuids.get(int(part), part)
    meant = [uuid for uuid in uuids.values() if uuid.startswith(part)]
    return meant[0] if len(meant) == 1 else part


@functools.cache
def _uuids() -> dict[int, str]:
    """UUID of each NVIDIA GPU by its number in the driver; empty without a driver. It stays so while we run."""
    try:
        nvml: Any = import_module("pynvml")
    except (ImportError, Warning):  # a deprecated namesake warns when imported, which may have been made an error
        return {}
    found = {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):  # fell off the bus, or is of a kind that has none
                uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))
                found[index] = uuid.decode("ascii", "replace") if isinstance(uuid, bytes) else str(uuid)
    except nvml.NVMLError:
        return found
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return found


def _environment(name: str) -> dict[str, str]:
    """What shows a server this device only.

    ``CUDA_VISIBLE_DEVICES`` takes numbers and UUIDs, and AMD's HIP reads it too. The others take numbers, each in its
    own driver's order, so they are set for numbers only: ``HIP_VISIBLE_DEVICES``, which some programs ask instead
    (not ``ROCR_VISIBLE_DEVICES``: it filters first, and both together would count within what it leaves);
    ``GGML_VK_VISIBLE_DEVICES``, by which llama.cpp chooses among Vulkan's devices; ``ZE_AFFINITY_MASK`` of Intel's
    Level Zero. A program reads that of its own driver, so all can be set. CUDA counts the fastest GPU first unless
    told to count as nvidia-smi and we do.

    The CPUs: no GPU is shown, because llama.cpp lets one compute long prompts even when it holds no layer. −1 is no
    GPU's number; llama.cpp refuses it for Vulkan, where an empty list shows none. Level Zero documents no such value.
    """
    if name == CPUS:
        return {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": ""}
    if not all(part.isdecimal() for part in name.split(",")):
        return {"CUDA_VISIBLE_DEVICES": name}
    others = ("HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    return {"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **dict.fromkeys(others, name)}
