"""Parsers of streamed answers: bytes in, timestamped facts about the answer out. No I/O, no clock.

``SseParser`` splits server-sent events (WHATWG HTML, "Server-sent events"); an ``AnswerParser`` per protocol reads
their JSON into an ``Answer``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from pytest_llmbench.errors import RequestError

MAX_EVENT_BYTES = 16 * 1024 * 1024
_MAX_INTEGER_DIGITS = 30


@dataclass(slots=True)
class Answer:
    """What one streamed answer has said so far. Times are nanoseconds of the client's monotonic clock.

    Attributes:
        piece_times_ns: arrival of each non-empty piece of text, reasoning included: what a decode rate spans.
    """

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    piece_times_ns: list[int] = field(default_factory=list)
    t_first_token_ns: int | None = None
    t_first_event_ns: int | None = None
    t_first_reasoning_ns: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_source: str | None = None
    finish_reason: str | None = None
    server_timings: dict[str, Any] | None = None
    finished: bool = False

    def add_text(self, text: Any, t_ns: int) -> None:
        """Note a piece of the answer; an empty one is an event, not a token."""
        if isinstance(text, str) and text:
            self.text.append(text)
            self.piece_times_ns.append(t_ns)
            if self.t_first_token_ns is None:
                self.t_first_token_ns = t_ns

    def add_reasoning(self, text: Any, t_ns: int) -> None:
        """Note a piece of reasoning, which is not the answer, but is generated and counted as it is."""
        if isinstance(text, str) and text:
            self.reasoning.append(text)
            self.piece_times_ns.append(t_ns)
            if self.t_first_reasoning_ns is None:
                self.t_first_reasoning_ns = t_ns

    def add_timings(self, timings: Any) -> None:
        """Take llama.cpp's ``timings``: the counts it gives are the truth where it gives them."""
        if not isinstance(timings, dict):
            return
        self.server_timings = timings
        self.cached_tokens = _count(timings.get("cache_n"), self.cached_tokens)
        if _count(timings.get("predicted_n"), None) is not None:
            self.output_tokens = timings["predicted_n"]
            self.output_tokens_source = "timings.predicted_n"


class AnswerParser(Protocol):
    """Reads one protocol's events."""

    answer: Answer

    def on_data(self, data: bytes, t_ns: int) -> None:
        """Take in the data of one event. Raises RequestError when the server reports an error or sends no JSON."""


class SseParser:
    """Splits a byte stream into the data of server-sent events, whatever way the bytes were cut."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._size_bytes = 0  # of the lines since the last event ended

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take in bytes and return the data of each event they complete.

        Raises:
            RequestError: an event larger than any honest server sends.
        """
        events = []
        lines = (self._buffer + chunk).split(b"\n")
        self._buffer = lines.pop()
        for raw in lines:
            line = raw.removesuffix(b"\r")
            self._size_bytes += len(raw)
            self._check_size(self._size_bytes)
            if not line:
                self._size_bytes = 0
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            # Anything else is a comment or a field (event, id, retry) that no model server gives meaning to.
        self._check_size(self._size_bytes + len(self._buffer))
        return events

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > MAX_EVENT_BYTES:
            raise RequestError("bad_response", f"one event exceeds {MAX_EVENT_BYTES} bytes; this is no answer stream")


class LlamaCppCompletion:
    """llama.cpp's own ``/completion`` stream."""

    def __init__(self) -> None:
        self.answer = Answer()

    def on_data(self, data: bytes, t_ns: int) -> None:
        """See :class:`AnswerParser`."""
        event = _parse(data)
        answer = self.answer
        if answer.t_first_event_ns is None:
            answer.t_first_event_ns = t_ns
        if "error" in event:
            _raise_server_error(event["error"])
        answer.add_text(event.get("content"), t_ns)
        if event.get("stop") is True:
            stop_type = event.get("stop_type")
            if isinstance(stop_type, str):
                answer.finish_reason = "length" if stop_type == "limit" else stop_type
            answer.prompt_tokens = _count(event.get("tokens_evaluated"), None)
            answer.add_timings(event.get("timings"))
            answer.finished = True


class OpenAIChat:
    """The stream of ``/v1/chat/completions``."""

    def __init__(self) -> None:
        self.answer = Answer()

    def on_data(self, data: bytes, t_ns: int) -> None:
        """See :class:`AnswerParser`."""
        answer = self.answer
        if data.strip() == b"[DONE]":
            answer.finished = True
            return
        event = _parse(data)
        if answer.t_first_event_ns is None:
            answer.t_first_event_ns = t_ns
        if event.get("error"):
            _raise_server_error(event["error"])
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            answer.add_reasoning(delta.get("reasoning_content") or delta.get("reasoning"), t_ns)
            answer.add_text(delta.get("content"), t_ns)
        if isinstance(choice.get("finish_reason"), str):
            answer.finish_reason = choice["finish_reason"]
            answer.finished = True
        self._add_usage(event.get("usage"))
        answer.add_timings(event.get("timings"))

    def _add_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        answer = self.answer
        answer.prompt_tokens = _count(usage.get("prompt_tokens"), answer.prompt_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            answer.cached_tokens = _count(details.get("cached_tokens"), answer.cached_tokens)
        if answer.output_tokens is None and _count(usage.get("completion_tokens"), None) is not None:
            answer.output_tokens = usage["completion_tokens"]
            answer.output_tokens_source = "usage.completion_tokens"


def _count(value: Any, default: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _reject_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _finite(text: str) -> float:
    """A number that ``float`` turns into infinity could not be written into a record."""
    number = float(text)
    return number if math.isfinite(number) else _reject_constant(text)


def _integer(text: str) -> int:
    """An integer of more digits than any count has could not be divided by."""
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else _reject_constant(text)


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite, parse_int=_integer)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = _DECODER.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        shown = data[:80].decode("utf-8", "replace")
        raise RequestError("bad_response", f"the stream holds something that is not JSON: {shown!r}") from exc
    if not isinstance(event, dict):
        raise RequestError("bad_response", f"the stream holds a JSON {type(event).__name__} where an object belongs")
    return event


def _raise_server_error(error: Any) -> NoReturn:
    message = error.get("message") if isinstance(error, dict) else error
    raise RequestError("server_error_event", f"the server reported an error inside the stream: {str(message)[:500]}")
