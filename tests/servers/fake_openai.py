"""A fast server with an OpenAI-compatible API, for tests of the plugin. It never stands in for a claimed measurement.

It runs in a thread of the test process and misbehaves on request.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

Fault = Literal[
    "short", "cached", "empty", "truncated", "error_event", "http_500", "no_usage", "not_counted_short", "usage_twice"
]


@dataclass
class FakeOpenAI:
    """Use as a context manager.

    Attributes:
        token_seconds: pause before each piece of text.
        every_second_answer_slower: factor on that pause.
        reasoning_pieces: of the answer's pieces, how many come first and are reasoning.
        tokens_per_piece: tokens the usage counts for each piece.
        answer: sent whole instead of numbered words when not None.
        fault: how to misbehave, by model name; the key ``*`` means every model.
        faulty_proofs: whether to misbehave from the very first, small request on, with which a backend proves a server.
        requests: bodies of the chat requests that came, in order, each with ``t_begin`` and ``t_end``; no proofs.
        paths: of everything that was asked, proofs included, in order.
    """

    models: tuple[str, ...] = ("fake",)
    token_seconds: float = 0.0002
    every_second_answer_slower: float = 1.0
    answer: str | None = None
    reasoning_pieces: int = 0
    tokens_per_piece: int = 1
    fault: dict[str, Fault] = field(default_factory=dict)
    props: dict[str, Any] | None = None
    faulty_proofs: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __enter__(self) -> FakeOpenAI:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast("Any", self._server).fake = self
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

    def fault_of(self, model: str) -> Fault | None:
        return self.fault.get(model) or self.fault.get("*")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    @property
    def fake(self) -> FakeOpenAI:
        return cast("FakeOpenAI", cast("Any", self.server).fake)

    def do_GET(self) -> None:
        self.fake.paths.append(self.path)
        if self.path == "/v1/models":
            self._json(200, {"data": [{"id": name} for name in self.fake.models]})
        elif self.path == "/props" and self.fake.props is not None:
            self._json(200, self.fake.props)
        else:
            self._json(404, {"error": {"message": "no such route"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.paths.append(self.path)
        noted = {**body, "t_begin": time.monotonic()}
        is_proof = body["messages"][0]["content"].startswith("Count: one")
        if not is_proof:
            self.fake.requests.append(noted)
        fault = self.fake.fault_of(body["model"]) if self.fake.faulty_proofs or not is_proof else None
        if fault == "http_500":
            self._json(500, {"error": {"message": "out of luck"}})
        else:
            self._stream(body, fault)
        noted["t_end"] = time.monotonic()

    def _stream(self, body: dict[str, Any], fault: Fault | None) -> None:
        asked = int(body["max_tokens"])
        count = max(1, asked // 2) if fault in {"short", "not_counted_short"} else asked
        words = (
            [f"word{i} " for i in range(count // self.fake.tokens_per_piece)]
            if self.fake.answer is None
            else [self.fake.answer]
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._delta({"role": "assistant", "content": ""})
        for index, word in enumerate([] if fault == "empty" else words):
            slower = self.fake.every_second_answer_slower if len(self.fake.requests) % 2 else 1
            time.sleep(self.fake.token_seconds * slower)
            if index == len(words) // 2 and fault == "truncated":
                self.close_connection = True
                return
            if index == len(words) // 2 and fault == "error_event":
                self._event({"error": {"message": "the engine fell over"}})
                break
            field = "reasoning_content" if index < self.fake.reasoning_pieces else "content"
            self._delta({field: word})
        finish = "length" if count == asked and fault != "empty" else "stop"
        self._event({"model": body["model"], "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        counted = fault != "usage_twice" or len(self.fake.requests) <= 3  # the warm-up and two samples
        if fault not in {"no_usage", "not_counted_short"} and counted:
            cached = 7 if fault == "cached" else 0
            usage = {
                "prompt_tokens": 20 + len(str(body["messages"][0]["content"]).split()),
                "completion_tokens": count if self.fake.answer is None else 5,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
            self._event({"model": body["model"], "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _delta(self, delta: dict[str, Any]) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        except OSError:  # the client under test was killed
            self.close_connection = True

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
