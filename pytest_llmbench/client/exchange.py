"""One request and its answer, without I/O: fed with bytes and their arrival times, asked for its deadline and outcome.

Nothing here reads a clock, so that every rule can be tested to the nanosecond.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pytest_llmbench.client.answers import ANSWER_PARSERS, words_of
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.framing import Framer, NdjsonParser, SseParser
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.http import MAX_ERROR_BODY_BYTES, ResponseParser, build_post
from pytest_llmbench.errors import RequestError

MAX_RETRIES = 2
_TELLING_KEY_CHARACTERS = 8
_END_GRACE_NS = 1_000_000_000  # for the end of the HTTP message after the last event


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait, in seconds, before a request counts as failed."""

    connect: float = 10.0
    first_token: float = 600.0
    gap: float = 120.0
    whole: float = 3600.0


class Exchange:
    """A request to be sent, being answered, or done.

    Attributes:
        request: the bytes to send.
        t_scheduled_ns: when it should have been sent, where a schedule says so.
        t_send_ns: just before the first byte was written.
        error: why it failed; only meaningful when ``done``.
        retries: how often it was sent again because a connection was lost before one byte of an answer.
        lag_ns: the longest the client was late itself meanwhile.
        first_token_lag_ns: the same until the first piece of text had come.
    """

    def __init__(self, endpoint: Endpoint, generation: Generation, deadlines: Deadlines) -> None:
        self.endpoint = endpoint
        self.deadlines = deadlines
        self.t_scheduled_ns: int | None = None
        self.connect_seconds: float | None = None
        self.connection_reused = False
        self.retries = 0
        self.error: RequestError | None = None
        self.done = False
        self.params: dict[str, Any] = {}
        self.protocol = endpoint.protocol
        self.request = b""
        self._reset()
        try:
            self.protocol, path, self.params = generation.payload(endpoint)
            address = urlsplit(endpoint.base_url)
            body = json.dumps(self.params).encode()
            self.request = build_post(address.netloc, address.path.rstrip("/") + path, body, endpoint.api_key)
        except RequestError as exc:
            self.fail(exc, 0)
        self._reset()

    def _reset(self) -> None:
        self.parser = ANSWER_PARSERS[self.protocol]()
        self.answer = self.parser.answer
        self.response = ResponseParser()
        self.t_send_ns = self.t_end_ns = 0
        self.t_first_byte_ns: int | None = None
        self.lag_ns = self.first_token_lag_ns = 0
        self._t_ended_ns: int | None = None
        self._framer: Framer | None = None
        self._kept_body: bytearray | None = None

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection can carry another request."""
        return self.error is None and self.response.complete and self.response.keeps_alive

    def client_was_late(self, lag_ns: int) -> None:
        """The client itself may have read bytes so much later than they came."""
        self.lag_ns = max(self.lag_ns, lag_ns)
        if not self.answer.piece_times_ns:
            self.first_token_lag_ns = self.lag_ns

    def sent(self, t_ns: int) -> None:
        """The first byte is about to be written."""
        self.t_send_ns = self.t_end_ns = t_ns

    def received(self, data: bytes, t_ns: int) -> bool:
        """Take in bytes of the answer; returns whether the exchange is done."""
        if self.done:
            return True
        self.t_end_ns = t_ns
        if self.t_first_byte_ns is None:
            self.t_first_byte_ns = t_ns
        try:
            for piece in self.response.feed(data):
                self._on_body(piece, t_ns)
            if self.response.complete:
                self._finish()
        except RequestError as exc:
            self.fail(exc, t_ns)
        return self.done

    def _on_body(self, piece: bytes, t_ns: int) -> None:
        if self._framer is None and self._kept_body is None:
            self._choose_reader()
        if self._framer is None:
            assert self._kept_body is not None  # noqa: S101 -- one of the two was chosen
            self._kept_body += piece[: MAX_ERROR_BODY_BYTES - len(self._kept_body)]
            return
        self._on_events(self._framer.feed(piece), t_ns)

    def _on_events(self, events: list[bytes], t_ns: int) -> None:
        on_data, answer = self.parser.on_data, self.answer
        for event in events:
            if not answer.ended:  # what comes after the last event belongs to no answer
                on_data(event, t_ns)
        if answer.ended and self._t_ended_ns is None:
            self._t_ended_ns = t_ns

    def _choose_reader(self) -> None:
        """Read a stream as such; keep what is an error message or an answer in one piece."""
        kind, ollama = self.response.content_type, self.protocol.startswith("ollama")
        if self.response.status != 200 or kind == "text/html" or (kind == "application/json" and not ollama):
            self._kept_body = bytearray()
        else:
            self._framer = NdjsonParser() if ollama else SseParser()

    def connection_lost(self, how: str, t_ns: int) -> bool:
        """The connection has ended; returns whether the request should be sent again on another one.

        Only before one byte of an answer: after it, the server has worked for this request, and its time would be lost.
        """
        if self.t_first_byte_ns is None and self.retries < MAX_RETRIES:
            self.retries += 1
            self._reset()
            return True
        self.t_end_ns = t_ns
        if self.t_first_byte_ns is None:
            again = f", {self.retries + 1} times in a row" if self.retries else ""
            self.fail(RequestError("connection_lost", f"{how} before one byte of an answer{again}"), t_ns)
            return False
        try:
            self._finish(how)
        except RequestError as exc:
            self.fail(exc, t_ns)
        return False

    def fail(self, error: RequestError, t_ns: int) -> None:
        """End the exchange with an error, in words that may be recorded: servers repeat the key they refuse."""
        message = _without_key(error.message, self.endpoint.api_key)
        self.error = error if message == error.message else RequestError(error.code, message, error.evidence)
        self.done = True
        self.t_end_ns = max(self.t_end_ns, t_ns)

    @property
    def deadline_ns(self) -> int:
        """When patience ends, by the clock that ``sent`` was told."""
        answer, limits = self.answer, self.deadlines
        whole = self.t_send_ns + int(limits.whole * 1e9)
        if self._t_ended_ns is not None:
            return min(whole, self._t_ended_ns + _END_GRACE_NS)
        times = answer.piece_times_ns
        wait = times[-1] + int(limits.gap * 1e9) if times else self.t_send_ns + int(limits.first_token * 1e9)
        return min(whole, wait)

    def time_out(self, t_ns: int) -> None:
        """Patience has ended."""
        answer, pieces = self.answer, len(self.answer.piece_times_ns)
        elapsed = (t_ns - self.t_send_ns) / 1e9
        if answer.ended:  # only the end of the HTTP message is missing
            try:
                self._finish()
            except RequestError as exc:
                self.fail(exc, t_ns)
        elif t_ns - self.t_send_ns >= int(self.deadlines.whole * 1e9):
            self.fail(RequestError("request_timeout", f"not finished after {elapsed:.1f} s; pieces: {pieces}"), t_ns)
        elif pieces:
            message = f"no text for {self.deadlines.gap:g} s after {pieces} pieces"
            self.fail(RequestError("stream_stalled", message), t_ns)
        else:
            self.fail(RequestError("first_token_timeout", f"no text within {elapsed:.1f} s"), t_ns)

    def _finish(self, how: str = "the stream ended without a final event") -> None:
        """The HTTP message, or the connection, has ended. Raises RequestError unless the answer is complete."""
        if self._framer is not None and self.response.complete:
            self._on_events(self._framer.finish(), self.t_end_ns)
        status, answer = self.response.status, self.answer
        body = bytes(self._kept_body or b"")
        if status not in {0, 200}:
            raise _http_error(status, body)
        if self._kept_body is not None:
            raise _not_a_stream(self.response.content_type, body)
        if not answer.finished:
            pieces = len(answer.piece_times_ns)
            if self.response.complete and answer.t_first_event_ns is None:
                kind = self.response.content_type or "no content type"
                raise RequestError("bad_response", f"the answer holds no event ({kind}); is this a model server?")
            raise RequestError("stream_truncated", f"{how} after {pieces} pieces of text")
        if answer.in_one_piece and (answer.output_tokens != 1 or self.response.content_type == "application/json"):
            raise _not_streamed()
        if answer.is_empty:
            where = " (all tokens went to reasoning)" if answer.reasoning else ""
            raise RequestError("empty_answer", f"the answer holds no text{where}; an empty answer is a failed request")
        self.done = True


def _without_key(message: str, key: str | None) -> str:
    """The message with the key taken out, also the beginning of one where a long text was cut off."""
    if not key:
        return message
    for length in range(len(key), min(len(key), _TELLING_KEY_CHARACTERS) - 1, -1):
        message = message.replace(key[:length], "[the key]")
    return message


def _not_a_stream(kind: str, body: bytes) -> RequestError:
    """An answer under 200 that came in one piece."""
    text = body.decode("utf-8", "replace").strip()
    if kind == "text/html":
        return RequestError(
            "not_an_llm_server", f"the server answered with a web page ({text[:60]!r}); is the address right?"
        )
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict) and parsed.get("error"):
        message = words_of(parsed["error"])
        return RequestError("server_error_event", f"the server reported an error under HTTP 200: {message}")
    if isinstance(parsed, dict) and {"choices", "content", "response", "message"} & parsed.keys():
        return _not_streamed()
    return RequestError(
        "bad_response", f"the answer is no event stream ({kind}): {text[:80]!r}; is this a model server?"
    )


def _not_streamed() -> RequestError:
    return RequestError(
        "not_streamed",
        "the server sent its answer in one piece although a stream was asked for; no time to first token can be "
        "measured so: switch streaming on there, or take the proxy out that buffers it",
    )


def _http_error(status: int, body: bytes) -> RequestError:
    text = body.decode("utf-8", "replace").strip()
    kind = ""
    evidence: dict[str, int | str] = {"http_status": status}
    try:
        parsed = json.loads(text)
        error = parsed.get("error", parsed)
        if isinstance(error, dict):
            text, kind = words_of(error), str(error.get("type", ""))
            counts = {name: error[name] for name in ("n_prompt_tokens", "n_ctx") if isinstance(error.get(name), int)}
            evidence.update(counts)
        else:
            text = words_of(error)
    except (ValueError, AttributeError, RecursionError):
        pass
    code = {401: "wrong_key", 403: "wrong_key", 404: "not_found", 429: "server_busy", 503: "server_busy"}.get(
        status, "http_error"
    )
    if status == 404 and "model" in text.lower():
        code = "model_missing"
    if kind == "exceed_context_size_error":
        code = "prompt_too_long"
    return RequestError(code, f"the server answered HTTP {status}: {text[:500] or 'without a message'}", evidence)
