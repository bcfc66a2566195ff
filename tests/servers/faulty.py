"""Everything that goes wrong between a streaming client and a model server, by name, with what is to come of it.

``FAULTS`` maps a name to a :class:`Fault`: what the server does with each request it reads, how patient the client is
to be, and what its record has to say. :class:`FaultyServer` plays one::

    fault = FAULTS["openai_chat: stalls in the middle"]
    with FaultyServer(fault) as server:
        ...  # send fault.requests requests in turn, over one client; the last one's record must be fault.expected

Names begin with the protocol that the client is to speak. What does not depend on a protocol is there for each.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from tests.servers.scripted import Step, chunk, http_response

ProtocolName = Literal["llama_cpp", "openai_chat", "openai_completions", "ollama_generate", "ollama_chat"]
PROTOCOLS: tuple[ProtocolName, ...] = (
    "llama_cpp",
    "openai_chat",
    "openai_completions",
    "ollama_generate",
    "ollama_chat",
)
OPENAI: tuple[ProtocolName, ...] = ("openai_chat", "openai_completions")
SSE: tuple[ProtocolName, ...] = ("llama_cpp", *OPENAI)
OLLAMA: tuple[ProtocolName, ...] = ("ollama_generate", "ollama_chat")

MODEL = "tiny"
IMPATIENT = 0.3  # seconds: the limit that a fault is to run into
PAUSE = 0.05  # seconds: what an answer that is only slow takes
_HANG_SECONDS = 60.0
_FLOOD_SECONDS = 20.0
_POLL_SECONDS = 0.02

Then = Literal["close", "reset", "hang", "flood", "keep"]


@dataclass(frozen=True)
class Turn:
    """What the server does with one request it has read.

    Attributes:
        steps: pairs of a pause in seconds and the bytes to send after it.
        then: close; TCP reset; silence while connected; the last bytes again and again; or keep the connection and
            read the next request from it.
    """

    steps: tuple[Step, ...] = ()
    then: Then = "close"


@dataclass(frozen=True)
class Limits:
    """How patient the client is to be, in seconds; the names are those of its deadlines."""

    connect: float = 10.0
    first_token: float = 20.0
    gap: float = 20.0
    whole: float = 60.0


@dataclass(frozen=True)
class Expected:
    """What the record of the last request has to say. None in ``output_tokens`` and after: not looked at.

    Attributes:
        error: its code; None for an answer that counts.
        message: what the error's message contains.
        output: the text, also what had come before an error.
        pieces: non-empty pieces of text, reasoning and tool calls.
        ttft_seconds: the least time to the first token.
        connect_seconds: the least time until connected.
    """

    error: str | None = None
    message: str = ""
    output: str = ""
    reasoning: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()
    pieces: int | None = None
    output_tokens: int | None = None
    tokens_unknown: bool = False
    finish_reason: str | None = None
    response_model: str | None = None
    retries: int | None = None
    connection_reused: bool | None = None
    ttft_seconds: float = 0.0
    connect_seconds: float = 0.0


@dataclass(frozen=True)
class Fault:
    """One way to go wrong, or to be right in an unusual way.

    Attributes:
        turns: for each request that arrives, on whichever connection; the last one is repeated.
        requests: how many the client is to send, one after the other.
        accepts: connections are taken, refused, taken late (by ``LATE_SECONDS``), or left waiting. The last two need
            Linux: they fill the queue of connections that wait to be accepted.
    """

    protocol: ProtocolName
    turns: tuple[Turn, ...]
    expected: Expected
    requests: int = 1
    limits: Limits = field(default_factory=Limits)
    accepts: Literal["at once", "refused", "late", "never"] = "at once"

    @property
    def linux_only(self) -> bool:
        """Whether other systems can not play it."""
        return self.accepts in {"late", "never"}


LATE_SECONDS = 0.5  # a connection then succeeds at the kernel's next try, one second after its first


class FaultyServer:
    """Use as a context manager. Every connection has a thread; all are joined at the end.

    Attributes:
        requests: what arrived, in order.
        connections: how many were accepted.
    """

    def __init__(self, fault: Fault) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._fault = fault
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> FaultyServer:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        accepts = self._fault.accepts
        if accepts == "refused":  # bound, so that nobody else gets the port, but nothing listens
            return self
        self._listener.listen(0 if self._fault.linux_only else 64)
        self._listener.settimeout(_POLL_SECONDS)
        if self._fault.linux_only:
            self._fill_queue()
        if accepts != "never":
            self._start(self._accept, "faulty server")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:  # the acceptor comes first, so none is added meanwhile
            thread.join(10)
        for filler in self._fillers:
            filler.close()
        self._listener.close()
        assert not any(thread.is_alive() for thread in self._threads)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _fill_queue(self) -> None:
        """Connect until the kernel has no room for another that waits to be accepted."""
        for _ in range(16):
            filler = socket.socket()
            self._fillers.append(filler)
            filler.settimeout(0.05)
            try:
                filler.connect(self._listener.getsockname())
            except TimeoutError:
                return
        raise AssertionError("the queue of connections does not fill up on this system")

    def _accept(self, name: str) -> None:
        if self._fault.accepts == "late":
            if self._stop.wait(LATE_SECONDS):
                return
            for filler in self._fillers:
                filler.close()
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            connection.settimeout(_POLL_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone, as some tests want it to
            while (request := self._read(connection)) is not None:
                with self._lock:
                    turn = self._fault.turns[min(len(self.requests), len(self._fault.turns) - 1)]
                    self.requests.append(request)
                self._play(connection, turn)
                if turn.then != "keep":
                    return

    def _read(self, connection: socket.socket) -> bytes | None:
        """The next request, or None when there will be none."""
        request = b""
        while not self._stop.is_set():
            try:
                data = connection.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return None
            request += data
            head, separator, body = request.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
            if separator and len(body) >= sum(lengths):
                return request
        return None

    def _play(self, connection: socket.socket, turn: Turn) -> None:
        for pause, data in turn.steps:
            if pause and self._stop.wait(pause):
                return
            self._send(connection, data, time.monotonic() + _HANG_SECONDS)
        if turn.then == "hang":
            self._hang(connection)
        elif turn.then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif turn.then == "flood":
            deadline = time.monotonic() + _FLOOD_SECONDS
            while time.monotonic() < deadline and not self._stop.is_set():
                self._send(connection, turn.steps[-1][1], deadline)

    def _send(self, connection: socket.socket, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest and time.monotonic() < deadline and not self._stop.is_set():
            with suppress(TimeoutError):
                rest = rest[connection.send(rest) :]

    def _hang(self, connection: socket.socket) -> None:
        """Say nothing until the client leaves."""
        deadline = time.monotonic() + _HANG_SECONDS
        while time.monotonic() < deadline and not self._stop.is_set():
            with suppress(TimeoutError):
                if not connection.recv(65536):
                    return


# What servers say when all is well.

Event = dict[str, Any]


def opening(protocol: ProtocolName) -> list[Event]:
    """Events before the first token."""
    return [chat_delta(role="assistant", content="")] if protocol == "openai_chat" else []


def chat_delta(finish_reason: str | None = None, model: str = MODEL, **delta: Any) -> Event:
    """An event of a chat."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-7", "object": "chat.completion.chunk", "model": model, "choices": [choice]}


