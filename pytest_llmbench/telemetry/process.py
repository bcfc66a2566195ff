"""Memory of a server: of its process and of all that descend from it, while it is used.

What a process tree occupies is its PSS, the proportional set size: a page counts once, divided by the number of
processes that map it, while RSS counts a model twice that two processes map. To tell PSS the kernel walks every page
(some 10 ms per GiB), and RSS it has at hand. So RSS is sampled, and PSS is read when a sample says that it may have
risen, no more often than the share of a core allows that is set below.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

logger = logging.getLogger(__name__)
_KIB = 1024
_READ_BYTES = 65536
# Shares of one core that each kind of work may take: together 0.5 %.
_SAMPLE_SHARE, _TREE_SHARE, _READING_SHARE, _DEVICE_SHARE = 0.001, 0.001, 0.002, 0.001
_TREE_SECONDS = 2.0
_DEVICE_SECONDS = 2.0
_CHANGE = 0.01  # of the RSS: what makes another reading of PSS worth its cost
_JOIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory of a process, or of several together, at one moment. None: this system does not tell."""

    total_bytes: int  # PSS or, where not ``is_pss``, RSS; without what is swapped out
    anonymous_bytes: int | None
    file_bytes: int | None
    shmem_bytes: int | None
    swap_bytes: int | None
    peak_rss_bytes: int  # since each process began; of several the sum, though their peaks need not coincide
    is_pss: bool


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most that was seen of a process tree.

    ``anonymous_bytes`` (KV cache, compute buffers, repacked weights), ``file_bytes`` (mapped weights, which the kernel
    can drop and read again) and ``shmem_bytes`` make up ``peak_pss_bytes`` at the moment of that peak. ``source`` is
    ``rss`` where PSS could not be read of every process: then the peak is one of RSS.
    """

    peak_pss_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    shmem_bytes: int | None
    swap_bytes: int | None  # the most that was swapped out, whenever that was
    peak_rss_bytes: int  # an upper bound told by the kernel: since the processes began, and also between two samples
    device_bytes: int | None  # the most on all NVIDIA GPUs; None where the driver names none of these processes
    samples: int
    readings: int  # of PSS
    source: Literal["pss", "rss"]
    cpu_seconds: float  # what watching cost


class Reader(Protocol):
    """What a system tells about its processes. One that has ended is nothing to raise about."""

    def began(self, pid: int) -> float | None:
        """When it was started, in any unit: a process number that is used again comes with another time."""

    def descendants(self, pids: Collection[int]) -> set[int]:
        """The children of these, and theirs, and so on."""

    def sample(self, pid: int) -> Usage | None:
        """RSS, cheaply."""

    def reading(self, pid: int) -> Usage | None:
        """PSS, or RSS where that can not be read."""


class ProcfsReader:
    """Linux, by plain system calls: a sample takes tens of microseconds.

    Args:
        root: where procfs is mounted.
    """

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def began(self, pid: int) -> float | None:
        """Clock ticks since boot: field 22 of ``stat``."""
        fields = self._stat(pid)
        return float(fields[19]) if len(fields) > 19 else None

    def descendants(self, pids: Collection[int]) -> set[int]:
        """From the lists of children of every thread or, where the kernel was built without these, from all parents."""
        if any((self._root / f"{pid}/task/{pid}/children").exists() for pid in pids):
            return _reachable(pids, self._children)
        children: dict[int, list[int]] = {}
        for pid in (int(name) for name in self._names("") if name.isdecimal()):
            fields = self._stat(pid)
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(pid)
        return _reachable(pids, lambda pid: children.get(pid, []))

    def sample(self, pid: int) -> Usage | None:
        """From ``status``, where a zombie has no memory."""
        sizes = _sizes(self._text(f"{pid}/status"))
        if "VmRSS" not in sizes:
            return None
        rss = sizes["VmRSS"]
        anonymous, file, shmem = (sizes.get(name) for name in ("RssAnon", "RssFile", "RssShmem"))
        return Usage(rss, anonymous, file, shmem, sizes.get("VmSwap"), max(rss, sizes.get("VmHWM", 0)), is_pss=False)

    def reading(self, pid: int) -> Usage | None:
        """From ``smaps_rollup``, which only the process's own user may read."""
        sizes = _sizes(self._text(f"{pid}/smaps_rollup"))
        sample = self.sample(pid)
        if sample is None or "Pss" not in sizes:
            return sample
        anonymous, file, shmem = (sizes.get(name) for name in ("Pss_Anon", "Pss_File", "Pss_Shmem"))
        swap = sizes.get("SwapPss", sample.swap_bytes)
        return Usage(sizes["Pss"], anonymous, file, shmem, swap, sample.peak_rss_bytes, is_pss=True)

    def _children(self, pid: int) -> list[int]:
        threads = self._names(f"{pid}/task")
        return [int(child) for tid in threads for child in self._text(f"{pid}/task/{tid}/children").split()]

    def _stat(self, pid: int) -> list[str]:
        """The fields from the third on: the second, a name in parentheses, may hold anything."""
        _, parenthesis, rest = self._text(f"{pid}/stat").rpartition(")")
        return rest.split() if parenthesis else []

    def _names(self, folder: str) -> list[str]:
        try:
            return os.listdir(f"{self._root}/{folder}")  # noqa: PTH208 -- several times as fast as paths
        except OSError:
            return []

    def _text(self, name: str) -> str:
        try:
            fd = os.open(f"{self._root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has ended, or is not ours to look at
            return ""
        try:
            return os.read(fd, _READ_BYTES).decode("utf-8", "replace")
        except OSError:  # it has ended since
            return ""
        finally:
            os.close(fd)


class PsutilReader:
    """macOS, where only RSS is to be had."""

    def began(self, pid: int) -> float | None:
        """Seconds since the epoch."""
        with suppress(psutil.Error):
            return psutil.Process(pid).create_time()
        return None

    def descendants(self, pids: Collection[int]) -> set[int]:
        """See :class:`Reader`."""
        found: set[int] = set()
        for pid in pids:
            with suppress(psutil.Error):
                found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
        return found

    def sample(self, pid: int) -> Usage | None:
        """See :class:`Reader`."""
        with suppress(psutil.Error):
            rss = psutil.Process(pid).memory_info().rss
            return Usage(rss, None, None, None, None, rss, is_pss=False)
        return None

    reading = sample


class MemoryWatch:
    """Watches a process tree from a thread of its own, from :meth:`start` to :meth:`stop`; never raises.

    Both ends read PSS whatever it costs, so neither belongs into a stretch of time that is measured. In between the
    thread sleeps, and takes no more than 0.5 % of a core: what turns out costly is done less often.

    Args:
        pid: the server's own process.
        interval_seconds: between two samples, at least.
        reader: how processes are read; by default as this system does.
    """

    def __init__(self, pid: int, *, interval_seconds: float = 0.25, reader: Reader | None = None) -> None:
        self._pid = pid
        self._reader = reader or (ProcfsReader() if sys.platform.startswith("linux") else PsutilReader())
        self._known: dict[int, float] = {}  # processes of the tree, also orphaned ones, and when each began
        self._sampling = _Ration(_SAMPLE_SHARE, interval_seconds)
        self._searching = _Ration(_TREE_SHARE, _TREE_SECONDS)
        self._reading = _Ration(_READING_SHARE)
        self._asking_devices = _Ration(_DEVICE_SHARE, _DEVICE_SECONDS)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._current: Usage | None = None
        self._at_last_reading: Usage | None = None  # the sample beside it
        self._peak: Usage | None = None
        self._peak_rss_bytes = 0
        self._swap_bytes: int | None = None
        self._device_bytes: int | None = None
        self._samples = self._readings = 0
        self._cpu_seconds = 0.0

    def start(self) -> None:
        """Begin. A process that does not exist is no error: nothing will have been seen."""
        began = self._reader.began(self._pid)
        if self._thread is not None or began is None:
            return
        self._known[self._pid] = began
        self._thread = threading.Thread(target=self._run, name=f"memory of {self._pid}", daemon=True)
        self._thread.start()

    def current(self) -> Usage | None:
        """The latest sample (RSS); None before the first, and when the processes have ended. Reads nothing."""
        return self._current

    def stop(self) -> PeakMemory | None:
        """Read once more and end. What was seen, also of a server that has died; None if that is nothing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                logger.warning("the memory of process %d takes over %g s to read", self._pid, _JOIN_SECONDS)
        peak = self._peak
        if peak is None:
            return None
        return PeakMemory(
            peak_pss_bytes=peak.total_bytes,
            anonymous_bytes=peak.anonymous_bytes,
            file_bytes=peak.file_bytes,
            shmem_bytes=peak.shmem_bytes,
            swap_bytes=self._swap_bytes,
            peak_rss_bytes=max(self._peak_rss_bytes, peak.total_bytes),  # the kernel's RSS counters are not exact
            device_bytes=self._device_bytes,
            samples=self._samples,
            readings=self._readings,
            source="pss" if peak.is_pss else "rss",
            cpu_seconds=self._cpu_seconds,
        )

    def _run(self) -> None:
        try:
            with _nvidia_driver() as nvml:
                final = False
                while self._look(nvml, final=final) and not final:
                    final = self._stopping.wait(self._sampling.seconds_left())
        except Exception:  # whatever it is: a benchmark does not end because its memory can not be told
            logger.warning("the memory of process %d is no longer watched", self._pid, exc_info=True)
        finally:
            self._current = None
            self._cpu_seconds = time.thread_time()

    def _look(self, nvml: Any, *, final: bool) -> bool:
        """One turn: a sample, and what else is due. Whether any of the processes still runs."""
        if final or self._searching.due():
            with self._searching.spent():
                self._search()
        with self._sampling.spent():
            sample = self._added_up(self._reader.sample)
        self._current = sample
        if sample is None:
            return False
        self._samples += 1
        self._peak_rss_bytes = max(self._peak_rss_bytes, sample.peak_rss_bytes)
        if final or (self._reading.due() and self._is_worth_reading(sample)):
            with self._reading.spent():
                self._note(self._added_up(self._reader.reading))
            self._at_last_reading = sample
            self._readings += 1
        elif self._peak is not None and not self._peak.is_pss:
            self._note(sample)  # nothing better is to be had
        if nvml is not None and (final or self._asking_devices.due()):
            with self._asking_devices.spent():
                self._device_bytes = _greater(self._device_bytes, _device_bytes(nvml, self._known))
        return True

    def _search(self) -> None:
        for pid in self._reader.descendants(self._known):
            began = self._reader.began(pid)
            if began is not None:
                self._known[pid] = began

    def _added_up(self, ask: Callable[[int], Usage | None]) -> Usage | None:
        """The sum over all processes that still run; those that do not are forgotten."""
        usages = []
        for pid, began in list(self._known.items()):
            usage = ask(pid)
            if usage is None or self._reader.began(pid) != began:  # asked afterwards: then it was ours before
                del self._known[pid]
            else:
                usages.append(usage)
        return _total(usages) if usages else None

    def _is_worth_reading(self, sample: Usage) -> bool:
        """PSS is never above RSS, so it can have reached a new peak only where RSS is above the old one."""
        last = self._at_last_reading
        if last is None or self._peak is None:
            return True
        change = _CHANGE * last.total_bytes
        has_moved = abs(sample.total_bytes - last.total_bytes) > change
        return (has_moved and sample.total_bytes > self._peak.total_bytes) or (
            (sample.swap_bytes or 0) - (last.swap_bytes or 0) > change
        )

    def _note(self, usage: Usage | None) -> None:
        if usage is None:
            return
        self._swap_bytes = _greater(self._swap_bytes, usage.swap_bytes)
        if self._peak is None or usage.total_bytes > self._peak.total_bytes:
            self._peak = usage


class _Ration:
    """Keeps repeated work below a share of one core: after costly work the next is due later."""

    def __init__(self, share: float, at_least_seconds: float = 0.0) -> None:
        self._share = share
        self._at_least_seconds = at_least_seconds
        self._next = 0.0

    def due(self) -> bool:
        return self.seconds_left() <= 0

    def seconds_left(self) -> float:
        return max(0.0, self._next - time.monotonic())

    @contextmanager
    def spent(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        cost = time.thread_time() - began
        self._next = time.monotonic() + max(self._at_least_seconds, cost / self._share)


@contextmanager
def _nvidia_driver() -> Iterator[Any]:
    """NVML, initialised; None without a driver or without the ``nvidia-ml-py`` package."""
    try:
        nvml = import_module("pynvml")
    except (ImportError, Warning):  # a deprecated namesake warns when imported, which may have been made an error
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _device_bytes(nvml: Any, pids: Collection[int]) -> int | None:
    """What these processes hold on all GPUs; None where none is named, as in a container with numbers of its own."""
    used: int | None = None
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):  # this one does not tell
                processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
                for process in processes:
                    if process.pid in pids and process.usedGpuMemory is not None:
                        used = (used or 0) + int(process.usedGpuMemory)
    return used


def _reachable(roots: Collection[int], children: Callable[[int], list[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        new = set(children(waiting.pop())) - found
        found |= new
        waiting += new
    return found - set(roots)


def _sizes(text: str) -> dict[str, int]:
    """The lines ``name: number kB``, in bytes."""
    sizes = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == "kB" and fields[1].isdecimal():
            sizes[fields[0].rstrip(":")] = int(fields[1]) * _KIB
    return sizes


def _total(usages: list[Usage]) -> Usage:
    def added(values: list[int | None]) -> int | None:
        told = [value for value in values if value is not None]
        return sum(told) if len(told) == len(values) else None

    return Usage(
        total_bytes=sum(usage.total_bytes for usage in usages),
        anonymous_bytes=added([usage.anonymous_bytes for usage in usages]),
        file_bytes=added([usage.file_bytes for usage in usages]),
        shmem_bytes=added([usage.shmem_bytes for usage in usages]),
        swap_bytes=added([usage.swap_bytes for usage in usages]),
        peak_rss_bytes=sum(usage.peak_rss_bytes for usage in usages),
        is_pss=all(usage.is_pss for usage in usages),
    )


def _greater(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
