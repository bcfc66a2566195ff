"""HTTP for the Ollama-speaking test server: routes, bodies, and streams of JSON lines flushed one by one.

Part of :mod:`tests.servers.ollama_server`, which is a test server and not Ollama.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from tests.servers.ollama_engine import OllamaError
from tests.servers.ollama_models import Json

Answer = Json | Iterator[Json] | None
Route = Callable[[Json], Answer]
Watcher = Callable[[str, str, Json], AbstractContextManager[None]]
_BLOBS = "/api/blobs/"
_PIECE_BYTES = 1 << 20


class BlobStore(Protocol):
    """Where uploads go."""

    def has_blob(self, digest: str) -> bool: ...

    def receive_blob(self, digest: str, content: Iterator[bytes]) -> None: ...


class HttpServer(ThreadingHTTPServer):
    """One thread for each connection. Unlike its base class it can hang up on all of them, so that threads end."""

    daemon_threads = False
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], routes: Mapping[tuple[str, str], Route], blobs: BlobStore, watch: Watcher
    ) -> None:
        self.routes = routes
        self.blobs = blobs
        self.watch = watch
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End every connection; whoever writes to one finds out."""
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news; anything else is a mistake of ours and is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "llmbench-ollama-test-server"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    @property
    def _http(self) -> HttpServer:
        return cast("HttpServer", self.server)

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_DELETE(self) -> None:
        self._respond()

    def _respond(self) -> None:
        self._began = False
        path = urlsplit(self.path).path
        try:
            if path.startswith(_BLOBS):
                self._blob(path.removeprefix(_BLOBS))
                return
            raw = b"".join(self._content())
            route = self._route(path)
            body = self._body(raw) if self.command in {"POST", "DELETE"} else {}
            with self._http.watch(self.command, path, body):
                self._answer(path, route(body), streams=body.get("stream") is not False)
        except OllamaError as exc:
            if self._began:
                self._line({"error": exc.message})
                self._chunk(b"")
            else:
                self._whole(exc.status, {"error": exc.message})

    def _route(self, path: str) -> Route:
        routes = self._http.routes
        if found := routes.get(("GET" if self.command == "HEAD" else self.command, path)):
            return found
        known = any(path == other for _, other in routes)
        raise OllamaError(405, "method not allowed") if known else OllamaError(404, "page not found")

    def _answer(self, path: str, answer: Answer, *, streams: bool) -> None:
        if path == "/":
            self._send(200, "text/plain; charset=utf-8", b"Ollama is running")
        elif answer is None:
            self._send(200, "text/plain; charset=utf-8", b"")
        elif isinstance(answer, dict):
            self._whole(200, answer)
        else:
            with closing(cast("Any", answer)):  # a client that leaves ends the answer
                if streams:
                    self._stream(answer)
                else:
                    self._whole(200, _together(list(answer)))

    def _stream(self, answer: Iterator[Json]) -> None:
        for line in answer:
            if not self._began:
                self._began = True  # only now: an error before the first line has a status of its own
                self.send_response(200)
                self.send_header("Content-Type", "application/x-ndjson")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
            self._line(line)
        self._chunk(b"") if self._began else self._send(200, "application/x-ndjson", b"")

    def _line(self, line: Json) -> None:
        self._chunk(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _whole(self, status: int, body: Json) -> None:
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self._send(status, "application/json; charset=utf-8", data)

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self, raw: bytes) -> Json:
        if not raw:
            raise OllamaError(400, "missing request body")
        try:
            body = json.loads(raw)
        except ValueError as exc:
            raise OllamaError(400, str(exc)) from exc
        if not isinstance(body, dict):
            raise OllamaError(400, "json: cannot unmarshal into the request")
        return body

    def _blob(self, digest: str) -> None:
        with self._http.watch(self.command, _BLOBS + digest, {}):
            if self.command == "HEAD":
                self._send(200 if self._http.blobs.has_blob(digest) else 404, "application/json", b"")
            elif self.command == "POST":
                content = self._content()
                try:
                    known = self._http.blobs.has_blob(digest)
                    if not known:
                        self._http.blobs.receive_blob(digest, content)
                finally:
                    for _ in content:  # what is not wanted would be taken for the next request
                        pass
                self._send(200 if known else 201, "text/plain", b"")
            else:
                raise OllamaError(405, "method not allowed")

    def _content(self) -> Iterator[bytes]:
        """The request's body in pieces, whichever way its length is told."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the upload broke off")
            left -= len(piece)
            yield piece


def _together(objects: list[Json]) -> Json:
    """A stream as one object: the last one, with all the text. Where the final object is missing, so is its end."""
    last = dict(objects[-1]) if objects else {}
    if "message" in last:
        last["message"] = _joined([line["message"] for line in objects], "content")
        return last
    return _joined(objects, "response") if "response" in last else last


def _joined(objects: list[Json], text: str) -> Json:
    thinking = "".join(line.get("thinking", "") for line in objects)
    joined = {**objects[-1], text: "".join(line[text] for line in objects)}
    return {**joined, "thinking": thinking} if thinking else joined