def completion_piece(text: str, finish_reason: str | None = None, model: str = MODEL) -> Event:
    """An event of a completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "cmpl-7", "object": "text_completion", "model": model, "choices": [choice]}


def ollama_message(protocol: ProtocolName, text: str, model: str = MODEL, **more: Any) -> Event:
    """A line of Ollama's; for chat, ``more`` goes into the message."""
    start = {"model": model, "created_at": "2026-01-02T03:04:05.678901234Z"}
    if protocol == "ollama_chat":
        return {**start, "message": {"role": "assistant", "content": text, **more}, "done": False}
    return {**start, "response": text, **more, "done": False}


def token(protocol: ProtocolName, text: str, model: str = MODEL) -> Event:
    """The event of one piece of text."""
    if protocol == "llama_cpp":
        return {"index": 0, "content": text, "tokens": [], "stop": False, "id_slot": 0}
    if protocol == "openai_chat":
        return chat_delta(content=text, model=model)
    if protocol == "openai_completions":
        return completion_piece(text, model=model)
    return ollama_message(protocol, text, model)


def usage(tokens: int) -> Event:
    """OpenAI's counts."""
    return {"usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}}


def closing(protocol: ProtocolName, tokens: int, model: str = MODEL, *, reason: str = "length") -> list[Event]:
    """Events after the last token, without ``[DONE]``, which is none."""
    if protocol == "llama_cpp":
        timings = {"cache_n": 0, "prompt_n": 7, "prompt_ms": 1.5, "predicted_n": tokens, "predicted_ms": 1.5}
        ended = {"content": "", "stop": True, "stop_type": "limit", "model": model, "tokens_evaluated": 7}
        return [{**ended, "timings": timings}]
    if protocol == "openai_chat":
        return [chat_delta(reason, model), {**chat_delta(model=model), "choices": [], **usage(tokens)}]
    if protocol == "openai_completions":
        return [
            completion_piece("", reason, model),
            {**completion_piece("", model=model), "choices": [], **usage(tokens)},
        ]
    counts = {"total_duration": 9, "load_duration": 1, "prompt_eval_count": 7, "prompt_eval_duration": 1}
    last = {**ollama_message(protocol, "", model), "done": True, "done_reason": reason}
    return [{**last, **counts, "eval_count": tokens, "eval_duration": 7}]


def framed(protocol: ProtocolName, event: Event | bytes) -> bytes:
    """An event as it goes into the body."""
    data = event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode()
    return data + b"\n" if protocol in OLLAMA else b"data: " + data + b"\n\n"


def done_mark(protocol: ProtocolName) -> list[bytes]:
    return [b"[DONE]"] if protocol in OPENAI else []


def head(protocol: ProtocolName, *lines: str, status: str = "200 OK") -> bytes:
    """The header of a stream, chunked unless ``lines`` say otherwise."""
    kind = "application/x-ndjson" if protocol in OLLAMA else "text/event-stream"
    if not any(line.startswith(("Transfer-Encoding", "Content-Length", "Connection: close")) for line in lines):
        lines = ("Transfer-Encoding: chunked", *lines)
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lines, "", ""]).encode()


