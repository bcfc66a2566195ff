"""What the replay server says, in each of the protocols it speaks, and what it notes down of having said it."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass, field
from typing import Any

WORDS = (" one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")
MODEL = "replay"
DEFAULT_TOKENS = 16
MAX_TOKENS = 100_000_000


@dataclass(slots=True)
class Truth:
    """What really happened to one request. Times are nanoseconds of the monotonic clock.

    Attributes:
        client_id: the ``X-Request-Id`` that the client sent, if any.
        planned: tokens that were asked for.
        t_write_ns: read just before the send call of each token; of the first and the last only if ``ends_only``.
        blocked_writes: tokens that the kernel did not take when they were due, because the client did not read.
    """

    id: str
    path: str
    planned: int
    prompt_tokens: int
    t_request_read_ns: int
    ends_only: bool
    client_id: str | None = None
    t_write_ns: array[int] = field(default_factory=lambda: array("q"))
    written: int = 0
    blocked_writes: int = 0
    complete: bool = False

    @property
    def kept_times(self) -> int:
        """How many times this may come to hold."""
        return 2 if self.ends_only else self.planned

    def note(self, t_ns: int, tokens: int = 1) -> None:
        """Note that tokens are written now."""
        self.written += tokens
        if self.ends_only and len(self.t_write_ns) == 2:
            self.t_write_ns[1] = t_ns
        else:
            self.t_write_ns.append(t_ns)

    def as_json(self) -> dict[str, Any]:
        """For ``GET /truth``."""
        return {
            "id": self.id,
            "client_id": self.client_id,
            "path": self.path,
            "planned": self.planned,
            "written": self.written,
            "ends_only": self.ends_only,
            "blocked_writes": self.blocked_writes,
            "complete": self.complete,
            "t_request_read_ns": self.t_request_read_ns,
            "t_write_ns": self.t_write_ns.tolist(),
        }

    @property
    def prompt_ns(self) -> int:
        """From the request to the first token."""
        return self.t_write_ns[0] - self.t_request_read_ns

    @property
    def decode_ns(self) -> int:
        """From the first token to the last."""
        return self.t_write_ns[-1] - self.t_write_ns[0]


class Dialect(ABC):
    """How one API writes an answer."""

    content_type = "text/event-stream"

    def __init__(self, model: str, truth: Truth) -> None:
        self.model = model
        self.truth = truth

    def frame(self, event: dict[str, Any]) -> bytes:
        """One event, as a chunk."""
        return chunk(b"data: " + dump(event) + b"\n\n")

    def opening(self) -> bytes:
        """What is sent at once, before any token."""
        return b""

    @abstractmethod
    def token(self, text: str) -> dict[str, Any]:
        """The event of one token."""

    @abstractmethod
    def closing(self) -> bytes:
        """What follows the last token."""

    @abstractmethod
    def whole(self, text: str) -> dict[str, Any]:
        """The answer for a client that does not want a stream."""


class OpenAI(Dialect):
    """What both APIs of OpenAI share."""

    kind = ""

    def __init__(self, model: str, truth: Truth, *, usage: bool) -> None:
        super().__init__(model, truth)
        self._usage = usage
        self._created = int(time.time())

    def closing(self) -> bytes:
        pieces = [self.frame(self._event([self._choice("", "length")]))]
        if self._usage:
            pieces.append(self.frame({**self._event([]), "usage": self._counts()}))
        return b"".join([*pieces, chunk(b"data: [DONE]\n\n")])

    def token(self, text: str) -> dict[str, Any]:
        return self._event([self._choice(text, None)])

    @abstractmethod
    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]: ...

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.truth.id,
            "object": self.kind,
            "created": self._created,
            "model": self.model,
            "choices": choices,
        }

    def _counts(self) -> dict[str, int]:
        prompt, completion = self.truth.prompt_tokens, self.truth.written
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class OpenAIChat(OpenAI):
    """``/v1/chat/completions``."""

    kind = "chat.completion.chunk"

    def opening(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self.frame(self._event([{"index": 0, "delta": delta, "finish_reason": None}]))

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}

    def whole(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        event = self._event([{"index": 0, "message": message, "finish_reason": "length"}])
        return {**event, "object": "chat.completion", "usage": self._counts()}


class OpenAICompletions(OpenAI):
    """``/v1/completions``."""

    kind = "text_completion"

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def whole(self, text: str) -> dict[str, Any]:
        return {**self._event([self._choice(text, "length")]), "usage": self._counts()}


class LlamaCpp(Dialect):
    """llama.cpp's ``/completion``."""

    def token(self, text: str) -> dict[str, Any]:
        return {"index": 0, "content": text, "tokens": [WORDS.index(text) + 1], "stop": False, "id_slot": 0}

    def closing(self) -> bytes:
        return self.frame(self.whole(""))

    def whole(self, text: str) -> dict[str, Any]:
        truth = self.truth
        prompt_ms, decode_ms = truth.prompt_ns / 1e6, truth.decode_ns / 1e6
        return {
            "index": 0,
            "content": text,
            "model": self.model,
            "stop": True,
            "stop_type": "limit",
            "tokens_predicted": truth.written,
            "tokens_evaluated": truth.prompt_tokens,
            "timings": {
                "cache_n": 0,
                "prompt_n": truth.prompt_tokens,
                "prompt_ms": prompt_ms,
                "prompt_per_second": 1e3 * truth.prompt_tokens / prompt_ms if prompt_ms else 0.0,
                "predicted_n": truth.written,
                "predicted_ms": decode_ms,
                "predicted_per_second": 1e3 * truth.written / decode_ms if decode_ms else 0.0,
            },
        }


