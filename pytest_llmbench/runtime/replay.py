"""Start the replay server in a process of its own, and read from it when it really wrote each token."""

from __future__ import annotations

import http.client
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.process import ReportingProcess, python_module
from pytest_llmbench.runtime.replay_server import clock_name

_START_SECONDS = 30.0
_ASK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class TrueTimes:
    """What the replay server did for one request.

    Times are nanoseconds of the monotonic clock, the one ``time.perf_counter_ns`` reads in every process here.

    Attributes:
        id: also sent to the client, as ``X-Request-Id`` and as the ``id`` of OpenAI's events.
        client_id: the ``X-Request-Id`` that the client sent, if any.
        planned: tokens that were asked for.
        written: tokens that were written.
        ends_only: ``t_write_ns`` holds the first and the last write only (fire-hose, or an answer in one piece).
        blocked_writes: tokens that could not be handed to the kernel when they were due: the client did not read, and
            their times are earlier than the truth.
        t_request_read_ns: the request had been read.
        t_write_ns: just before the send call of each token.
    """

    id: str
    client_id: str | None
    path: str
    planned: int
    written: int
    ends_only: bool
    blocked_writes: int
    complete: bool
    t_request_read_ns: int
    t_write_ns: tuple[int, ...]

    @property
    def ttft_seconds(self) -> float | None:
        """From the request's end to the first token; None: none was written."""
        return (self.t_write_ns[0] - self.t_request_read_ns) / 1e9 if self.t_write_ns else None

    @property
    def gaps_ns(self) -> tuple[int, ...]:
        """Between one token and the next."""
        return tuple(b - a for a, b in zip(self.t_write_ns, self.t_write_ns[1:], strict=False))


class ReplayServer:
    """Use as a context manager: the server runs inside it, and is gone after it.

    Args:
        ttft_ms: from request to first token, milliseconds.
        gap_ms: between tokens, milliseconds; 0 writes as fast as the client reads.
        jitter: 0 to 1: spread the requests' starts over this fraction of a gap.

    Attributes:
        url: where it listens.
    """

    def __init__(self, *, ttft_ms: float = 50.0, gap_ms: float = 10.0, jitter: float = 0.0) -> None:
        self.url = ""
        self._options = [f"--ttft-ms={ttft_ms!r}", f"--gap-ms={gap_ms!r}", f"--jitter={jitter!r}"]
        self._process: ReportingProcess | None = None
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> ReplayServer:
        clock_name()  # raises where times of two processes can not be subtracted
        self._folder = TemporaryDirectory(prefix="llmbench-replay-")
        try:
            command = [*python_module("pytest_llmbench.runtime.replay_server"), *self._options]
            self._process = ReportingProcess(command, {"parent_pid": os.getpid()}, Path(self._folder.name) / "replay")
            report = self._process.wait_ready(_START_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.url = str(report["url"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server, verified. Safe to call again."""
        try:
            if self._process is not None:
                self._process.stop()
        finally:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None:
            raise ServerError("server_died", "the replay server has not been started")
        return self._process.pid

    def truth(self) -> list[TrueTimes]:
        """What it did for each request since the last reset, in the order they arrived.

        Raises:
            ServerError: ``truth_incomplete``: there were so many that the oldest were forgotten.
        """
        data = self._ask("GET", "/truth")
        if data["dropped"]:
            raise ServerError(
                "truth_incomplete", f"the replay server forgot {data['dropped']} requests; reset it between rounds"
            )
        return [TrueTimes(**{**request, "t_write_ns": tuple(request["t_write_ns"])}) for request in data["requests"]]

    def reset(self) -> None:
        """Forget the requests so far."""
        self._ask("POST", "/truth/reset")

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=_ASK_SECONDS)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as exc:
            raise ServerError("server_died", f"the replay server does not answer: {exc}") from exc
        finally:
            connection.close()
        return answer