END = b"0\r\n\r\n"
TEXTS = ("One", " two", " three")


def events_of(protocol: ProtocolName, texts: Sequence[str] = TEXTS, tokens: int | None = None) -> list[Event | bytes]:
    """The events of a whole answer."""
    count = len(texts) if tokens is None else tokens
    pieces = [token(protocol, text) for text in texts]
    return [*opening(protocol), *pieces, *closing(protocol, count), *done_mark(protocol)]


def body_of(protocol: ProtocolName, events: Iterable[Event | bytes]) -> bytes:
    return b"".join(framed(protocol, event) for event in events)


def stream(
    protocol: ProtocolName, *groups: Iterable[Event] | Iterable[bytes] | Iterable[Event | bytes], pause: float = 0.0
) -> Turn:
    """A well-formed stream of these events, a chunk each, then the connection stays open for another request."""
    events = [event for group in groups for event in group]
    pieces: list[Step] = [(pause, chunk(framed(protocol, event))) for event in events]
    return Turn(((0.0, head(protocol)), *pieces, (0.0, END)), then="keep")


def good_answer(protocol: ProtocolName) -> Turn:
    return stream(protocol, events_of(protocol))


def good(output: str = "".join(TEXTS), *, tokens: int = 3, **more: Any) -> Expected:
    """An answer that counts, like the one of :func:`good_answer` in all that is not given."""
    facts = {"pieces": tokens, "output_tokens": tokens, "finish_reason": "length", "response_model": MODEL, **more}
    return Expected(output=output, **facts)


