"""A TCP server that plays a script: exact bytes at chosen moments, and every way a server can go wrong.

It serves one connection, in a thread that the context manager always joins.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

Step = tuple[float, bytes]
Ending = Literal["close", "reset", "hang", "flood"]
_POLL_SECONDS = 0.02
_HANG_SECONDS = 30.0


class ScriptedServer:
    """Use as a context manager.

    Args:
        steps: pairs of a pause in seconds and the bytes to send after it.
        then: how it ends: orderly close, TCP reset, silence while connected, or the last bytes again and again as fast
            as the client reads (for at most ``flood_seconds``, then it closes).
        reads: whether the request is read before the first step is played.

    Attributes:
        request: what the client sent.
    """

    def __init__(self, *steps: Step, then: Ending = "close", reads: bool = True, flood_seconds: float = 3.0) -> None:
        self.request = b""
        self._steps = steps
        self._then = then
        self._reads = reads
        self._flood_seconds = flood_seconds
        self._stop = threading.Event()

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_POLL_SECONDS)
        self._thread = threading.Thread(target=self._serve, name="scripted server")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def head(self) -> str:
        """The request's header."""
        return self.request.partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        """The request's body."""
        return self.request.partition(b"\r\n\r\n")[2]

    def _serve(self) -> None:
        connection = self._accept()
        if connection is None:
            return
        with connection:
            try:
                if self._reads:
                    self._read_request(connection)
                self._play(connection)
            except OSError:  # the client has gone, as some tests want it to
                return
            if self._then == "hang":
                self._stop.wait(_HANG_SECONDS)
            elif self._then == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _accept(self) -> socket.socket | None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(5.0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        return None

    def _read_request(self, connection: socket.socket) -> None:
        while not _is_complete(self.request):
            data = connection.recv(65536)
            if not data:
                return
            self.request += data

    def _play(self, connection: socket.socket) -> None:
        for pause, data in self._steps:
            if pause and self._stop.wait(pause):
                return
            connection.sendall(data)
        if self._then == "flood":
            ends = threading.Event()
            timer = threading.Timer(self._flood_seconds, ends.set)
            timer.start()
            try:
                while not ends.is_set() and not self._stop.is_set():
                    connection.sendall(self._steps[-1][1])
            finally:
                timer.cancel()
                timer.join()


def _is_complete(request: bytes) -> bool:
    head, separator, body = request.partition(b"\r\n\r\n")
    if not separator:
        return False
    lengths = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return len(body) >= int(lengths[0] if lengths else 0)


def http_response(status: str, content_type: str, body: bytes) -> bytes:
    """A whole response with a length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def replies(texts: Sequence[str], **last: object) -> list[bytes]:
    """The chunks of a llama.cpp stream: one per text, then the final event with ``last`` in it."""
    events: list[dict[str, object]] = [{"content": text, "stop": False} for text in texts]
    final: dict[str, object] = {
        "content": "",
        "stop": True,
        "stop_type": "limit",
        "tokens_evaluated": 7,
        "timings": {"cache_n": 0, "predicted_n": len(texts), "predicted_ms": 1.5},
    }
    return [chunk(b"data: " + json.dumps(event).encode() + b"\n\n") for event in [*events, {**final, **last}]]
