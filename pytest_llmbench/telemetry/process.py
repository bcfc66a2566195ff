"""Memory of a server: of its process and of all that descend from it, while it is used.

What a process tree occupies is its PSS, the proportional set size: a page counts once, divided by the number of
processes that map it, while RSS counts a model twice that two processes map. To tell PSS the kernel walks every page
(some 10 ms per GiB), and RSS it has at hand. So RSS is sampled, and PSS is read when a sample says that it may have
risen, no more often than the share of a core allows that is set below.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pytest_llmbench.telemetry.process_tree import ProcessTree, Reader, Usage
from pytest_llmbench.telemetry.ration import Ration

logger = logging.getLogger(__name__)
# Shares of one core that each kind of work may take: together 0.5 %.
_SAMPLE_SHARE, _TREE_SHARE, _READING_SHARE, _DEVICE_SHARE = 0.001, 0.001, 0.002, 0.001
_TREE_SECONDS = 2.0
_DEVICE_SECONDS = 2.0
_CHANGE = 0.01  # of the RSS: what makes another reading of PSS worth its cost
_JOIN_SECONDS = 10.0


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
        self._reader = reader
        self._sampling = Ration(_SAMPLE_SHARE, interval_seconds)
        self._searching = Ration(_TREE_SHARE, _TREE_SECONDS)
        self._reading = Ration(_READING_SHARE)
        self._asking_devices = Ration(_DEVICE_SHARE, _DEVICE_SECONDS)
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
        if self._thread is not None:
            return
        tree = ProcessTree(self._pid, self._reader)
        if not tree.pids:
            return
        self._thread = threading.Thread(target=self._run, args=(tree,), name=f"memory of {self._pid}", daemon=True)
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

    def _run(self, tree: ProcessTree) -> None:
        try:
            with _nvidia_driver() as nvml:
                final = False
                while self._look(tree, nvml, final=final) and not final:
                    final = self._stopping.wait(self._sampling.seconds_left())
        except Exception:  # whatever it is: a benchmark does not end because its memory can not be told
            logger.warning("the memory of process %d is no longer watched", self._pid, exc_info=True)
        finally:
            self._current = None
            self._cpu_seconds = time.thread_time()

    def _look(self, tree: ProcessTree, nvml: Any, *, final: bool) -> bool:
        """One turn: a sample, and what else is due. Whether any of the processes still runs."""
        if final or self._searching.due():
            with self._searching.spent():
                tree.search()
        with self._sampling.spent():
            sample = tree.sample()
        self._current = sample
        if sample is None:
            return False
        self._samples += 1
        self._peak_rss_bytes = max(self._peak_rss_bytes, sample.peak_rss_bytes)
        if final or (self._reading.due() and self._is_worth_reading(sample)):
            with self._reading.spent():
                self._note(tree.reading())
            self._at_last_reading = sample
            self._readings += 1
        elif self._peak is not None and not self._peak.is_pss:
            self._note(sample)  # nothing better is to be had
        if nvml is not None and (final or self._asking_devices.due()):
            with self._asking_devices.spent():
                self._device_bytes = _greater(self._device_bytes, _device_bytes(nvml, tree.pids))
        return True

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


def _greater(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