# The catalogue.

NamedFaults = Iterator[tuple[str, Fault]]


def _connections(p: ProtocolName) -> NamedFaults:
    """Connections that fail, hang, or are lost between requests."""
    answer, lost = good_answer(p), Expected("connection_lost", retries=2)
    yield "refused", Fault(p, (), Expected("connection_refused"), accepts="refused")
    never = Limits(connect=IMPATIENT)
    yield "connects never", Fault(p, (), Expected("connect_timeout"), limits=never, accepts="never")
    yield "connects late", Fault(p, (answer,), good(connect_seconds=LATE_SECONDS), accepts="late")
    silent = Turn(then="hang")
    short = Limits(first_token=IMPATIENT)
    yield "says nothing", Fault(p, (silent,), Expected("first_token_timeout"), limits=short)
    header_only = Turn(((0.0, head(p)),), then="hang")
    yield "sends a header and nothing else", Fault(p, (header_only,), Expected("first_token_timeout"), limits=short)
    begins = [(0.0, head(p)), (0.0, chunk(body_of(p, [*opening(p), token(p, "One")])))]
    stalls = Turn(tuple(begins), then="hang")
    stalled = Expected("stream_stalled", output="One", pieces=1)
    yield "stalls in the middle", Fault(p, (stalls,), stalled, limits=Limits(gap=IMPATIENT))
    crawls = stream(p, [*opening(p), *[token(p, "a")] * 1000], pause=PAUSE)
    yield "is never done", Fault(p, (crawls,), Expected("request_timeout"), limits=Limits(gap=5, whole=2 * IMPATIENT))
    yield "slow, but within the limits", Fault(p, (stream(p, events_of(p), pause=PAUSE),), good(ttft_seconds=PAUSE))
    yield "resets before a byte", Fault(p, (Turn(then="reset"),), lost)
    yield "closes before a byte", Fault(p, (Turn(),), lost)
    yield "drops the first request", Fault(p, (Turn(), answer), good(retries=1))
    yield "resets the first request", Fault(p, (Turn(then="reset"), answer), good(retries=1))
    idle = Turn(answer.steps, then="close")
    yield "closes a kept connection after the answer", Fault(p, (idle, answer), good(), requests=2)
    # The request crosses the server's closing of the connection, which the client can not have seen.
    crossed = good(retries=1, connection_reused=False)
    yield "closes a kept connection under a request", Fault(p, (answer, Turn(), answer), crossed, requests=2)
    yield (
        "resets a kept connection under a request",
        Fault(p, (answer, Turn(then="reset"), answer), crossed, requests=2),
    )
    yield "keeps the connection", Fault(p, (answer,), good(retries=0, connection_reused=True), requests=2)
    torn = [(0.0, head(p)), (0.0, chunk(framed(p, token(p, "One")))), (PAUSE, b"ff\r\ndata: {")]
    broken = Expected("stream_truncated", output="One", pieces=1)
    yield "closes inside a chunk", Fault(p, (Turn(tuple(torn)),), broken)
    reset = Turn((*torn, (PAUSE, b"")), then="reset")
    yield "resets inside a chunk", Fault(p, (reset,), broken)
    yield (
        "endless header",
        Fault(p, (Turn(((0.0, b"HTTP/1.1 200 OK\r\n"), (0.0, b"X-More: of the same\r\n" * 500)), "flood"),), _bad()),
    )
    prefix = b"" if p in OLLAMA else b"data: "
    endless = Turn(((0.0, head(p)), (0.0, chunk(prefix + b'{"a": "')), (0.0, chunk(b"a" * 200_000))), "flood")
    yield "endless event", Fault(p, (endless,), _bad())


def _bad(**more: Any) -> Expected:
    return Expected("bad_response", **more)


