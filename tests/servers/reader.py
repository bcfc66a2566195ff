"""A server that reads long prompts at once: it counts tokens its own way, finds a planted code, and keeps a cache.

It speaks llama.cpp's ``/completion`` and ``/tokenize``, and OpenAI's chat. It never stands in for a claimed
measurement.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

_CODE = re.compile(r"The code of the ([\w ]+) is (\d{5})\.")
_ASKED = re.compile(r"The code of the ([\w ]+) is$")


def pieces(text: str) -> list[str]:
    """Tokens as many tokenizers make them: words, digits one by one, marks, line breaks."""
    return re.findall(r"\d|[^\W\d]+|[^\w\s]|\n", text)


@dataclass
class Reader:
    """Use as a context manager.

    Attributes:
        split: makes tokens of a text.
        around: tokens that the template puts around each message of a chat.
        tokenizer: what ``/tokenize`` makes of a text; None: there is no such route.
        counts: whether it tells how many tokens it has read.
        reads_at_most: of a prompt; the rest is cut in silence.
        knows: whether it finds the code in a prompt of so many tokens.
        otherwise: what it answers where it is asked for no code, or does not know it.
        filler: the word that makes its answers as long as asked for.
        answers_at_most: tokens, whatever is asked for.
        fails_from: prompts of so many tokens are answered with an error.
        caches: whether it answers from a cache: ``allowed``, only where the request allows it; ``always``; ``never``.
        model: signs the answers; the second of a pair signs all but the first.
        requests: bodies of all requests for an answer, in order.
        read: tokens of their prompts, as told.
    """

    split: Callable[[str], list[str]] = pieces
    around: int = 10
    tokenizer: Callable[[str], list[str]] | None = pieces
    counts: bool = True
    reads_at_most: int | None = None
    knows: Callable[[int], bool] = lambda tokens: True
    otherwise: str = "unknown."
    filler: str = " so"
    answers_at_most: int | None = None
    fails_from: int | None = None
    caches: str = "allowed"
    model: tuple[str, ...] = ("m",)
    requests: list[dict[str, Any]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def __enter__(self) -> Reader:
        self.kept: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        cast("Any", self._server).reader = self
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

    def text_of(self, body: dict[str, Any]) -> str:
        """All that a request gives to read."""
        return str(body["prompt"]) if "prompt" in body else "".join(m["content"] for m in body["messages"])

    def count(self, body: dict[str, Any]) -> int:
        """Tokens of a request's prompt, the template's included."""
        return len(self.split(self.text_of(body))) + self.around * len(body.get("messages", ()))

    def cached(self, body: dict[str, Any]) -> int:
        """How many tokens of a request come from the cache; what it reads is kept in it."""
        tokens, before = self.split(self.text_of(body)), self.kept
        same = next((i for i, (new, old) in enumerate(zip(tokens, before, strict=False)) if new != old), len(before))
        self.kept = tokens
        if self.caches == "never" or (self.caches == "allowed" and body.get("cache_prompt") is False):
            return 0
        return min(same, len(tokens) - 1)

    def answer(self, body: dict[str, Any], tokens: int) -> str:
        """The code that is asked for, where it stands in what was read."""
        text = self.text_of(body)
        asked = _ASKED.search(text)
        codes = dict(_CODE.findall(text))
        return f"{codes[asked[1]]}." if asked and self.knows(tokens) and asked[1] in codes else self.otherwise


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    @property
    def reader(self) -> Reader:
        return cast("Reader", cast("Any", self.server).reader)

    def do_POST(self) -> None:
        reader = self.reader
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            found = {"tokens": list(range(len(reader.tokenizer(body["content"]))))} if reader.tokenizer else {}
            self._send(200 if found else 404, "application/json", json.dumps(found).encode())
            return
        count = reader.count(body)
        reader.requests.append(body)
        if reader.fails_from is not None and count >= reader.fails_from:
            error = {"error": {"message": "out of memory"}}
            self._send(500, "application/json", json.dumps(error).encode())
            return
        cached, read = reader.cached(body), min(count, reader.reads_at_most or count)
        reader.read.append(read)
        asked = int(body["n_predict"] if "n_predict" in body else body["max_tokens"])
        told = min(asked, reader.answers_at_most or asked)
        words = [*pieces(reader.answer(body, read)), *[reader.filler] * told][:told]
        events = _chat if "messages" in body else _completion
        model = reader.model[min(len(reader.requests), len(reader.model)) - 1]
        counts = (read, cached) if reader.counts else None
        stream = b"".join(
            b"data: " + json.dumps(event).encode() + b"\n\n" for event in events(words, model, told == asked, counts)
        )
        self._send(200, "text/event-stream", stream + b"data: [DONE]\n\n" * ("messages" in body))

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _completion(words: list[str], model: str, whole: bool, counts: tuple[int, int] | None) -> list[dict[str, Any]]:
    timings: dict[str, Any] = {"predicted_n": len(words), "predicted_ms": 1.0}
    last: dict[str, Any] = {"content": "", "stop": True, "model": model, "stop_type": "limit" if whole else "eos"}
    if counts is not None:
        read, cached = counts
        last["tokens_evaluated"] = read
        timings |= {"cache_n": cached, "prompt_n": read - cached, "prompt_ms": 0.01 * (read - cached)}
    return [*({"content": word, "stop": False} for word in words), {**last, "timings": timings}]


def _chat(words: list[str], model: str, whole: bool, counts: tuple[int, int] | None) -> list[dict[str, Any]]:
    deltas = [{"model": model, "choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    end = {"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "length" if whole else "stop"}]}
    if counts is None:
        return [*deltas, end]
    read, cached = counts
    usage = {"prompt_tokens": read, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": cached}}
    return [*deltas, end, {"model": model, "choices": [], "usage": usage}]
