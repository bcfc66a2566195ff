"""A chat server that has an answer written down for each question, or a way to fail. It notes how it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass(frozen=True)
class Said:
    """What comes back for one question.

    Attributes:
        http_status: of the response; with any but 200 there is no answer.
        prompt_tokens: what the server says that it has read; None: a word is a token.
    """

    text: str = ""
    reasoning: str = ""
    finish: str = "stop"
    http_status: int = 200
    model: str = "quiz"
    prompt_tokens: int | None = None


@dataclass
class QuizServer:
    """Use as a context manager.

    Attributes:
        answers: by question; of a list, the first for the first time it is asked, the last again and again.
        otherwise: to any other question.
        bodies: of all requests, in order.
        most_at_once: requests that were under way together, at most.
    """

    answers: Mapping[str, str | Said | list[Said]] = field(default_factory=dict)
    otherwise: Said = Said("I do not know.")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> QuizServer:
        self._lock = threading.Lock()
        self._at_once = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast("Any", self._server).quiz = self
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

    @property
    def asked(self) -> list[str]:
        """The questions, in order."""
        return [str(body["messages"][0]["content"]) for body in self.bodies]

    def begin(self, body: dict[str, Any]) -> Said:
        """Note a request, and find its answer."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            question = str(body["messages"][0]["content"])
            times = self.asked.count(question)
            self.bodies.append(body)
        said = self.answers.get(question, self.otherwise)
        if isinstance(said, list):
            said = said[min(times, len(said) - 1)]
        return Said(said) if isinstance(said, str) else said

    def end(self) -> None:
        """A request is about to be answered to its end."""
        with self._lock:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    def do_POST(self) -> None:
        quiz = cast("QuizServer", cast("Any", self.server).quiz)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = quiz.begin(body)
        try:
            data, kind = _stream(said, body), "text/event-stream"
            if said.http_status != 200:
                data, kind = json.dumps({"error": {"message": "out of luck"}}).encode(), "application/json"
        finally:
            quiz.end()
        self.send_response(said.http_status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _stream(said: Said, body: dict[str, Any]) -> bytes:
    def event(**fields: Any) -> bytes:
        return b"data: " + json.dumps({"model": said.model, **fields}).encode() + b"\n\n"

    def delta(content: dict[str, str], finish: str | None = None) -> bytes:
        return event(choices=[{"index": 0, "delta": content, "finish_reason": finish}])

    words = len(str(body["messages"][0]["content"]).split())
    usage = {
        "prompt_tokens": words if said.prompt_tokens is None else said.prompt_tokens,
        "completion_tokens": len((said.reasoning + said.text).split()),
    }
    pieces = [delta({"reasoning_content": f"{word} "}) for word in said.reasoning.split()]
    pieces += [delta({"content": piece}) for piece in said.text.splitlines(keepends=True)]
    pieces = [delta({"role": "assistant", "content": ""}), *pieces, delta({}, said.finish)]
    return b"".join([*pieces, event(choices=[], usage=usage), b"data: [DONE]\n\n"])