def _endings(p: ProtocolName) -> NamedFaults:
    """Streams that end too early, or say little."""
    pieces = [*opening(p), *(token(p, text) for text in TEXTS)]
    cut = Expected("stream_truncated", output="".join(TEXTS), pieces=3)
    yield "no final event", Fault(p, (stream(p, pieces),), cut)
    yield "nothing but the header", Fault(p, (stream(p, []),), _bad())
    empty = Expected("empty_answer", pieces=0)
    yield "empty answer", Fault(p, (stream(p, events_of(p, (), 0)),), empty)
    blank = Expected("empty_answer", output=" \n\t\n", pieces=2)
    yield "white space for an answer", Fault(p, (stream(p, events_of(p, (" \n", "\t\n"))),), blank)
    event = b'{"content": "One", ' if p in SSE else b'{"response": "One", '
    yield "an event that is not JSON", Fault(p, (stream(p, [*opening(p), token(p, "One"), event]),), _bad(output="One"))
    yield "an event that is no object", Fault(p, (stream(p, [b'["One"]']),), _bad())
    infinite = b'{"content": 1e999, "response": NaN}'
    yield "an event with no finite number", Fault(p, (stream(p, [infinite]),), _bad())
    texts = ("", "One", "", "", " two", " three", "")
    yield "empty pieces", Fault(p, (stream(p, events_of(p, texts, 3)),), good())
    yield (
        "several tokens a piece",
        Fault(p, (stream(p, events_of(p, ("One two", " three"), 3)),), good(pieces=2, output_tokens=3)),
    )
    if p != "llama_cpp":
        renamed = [token(p, text, "another") for text in TEXTS]
        answer = stream(p, [*renamed, *closing(p, 3, "another"), *done_mark(p)])
    else:  # tells its name at the end
        answer = stream(p, [*(token(p, text) for text in TEXTS), *closing(p, 3, "another")])
    yield "another model answers", Fault(p, (answer,), good(response_model="another"))


