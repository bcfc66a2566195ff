"""What the events of each protocol say: timestamped facts about one answer. No I/O, no clock."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import orjson

from pytest_llmbench.client.endpoint import ProtocolName
from pytest_llmbench.errors import RequestError

_MAX_INTEGER_DIGITS = 30
_OLLAMA_FIELDS = {"message", "response", "thinking", "done"}


@dataclass(slots=True)
class Answer:
    """What one streamed answer has said so far. Times are nanoseconds of the client's monotonic clock.

    Attributes:
        piece_times_ns: arrival of each non-empty piece of text, reasoning and tool calls included: what a decode rate
            spans, because the server counts their tokens too.
        tool_calls: name and arguments (JSON as text, as it was streamed) of each call, by position.
        ended: no further event belongs to this answer.
        finished: the server said that the answer is complete.
        in_one_piece: the only event was the whole answer.
        response_model: the name of the model that answered, as the server tells it.
    """

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)
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
    response_id: str | None = None
    response_model: str | None = None
    truncated_prompt: bool = False
    in_one_piece: bool = False
    finished: bool = False
    ended: bool = False

    @property
    def is_empty(self) -> bool:
        """Neither text that is more than white space nor a tool call."""
        return not self.tool_calls and not "".join(self.text).strip()

    def begin(self, event: dict[str, Any], t_ns: int) -> None:
        """Note the first event: who answers."""
        self.t_first_event_ns = t_ns
        model, identifier = event.get("model"), event.get("id")
        self.response_model = model if isinstance(model, str) and model else None
        if isinstance(identifier, str) and identifier:
            self.response_id = identifier

    def add_text(self, text: Any, t_ns: int) -> None:
        """Note a piece of the answer; an empty one is an event, not a token."""
        if text and isinstance(text, str):
            self.text.append(text)
            self.piece_times_ns.append(t_ns)
            if self.t_first_token_ns is None:
                self.t_first_token_ns = t_ns

    def add_reasoning(self, text: Any, t_ns: int) -> None:
        """Note a piece of reasoning, which is not the answer, but is generated and counted as it is."""
        if text and isinstance(text, str):
            self.reasoning.append(text)
            self.piece_times_ns.append(t_ns)
            if self.t_first_reasoning_ns is None:
                self.t_first_reasoning_ns = t_ns

    def add_tool_calls(self, calls: Any, t_ns: int, *, whole: bool = False) -> None:
        """Note pieces of tool calls. A call is the answer, so its first piece is the answer's first token.

        Args:
            whole: each is a call of its own (Ollama's), not a piece of the one at its index.
        """
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                continue
            index = len(self.tool_calls) if whole else _count(call.get("index"), position) or 0
            known = self.tool_calls.setdefault(index, {"name": "", "arguments": ""})
            for part in ("name", "arguments"):
                value = function.get(part)
                if isinstance(value, dict):  # Ollama sends arguments as an object
                    value = _to_json(value)
                known[part] += value if isinstance(value, str) else ""
            self.piece_times_ns.append(t_ns)
            if self.t_first_token_ns is None:
                self.t_first_token_ns = t_ns

    def add_timings(self, timings: Any) -> None:
        """Take llama.cpp's ``timings``: the counts it gives are the truth where it gives them."""
        if not isinstance(timings, dict):
            return
        self.server_timings = timings
        self.cached_tokens = _count(timings.get("cache_n"), self.cached_tokens)
        if _count(timings.get("predicted_n"), None) is not None:
            self.output_tokens = timings["predicted_n"]
            self.output_tokens_source = "timings.predicted_n"

    def add_usage(self, usage: Any) -> None:
        """Take OpenAI's ``usage``, which comes in the last chunk, in one of its own, or not at all."""
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)
        counted = _count(usage.get("completion_tokens"), None)
        if counted is not None and self.output_tokens_source != "timings.predicted_n":
            self.output_tokens = counted  # some servers repeat it in every chunk; the last one counts
            self.output_tokens_source = "usage.completion_tokens"


class AnswerParser(Protocol):
    """Reads one protocol's events."""

    answer: Answer

    def on_data(self, data: bytes, t_ns: int) -> None:
        """Take in the data of one event. Raises RequestError when the server reports an error or sends no JSON."""


class LlamaCppCompletion:
    """llama.cpp's own ``/completion`` stream."""

    def __init__(self) -> None:
        self.answer = Answer()

    def on_data(self, data: bytes, t_ns: int) -> None:
        """See :class:`AnswerParser`."""
        event, answer = parse_object(data), self.answer
        if answer.t_first_event_ns is None:
            answer.begin(event, t_ns)
        if "error" in event:
            raise_server_error(event["error"])
        answer.add_text(event.get("content"), t_ns)
        if event.get("stop") is True:
            stop_type, model = event.get("stop_type"), event.get("model")
            if isinstance(stop_type, str):
                answer.finish_reason = "length" if stop_type == "limit" else stop_type
            if isinstance(model, str) and model:
                answer.response_model = model
            answer.prompt_tokens = _count(event.get("tokens_evaluated"), None)
            answer.truncated_prompt = event.get("truncated") is True
            answer.add_timings(event.get("timings"))
            answer.finished = answer.ended = True


