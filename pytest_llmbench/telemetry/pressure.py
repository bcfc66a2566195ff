"""How much this machine stalls for want of memory, and how much it swaps out: two small files of the kernel."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of the last ten seconds in which nobody could go on, because all waited for memory ("full" of PSI)."""

    full_percent: float
    source: Literal["cgroup", "machine"]


class MemoryPressure:
    """Reads it of our own control group, where its version 2 tells, else of the whole machine.

    The control group's comes first because it is about ourselves: it counts our waiting whoever has set the limit
    behind it, and nobody else's. That is also how a group's ``memory.high`` is noticed, which throttles.

    Args:
        proc: where procfs is mounted.
        cgroups: where the cgroup hierarchies are mounted.
    """

    def __init__(self, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._file: tuple[Path, Literal["cgroup", "machine"]] = (proc / "pressure" / "memory", "machine")
        own = _own_path(proc)
        if own is not None:
            for mount in (cgroups, cgroups / "unified"):
                file = mount.joinpath(*own, "memory.pressure")
                if _full_avg10(file) is not None:
                    self._file = (file, "cgroup")
                    break

    def __call__(self) -> Pressure | None:
        """Now; None on a system that does not tell."""
        percent = _full_avg10(self._file[0])
        return Pressure(percent, self._file[1]) if percent is not None else None


class SwappedOut:
    """Reads how many bytes this machine has swapped out since it was started, of whatever process.

    Args:
        proc: where procfs is mounted.
    """

    def __init__(self, *, proc: Path = _PROC) -> None:
        self._file = proc / "vmstat"
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def __call__(self) -> int | None:
        """Now; None on a system that does not tell."""
        with suppress(OSError, ValueError):
            for line in self._file.read_text(encoding="ascii").splitlines():
                if line.startswith("pswpout "):
                    return int(line.split()[1]) * self._page_bytes
        return None


def _own_path(proc: Path) -> list[str] | None:
    """The parts of our path in version 2; None where there is none, or it lies outside of what we can see."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("0::"):
                parts = [part for part in line[3:].split("/") if part]
                return None if ".." in parts else parts
    return None


def _full_avg10(file: Path) -> float | None:
    """Of the line ``full avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    with suppress(OSError, ValueError, IndexError):
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith("full avg10="):
                return float(line.split()[1].partition("=")[2])
    return None
