"""A model server without a model: it streams tokens at times known exactly, so that a client's clock can be judged.

Every token has an absolute time, counted from the moment its request had been read, so lateness never adds up. What
was really written when is kept, in nanoseconds of the monotonic clock, and ``GET /truth`` tells it. That clock is one
for all processes of a machine, so a client's times and these can be subtracted.

It speaks the streams of OpenAI (chat and completions), llama.cpp (``/completion``) and Ollama (``/api/generate``,
``/api/chat``): one token per event, one event per chunk. ``--gap-ms 0`` is a fire-hose: as fast as the client reads.

One thread, no spinning: between tokens the process sleeps in the kernel. Standard library only. Run it as
``python -m pytest_llmbench.runtime.replay_server [--ttft-ms MS] [--gap-ms MS] [--jitter F] [FD]``. With the descriptor
of a pipe it is a child of :class:`~pytest_llmbench.runtime.process.ReportingProcess`; without, it says its address on
standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import heapq
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from pytest_llmbench.runtime.lifeline import die_with_parent
from pytest_llmbench.runtime.replay_dialects import (
    ASK_PATHS,
    MODEL,
    WORDS,
    Ask,
    BadRequest,
    Dialect,
    Truth,
    dump,
    read_ask,
    response,
)

_CYCLE = len(WORDS)
_GOLDEN_RATIO = 0.6180339887498949
_MAX_HEADER_BYTES = 64 * 1024
_MAX_BODY_BYTES = 16 * 1024 * 1024
_HOSE_BYTES = 128 * 1024  # of one send
_MAX_TIMES_PER_REQUEST = 1_000_000
_MAX_TIMES = 4_000_000  # of all requests that are remembered: 32 MB
_MAX_REQUESTS = 20_000
_LONG_SLEEP_NS = 20_000_000
_WAKE_EARLY_NS = 5_000_000
_PR_SET_TIMERSLACK = 29


def clock_name() -> str:
    """The clock that all times here are read from.

    Raises:
        RuntimeError: ``perf_counter`` and ``monotonic`` are two clocks, so times of two processes may not compare.
    """
    names = {time.get_clock_info(name).implementation for name in ("perf_counter", "monotonic")}
    if len(names) != 1:
        msg = f"perf_counter and monotonic are different clocks here ({', '.join(sorted(names))})"
        raise RuntimeError(msg)
    return names.pop()


@dataclass(slots=True)
class Timing:
    """When tokens are due, in nanoseconds.

    Attributes:
        jitter: each request starts later by up to this fraction of a gap, differently each time but the same in every
            run, so that streams do not tick in unison. The gaps stay as they are.
    """

    ttft_ns: int
    gap_ns: int
    jitter: float = 0.0

    def first_ns(self, number: int) -> int:
        """From the end of reading request ``number`` to its first token."""
        return self.ttft_ns + int(self.jitter * self.gap_ns * (number * _GOLDEN_RATIO % 1.0))


class Memory:
    """The truth about the latest requests, within bounds."""

    def __init__(self) -> None:
        self._truths: deque[Truth] = deque()
        self._times = 0
        self._dropped = 0

    def add(self, truth: Truth) -> None:
        """Remember a request; the oldest are forgotten when there are too many."""
        self._truths.append(truth)
        self._times += truth.kept_times
        while len(self._truths) > _MAX_REQUESTS or (self._times > _MAX_TIMES and len(self._truths) > 1):
            self._times -= self._truths.popleft().kept_times
            self._dropped += 1

    def reset(self) -> None:
        """Forget all."""
        self._truths.clear()
        self._times = self._dropped = 0

    def as_json(self, clock: str) -> dict[str, Any]:
        """For ``GET /truth``."""
        return {"clock": clock, "dropped": self._dropped, "requests": [truth.as_json() for truth in self._truths]}


class Connection:
    """One client: what it has sent and what it has not taken yet."""

    __slots__ = (
        "client_id",
        "closing",
        "keep_alive",
        "open",
        "pending",
        "received",
        "socket",
        "stream",
        "t_read_ns",
        "watched",
    )

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = bytearray()
        self.t_read_ns = 0  # of the latest bytes
        self.pending = bytearray()
        self.stream: Stream | None = None
        self.keep_alive = True
        self.client_id: str | None = None
        self.closing = False
        self.open = True
        self.watched = selectors.EVENT_READ


class Stream:
    """One answer under way."""

    __slots__ = ("chunks", "connection", "dialect", "due_ns", "hose", "next", "streaming", "truth")

    def __init__(self, connection: Connection, dialect: Dialect, due_ns: int, *, streaming: bool) -> None:
        self.connection = connection
        self.dialect = dialect
        self.truth = dialect.truth
        self.due_ns = due_ns
        self.streaming = streaming
        self.chunks = [dialect.frame(dialect.token(word)) for word in WORDS]
        self.next = 0
        self.hose = b""

    def cycles(self) -> bytes:
        """Whole rounds of the words, enough for one send of a fire-hose."""
        if not self.hose:
            once = b"".join(self.chunks)
            self.hose = once * max(1, _HOSE_BYTES // len(once))
        return self.hose


class ReplayServer:
    """Serves on a port of 127.0.0.1 that the kernel picks."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._clock = clock_name()
        self._memory = Memory()
        self._numbers = count(1)
        self._due: list[tuple[int, int, Stream]] = []
        self._order = count()
        self._inbox: deque[Connection] = deque()
        self._selector = selectors.DefaultSelector()
        # The selector's own waits are cut to milliseconds (epoll); a select of its descriptor is not.
        fileno = getattr(self._selector, "fileno", None)
        self._selector_fd: int | None = fileno() if fileno is not None else None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._parent_fd: int | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def end_with(self, fd: int) -> None:
        """Stop serving when this pipe ends."""
        self._parent_fd = fd
        self._selector.register(fd, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serve until the parent's pipe ends."""
        while True:
            for key, events in self._wait():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd == self._parent_fd:
                    if not os.read(key.fd, 4096):
                        return
                else:
                    self._attend(key.data, events)
            if self._inbox:  # one at a time, so that reading, and the time of it, never waits for many to be started
                self._read_requests(self._inbox.popleft())
            self._write_due()

    def close(self) -> None:
        """Close every socket."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Sleep until something is to be read or written, or a token is due."""
        if self._inbox:
            return self._selector.select(0)
        if not self._due:
            return self._selector.select(None)
        wait_ns = self._due[0][0] - time.perf_counter_ns()
        if wait_ns <= 0:
            return self._selector.select(0)
        if wait_ns > _LONG_SLEEP_NS:  # the kernel may be late by a thousandth of a sleep
            wait_ns -= _WAKE_EARLY_NS
        if self._selector_fd is None:
            return self._selector.select(wait_ns / 1e9)
        ready, _, _ = select.select([self._selector_fd], [], [], wait_ns / 1e9)
        return self._selector.select(0) if ready else []

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(accepted, selectors.EVENT_READ, Connection(accepted))

    def _attend(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE and connection.open:
            self._flush(connection)
        if events & selectors.EVENT_READ and connection.open:
            try:
                data = connection.socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            connection.t_read_ns = time.perf_counter_ns()
            if not data:
                self._drop(connection)
                return
            connection.received += data
            if connection.stream is None and not connection.closing:
                if connection not in self._inbox:
                    self._inbox.append(connection)
            elif len(connection.received) > _MAX_HEADER_BYTES + _MAX_BODY_BYTES:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            connection.stream = None
            self._selector.unregister(connection.socket)
            connection.socket.close()

    # Requests.

    def _read_requests(self, connection: Connection) -> None:
        while connection.open and connection.stream is None and not connection.closing:
            try:
                request = _take_request(connection)
            except BadRequest as exc:
                connection.keep_alive = False
                self._answer(connection, exc.status, {"error": {"message": exc.message}})
                return
            if request is None:
                return
            self._route(connection, *request)

    def _route(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path in ASK_PATHS:
            try:
                ask = read_ask(path, body)
            except BadRequest as exc:
                self._answer(connection, exc.status, {"error": {"message": exc.message}})
                return
            self._start(connection, path, ask)
        elif (method, path) == ("GET", "/health"):
            self._answer(connection, "200 OK", {"status": "ok"})
        elif (method, path) == ("GET", "/v1/models"):
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "llmbench"}
            self._answer(connection, "200 OK", {"object": "list", "data": [model]})
        elif (method, path) == ("GET", "/truth"):
            self._answer(connection, "200 OK", self._memory.as_json(self._clock))
        elif (method, path) == ("POST", "/truth/reset"):
            self._memory.reset()
            self._answer(connection, "200 OK", {})
        else:
            self._answer(connection, "404 Not Found", {"error": {"message": f"no {method} {path} here"}})

    def _answer(self, connection: Connection, status: str, data: dict[str, Any], *extra: str) -> None:
        self._write(connection, response(status, dump(data), *extra, keep_alive=connection.keep_alive))
        self._close_if_asked(connection)

    def _close_if_asked(self, connection: Connection) -> None:
        if not connection.keep_alive and connection.open:
            connection.closing = True
            if not connection.pending:
                self._drop(connection)

    def _start(self, connection: Connection, path: str, ask: Ask) -> None:
        number, t_ns = next(self._numbers), connection.t_read_ns
        truth = Truth(
            f"replay-{number}",
            path,
            ask.tokens,
            ask.prompt_tokens,
            t_ns,
            ends_only=not ask.stream or self._timing.gap_ns == 0 or ask.tokens > _MAX_TIMES_PER_REQUEST,
            client_id=connection.client_id,
        )
        self._memory.add(truth)
        dialect = ask.dialect(ask.model, truth, **ask.options)
        due_ns = t_ns + self._timing.first_ns(number)
        stream = Stream(connection, dialect, due_ns, streaming=ask.stream)
        connection.stream = stream
        if ask.stream:
            lines = [
                "HTTP/1.1 200 OK",
                f"Content-Type: {dialect.content_type}",
                "Cache-Control: no-cache",
                "Transfer-Encoding: chunked",
                f"X-Request-Id: {truth.id}",
                f"Connection: {'keep-alive' if connection.keep_alive else 'close'}",
            ]
            self._write(connection, "\r\n".join([*lines, "", ""]).encode() + dialect.opening())
        self._plan(stream)

    def _plan(self, stream: Stream) -> None:
        heapq.heappush(self._due, (stream.due_ns, next(self._order), stream))

    # Tokens.

    def _write_due(self) -> None:
        for _ in range(len(self._due)):  # each stream at most once before clients are heard again
            if not self._due or self._due[0][0] > time.perf_counter_ns():
                return
            stream = heapq.heappop(self._due)[2]
            if stream.connection.stream is not stream:  # its client has gone
                continue
            if not stream.streaming:
                self._write_whole(stream)
            elif self._timing.gap_ns == 0:
                self._pour(stream)
            else:
                self._write_token(stream)

    def _write_token(self, stream: Stream) -> None:
        connection, truth = stream.connection, stream.truth
        data = stream.chunks[stream.next % _CYCLE]
        truth.blocked_writes += bool(connection.pending)
        t_ns = time.perf_counter_ns()
        self._write(connection, data)
        truth.note(t_ns)
        stream.next += 1
        if connection.stream is not stream:
            return
        if stream.next < truth.planned:
            stream.due_ns += self._timing.gap_ns
            self._plan(stream)
        else:
            self._end(stream)

    def _pour(self, stream: Stream) -> None:
        """Fire-hose: write as much as the socket takes, once; the rest follows when it takes more."""
        connection, truth = stream.connection, stream.truth
        cycles = stream.cycles()
        tokens = len(cycles) // sum(map(len, stream.chunks)) * _CYCLE
        if truth.planned - stream.next < tokens:
            tokens = truth.planned - stream.next
            rounds, rest = divmod(tokens, _CYCLE)
            cycles = b"".join(stream.chunks) * rounds + b"".join(stream.chunks[:rest])
        t_ns = time.perf_counter_ns()
        self._write(connection, cycles)
        truth.note(t_ns, tokens)
        stream.next += tokens
        if connection.stream is not stream:
            return
        if stream.next == truth.planned:
            self._end(stream)
        elif not connection.pending:
            self._plan(stream)

    def _write_whole(self, stream: Stream) -> None:
        """The answer in one piece, when its last token would have been due."""
        truth, connection = stream.truth, stream.connection
        if not stream.next and truth.planned > 1 and self._timing.gap_ns:
            stream.next = truth.planned
            stream.due_ns += (truth.planned - 1) * self._timing.gap_ns
            self._plan(stream)
            return
        truth.note(time.perf_counter_ns(), truth.planned)
        rounds, rest = divmod(truth.planned, _CYCLE)
        text = "".join(WORDS) * rounds + "".join(WORDS[:rest])
        connection.stream = None
        truth.complete = True
        self._answer(connection, "200 OK", stream.dialect.whole(text), f"X-Request-Id: {truth.id}")
        self._read_next(connection)

    def _end(self, stream: Stream) -> None:
        connection = stream.connection
        stream.truth.complete = True
        connection.stream = None
        self._write(connection, stream.dialect.closing() + b"0\r\n\r\n")
        self._close_if_asked(connection)
        self._read_next(connection)

    def _read_next(self, connection: Connection) -> None:
        """Look at what the client has sent before its answer was complete; that counts as read only now."""
        if connection.received and connection.open and connection not in self._inbox:
            connection.t_read_ns = time.perf_counter_ns()
            self._inbox.append(connection)

    # Bytes.

    def _write(self, connection: Connection, data: bytes) -> None:
        if not connection.open:
            return
        if connection.pending:
            connection.pending += data
            return
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        if sent < len(data):
            connection.pending += memoryview(data)[sent:]
            self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.pending)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        del connection.pending[:sent]
        if connection.pending:
            return
        self._watch(connection, selectors.EVENT_READ)
        stream = connection.stream
        if stream is not None and stream.streaming and self._timing.gap_ns == 0 and stream.next:
            self._pour(stream)
        elif connection.closing:
            self._drop(connection)

    def _watch(self, connection: Connection, events: int) -> None:
        if connection.watched != events:
            connection.watched = events
            self._selector.modify(connection.socket, events, connection)


def _take_request(connection: Connection) -> tuple[str, str, bytes] | None:
    """Method, path and body of the next whole request, taken out of what has been received; None: not all is there.

    Raises:
        BadRequest: it is none.
    """
    received = connection.received
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > _MAX_HEADER_BYTES:
            raise BadRequest("431 Request Header Fields Too Large", "the header is too long")
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or parts[2] != "HTTP/1.1":
        raise BadRequest("505 HTTP Version Not Supported", "only HTTP/1.1 is spoken here")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
        raise BadRequest("411 Length Required", "the request needs a length")
    body_start, size = end + 4, int(length)
    if size > _MAX_BODY_BYTES:
        raise BadRequest("413 Content Too Large", "the body is too long")
    if len(received) < body_start + size:
        return None
    body = bytes(received[body_start : body_start + size])
    del received[: body_start + size]
    connection.client_id = headers.get("x-request-id")
    connection.keep_alive = headers.get("connection", "").lower() != "close"
    return parts[0], parts[1].partition("?")[0], body


def _prepare_process() -> None:
    """Precise timers, as many clients as the system allows, and no long pauses of the garbage collector."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # macOS calls its hard limit infinite, but takes no soft limit above 10 240
        limit = 10_240 if sys.platform == "darwin" else hard
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serve until the parent is gone. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="replay_server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ttft-ms", type=float, default=50.0, metavar="MS", help="from request to first token")
    parser.add_argument("--gap-ms", type=float, default=10.0, metavar="MS", help="between tokens; 0: no pause at all")
    parser.add_argument(
        "--jitter", type=float, default=0.0, metavar="F", help="0 to 1: spread starts over this much gap"
    )
    parser.add_argument("ready_fd", type=int, nargs="?", metavar="FD", help="pipe to report on, as a child")
    arguments = parser.parse_args()
    if not (0 <= arguments.ttft_ms < 1e7 and 0 <= arguments.gap_ms < 1e7 and 0 <= arguments.jitter <= 1):
        parser.error("times can not be negative, and jitter is between 0 and 1")
    timing = Timing(round(arguments.ttft_ms * 1e6), round(arguments.gap_ms * 1e6), arguments.jitter)
    ready_fd: int | None = arguments.ready_fd
    if ready_fd is None:
        die_with_parent(os.getppid())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        instructions: dict[str, Any] = json.loads(sys.stdin.readline())
        die_with_parent(int(instructions["parent_pid"]))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us in order
    server = ReplayServer(timing)
    _prepare_process()
    line = dump({"url": server.url, "pid": os.getpid(), "clock": clock_name()}) + b"\n"
    if ready_fd is None:
        os.write(sys.stdout.fileno(), line)
    else:
        os.write(ready_fd, line)
        os.close(ready_fd)
        server.end_with(sys.stdin.fileno())
    try:
        server.serve()
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
