"""What several of the client's tests need: cutting streams, servers that answer as told, comparing with a catalogue."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.records import RequestRecord
from tests.servers.faulty import MODEL, Expected, Fault, ProtocolName, Turn, body_of, closing, done_mark, head, token
from tests.servers.scripted import chunk

# Examples may take as long as a busy machine makes them.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASK = Generation(max_tokens=4, prompt="Once")
KEY = "sk-not-to-be-told"
SECOND = 1_000_000_000
END = b"0\r\n\r\n"


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces, some of them empty."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


def endpoint(url: str, protocol: ProtocolName = "llama_cpp", **fields: Any) -> Endpoint:
    return Endpoint(url, protocol, **{"model": MODEL, **fields})


def deadlines_of(fault: Fault) -> Deadlines:
    return Deadlines(**dataclasses.asdict(fault.limits))


def differences(record: RequestRecord, expected: Expected) -> dict[str, Any]:
    """What a record says otherwise than the catalogue of faults expects."""
    facts: dict[str, Any] = {"error": expected.error, "reasoning": expected.reasoning}
    if expected.error is None or expected.output:
        facts["output"] = expected.output
    optional = ("output_tokens", "finish_reason", "response_model", "retries", "connection_reused")
    facts |= {name: getattr(expected, name) for name in optional if getattr(expected, name) is not None}
    if expected.tokens_unknown:
        facts |= {"output_tokens": None, "decode_tokens_per_second": None}
    if expected.pieces is not None:
        facts["chunks"] = expected.pieces
    wrong = {name: getattr(record, name) for name, value in facts.items() if getattr(record, name) != value}
    if expected.message not in (record.error_message or ""):
        wrong["error_message"] = record.error_message
    if tuple((call["name"], call["arguments"]) for call in record.tool_calls) != expected.tool_calls:
        wrong["tool_calls"] = record.tool_calls
    for name in ("ttft_seconds", "connect_seconds"):
        least = getattr(expected, name)
        if least and (getattr(record, name) or 0.0) < least - 1e-6:
            wrong[name] = getattr(record, name)
    return wrong


def answer(protocol: ProtocolName = "llama_cpp", *texts: str) -> bytes:
    """A whole response that counts."""
    pieces = texts or ("One", " two")
    events = [*(token(protocol, text) for text in pieces), *closing(protocol, len(pieces))]
    return head(protocol) + chunk(body_of(protocol, events) + body_of(protocol, done_mark(protocol))) + END


def turn(*steps: tuple[float, bytes], then: Any = "keep") -> Turn:
    return Turn(steps, then)


class AnsweringServer:
    """Calls ``answers(connection, number)`` for each request it has read, in a thread of the connection's own.

    Attributes:
        connections: how many were accepted.
    """

    def __init__(self, answers: Callable[[socket.socket, int], None]) -> None:
        self.connections = 0
        self.requests = 0
        self.stop = threading.Event()
        self._answers = answers
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(
        self, address: str = "127.0.0.1", port: int = 0, wrap: Callable[[socket.socket], socket.socket] | None = None
    ) -> Iterator[int]:
        """Listens while the context lasts; gives the port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, port), family=family, backlog=256) as listener:
            listener.settimeout(0.02)
            acceptor = threading.Thread(target=self._accept, args=(listener, wrap))
            acceptor.start()
            try:
                yield listener.getsockname()[1]
            finally:
                self.stop.set()
                for thread in [acceptor, *self._threads]:
                    thread.join(20)
            for thread in self._threads:  # those that came while the acceptor was waited for
                thread.join(20)
            assert not any(thread.is_alive() for thread in [acceptor, *self._threads])

    def _accept(self, listener: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None) -> None:
        while not self.stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            connection.settimeout(0.05)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection, wrap))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None) -> None:
        if wrap is not None:
            connection.settimeout(10)
            try:
                connection = wrap(connection)
            except OSError:  # the client does not trust us
                connection.close()
                return
            connection.settimeout(0.05)
        with connection, suppress(OSError):  # the client has gone
            while self._read(connection):
                with self._lock:
                    number = self.requests
                    self.requests += 1
                self._answers(connection, number)

    def _read(self, connection: socket.socket) -> bool:
        request = b""
        while not self.stop.is_set():
            try:
                data = connection.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return False
            request += data
            top, separator, body = request.partition(b"\r\n\r\n")
            lengths = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if separator and len(body) >= int(lengths[0].partition(b":")[2]):
                return True
        return False
