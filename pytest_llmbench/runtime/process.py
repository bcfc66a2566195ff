"""A server process of ours: started in a session of its own, output to files, ended for certain."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pytest_llmbench.errors import Primitive, ServerError

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_TAIL_BYTES = 4096
_SEARCHED_BYTES = 1024 * 1024


class ServerProcess:
    """Any program that serves. It dies with us (on Linux), and :meth:`wait_until` tells when it serves.

    Args:
        command: the program and its arguments. Everybody on the machine can read them: no key belongs there.
        environment: variables to set or, where None, to remove.
        cwd: the folder it runs in.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_stem: Path,
        *,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        launch = python_module("pytest_llmbench.runtime.launch")
        fd = self._start(
            command[0],
            lambda pipe: [*launch, str(pipe), str(os.getpid()), *command],
            log_stem,
            stdin=subprocess.DEVNULL,
            environment=environment,
            cwd=cwd,
        )
        problem = _read_to_the_end(fd)  # of the launcher, until the program takes over: milliseconds
        self.started_monotonic = time.monotonic()
        if problem:
            self.stop()
            reason = problem.decode("utf-8", "replace")
            raise ServerError("server_start_failed", f"{command[0]} can not be started: {reason}")

    def _start(
        self,
        name: str,
        command: Callable[[int], list[str]],
        log_stem: Path,
        *,
        stdin: int,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Start the command that is made for the writing end of a pipe; returns the reading end."""
        self.stdout_log = log_stem.with_name(log_stem.name + "_stdout.log")
        self.stderr_log = log_stem.with_name(log_stem.name + "_stderr.log")
        log_stem.parent.mkdir(parents=True, exist_ok=True)
        self._stopped = False
        self._oom_kills = _oom_kills()
        self.started_monotonic = time.monotonic()
        ours, theirs = os.pipe()
        try:
            with self.stdout_log.open("ab") as out, self.stderr_log.open("ab") as err:
                self._log_starts = {self.stdout_log: out.tell(), self.stderr_log: err.tell()}
                self._process = subprocess.Popen(
                    command(theirs),
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    pass_fds=(theirs,),
                    start_new_session=True,
                    env=_environment(environment or {}),
                    cwd=cwd,
                )
        except (OSError, ValueError) as exc:  # a null character in an argument
            os.close(ours)
            reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
            raise ServerError("server_start_failed", f"{name} can not be started: {reason}") from exc
        finally:
            os.close(theirs)
        self.pid = self._process.pid
        self._handle = psutil.Process(self.pid)
        return ours

    @property
    def alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        """Whether the process has ended, or does so now: a lost connection is noticed before the death behind it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.alive

    def identity(self) -> str | None:
        """Process number and start time: another process never has both. None when it has ended."""
        return f"{self.pid}@{self._handle.create_time():.2f}" if self.alive else None

    def wait_until(self, check: Callable[[], bool], timeout_seconds: float) -> None:
        """Wait until ``check`` is true, asking some times a second.

        Raises:
            ServerError: ``server_start_failed`` or ``server_start_timeout``, with its log's tail.
        """
        deadline = self.started_monotonic + timeout_seconds
        while not check():
            if not self.alive:
                raise self.died("server_start_failed", "the server ended while it was starting")
            if time.monotonic() > deadline:
                raise self._too_slow(timeout_seconds)
            time.sleep(_POLL_SECONDS)

    def died(self, code: str, what: str) -> ServerError:
        """Describe the death of a process that has ended or is about to be reaped."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        status = self._process.returncode
        tail = self.log_tail()
        out_of_memory = self._was_out_of_memory(status)
        self.stop()
        evidence: dict[str, Primitive] = {"exit_status": status, "log_tail": tail}
        if out_of_memory is not None:
            evidence["out_of_memory"] = out_of_memory
        return ServerError(
            code,
            f"{what} ({_describe_exit(status, out_of_memory)}){_telling_line(tail)}; "
            f"its log {self.stderr_log.name} ends:\n{tail}",
            evidence,
        )

    def log_tail(self, lines: int = 12) -> str:
        """The last lines the process wrote since it was started: to standard error, else to standard output."""
        return self._tail_of(self.stderr_log, lines) or self._tail_of(self.stdout_log, lines)

    def logged(self, words: str) -> bool:
        """Whether the process has written this, to either stream, since it was started."""
        for path, begin in self._log_starts.items():
            with suppress(OSError), path.open("rb") as log:
                log.seek(begin)
                if words.encode() in log.read(_SEARCHED_BYTES):
                    return True
        return False

    def stop(self) -> None:
        """End the process and everything in its session: ask, wait, kill, verify. Safe to call again."""
        if self._stopped:
            return  # by now the number may belong to somebody else's process
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("server %d did not end within %g s of being asked; killing it", self.pid, _GRACE_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # also what the server may have started
        _kill_session(self.pid)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        if not _is_gone(self._handle):
            msg = f"server process {self.pid} is still there after SIGKILL; look for a hung driver or disk"
            raise ServerError("server_not_stopped", msg, {"pid": self.pid})
        self._stopped = True

    def _too_slow(self, timeout_seconds: float) -> ServerError:
        tail = self.log_tail()
        self.stop()
        return ServerError(
            "server_start_timeout",
            f"the server was not ready in {timeout_seconds:g} s (limits.max_load_time); its log ends:\n{tail}",
            {"timeout_seconds": timeout_seconds, "log_tail": tail},
        )

    def _tail_of(self, path: Path, lines: int) -> str:
        try:
            with path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_starts[path], size - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _was_out_of_memory(self, status: int | None) -> bool | None:
        """Whether the kernel killed for want of memory since the start; None where that is not the question."""
        if status != -signal.SIGKILL:
            return None
        now = _oom_kills()
        return None if now is None or self._oom_kills is None else now > self._oom_kills


class ReportingProcess(ServerProcess):
    """A child of ours that reports readiness by one JSON line on a pipe of its own.

    The child finds the pipe's descriptor as its last argument, and its instructions (which may hold a key, so they are
    not arguments) as one JSON line on standard input. Standard input then stays open: its end tells the child that
    the parent is gone.
    """

    def __init__(self, command: Sequence[str], instructions: dict[str, Any], log_stem: Path) -> None:
        self._ready_fd = self._start(command[0], lambda pipe: [*command, str(pipe)], log_stem, stdin=subprocess.PIPE)
        assert self._process.stdin is not None  # noqa: S101 -- it was asked for
        with suppress(BrokenPipeError):  # a child that died at once is told apart in wait_ready
            self._process.stdin.write(json.dumps(instructions).encode() + b"\n")
            self._process.stdin.flush()

    def wait_ready(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the child's report, asleep in the kernel.

        Raises:
            ServerError: ``server_start_failed`` or ``server_start_timeout``, with its log's tail.
        """
        deadline = self.started_monotonic + timeout_seconds
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._ready_fd], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise self._too_slow(timeout_seconds)
            piece = os.read(self._ready_fd, 4096)
            if not piece:
                raise self.died("server_start_failed", "the server ended while it was starting")
            line += piece
        report: dict[str, Any] = json.loads(line)
        return report

    def stop(self) -> None:
        """See :meth:`ServerProcess.stop`."""
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1
        super().stop()


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def python_module(name: str) -> list[str]:
    """The command that runs a module of ours, whatever lies in the working directory."""
    # -P keeps the working directory, where anything may lie, off the child's import path (3.11+).
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", name]


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _read_to_the_end(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read()


def _oom_kills() -> int | None:
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


def _kill_session(session: int) -> None:
    """Kill what has left the server's process group, but is in its session."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


def _is_gone(process: psutil.Process) -> bool:
    # psutil compares start times, so a reused pid is not taken for ours; where nobody reaps, a zombie counts as gone.
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _telling_line(tail: str) -> str:
    """The first line of a log that speaks of an error, from where it does."""
    for line in tail.splitlines():
        if found := re.search(r"\b(?:error|failed|unable|couldn't)\b.*", line, re.IGNORECASE):
            return f": {found[0]}"
    return ""


def _describe_exit(status: int | None, out_of_memory: bool | None) -> str:
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
