"""What a system tells about processes, one by one and as a tree: start times, children, memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

_KIB = 1024
_READ_BYTES = 65536


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


class ProcessTree:
    """A process and all that descend from it, also those whose parent has ended since.

    Args:
        pid: its root. One that does not exist is no error: there is nothing to be seen then.
        reader: how processes are read; by default as this system does.
    """

    def __init__(self, pid: int, reader: Reader | None = None) -> None:
        self._reader = reader or (ProcfsReader() if sys.platform.startswith("linux") else PsutilReader())
        began = self._reader.began(pid)
        self._known: dict[int, float] = {} if began is None else {pid: began}  # and when each was started

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes known now, which are those of the latest search that still run."""
        return tuple(self._known)

    def search(self) -> None:
        """Look for new members, which costs more than a sample of those known."""
        for pid in self._reader.descendants(self._known):
            began = self._reader.began(pid)
            if began is not None:
                self._known[pid] = began

    def samples(self) -> list[Usage]:
        """RSS of each process that still runs; those that do not are forgotten."""
        return self._ask(self._reader.sample)

    def sample(self) -> Usage | None:
        """The sum of them; None when all have ended."""
        return _total(self.samples())

    def reading(self) -> Usage | None:
        """The sum of PSS, or of RSS where one process does not tell its PSS; None when all have ended."""
        return _total(self._ask(self._reader.reading))

    def _ask(self, question: Callable[[int], Usage | None]) -> list[Usage]:
        usages = []
        for pid, began in list(self._known.items()):
            usage = question(pid)
            if usage is None or self._reader.began(pid) != began:  # asked afterwards: then it was ours before
                del self._known[pid]
            else:
                usages.append(usage)
        return usages


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


def _total(usages: list[Usage]) -> Usage | None:
    if not usages:
        return None

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


def bytes_read_by(pid: int) -> int | None:
    """What a process has read from disks since it began, not counting what was in the page cache; None: not told."""
    with suppress(psutil.Error, AttributeError, OSError):  # AttributeError: a system that counts no such thing
        return int(psutil.Process(pid).io_counters().read_bytes)
    return None
