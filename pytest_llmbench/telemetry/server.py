"""The server's processes: the process that was started, and all that descend from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.files import read_text
from pytest_llmbench.telemetry.process_tree import ProcessTree, ProcfsReader, Reader
from pytest_llmbench.telemetry.ration import Ration

_KIB = 1024
_SEARCH_SHARE, _SEARCH_SECONDS = 0.0005, 2.0
_NO_PSS = "only Linux tells PSS and USS; there is the RSS, which counts in full what is shared"


class ServerProcesses:
    """What is cheap to read, tens of microseconds per process: RSS, swap, CPU time, input and output.

    What a process has used still counts after its end. None of it is there while no server is followed.

    Args:
        proc: where procfs is mounted.
        reader: how memory is read; by default as this system does.
    """

    name = "server"

    def __init__(self, *, proc: Path = Path("/proc"), reader: Reader | None = None) -> None:
        self._proc = proc
        self._reader = reader or (ProcfsReader(proc) if sys.platform.startswith("linux") else None)
        self._searching = Ration(_SEARCH_SHARE, _SEARCH_SECONDS)
        self._tree: ProcessTree | None = None
        self._used: dict[str, dict[tuple[int, str], float]] = {}
        self.why_not: dict[str, str] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes known now."""
        return self._tree.pids if self._tree is not None else ()

    def follow(self, server_pid: int | None) -> None:
        """See :class:`~pytest_llmbench.telemetry.base.FollowsServer`."""
        self._tree = ProcessTree(server_pid, self._reader) if server_pid is not None else None
        self._used = {}
        self._searching = Ration(_SEARCH_SHARE, _SEARCH_SECONDS)

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`."""
        tree = self._tree
        if tree is None:
            return {}
        if self._searching.due():
            with self._searching.spent():
                tree.search()
        memory = tree.sample()
        if memory is None:
            return {}
        values: dict[str, float] = {"server_rss_bytes": memory.total_bytes}
        if memory.swap_bytes is not None:
            values["server_swap_bytes"] = memory.swap_bytes
        for pid in tree.pids:
            self._note_use(pid)
        return {**values, **{name: sum(used.values()) for name, used in self._used.items()}}

    def facts(self) -> Mapping[str, Primitive]:
        """None: what runs is told by the server's record."""
        return {}

    def _note_use(self, pid: int) -> None:
        """What a process has used so far; what can not be read of it is left at what it was."""
        if not sys.platform.startswith("linux"):
            with suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                self._used.setdefault("server_cpu_seconds_total", {})[pid, ""] = times.user + times.system
            return
        fields = read_text(f"{self._proc}/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 20:
            return
        key = pid, fields[19]  # its start: numbers are used again
        ticks = int(fields[11]) + int(fields[12])
        self._used.setdefault("server_cpu_seconds_total", {})[key] = ticks / os.sysconf("SC_CLK_TCK")
        for line in read_text(f"{self._proc}/{pid}/io").splitlines():  # of our own user's processes only
            name, _, size = line.partition(": ")
            if name in {"read_bytes", "write_bytes"}:
                total = "server_read_bytes_total" if name == "read_bytes" else "server_written_bytes_total"
                self._used.setdefault(total, {})[key] = int(size)


class ServerMemory:
    """PSS and USS, for which the kernel walks every page, some 10 ms per GiB, while the server can map no others.

    Args:
        processes: whose.
        proc: where procfs is mounted.
    """

    name = "server memory"
    least_seconds = 2.0

    def __init__(self, processes: ServerProcesses, *, proc: Path = Path("/proc")) -> None:
        self._processes = processes
        self._proc = proc
        is_linux = sys.platform.startswith("linux")
        self.why_not: dict[str, str] = {} if is_linux else {"server_pss_bytes": _NO_PSS, "server_uss_bytes": _NO_PSS}

    def read(self) -> Mapping[str, float]:
        """See :class:`~pytest_llmbench.telemetry.base.Source`; nothing where one of the processes does not tell."""
        if self.why_not:
            return {}
        pss = uss = 0
        for pid in self._processes.pids:
            sizes = _rollup(read_text(f"{self._proc}/{pid}/smaps_rollup"))
            if "Pss" not in sizes:
                return {}
            pss += sizes["Pss"]
            uss += sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
        return {"server_pss_bytes": pss, "server_uss_bytes": uss} if pss else {}

    def facts(self) -> Mapping[str, Primitive]:
        """None."""
        return {}


def _rollup(text: str) -> dict[str, int]:
    """The lines ``Pss:    10 kB`` of ``smaps_rollup``, in bytes; its first line is of another form."""
    sizes = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) == 2 and fields[1] == "kB" and fields[0].isdecimal():
            sizes[name] = int(fields[0]) * _KIB
    return sizes
