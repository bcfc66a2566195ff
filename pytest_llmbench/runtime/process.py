"""A server process of ours: started in a session of its own, output to files, ended for certain."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pytest_llmbench.errors import ServerError

logger = logging.getLogger(__name__)
_GRACE_SECONDS = 5.0
_TAIL_BYTES = 4096


class ServerProcess:
    """A child that reports readiness by one JSON line on a pipe of its own.

    The child finds the pipe's descriptor as its last argument, and its instructions (which may hold a key, so they are
    not arguments) as one JSON line on standard input. Standard input then stays open: its end tells the child that
    the parent is gone.
    """

    def __init__(self, command: Sequence[str], instructions: dict[str, Any], log_stem: Path) -> None:
        self.stdout_log = log_stem.with_name(log_stem.name + "_stdout.log")
        self.stderr_log = log_stem.with_name(log_stem.name + "_stderr.log")
        log_stem.parent.mkdir(parents=True, exist_ok=True)
        self._ready_fd, child_fd = os.pipe()
        self._stopped = False
        self.started_monotonic = time.monotonic()
        try:
            with self.stdout_log.open("ab") as out, self.stderr_log.open("ab") as err:
                self._log_start = err.tell()
                self._process = subprocess.Popen(
                    [*command, str(child_fd)],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=err,
                    pass_fds=(child_fd,),
                    start_new_session=True,
                )
        except OSError as exc:
            os.close(self._ready_fd)
            raise ServerError("server_start_failed", f"{command[0]} can not be started: {exc.strerror}") from exc
        finally:
            os.close(child_fd)
        self.pid = self._process.pid
        self._handle = psutil.Process(self.pid)
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
                tail = self.log_tail()
                self.stop()
                raise ServerError(
                    "server_start_timeout",
                    f"the server was not ready in {timeout_seconds:g} s (limits.max_load_time); its log ends:\n{tail}",
                    {"timeout_seconds": timeout_seconds, "log_tail": tail},
                )
            piece = os.read(self._ready_fd, 4096)
            if not piece:
                raise self.died("server_start_failed", "the server ended while it was starting")
            line += piece
        report: dict[str, Any] = json.loads(line)
        return report

    @property
    def alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        return self._process.poll() is None

    def died(self, code: str, what: str) -> ServerError:
        """Describe the death of a process that has ended or is about to be reaped."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        status = self._process.returncode
        tail = self.log_tail()
        self.stop()
        return ServerError(
            code,
            f"{what} ({_describe_exit(status)}){_telling_line(tail)}; its log {self.stderr_log.name} ends:\n{tail}",
            {"exit_status": status, "log_tail": tail},
        )

    def log_tail(self, lines: int = 12) -> str:
        """The last lines the process wrote to standard error since it was started."""
        try:
            with self.stderr_log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the process and everything in its session: ask, wait, kill, verify. Safe to call again."""
        if self._stopped:
            return  # by now the number may belong to somebody else's process
        with suppress(OSError):
            os.close(self._ready_fd)
        self._ready_fd = -1
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
        if found := re.search(r"\b(?:error|failed|unable)\b.*", line, re.IGNORECASE):
            return f": {found[0]}"
    return ""


def _describe_exit(status: int | None) -> str:
    if status is None:
        return "still ending"
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = "; perhaps the kernel ran out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit status {status}"