def _framing(p: ProtocolName) -> NamedFaults:
    """The same answer, cut, packed and decorated in other ways."""
    events = events_of(p)
    body = body_of(p, events)
    yield "all in one write", Fault(p, (Turn(((0.0, head(p) + chunk(body) + END),), "keep"),), good())
    wide = ("ä", " €", " 😀")
    wire = b"".join(chunk(framed(p, event)) for event in events_of(p, wide)) + END
    each = tuple((0.0005, bytes([byte])) for byte in head(p) + wire)
    yield "a write for every byte", Fault(p, (Turn(each, "keep"),), good("".join(wide)))
    chunks = b"".join(chunk(bytes([byte])) for byte in body_of(p, events_of(p, wide)))
    yield "a chunk for every byte", Fault(p, (Turn(((0.0, head(p) + chunks + END),), "keep"),), good("".join(wide)))
    packed = gzip.compress(body, mtime=0)
    zipped = Turn(
        ((0.0, head(p, "Content-Encoding: gzip")), (0.0, chunk(packed[:9])), (PAUSE, chunk(packed[9:]) + END))
    )
    yield "gzip", Fault(p, (zipped,), good())
    brotli = Turn(((0.0, head(p, "Content-Encoding: br")), (0.0, chunk(b"\x8b\x03\x80") + END)))
    yield "an encoding that is not spoken", Fault(p, (brotli,), Expected("unsupported_encoding"))
    closed = Turn(((0.0, head(p, "Connection: close")), (0.0, body)))
    yield "no length, ended by closing", Fault(p, (closed,), good())
    sized = Turn(((0.0, head(p, f"Content-Length: {len(body)}") + body),), "keep")
    yield "with a length", Fault(p, (sized,), good())
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    yield "interim responses", Fault(p, (Turn(((0.0, early), *good_answer(p).steps), "keep"),), good())
    extended = b"".join(b"%x;q=1\r\n%b\r\n" % (len(data), data) for data in (framed(p, event) for event in events))
    trailer = Turn(((0.0, head(p)), (0.0, extended + b"0\r\nX-Checksum: 7\r\n\r\n")), "keep")
    yield "chunk extensions and trailers", Fault(p, (trailer,), good())
    lingers = Turn(((0.0, head(p)), (0.0, chunk(body))), "hang")
    yield "all events, but no end of the message", Fault(p, (lingers,), good())
    crlf = b"\r\n" if p in OLLAMA else b"\r\n\r\n"
    lines = body.replace(b"\n" if p in OLLAMA else b"\n\n", crlf)
    yield "lines end in CR LF", Fault(p, (_in_one_chunk(p, lines),), good())
    if p in OLLAMA:
        yield "last line without its end", Fault(p, (_in_one_chunk(p, body.removesuffix(b"\n")),), good())
        yield "empty lines", Fault(p, (_in_one_chunk(p, body.replace(b"\n", b"\n\n")),), good())
        typed = Turn(((0.0, head(p).replace(b"x-ndjson", b"json")), (0.0, chunk(body) + END)), "keep")
        yield "lines under application/json", Fault(p, (typed,), good())
        return
    yield "no space after the colon", Fault(p, (_in_one_chunk(p, body.replace(b"data: ", b"data:")),), good())
    fields = b": ping\n\n:\nevent: message\nid: 5\nretry: 100\ndata: "
    decorated = body.replace(b"data: ", fields)
    yield "comments and other fields", Fault(p, (_in_one_chunk(p, decorated),), good())
    pings = [(PAUSE, chunk(b": keep-alive\n\n"))] * 3
    waits = Turn(((0.0, head(p)), *pings, (0.0, chunk(body) + END)), "keep")
    yield "comments before the first token", Fault(p, (waits,), good(ttft_seconds=3 * PAUSE))
    begun = Turn(((0.0, head(p)), *[(PAUSE, chunk(b": keep-alive\n\n"))] * 200), "hang")
    yield (
        "comments and nothing else",
        Fault(p, (begun,), Expected("first_token_timeout"), limits=Limits(first_token=IMPATIENT)),
    )
    text = json.dumps(token(p, "One"), indent=1)
    spread = "".join(f"data: {line}\n" for line in text.splitlines()).encode() + b"\n"
    rest = body_of(p, [token(p, " two"), token(p, " three"), *closing(p, 3), *done_mark(p)])
    yield "an event of several data lines", Fault(p, (_in_one_chunk(p, spread + rest),), good())


def _in_one_chunk(p: ProtocolName, body: bytes) -> Turn:
    return Turn(((0.0, head(p)), (0.0, chunk(body) + END)), "keep")


