"""A fast server with an OpenAI-compatible API, for tests of the plugin. It never stands in for a claimed measurement.

It runs in a thread of the test process and misbehaves on request. With ``props`` it passes for llama.cpp's server and
speaks that one's ``/completion``, too.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

Fault = Literal[
    "short",
    "cached",
    "empty",
    "blank",
    "truncated",
    "error_event",
    "http_500",
    "not_loaded",
    "no_usage",
    "not_counted_short",
    "usage_twice",
    "another_model",
    "cut",
]


@dataclass
class FakeOpenAI:
    """Use as a context manager.

    Attributes:
        token_seconds: pause before each piece of text.
        every_second_answer_slower: factor on that pause.
        first_text_seconds: pause after the role and before anything else.
        cold_seconds: pause before the first answer that is no proof, as of a server that is not warm.
        reasoning_pieces: of the answer's pieces, how many come first and are reasoning.
        tokens_per_piece: tokens the usage counts for each piece.
        answer: sent whole instead of numbered words when not None.
        fault: how to misbehave, by model name; the key ``*`` means every model. ``cut`` reads a third of the prompt.
        faulty_requests: which requests misbehave, proofs not counted, from 0; None: every one.
        faulty_proofs: whether to misbehave from the very first, small request on, with which a backend proves a server.
        props: what ``/props`` says; None: there is no such route.
        tokenizer: what ``/tokenize`` makes of a text; None: there is no such route, and a word is a token.
        caches_prompts: whether what a prompt has in common with the one before is answered from a cache, unless the
            request forbids that; in words.
        key: what every request has to carry as its bearer token; None: nothing.
        start_time: when it was started, as ``/metrics`` tells; None: there is no such route.
        restarts_before: the request, counted from 0, before which ``start_time`` becomes another.
        dies_after: how many requests, proofs not counted, it answers before its whole process ends.
        dying_seconds: how long that process lives on when nobody listens any more.
        requests: bodies of the chat requests that came, in order, each with ``t_begin`` and ``t_end``; no proofs.
        proofs: the same of those that were proofs.
        paths: of everything that was asked, proofs included, in order.
        times_ns: when each of them arrived, by ``time.perf_counter_ns``.
    """

    models: tuple[str, ...] = ("fake",)
    token_seconds: float = 0.0002
    every_second_answer_slower: float = 1.0
    first_text_seconds: float = 0.0
    cold_seconds: float = 0.0
    answer: str | None = None
    reasoning_pieces: int = 0
    tokens_per_piece: int = 1
    fault: dict[str, Fault] = field(default_factory=dict)
    faulty_requests: Container[int] | None = None
    faulty_proofs: bool = False
    props: dict[str, Any] | None = None
    tokenizer: Callable[[str], list[int]] | None = None
    caches_prompts: bool = False
    key: str | None = None
    start_time: float | None = None
    restarts_before: int | None = None
    dies_after: int | None = None
    dying_seconds: float = 0.0
    port: int = 0
    listener: socket.socket | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    proofs: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)

    def __enter__(self) -> FakeOpenAI:
        self._last_prompt: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _Handler, bind_and_activate=self.listener is None)
        if self.listener is not None:
            self._server.socket.close()
            self._server.socket = self.listener
            self._server.server_address = self.listener.getsockname()
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

    @property
    def prompts(self) -> list[Any]:
        """What was asked, proofs left out: text, or token ids."""
        return [prompt_of(body) for body in self.requests]

    def stop_listening(self) -> None:
        """Refuse whoever comes from now on."""
        self._server.shutdown()
        self._server.socket.close()

    def fault_of(self, model: str) -> Fault | None:
        return self.fault.get(model) or self.fault.get("*")

    def fault_now(self, model: str, number: int, is_proof: bool) -> Fault | None:
        """How to misbehave in the request of this number."""
        if is_proof:
            return self.fault_of(model) if self.faulty_proofs else None
        return self.fault_of(model) if self.faulty_requests is None or number in self.faulty_requests else None

    def read(self, prompt: str | list[int], *, of_a_chat: bool, may_cache: bool) -> tuple[int, int]:
        """How many tokens a prompt has, and how many of them come from the cache."""
        if isinstance(prompt, list):
            return len(prompt), 0
        words, before = prompt.split(), self._last_prompt
        same = next((i for i, (new, old) in enumerate(zip(words, before, strict=False)) if new != old), len(before))
        self._last_prompt = words
        cached = min(same, len(words) - 1) if self.caches_prompts and may_cache else 0
        count = len(words) if self.tokenizer is None else len(self.tokenizer(prompt))
        return count + (20 if of_a_chat else 0), cached


def prompt_of(body: dict[str, Any]) -> Any:
    """The prompt of a request, whichever route it came by."""
    return body["messages"][0]["content"] if "messages" in body else body["prompt"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass

    @property
    def fake(self) -> FakeOpenAI:
        return cast("FakeOpenAI", cast("Any", self.server).fake)

    def do_GET(self) -> None:
        fake = self.fake
        self._note()
        if self._has_no_key():
            return
        if self.path == "/v1/models":
            self._json(200, {"data": [{"id": name} for name in fake.models]})
        elif self.path == "/health":
            self._json(200, {"status": "ok"})
        elif self.path == "/props" and fake.props is not None:
            self._json(200, fake.props)
        elif self.path == "/metrics" and fake.start_time is not None:
            self._send(200, "text/plain", f"process_start_time_seconds {fake.start_time}\n".encode())
        else:
            self._json(404, {"error": {"message": "no such route"}})

    def do_POST(self) -> None:
        fake = self.fake
        self._note()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._has_no_key():
            return
        if self.path == "/tokenize":
            if fake.tokenizer is None:
                self._json(404, {"error": {"message": "no such route"}})
            else:
                self._json(200, {"tokens": fake.tokenizer(str(body["content"]))})
            return
        noted = {**body, "t_begin": time.monotonic()}
        prompt = prompt_of(body)
        is_proof = isinstance(prompt, str) and prompt.startswith("Count: one")
        number = len(fake.requests)
        (fake.proofs if is_proof else fake.requests).append(noted)
        if not is_proof and number == fake.restarts_before and fake.start_time is not None:
            fake.start_time += 1
        if not is_proof and not number:
            time.sleep(fake.cold_seconds)
        model = str(body.get("model") or fake.models[0])
        fault = fake.fault_now(model, number, is_proof)
        if fault == "http_500":
            self._json(500, {"error": {"message": "out of luck"}})
        elif fault == "not_loaded":
            self._json(404, {"error": {"message": f"model {model!r} is not loaded", "type": "not_found_error"}})
        else:
            self._stream(body, model, fault)
        noted["t_end"] = time.monotonic()
        if not is_proof and number + 1 == fake.dies_after:
            if fake.dying_seconds:
                fake.stop_listening()
                time.sleep(fake.dying_seconds)
            os._exit(3)

    def _stream(self, body: dict[str, Any], model: str, fault: Fault | None) -> None:
        fake, is_chat = self.fake, "messages" in body
        asked = int(body["max_tokens"] if is_chat else body["n_predict"])
        count = max(1, asked // 2) if fault in {"short", "not_counted_short"} else asked
        words = [f"word{i} " for i in range(count // fake.tokens_per_piece)] if fake.answer is None else [fake.answer]
        words = [] if fault == "empty" else [" \n", "\t "] if fault == "blank" else words
        read, cached = fake.read(prompt_of(body), of_a_chat=is_chat, may_cache=body.get("cache_prompt") is not False)
        read, cached = read // 3 if fault == "cut" else read, 7 if fault == "cached" else cached
        self._signed = "another" if fault == "another_model" else model
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if is_chat:
            self._delta({"role": "assistant", "content": ""})
        time.sleep(fake.first_text_seconds)
        began = time.perf_counter()
        for index, word in enumerate(words):
            slower = fake.every_second_answer_slower if len(fake.requests) % 2 else 1
            time.sleep(fake.token_seconds * slower)
            if not index:
                began = time.perf_counter()
            if index == len(words) // 2 and fault == "truncated":
                self.close_connection = True
                return
            if index == len(words) // 2 and fault == "error_event":
                self._event({"error": {"message": "the engine fell over"}})
                break
            if is_chat:
                self._delta({"reasoning_content" if index < fake.reasoning_pieces else "content": word})
            else:
                self._event({"content": word, "stop": False})
        seconds = time.perf_counter() - began
        length = count == asked and fault not in {"empty", "blank"}
        tokens = count if fake.answer is None else 5
        if is_chat:
            self._end_of_chat("length" if length else "stop", fault, (read, cached, tokens))
        else:
            timings = {"cache_n": cached, "prompt_n": read - cached, "prompt_ms": 0.01 * (read - cached)}
            timings |= {"predicted_n": tokens, "predicted_ms": seconds * 1e3}
            last = {"model": self._signed, "stop_type": "limit" if length else "eos", "tokens_evaluated": read}
            self._event({"content": "", "stop": True, **last, "timings": timings})
        self._chunk(b"")

    def _end_of_chat(self, finish: str, fault: Fault | None, counts: tuple[int, int, int]) -> None:
        self._delta({}, finish)
        counted = fault != "usage_twice" or len(self.fake.requests) <= 3  # the warm-up and two samples
        if fault not in {"no_usage", "not_counted_short"} and counted:
            read, cached, tokens = counts
            usage = {
                "prompt_tokens": read,
                "completion_tokens": tokens,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
            self._event({"model": self._signed, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._event({"model": self._signed, "choices": [choice]})

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        except OSError:  # the client under test was killed
            self.close_connection = True

    def _note(self) -> None:
        self.fake.times_ns.append(time.perf_counter_ns())
        self.fake.paths.append(self.path)

    def _has_no_key(self) -> bool:
        key = self.fake.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self._json(401, {"error": {"message": "Invalid API Key", "type": "authentication_error"}})
        return True

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
