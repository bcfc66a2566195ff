"""How processes end: what killed one, what its log says of it, and that nothing of its session is left."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil


def oom_kills() -> int | None:
    """How often the kernel's out-of-memory killer struck in this process's cgroup, None where that is not told.

    Version 2 counts in ``memory.events``, version 1 in ``memory.oom_control``; the whole machine in ``/proc/vmstat``.
    """
    candidates = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                candidates.append(Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events"))
            elif controllers == "memory":
                base = Path("/sys/fs/cgroup/memory")
                candidates += [base / path.lstrip("/") / "memory.oom_control", base / "memory.oom_control"]
    for file in [*candidates, Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")]:
        with suppress(OSError, ValueError):
            for line in file.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def kill_session(session: int) -> None:
    """Kill what has left the server's process group, but is in its session; and what that starts meanwhile."""
    killed: set[int] = set()
    while True:
        found = {pid for pid in psutil.pids() if pid not in killed and _session_of(pid) == session}
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:  # it has ended, or is not ours to ask about
        return None


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended: a zombie has, and psutil knows by the start time when its number is another process's."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def telling_line(tail: str) -> str:
    """The first line of a log that speaks of an error, from where it does."""
    for line in tail.splitlines():
        if found := re.search(r"\b(?:error|failed|unable|couldn't)\b.*", line, re.IGNORECASE):
            return f": {found[0]}"
    return ""


def describe_exit(status: int | None, out_of_memory: bool | None) -> str:
    """An exit status in words; ``out_of_memory``: whether the kernel killed for want of memory, None if unknown."""
    if status is None:
        return "still ending"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    if name != "SIGKILL":
        return f"killed by {name}"
    if out_of_memory is None:
        return "killed by SIGKILL; perhaps the kernel ran out of memory"
    if out_of_memory:
        return (
            "killed by SIGKILL, by the kernel's out-of-memory killer; choose a smaller context, quantization or model"
        )
    return "killed by SIGKILL; the kernel's out-of-memory killer counts no kill, so somebody else did it"