def _refusals(p: ProtocolName) -> NamedFaults:
    """Errors as servers word them, under an honest status or under 200."""

    def body(message: str, kind: str, status: int) -> bytes:
        if p in OLLAMA:
            return json.dumps({"error": message}).encode()
        return json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()

    for status, reason, message, kind, code in (
        (400, "Bad Request", "'messages' is required", "invalid_request_error", "http_error"),
        (401, "Unauthorized", "Invalid API Key", "authentication_error", "wrong_key"),
        (403, "Forbidden", "not for you", "permission_error", "wrong_key"),
        (404, "Not Found", "File Not Found", "not_found_error", "not_found"),
        (429, "Too Many Requests", "rate limit reached", "rate_limit_error", "server_busy"),
        (500, "Internal Server Error", "the engine core died", "server_error", "http_error"),
        (503, "Service Unavailable", "Loading model", "unavailable_error", "server_busy"),
    ):
        answer = http_response(f"{status} {reason}", "application/json", body(message, kind, status))
        yield f"HTTP {status}", Fault(p, (Turn(((0.0, answer),), "keep"),), Expected(code, message))
    missing = http_response("404 Not Found", "application/json", body("model 'tiny' not found", "not_found_error", 404))
    yield "HTTP 404, model missing", Fault(p, (Turn(((0.0, missing),), "keep"),), Expected("model_missing", "tiny"))
    bare = http_response("502 Bad Gateway", "text/html", b"<html><h1>502 Bad Gateway</h1></html>")
    yield "HTTP 502 from a proxy", Fault(p, (Turn(((0.0, bare),)),), Expected("http_error", "502"))
    silent = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
    yield "HTTP 500 without a word", Fault(p, (Turn(((0.0, silent),)),), Expected("http_error", "without a message"))
    cut = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 500\r\n\r\nthe engine"
    yield "HTTP 500, cut off", Fault(p, (Turn(((0.0, cut),)),), Expected("http_error", "the engine"))
    moved = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    yield "HTTP 307", Fault(p, (Turn(((0.0, moved),)),), Expected("http_error", "307"))
    page = http_response("200 OK", "text/html; charset=utf-8", b"<!doctype html><title>Router</title>")
    yield "a web page", Fault(p, (Turn(((0.0, page),)),), Expected("not_an_llm_server"))
    other = http_response("200 OK", "application/json", b'{"status": "ok"}')
    yield "some other JSON", Fault(p, (Turn(((0.0, other),)),), _bad())
    yield "not HTTP", Fault(p, (Turn(((0.0, b"SSH-2.0-OpenSSH_9.9\r\n"),)),), _bad())
    under_200 = http_response("200 OK", "application/json", body("out of memory", "server_error", 500))
    told = Expected("server_error_event", "out of memory")
    yield "an error under 200", Fault(p, (Turn(((0.0, under_200),), "keep"),), told)
    event = body("out of memory", "server_error", 500)
    begun = Expected("server_error_event", "out of memory", output="One", pieces=1)
    yield "an error in the stream", Fault(p, (stream(p, [*opening(p), token(p, "One"), event]),), begun)
    yield "an error as first event", Fault(p, (stream(p, [event, *done_mark(p)]),), told)
    if p in SSE:
        named = Turn(((0.0, head(p)), (0.0, chunk(b"event: error\ndata: " + event + b"\n\n") + END)))
        yield "an event named error", Fault(p, (named,), told)
    if p in OPENAI:
        plain = b'{"error": "out of memory"}'
        yield "an error that is a mere text", Fault(p, (stream(p, [plain]),), told)
        null = [{**token(p, text), "error": None} for text in TEXTS]
        yield "no error, said each time", Fault(p, (stream(p, [*null, *closing(p, 3), *done_mark(p)]),), good())
    if p == "llama_cpp":
        details = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
        long = json.dumps({"error": {**details, "n_prompt_tokens": 900, "n_ctx": 512}}).encode()
        refusal = http_response("400 Bad Request", "application/json", long)
        yield "HTTP 400, prompt too long", Fault(p, (Turn(((0.0, refusal),)),), Expected("prompt_too_long", "too long"))
    yield "the answer in one piece", Fault(p, (Turn(((0.0, _whole(p)),), "keep"),), Expected("not_streamed"))


def _whole(p: ProtocolName) -> bytes:
    text = "".join(TEXTS)
    if p == "openai_chat":
        choice: Event = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        whole = {"id": "chatcmpl-7", "object": "chat.completion", "model": MODEL, "choices": [choice], **usage(3)}
    elif p == "openai_completions":
        whole = {**completion_piece(text, "stop"), **usage(3)}
    elif p == "llama_cpp":
        whole = {**closing(p, 3)[0], "content": text}
    elif p == "ollama_chat":
        whole = {**closing(p, 3)[0], "message": {"role": "assistant", "content": text}}
    else:
        whole = {**closing(p, 3)[0], "response": text}
    return http_response("200 OK", "application/json; charset=utf-8", json.dumps(whole).encode())


