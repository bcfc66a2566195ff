"""One request: what is asked, sent on a fresh connection, timed, and told as a record.

A fresh connection each time, opened before the clock starts: llama.cpp's server closes after a streamed answer even
where it promised to keep alive, and a request lost to a stale connection is a wrong result.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from pytest_llmbench.client.http import MAX_ERROR_BODY_BYTES, ResponseParser, build_post
from pytest_llmbench.client.protocols import Answer, AnswerParser, LlamaCppCompletion, OpenAIChat, SseParser
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.errors import RequestError

ProtocolName = Literal["llama_cpp", "openai_chat"]
_PARSERS: dict[ProtocolName, Callable[[], AnswerParser]] = {
    "llama_cpp": LlamaCppCompletion,
    "openai_chat": OpenAIChat,
}
_RECEIVE_BYTES = 64 * 1024
MAX_CHUNKING_BIAS = 0.02


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait, in seconds, before a request counts as failed."""

    connect: float = 10.0
    first_token: float = 600.0
    gap: float = 120.0
    whole: float = 3600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens and what it understands.

    Attributes:
        completion_protocol: what performance is measured with: llama.cpp's own where it is spoken (no chat template,
            exact length), else chat.
        ignores_end_of_sequence: honours ``ignore_eos``, so that a length can be demanded.
        controls_cache: honours ``cache_prompt``.
    """

    base_url: str
    completion_protocol: ProtocolName
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    ignores_end_of_sequence: bool = False
    controls_cache: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """What is asked: a prompt to continue, or chat messages. Greedy unless a temperature is given."""

    max_tokens: int
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    demand_length: bool = False
    temperature: float = 0.0

    def payload(self, endpoint: Endpoint) -> tuple[ProtocolName, str, dict[str, Any]]:
        """Protocol, path and JSON body for this endpoint."""
        body: dict[str, Any] = {"stream": True, "temperature": self.temperature}
        if self.demand_length and endpoint.ignores_end_of_sequence:
            body["ignore_eos"] = True
        if endpoint.controls_cache:
            body["cache_prompt"] = False
        if self.messages is None and endpoint.completion_protocol == "llama_cpp":
            return "llama_cpp", "/completion", {**body, "prompt": self.prompt, "n_predict": self.max_tokens}
        messages = self.messages or ({"role": "user", "content": self.prompt or ""},)
        body |= {
            "messages": list(messages),
            "max_tokens": self.max_tokens,
            "stream_options": {"include_usage": True},
        }
        if endpoint.model is not None:
            body["model"] = endpoint.model
        return "openai_chat", "/v1/chat/completions", body


def send(
    endpoint: Endpoint,
    generation: Generation,
    *,
    cell: str | None = None,
    index: int = 0,
    phase: Literal["warmup", "sample"] = "sample",
    deadlines: Deadlines | None = None,
) -> RequestRecord:
    """Send one request and time its answer. Never raises for what a server does: the record says what went wrong."""
    protocol, path, body = generation.payload(endpoint)
    exchange = _Exchange(_PARSERS[protocol](), deadlines or Deadlines())
    error: RequestError | None = None
    try:
        exchange.run(endpoint, path, json.dumps(body).encode())
    except RequestError as exc:
        error = _without_key(exc, endpoint.api_key)
    return _record(exchange, protocol, body, error, cell=cell, index=index, phase=phase)


class _Exchange:
    """One request on one connection: the only place where the clock is read."""

    def __init__(self, parser: AnswerParser, deadlines: Deadlines) -> None:
        self.parser = parser
        self.deadlines = deadlines
        self.t_send_ns = self.t_end_ns = time.perf_counter_ns()
        self.t_first_byte_ns: int | None = None
        self.connect_seconds: float | None = None

    def run(self, endpoint: Endpoint, path: str, body: bytes) -> None:
        address = urlsplit(endpoint.base_url)
        request = build_post(address.netloc, address.path.rstrip("/") + path, body, endpoint.api_key)
        try:
            with self._connect(endpoint.base_url) as connection:
                self._stream(connection, request)
        finally:
            self.t_end_ns = time.perf_counter_ns()

    def _connect(self, base_url: str) -> socket.socket:
        address = urlsplit(base_url)
        secure = address.scheme == "https"
        started_ns = time.perf_counter_ns()
        try:
            connection = socket.create_connection(
                (address.hostname or "", address.port or (443 if secure else 80)), timeout=self.deadlines.connect
            )
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if secure:
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=address.hostname)
        except TimeoutError as exc:
            raise RequestError(
                "connect_timeout",
                f"{base_url}: no connection within {self.deadlines.connect:g} s; is the host reachable?",
            ) from exc
        except ssl.SSLError as exc:
            raise RequestError("tls_failed", f"{base_url}: TLS failed: {exc.reason or exc}; check the scheme") from exc
        except ConnectionRefusedError as exc:
            raise RequestError("connection_refused", f"{base_url}: nothing listens there; start the server") from exc
        except OSError as exc:
            raise RequestError("unreachable", f"{base_url}: can not be reached: {exc.strerror or exc}") from exc
        self.connect_seconds = (time.perf_counter_ns() - started_ns) / 1e9
        return connection

    def _stream(self, connection: socket.socket, request: bytes) -> None:
        response, sse = ResponseParser(), SseParser()
        error_body = b""
        try:
            self.t_send_ns = time.perf_counter_ns()
            connection.sendall(request)
            while not response.complete:
                connection.settimeout(self._patience())
                data = connection.recv(_RECEIVE_BYTES)
                t_ns = time.perf_counter_ns()
                if not data:
                    break
                if self.t_first_byte_ns is None:
                    self.t_first_byte_ns = t_ns
                for piece in response.feed(data):
                    if response.status != 200:
                        error_body = (error_body + piece)[:MAX_ERROR_BODY_BYTES]
                        continue
                    for event in sse.feed(piece):
                        self.parser.on_data(event, t_ns)
        except TimeoutError as exc:
            raise self._too_late() from exc
        except OSError as exc:
            raise self._cut_off(f"the connection broke ({exc.strerror or exc})") from exc
        if response.status not in {0, 200}:
            raise _http_error(response.status, error_body)
        self._check_complete(response)

    def _patience(self) -> float:
        """Seconds until the nearest deadline. Raises TimeoutError after it, also where bytes come without a pause."""
        elapsed = (time.perf_counter_ns() - self.t_send_ns) / 1e9
        limit = self.deadlines.gap if self.parser.answer.piece_times_ns else self.deadlines.first_token - elapsed
        patience = min(limit, self.deadlines.whole - elapsed)
        if patience <= 0:  # and 0 would mean not to block
            raise TimeoutError
        return patience

    def _too_late(self) -> RequestError:
        elapsed = (time.perf_counter_ns() - self.t_send_ns) / 1e9
        tokens = len(self.parser.answer.piece_times_ns)
        if elapsed >= self.deadlines.whole:
            return RequestError("request_timeout", f"not finished after {elapsed:.0f} s, {tokens} pieces had arrived")
        if tokens:
            return RequestError("stream_stalled", f"nothing for {self.deadlines.gap:g} s after {tokens} pieces")
        return RequestError("first_token_timeout", f"no text within {elapsed:.0f} s")

    def _cut_off(self, how: str) -> RequestError:
        if self.t_first_byte_ns is None:
            return RequestError("connection_lost", f"{how} before one byte of an answer")
        return RequestError("stream_truncated", f"{how} after {len(self.parser.answer.piece_times_ns)} pieces of text")

    def _check_complete(self, response: ResponseParser) -> None:
        answer = self.parser.answer
        if not answer.finished:
            if response.complete and answer.t_first_event_ns is None:
                kind = response.headers.get("content-type", "no content type")
                raise RequestError("bad_response", f"the answer is no event stream ({kind}); is this a model server?")
            raise self._cut_off("the stream ended without a final event")
        if not "".join(answer.text).strip():
            where = " (all tokens went to reasoning)" if answer.reasoning else ""
            raise RequestError("empty_answer", f"the answer holds no text{where}; an empty answer is a failed request")


def _without_key(error: RequestError, api_key: str | None) -> RequestError:
    """The error as it may be recorded: servers repeat the key they refuse, and records are passed on."""
    if not api_key or api_key not in error.message:
        return error
    return RequestError(error.code, error.message.replace(api_key, "[the key]"), error.evidence)


def _http_error(status: int, body: bytes) -> RequestError:
    text = body.decode("utf-8", "replace").strip()
    try:
        parsed = json.loads(text)
        error = parsed.get("error", parsed)
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        pass
    code = {401: "wrong_key", 403: "wrong_key", 404: "not_found", 503: "server_busy"}.get(status, "http_error")
    return RequestError(code, f"the server answered HTTP {status}: {text[:500] or 'without a message'}")


def _record(
    exchange: _Exchange,
    protocol: ProtocolName,
    body: dict[str, Any],
    error: RequestError | None,
    *,
    cell: str | None,
    index: int,
    phase: Literal["warmup", "sample"],
) -> RequestRecord:
    answer, times = exchange.parser.answer, exchange.parser.answer.piece_times_ns
    return RequestRecord(
        cell=cell,
        index=index,
        phase=phase,
        ok=error is None,
        error=error.code if error else None,
        error_message=error.message if error else None,
        protocol=protocol,
        t_send_ns=exchange.t_send_ns,
        t_first_byte_ns=exchange.t_first_byte_ns,
        t_first_event_ns=answer.t_first_event_ns,
        t_first_reasoning_ns=answer.t_first_reasoning_ns,
        t_first_token_ns=answer.t_first_token_ns,
        t_last_token_ns=times[-1] if times else None,
        t_end_ns=exchange.t_end_ns,
        connect_seconds=exchange.connect_seconds,
        ttft_seconds=_seconds_since(exchange.t_send_ns, answer.t_first_token_ns),
        time_to_first_reasoning_seconds=_seconds_since(exchange.t_send_ns, answer.t_first_reasoning_ns),
        decode_tokens_per_second=_decode_rate(answer),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        output_tokens=answer.output_tokens,
        output_tokens_source=answer.output_tokens_source,
        chunks=len(times),
        token_offsets_us=[(t - exchange.t_send_ns) // 1000 for t in times],
        finish_reason=answer.finish_reason,
        server_timings=answer.server_timings,
        params={key: value for key, value in body.items() if key != "stream"},
        output="".join(answer.text),
        reasoning="".join(answer.reasoning),
    )


def _seconds_since(start_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else (end_ns - start_ns) / 1e9


def _decode_rate(answer: Answer) -> float | None:
    """``(output_tokens − 1) / (last − first piece of text)``; None where that would not be the rate.

    Reasoning counts, because the server counts it. Without the server's count there is no rate. With k tokens a piece,
    the first piece brings k tokens for whose generation no time is seen: the rate is too high by about
    (k − 1) / (output_tokens − 1), and absent where that exceeds 2 %.
    """
    times, tokens = answer.piece_times_ns, answer.output_tokens
    if tokens is None or tokens < 2 or len(times) < 2 or times[-1] == times[0]:
        return None
    if (tokens / len(times) - 1) / (tokens - 1) > MAX_CHUNKING_BIAS:
        return None
    return (tokens - 1) / ((times[-1] - times[0]) / 1e9)
