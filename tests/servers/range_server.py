"""A web server for tests that ask for pieces of files: with honest answers, and such as nobody should trust.

::

    with RangeServer({"/m.gguf": ranged(data)}) as server:
        ...  # f"{server.url}/m.gguf"

An answer is a function of the request; the ones here can be given as they are, and others written beside them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Asked:
    """A request that came, with the names of its headers in lower case."""

    path: str
    headers: Mapping[str, str]


class Request(BaseHTTPRequestHandler):
    """A request that is to be answered."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        owner = self.server.owner
        path = self.path.partition("?")[0]
        owner.asked.append(Asked(path, {name.lower(): value for name, value in self.headers.items()}))
        answer = owner.answers.get(path, status(404))
        with suppress(ConnectionError):
            answer(self)

    def range(self) -> tuple[int, int]:
        """First byte that is asked for, and the one behind the last."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        assert match is not None
        return int(match[1]), int(match[2]) + 1

    def head(self, code: int, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            if self.server.owner.stopping.is_set():
                break
            self.wfile.write(piece)
            self.server.owner.sent_bytes += len(piece)
        else:
            return
        self.close_connection = True

    def pause(self, seconds: float) -> None:
        """Wait, unless the server is to end."""
        self.server.owner.stopping.wait(seconds)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass


Answer = Callable[[Request], None]


class RangeServer:
    """Use as a context manager.

    Attributes:
        asked: what came, in order.
        sent_bytes: of bodies, into the network's buffers at least.
        stopping: set when the server is to end.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self.stopping = threading.Event()

    def __enter__(self) -> RangeServer:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    """Answers each connection in a thread, and has them all ended when it is closed."""

    daemon_threads = False

    def __init__(self, owner: RangeServer) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.owner = owner

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        connection.settimeout(10.0)  # nobody keeps a thread for longer
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event."""


def zeros_behind(content: bytes, begin: int, end: int) -> Iterator[bytes]:
    """From ``begin`` to ``end`` of a file that begins with ``content`` and goes on with zeros."""
    while begin < end:
        piece = content[begin : min(end, begin + _PIECE_BYTES)]
        piece += bytes(min(_PIECE_BYTES, end - begin) - len(piece))
        yield piece
        begin += len(piece)


def ranged(content: bytes, size_bytes: int | None = None, largest: int = 2**63, **headers: str) -> Answer:
    """A file, by ranges of at most ``largest`` bytes; underscores in names of ``headers`` stand for hyphens."""
    total = len(content) if size_bytes is None else size_bytes

    def answer(request: Request) -> None:
        begin, end = request.range()
        end = min(end, total, begin + largest)
        if begin >= end:
            request.head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        told = {"Content-Range": f"bytes {begin}-{end - 1}/{total}", "Content-Length": str(end - begin)}
        request.head(206, {**told, **{name.replace("_", "-"): value for name, value in headers.items()}})
        request.body(zeros_behind(content, begin, end))

    return answer


def whole(content: bytes, size_bytes: int | None = None) -> Answer:
    """A file from a server that knows no ranges."""
    total = len(content) if size_bytes is None else size_bytes

    def answer(request: Request) -> None:
        request.head(200, {"Content-Length": str(total)})
        request.body(zeros_behind(content, 0, total))

    return answer


def redirect(url: str, code: int = 302, **headers: str) -> Answer:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: request.head(code, {"Location": url, "Content-Length": "0", **told})


def status(code: int) -> Answer:
    return lambda request: request.head(code, {"Content-Length": "0"})