class OpenAIStream:
    """The streams of ``/v1/chat/completions`` and ``/v1/completions``."""

    def __init__(self) -> None:
        self.answer = Answer()

    def on_data(self, data: bytes, t_ns: int) -> None:
        """See :class:`AnswerParser`."""
        answer = self.answer
        if data.strip() == b"[DONE]":
            answer.finished = answer.ended = True
            return
        event = parse_object(data)
        if answer.t_first_event_ns is None:
            answer.begin(event, t_ns)
        if event.get("error"):
            raise_server_error(event["error"])
        choices = event.get("choices")
        if choices and isinstance(choices, list) and isinstance(choices[0], dict):
            self._on_choice(choices[0], t_ns)
        if "usage" in event:
            answer.add_usage(event["usage"])
        if "timings" in event:
            answer.add_timings(event["timings"])

    def _on_choice(self, choice: dict[str, Any], t_ns: int) -> None:
        answer, delta = self.answer, choice.get("delta")
        if isinstance(delta, dict):
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if reasoning:
                answer.add_reasoning(reasoning, t_ns)
            answer.add_text(delta.get("content"), t_ns)
            if "tool_calls" in delta:
                answer.add_tool_calls(delta["tool_calls"], t_ns)
        else:
            answer.add_text(choice.get("text"), t_ns)
        reason = choice.get("finish_reason")
        if reason and isinstance(reason, str):
            answer.finish_reason = reason
            answer.finished = True


class OllamaStream:
    """The streams of ``/api/generate`` and ``/api/chat``. Ollama leaves out fields that are zero."""

    def __init__(self) -> None:
        self.answer = Answer()

    def on_data(self, data: bytes, t_ns: int) -> None:
        """See :class:`AnswerParser`."""
        event, answer = parse_object(data), self.answer
        is_first = answer.t_first_event_ns is None
        if is_first:
            answer.begin(event, t_ns)
        if event.get("error"):
            raise_server_error(event["error"])
        if is_first and not _OLLAMA_FIELDS & event.keys():
            raise RequestError("bad_response", f"the stream holds {data[:80]!r}; is this an Ollama server?")
        message = event.get("message")
        if isinstance(message, dict):
            answer.add_reasoning(message.get("thinking"), t_ns)
            answer.add_text(message.get("content"), t_ns)
            answer.add_tool_calls(message.get("tool_calls"), t_ns, whole=True)
        else:
            answer.add_reasoning(event.get("thinking"), t_ns)
            answer.add_text(event.get("response"), t_ns)
        if event.get("done") is True:
            reason = event.get("done_reason")
            answer.finish_reason = reason if isinstance(reason, str) else None
            answer.prompt_tokens = _count(event.get("prompt_eval_count"), None)
            answer.output_tokens = _count(event.get("eval_count"), 0)
            answer.output_tokens_source = "eval_count"
            answer.in_one_piece = is_first and bool(answer.piece_times_ns)
            answer.server_timings = {
                key: value for key, value in event.items() if key.endswith(("_count", "_duration"))
            }
            answer.finished = answer.ended = True


ANSWER_PARSERS: dict[ProtocolName, Callable[[], AnswerParser]] = {
    "llama_cpp": LlamaCppCompletion,
    "openai_chat": OpenAIStream,
    "openai_completions": OpenAIStream,
    "ollama_generate": OllamaStream,
    "ollama_chat": OllamaStream,
}


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError as exc:
        raise RequestError("bad_response", "a tool call's arguments are nested absurdly deep") from exc


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


_LENIENT_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite, parse_int=_integer)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object, also one with lone surrogates or broken UTF-8 in its strings, as models do produce them.

    Raises:
        RequestError: ``bad_response``.
    """
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        event = _parse_leniently(data)
    if not isinstance(event, dict):
        raise RequestError("bad_response", f"the stream holds a JSON {type(event).__name__} where an object belongs")
    return event


def _parse_leniently(data: bytes) -> Any:
    try:
        return _LENIENT_DECODER.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        shown = data[:80].decode("utf-8", "replace")
        raise RequestError("bad_response", f"the stream holds something that is not JSON: {shown!r}") from exc


def raise_server_error(error: Any) -> NoReturn:
    """Turn an error inside a stream into ours.

    Raises:
        RequestError: ``server_error_event``.
    """
    raise RequestError("server_error_event", f"the server reported an error inside the stream: {words_of(error)}")


def words_of(error: Any) -> str:
    """What an error says that a server describes in JSON: its message, or all of it; at most 500 characters."""
    message = error.get("message", error) if isinstance(error, dict) else error
    try:
        return str(message)[:500]
    except RecursionError:
        return "something nested absurdly deep"