class Ollama(Dialect):
    """``/api/generate`` and ``/api/chat``."""

    content_type = "application/x-ndjson"

    def __init__(self, model: str, truth: Truth, *, chat: bool) -> None:
        super().__init__(model, truth)
        self._chat = chat

    def frame(self, event: dict[str, Any]) -> bytes:
        return chunk(dump(event) + b"\n")

    def token(self, text: str) -> dict[str, Any]:
        answer = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"model": self.model, "created_at": created, **answer, "done": False}

    def closing(self) -> bytes:
        return self.frame(self.whole(""))

    def whole(self, text: str) -> dict[str, Any]:
        truth = self.truth
        return {
            **self.token(text),
            "done": True,
            "done_reason": "length",
            "total_duration": truth.prompt_ns + truth.decode_ns,
            "load_duration": 0,
            "prompt_eval_count": truth.prompt_tokens,
            "prompt_eval_duration": truth.prompt_ns,
            "eval_count": truth.written,
            "eval_duration": truth.decode_ns,
        }


class BadRequest(Exception):
    """Nothing that can be answered as asked: status line and message."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class Ask:
    """What a request for tokens asks for."""

    dialect: type[Dialect]
    options: dict[str, bool]
    model: str
    tokens: int
    prompt_tokens: int
    stream: bool


def read_ask(path: str, body: bytes) -> Ask:
    """Understand the body of a request for tokens.

    Raises:
        BadRequest: it can not be understood.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise BadRequest("400 Bad Request", "the body is not JSON") from exc
    if not isinstance(data, dict):
        raise BadRequest("400 Bad Request", "the body is no JSON object")
    kind, options, tokens = _dialect_of(path, data)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens > MAX_TOKENS:
        raise BadRequest("400 Bad Request", f"the number of tokens must be a whole number up to {MAX_TOKENS}")
    model = data.get("model")
    return Ask(
        kind,
        options,
        model if isinstance(model, str) and model else MODEL,
        tokens if tokens > 0 else DEFAULT_TOKENS,
        _count_words(data),
        stream=bool(data.get("stream", kind is Ollama)),
    )


def _dialect_of(path: str, data: dict[str, Any]) -> tuple[type[Dialect], dict[str, bool], Any]:
    if path == "/completion":
        return LlamaCpp, {}, data.get("n_predict") or DEFAULT_TOKENS
    if path in {"/api/generate", "/api/chat"}:
        limits = data.get("options")
        tokens = limits.get("num_predict") if isinstance(limits, dict) else None
        return Ollama, {"chat": path == "/api/chat"}, tokens or DEFAULT_TOKENS
    stream_options = data.get("stream_options")
    usage = isinstance(stream_options, dict) and bool(stream_options.get("include_usage"))
    kind = OpenAIChat if path == "/v1/chat/completions" else OpenAICompletions
    return kind, {"usage": usage}, data.get("max_completion_tokens") or data.get("max_tokens") or DEFAULT_TOKENS


def _count_words(data: dict[str, Any]) -> int:
    """Words stand for the tokens of a prompt; token ids count as they are."""
    prompt = data.get("prompt")
    if isinstance(prompt, list):
        return max(1, len(prompt))
    messages = data.get("messages")
    texts = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else [prompt]
    return max(1, sum(len(text.split()) for text in texts if isinstance(text, str)))


def dump(data: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(data, separators=(",", ":")).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of a body in chunked transfer."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def response(status: str, body: bytes, *extra: str, keep_alive: bool = True) -> bytes:
    """A whole JSON response."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *extra]
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


ASK_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/completion", "/api/generate", "/api/chat"})
