"""A small HTTP server whose routes a test writes down. It stands in for no server of which something is claimed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

Route = tuple[int, Any] | Callable[[dict[str, Any]], tuple[int, Any]]


def chat(text: str = "four", *, model: str | None = "m", field: str = "content", finish: str = "length") -> bytes:
    """A streamed answer of ``/v1/chat/completions``."""
    named = {"model": model} if model is not None else {}
    events: list[dict[str, Any]] = [{**named, "choices": [{"index": 0, "delta": {field: text}}]}] if text else []
    events.append({**named, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def completion(text: str = "four", model: str = "m") -> bytes:
    """A streamed answer of llama.cpp's ``/completion``."""
    events = [{"content": text, "stop": False}]
    events.append({"content": "", "stop": True, "stop_type": "limit", "model": model, "tokens_evaluated": 3})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


class Routes:
    """Use as a context manager.

    Args:
        routes: status and body by ``METHOD /path`` (without the query); bytes are sent as an event stream, text as
            text, anything else as JSON. A function gets the request's JSON.
        key: the key that every request has to carry.

    Attributes:
        requests: method, path with query and JSON of every request.
    """

    def __init__(self, routes: dict[str, Route], key: str | None = None) -> None:
        self.routes = routes
        self.key = key
        self.requests: list[tuple[str, str, Any]] = []

    def __enter__(self) -> Routes:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast("Any", self._server).table = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        table = cast("Routes", cast("Any", self.server).table)
        table.requests.append((self.command, self.path, body))
        status, answer = 404, cast("Any", {"error": {"message": "no such route"}})
        if table.key is not None and self.headers["Authorization"] != f"Bearer {table.key}":
            status, answer = 401, {"error": {"message": "Invalid API Key"}}
        elif (route := table.routes.get(f"{self.command} {self.path.partition('?')[0]}")) is not None:
            status, answer = route(body) if callable(route) else route
        kinds: dict[type, str] = {bytes: "text/event-stream", str: "text/plain"}
        kind = kinds.get(type(answer), "application/json")
        data = (
            answer
            if isinstance(answer, bytes)
            else (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
