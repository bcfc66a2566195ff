"""A server process of ours: started in a session of its own, output to files, ended for certain."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pytest_llmbench.errors import CellError, Primitive, ServerError
from pytest_llmbench.runtime.endings import describe_exit, is_gone, kill_session, oom_kills, telling_line
from pytest_llmbench.runtime.orphans import TOKEN_VARIABLE, ServerNote

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_TAIL_BYTES = 4096
_SEARCHED_BYTES = 1024 * 1024
_running: list[ServerProcess] = []
_running_lock = threading.RLock()  # as below: a signal's handler may stop servers at any moment


def running_servers() -> tuple[ServerProcess, ...]:
    """The servers of this process that were started and not stopped yet, in that order; some may have died."""
    with _running_lock:
        return tuple(_running)


class ServerProcess:
    """Any program that serves. It dies with us (on Linux), and :meth:`wait_until` tells when it serves.

    Until :meth:`stop` the system keeps its process number for it, even when it has died, so that nobody else's process
    is ever signalled. Another thread may end it at any time by :meth:`end_because`.

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
            command,
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
        command: Sequence[str],
        line_for: Callable[[int], list[str]],
        log_stem: Path,
        *,
        stdin: int,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Start what runs the command, with the writing end of a pipe in its line; returns the reading end."""
        self.stdout_log = log_stem.with_name(log_stem.name + "_stdout.log")
        self.stderr_log = log_stem.with_name(log_stem.name + "_stderr.log")
        log_stem.parent.mkdir(parents=True, exist_ok=True)
        self.name = _name_of(command)
        self._stopped = False
        self._ended_because: ServerError | None = None
        self._signalling = threading.RLock()  # also held when its number is given back
        self._stopping = threading.RLock()
        self._note = ServerNote(self.name)
        self._oom_kills = oom_kills()
        self.started_monotonic = time.monotonic()
        ours, theirs = os.pipe()
        try:
            with self.stdout_log.open("ab") as out, self.stderr_log.open("ab") as err:
                self._log_starts = {self.stdout_log: out.tell(), self.stderr_log: err.tell()}
                self._process = subprocess.Popen(
                    line_for(theirs),
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    pass_fds=(theirs,),
                    start_new_session=True,
                    env=_environment({**(environment or {}), TOKEN_VARIABLE: self._note.token}),
                    cwd=cwd,
                )
        except (OSError, ValueError) as exc:  # a null character in an argument
            os.close(ours)
            self._note.remove()
            reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
            raise ServerError("server_start_failed", f"{command[0]} can not be started: {reason}") from exc
        finally:
            os.close(theirs)
        self.pid = self._process.pid
        self._handle = psutil.Process(self.pid)
        self._note.name_server(self.pid)
        with _running_lock:
            _running.append(self)
        return ours

    @property
    def alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        if self._process.returncode is not None:
            return False
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return not is_gone(self._handle)
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # whoever has taken its status: it has ended
            return False

    @property
    def ended_because(self) -> ServerError | None:
        """Why it was ended by :meth:`end_because`, before its log is added; None where it was not."""
        return self._ended_because

    def ends_within(self, seconds: float) -> bool:
        """Whether the process has ended, or does so now: a lost connection is noticed before the death behind it."""
        deadline = time.monotonic() + seconds
        pause = 0.001
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
        return True

    def end_because(self, error: ServerError) -> bool:
        """Kill it and its whole session at once, from any thread; whoever describes its death then tells this error.

        It does not wait for the end, and :meth:`stop` is still to be called by the server's owner.

        Returns:
            Whether it did; not where the server has ended already, by itself or by an earlier call.
        """
        with self._signalling:
            if self._ended_because is not None or not self.alive:
                return False
            self._ended_because = error
            self._kill_everything()
        return True

    def remember(self, pids: Collection[int]) -> None:
        """Keep what the server has started in its note, so that a later run finds it if this one is killed."""
        with self._signalling:
            if not self._stopped:
                self._note.name_members(pids)

    def identity(self) -> str | None:
        """Process number and start time: another process never has both. None when it has ended."""
        return f"{self.pid}@{self._handle.create_time():.2f}" if self.alive else None

    def wait_until(self, check: Callable[[], bool], timeout_seconds: float) -> None:
        """Wait until ``check`` is true, asking some times a second.

        Raises:
            ServerError: ``server_start_failed`` or ``server_start_timeout``, with its log's tail; the error of
                :meth:`end_because` if it was ended so; what ``check`` raises.
        """
        deadline = self.started_monotonic + timeout_seconds
        while not self._passes(check):
            if not self.alive:
                raise self.died("server_start_failed", "the server ended while it was starting")
            if time.monotonic() > deadline:
                raise self._too_slow(timeout_seconds)
            time.sleep(_POLL_SECONDS)

    def died(self, code: str, what: str) -> ServerError:
        """Describe the death of a process that has ended or is about to: by ``code`` and ``what``, or as
        :meth:`end_because` was told.
        """
        has_ended = self.ends_within(_GRACE_SECONDS)
        tail = self.log_tail()
        self.stop()
        if self._ended_because is not None:
            return self._told(self._ended_because, tail)
        status = self._process.returncode if has_ended else None
        out_of_memory = self._was_out_of_memory(status)
        evidence: dict[str, Primitive] = {"exit_status": status, "log_tail": tail}
        if out_of_memory is not None:
            evidence["out_of_memory"] = out_of_memory
        return ServerError(
            code,
            f"{what} ({describe_exit(status, out_of_memory)}){telling_line(tail)}; "
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
        """End the process, everything in its session and what it started elsewhere: ask, wait, kill, verify.

        Safe to call again, and while another thread does.

        Raises:
            ServerError: ``server_not_stopped``.
        """
        with self._stopping:
            if self._stopped:
                return
            with suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            if self.alive:
                self._ask_to_end()
                if not self.ends_within(_GRACE_SECONDS):
                    logger.warning(
                        "server %d did not end within %g s of being asked; killing it", self.pid, _GRACE_SECONDS
                    )
            with self._signalling:
                self._kill_everything()
            self.ends_within(_GRACE_SECONDS)
            left = self._note.end_carriers()
            with self._signalling:
                self._process.poll()  # from now on the number may belong to somebody else's process
                if left or not is_gone(self._handle):
                    who = ", ".join(left) or f"server process {self.pid}"
                    msg = f"{who} is still there after SIGKILL; look for a hung driver or disk"
                    raise ServerError("server_not_stopped", msg, {"pid": self.pid})
                self._stopped = True
                self._note.remove()
            with _running_lock:
                _running.remove(self)

    def _ask_to_end(self) -> None:
        with self._signalling, suppress(ProcessLookupError, PermissionError):
            if self._is_ours():
                os.killpg(self.pid, signal.SIGTERM)

    def _kill_everything(self) -> None:
        """Kill the process group, and what has left it but is in its session. Only by who holds ``_signalling``."""
        if self._is_ours():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            kill_session(self.pid)

    def _is_ours(self) -> bool:
        """Whether its number is still its own: it is, until its exit status is taken."""
        if self._process.returncode is not None:
            return False
        if hasattr(os, "waitid"):
            try:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # somebody takes the status of all children of this process
                return False
        return True

    def _passes(self, check: Callable[[], bool]) -> bool:
        try:
            return check()
        except CellError as exc:
            if self._ended_because is None:
                raise
            raise self.died(exc.code, exc.message) from exc

    def _too_slow(self, timeout_seconds: float) -> ServerError:
        tail = self.log_tail()
        self.stop()
        if self._ended_because is not None:
            return self._told(self._ended_because, tail)
        return ServerError(
            "server_start_timeout",
            f"the server was not ready in {timeout_seconds:g} s (limits.max_load_time); its log ends:\n{tail}",
            {"timeout_seconds": timeout_seconds, "log_tail": tail},
        )

    def _told(self, error: ServerError, tail: str) -> ServerError:
        """A copy of its own for every time it is raised."""
        return ServerError(error.code, error.message, {**error.evidence, "log_tail": tail})

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
        now = oom_kills()
        return None if now is None or self._oom_kills is None else now > self._oom_kills


class ReportingProcess(ServerProcess):
    """A child of ours that reports readiness by one JSON line on a pipe of its own.

    The child finds the pipe's descriptor as its last argument, and its instructions (which may hold a key, so they are
    not arguments) as one JSON line on standard input. Standard input then stays open: its end tells the child that
    the parent is gone.
    """

    def __init__(self, command: Sequence[str], instructions: dict[str, Any], log_stem: Path) -> None:
        self._ready_fd = self._start(command, lambda pipe: [*command, str(pipe)], log_stem, stdin=subprocess.PIPE)
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


def _name_of(command: Sequence[str]) -> str:
    """A short name for people: of the program or, where that is our Python with a module, of the module."""
    words = list(command)
    runs_module = words[0] == sys.executable and "-m" in words[:-1]
    return words[words.index("-m") + 1].rpartition(".")[2] if runs_module else Path(words[0]).name


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _read_to_the_end(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read()