def _openai(p: ProtocolName) -> NamedFaults:
    """What OpenAI's API leaves open, and servers fill in differently."""
    pieces, last, done = [token(p, text) for text in TEXTS], closing(p, 3), done_mark(p)
    yield "no [DONE]", Fault(p, (stream(p, pieces, last),), good())
    uncounted = Expected(output="".join(TEXTS), pieces=3, tokens_unknown=True, finish_reason="length")
    yield "no usage", Fault(p, (stream(p, pieces, last[:1], done),), uncounted)
    yield "usage in the last piece", Fault(p, (stream(p, pieces, [{**last[0], **usage(3)}], done),), good())
    running = [{**piece, **usage(number)} for number, piece in enumerate(pieces, start=1)]
    yield "usage in every piece", Fault(p, (stream(p, running, last, done),), good())
    nothing = [{**piece, "usage": None} for piece in pieces]
    yield "usage null until the end", Fault(p, (stream(p, nothing, last, done),), good())
    first = {**last[1], "usage": None}
    yield "no choices in the first event", Fault(p, (stream(p, [first], pieces, last, done),), good())
    yield "events after [DONE]", Fault(p, (stream(p, pieces, last, done, [token(p, " stray")]),), good())


def _chat(p: ProtocolName) -> NamedFaults:
    """What only a chat has: roles, reasoning, tool calls."""
    silent = Expected("empty_answer", reasoning="Hm. So.", pieces=2)
    texts, arguments = [token(p, text) for text in TEXTS], '{"city": "Rome"}'
    if p == "ollama_chat":
        thoughts = {"thinking": [ollama_message(p, "", thinking=text) for text in ("Hm.", " So.")]}
        called = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]
        calls = [ollama_message(p, "", tool_calls=called)]
        reason, pieces = "stop", 1
    else:
        deltas: list[Event] = [
            {},
            {"role": "assistant"},
            {"role": "assistant", "content": None},
            {"content": ""},
            {"content": None},
        ]
        bare = [chat_delta(**delta) for delta in deltas]
        wordless = stream(p, bare, texts, bare[:1], closing(p, 3), done_mark(p), pause=PAUSE)
        yield "role-only and empty deltas", Fault(p, (wordless,), good(ttft_seconds=5 * PAUSE))
        names = ("reasoning_content", "reasoning")
        thoughts = {name: [chat_delta(**{name: text}, content=None) for text in ("Hm.", " So.")] for name in names}
        start = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}}
        parts = [{"index": 0, "function": {"arguments": text}} for text in ('{"city"', ': "Rome"}')]
        calls = [chat_delta(tool_calls=[call]) for call in (start, *parts)]
        reason, pieces = "tool_calls", 3
        none: Event = {"tool_calls": None, "function_call": None, "refusal": None, "audio": None}
        nulls = [chat_delta(content=text, reasoning_content=None, **none) for text in TEXTS]
        yield "null for all that is not there", Fault(p, (stream(p, nulls, closing(p, 3), done_mark(p)),), good())
    for name, thinking in thoughts.items():
        told = good(tokens=5, reasoning="Hm. So.")
        answer = stream(p, opening(p), thinking, texts, closing(p, 5), done_mark(p))
        yield f"{name} before the answer", Fault(p, (answer,), told)
        only = stream(p, opening(p), thinking, closing(p, 2), done_mark(p))
        yield f"{name} and no answer", Fault(p, (only,), silent)
    call = good("", pieces=pieces, tool_calls=(("weather", arguments),), finish_reason=reason)
    yield "a tool call", Fault(p, (stream(p, opening(p), calls, closing(p, 3, reason=reason), done_mark(p)),), call)


def _catalogue() -> NamedFaults:
    for protocol in PROTOCOLS:
        kinds = [_connections, _endings, _framing, _refusals]
        kinds += [_openai] if protocol in OPENAI else []
        kinds += [_chat] if protocol in {"openai_chat", "ollama_chat"} else []
        for kind in kinds:
            for name, fault in kind(protocol):
                yield f"{protocol}: {name}", fault


FAULTS: dict[str, Fault] = dict(_catalogue())
